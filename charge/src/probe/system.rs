//! The kernel's version and this process' privileges.

use std::fs;

use nix::sys::utsname::uname;

use super::{Answer, Capability, capability};

/// `CAP_SYS_ADMIN`, `CAP_SYS_NICE`: their bits.
const SYS_ADMIN: u32 = 21;
const SYS_NICE: u32 = 23;

pub(super) fn probe() -> Vec<Capability> {
    let release = uname().map_or_else(
        |_| String::new(),
        |u| u.release().to_string_lossy().into_owned(),
    );
    let held = fs::read_to_string("/proc/self/status")
        .ok()
        .as_deref()
        .and_then(effective);
    let has = |bit: u32| match held {
        Some(held) if held & (1 << bit) != 0 => (Answer::Yes, "held"),
        Some(_) => (Answer::No, "not held"),
        None => (Answer::Unknown, "/proc/self/status cannot be read"),
    };
    let (admin, nice) = (has(SYS_ADMIN), has(SYS_NICE));
    vec![
        capability(
            "kernel",
            match version(&release) {
                Some(version) if version >= (6, 1) => Answer::Yes,
                Some(_) => Answer::No,
                None => Answer::Unknown,
            },
            format!("Linux {release}"),
            [
                "",
                "Bills need Linux 6.1, and are best from 6.12 on",
                "Its version cannot be read",
            ],
        ),
        capability(
            "cap-sys-admin",
            admin.0,
            admin.1,
            [
                "",
                "Page owners stay hidden and nothing can be mounted: fine for clients and payers, not for surveys",
                "",
            ],
        ),
        capability(
            "cap-sys-nice",
            nice.0,
            nice.1,
            [
                "",
                "Bills move only through a payer in the paying pod, which is how Vineyard does it anyway",
                "",
            ],
        ),
    ]
}

fn effective(status: &str) -> Option<u64> {
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_whatever_follows_them() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("7.3-rc1"), Some((7, 3)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn effective_capabilities_are_hexadecimal() {
        assert_eq!(
            effective("CapPrm:\t00\nCapEff:\t0000000000a00000\n"),
            Some(0xa0_0000)
        );
        assert_eq!(effective("CapEff:\tnone"), None);
    }
}
