//! The kernel and what it lets this user do.

use vineyard_charge::cgroup::{Hierarchy, Version};
use vineyard_charge::survey::Surveyor;

use super::Check;

const AREA: &str = "kernel";

/// Checks the kernel.
pub(crate) fn checks() -> Vec<Check> {
    vec![release(), hierarchy(), survey()]
}

fn release() -> Check {
    let release = match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(errno) => {
            return Check::note(AREA, format!("uname: {errno}"), "Its version is not known.");
        }
    };
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 1) {
        return Check::problem(
            AREA,
            format!("Linux {release}"),
            "Linux 6.1 or newer is needed.",
        );
    }
    Check::ok(AREA, format!("Linux {release}"))
}

fn hierarchy() -> Check {
    match Hierarchy::detect() {
        Ok(hierarchy) => {
            let version = match hierarchy.version {
                Version::V1 => 1,
                Version::V2 => 2,
            };
            Check::ok(
                AREA,
                format!(
                    "memory cgroups of version {version} at {}",
                    hierarchy.mount.display()
                ),
            )
        }
        Err(error) => Check::problem(
            AREA,
            error.to_string(),
            "Nobody can be billed without the memory controller.",
        ),
    }
}

fn survey() -> Check {
    match Surveyor::open() {
        Ok(_) => Check::ok(AREA, "who is charged for a page can be read"),
        Err(error) => Check::note(
            AREA,
            error.to_string(),
            "charges, recharge and the bills of top need root on the node.",
        ),
    }
}
