//! What this machine must allow for the tests that make cgroups, mounts and processes of other users.

use nix::unistd::Uid;

use crate::cgroups;

/// Why these tests cannot run here; `None` when they can.
#[must_use]
pub fn missing() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("not root: no mounts, cgroups and other users".into());
    }
    if let Err(error) = cgroups::base() {
        return Some(format!("no writable memory cgroup: {error:#}"));
    }
    None
}

/// Returns from the test, and says why, when the machine does not allow it.
#[macro_export]
macro_rules! skip_unless_possible {
    () => {
        if let Some(why) = $crate::requirements::missing() {
            eprintln!("skipped: {why}");
            return Ok(());
        }
        // Here, because it takes longer than any step may.
        $crate::binaries::sidecar()?;
    };
}
