//! It runs as nobody, without capabilities, on a read-only root.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use vineyard_proto::payer::reply::Body as Reply;

use crate::harness::{Sidecar, Volume, allocated};

/// `$1…` as uid 65534, with nothing but the tmpfs mounts writable.
const CONFINED: &str = "mount -o remount,bind,ro / && exec setpriv --reuid 65534 --regid 65534 \
                        --clear-groups --bounding-set -all --no-new-privs \"$@\"";

fn confined(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            CONFINED,
            "sh",
        ])
        .arg(program);
    command
}

#[test]
fn nobody_without_capabilities_on_a_read_only_root_serves_root_and_itself() {
    let probe = confined(Sidecar::BINARY)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: cannot confine a process here");
    }
    let volume = Volume::shared();
    fs::set_permissions(volume.side(), Permissions::from_mode(0o777)).unwrap();
    let state = volume.side().join("spent");
    let flags = ["--state-file", state.to_str().unwrap()];
    let sidecar = Sidecar::spawn(confined(Sidecar::BINARY), &volume, &flags);
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    for line in ["Uid:\t65534\t65534", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
    let mut client = sidecar.client();
    for bytes in [4096, 5 << 20] {
        let file = volume.file();
        let reply = client.reserve(&[&file], bytes);
        assert!(matches!(reply, Reply::Reserved(_)), "{reply:?}");
        assert_eq!(allocated(&file), bytes);
    }
    assert!(
        fs::read_to_string(&state)
            .unwrap()
            .contains("\nspent 16777216\n")
    );
}
