//! Makes, limits, fills and removes memory cgroups. The only module that knows cgroups-rs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use cgroups_rs::CgroupPid;
use cgroups_rs::fs::Controller;
use cgroups_rs::fs::memory::MemController;

use super::{CgroupError, MemoryCgroup, Version};

/// A memory cgroup that this process made. It stays until it is removed.
#[derive(Debug)]
pub struct ControlledCgroup {
    directory: PathBuf,
    controller: MemController,
}

impl ControlledCgroup {
    /// Makes the cgroup `name` below the cgroup at `parent`.
    ///
    /// # Errors
    /// When it exists already, or may not be made. On version 2 the parent must not hold processes.
    pub fn create(parent: &Path, name: &str) -> Result<Self, CgroupError> {
        let directory = parent.join(name);
        let version = version_at(parent);
        if version == Version::V2 {
            let switch = parent.join("cgroup.subtree_control");
            fs::write(&switch, "+memory").map_err(CgroupError::io(switch))?;
        }
        if directory.exists() {
            return Err(CgroupError::io(directory)(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let controller =
            MemController::new(directory.clone(), parent.to_owned(), version == Version::V2);
        controller.create().map_err(failed(&directory))?;
        Ok(Self {
            directory,
            controller,
        })
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The same cgroup, to read.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<MemoryCgroup, CgroupError> {
        MemoryCgroup::open(&self.directory)
    }

    /// Limits it to `bytes`, `None` for no limit. Lowering a limit below the usage of tmpfs kills on version 2, so that
    /// is refused.
    ///
    /// # Errors
    /// When more is in use, or the cgroup is gone.
    pub fn set_limit(&self, bytes: Option<u64>) -> Result<(), CgroupError> {
        let wanted = match bytes {
            Some(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
            None => -1,
        };
        if let Some(bytes) = bytes
            && self.memory()?.usage()? > bytes
        {
            return Err(CgroupError::io(&self.directory)(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "more is in use than the new limit",
            )));
        }
        self.controller
            .set_limit(wanted)
            .map_err(failed(&self.directory))
    }

    /// Moves a process here: what it allocates from now on is billed to this cgroup.
    ///
    /// # Errors
    /// When the process or the cgroup is gone.
    pub fn join(&self, pid: u32) -> Result<(), CgroupError> {
        self.controller
            .add_task_by_tgid(&CgroupPid::from(u64::from(pid)))
            .map_err(failed(&self.directory))
    }

    /// The file into which a forked child writes `0` to move itself, before it executes something else.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn members(&self) -> Result<File, CgroupError> {
        let path = self.directory.join("cgroup.procs");
        File::options()
            .write(true)
            .open(&path)
            .map_err(CgroupError::io(path))
    }

    /// Removes it. Pages that are charged to it count for its ancestors from then on.
    ///
    /// # Errors
    /// While it holds processes or further cgroups.
    pub fn remove(self) -> Result<(), CgroupError> {
        // cgroups-rs takes every failure for a busy cgroup and tries for seconds. A process that has just ended keeps
        // its cgroup busy for a moment only.
        let mut attempt = 0;
        loop {
            match fs::remove_dir(&self.directory) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < 20 => {
                    attempt += 1;
                    thread::sleep(Duration::from_millis(5));
                }
                other => return other.map_err(CgroupError::io(self.directory)),
            }
        }
    }
}

fn version_at(parent: &Path) -> Version {
    // The root of version 2 has no memory.current, but every directory of it has this file, and none of version 1.
    if parent.join("cgroup.subtree_control").exists() {
        Version::V2
    } else {
        Version::V1
    }
}

fn failed(directory: &Path) -> impl FnOnce(cgroups_rs::fs::error::Error) -> CgroupError {
    let path = directory.to_owned();
    move |error| {
        let cause = std::error::Error::source(&error)
            .and_then(|cause| cause.downcast_ref::<io::Error>())
            .and_then(io::Error::raw_os_error);
        let source = cause.map_or_else(
            || io::Error::other(error.to_string()),
            io::Error::from_raw_os_error,
        );
        CgroupError::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_enables_the_controller_in_the_parent_and_writes_its_own_files() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("cgroup.subtree_control"), "").unwrap();
        let made = ControlledCgroup::create(parent.path(), "pod").unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(
            read(parent.path().join("cgroup.subtree_control")),
            "+memory"
        );
        for (file, content) in [
            ("memory.current", "4096"),
            ("memory.max", "max"),
            ("memory.high", "max"),
        ] {
            fs::write(made.directory().join(file), content).unwrap();
        }
        made.set_limit(Some(8192)).unwrap();
        assert_eq!(made.memory().unwrap().limit().unwrap(), Some(8192));
        made.set_limit(None).unwrap();
        assert_eq!(made.memory().unwrap().limit().unwrap(), None);
        assert!(made.set_limit(Some(100)).is_err(), "4096 are in use");
        made.join(17).unwrap();
        assert_eq!(read(made.directory().join("cgroup.procs")), "17");
        let again = ControlledCgroup::create(parent.path(), "pod").unwrap_err();
        assert!(matches!(again, CgroupError::Io { .. }));
    }
}
