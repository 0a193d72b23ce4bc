//! Memory cgroups, version 1 and 2, read with plain files.
//!
//! Everything here reads. What changes cgroups is in `control`, behind the feature of the same name.

#[cfg(feature = "control")]
pub mod control;
mod hierarchy;
mod memory;

pub use hierarchy::{Hierarchy, Version};
pub use memory::MemoryCgroup;

use std::fmt;
use std::path::PathBuf;

/// The inode of a cgroup's directory, which the kernel also reports as owner of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupId(pub u64);

impl CgroupId {
    /// The root of the hierarchy: the machine itself.
    pub const ROOT: CgroupId = CgroupId(1);
}

impl fmt::Display for CgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cgroup {}", self.0)
    }
}

/// Why a cgroup could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// No hierarchy with the memory controller is mounted in this mount namespace.
    #[error("no memory cgroup hierarchy is mounted here")]
    NotMounted,
    /// The process is in the root of version 2: the machine itself, which has neither a bill nor a limit.
    #[error("the root cgroup has no bill of its own")]
    Root,
    /// The process' cgroup lies outside of what is mounted here.
    #[error("the cgroup {path} is not visible below {}", mount.display())]
    Hidden {
        /// Path as in `/proc/PID/cgroup`.
        path: String,
        /// Where the hierarchy is mounted.
        mount: PathBuf,
    },
    /// A file does not hold what the kernel documents.
    #[error("{}: unexpected content {content:?}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        content: String,
    },
    /// A system call failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl CgroupError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CgroupError {
        let path = path.into();
        move |source| CgroupError::Io { path, source }
    }
}
