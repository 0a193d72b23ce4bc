//! A memory cgroup below the test's own, removed when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use vineyard_charge::MemoryCgroup;
use vineyard_charge::cgroup::Version;

use super::Sidecar;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// `None`, with a line that says so, where no cgroup can be made.
    pub(crate) fn new() -> Option<Self> {
        let skip = |why: &dyn std::fmt::Display| {
            eprintln!("skipped: cannot make a memory cgroup: {why}");
        };
        let own = MemoryCgroup::own().inspect_err(|error| skip(error)).ok()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vineyard-test-sidecar-{}-{number}", std::process::id());
        let directory = own.directory().join(name);
        fs::create_dir(&directory)
            .inspect_err(|error| skip(error))
            .ok()?;
        let cgroup = Self(directory);
        if let Err(error) = MemoryCgroup::open(cgroup.path()) {
            skip(&error);
            return None;
        }
        Some(cgroup)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A command that runs the sidecar in this cgroup.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg("echo $$ > \"$0/cgroup.procs\" && exec \"$@\"")
            .arg(&self.0)
            .arg(Sidecar::BINARY);
        command
    }

    pub(crate) fn limit(&self, bytes: u64) {
        let file = match self.memory().version() {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        fs::write(self.0.join(file), bytes.to_string()).unwrap();
    }

    pub(crate) fn oom_kills(&self) -> u64 {
        self.memory().oom_kills().unwrap()
    }

    fn memory(&self) -> MemoryCgroup {
        MemoryCgroup::open(&self.0).unwrap()
    }

    pub(crate) fn usage(&self) -> u64 {
        self.memory().usage().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last process may need a moment to leave.
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        eprintln!("left behind: {}", self.0.display());
    }
}
