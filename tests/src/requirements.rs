//! What this machine must allow for the tests that make cgroups, mounts and processes of other users.

use std::io::Write;

use nix::unistd::Uid;
use vineyard_charge::survey::Surveyor;

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
    if let Err(error) = Surveyor::open() {
        return Some(error.to_string());
    }
    None
}

/// Prints a line also when the test's output is captured, as it is of tests that pass.
pub fn say(line: &str) {
    let name = std::thread::current();
    let name = name.name().unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "{name}: {line}");
}

/// Returns from the test, and says why, when the machine does not allow it.
#[macro_export]
macro_rules! skip_unless_possible {
    () => {
        if let Some(why) = $crate::requirements::missing() {
            $crate::requirements::say(&format!("skipped: {why}"));
            return Ok(());
        }
        // Here, because it takes longer than any step may.
        $crate::binaries::sidecar()?;
    };
}
