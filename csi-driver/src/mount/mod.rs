//! Mounts: the system calls behind a trait, the kernel's table of mounts, and steps that may be repeated.

#[cfg(test)]
pub(crate) mod fake;
mod linux;
mod mountinfo;
mod steps;
mod unmount;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::bytes::Bytes;

pub(crate) use linux::LinuxMounter;
pub(crate) use mountinfo::Mount;
pub(crate) use steps::{at, ensure_bare, ensure_bound, ensure_unmounted};
pub(crate) use unmount::{Unmounter, run as unmount_here};

/// What a tmpfs of ours is mounted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tmpfs {
    /// Source of the mount, by which it is recognised.
    pub(crate) source: String,
    /// `size=`.
    pub(crate) size: Bytes,
    /// `nr_inodes=`.
    pub(crate) inodes: u64,
    /// SELinux `context=`.
    pub(crate) context: Option<String>,
}

/// Per-mount flags of a bind mount; `nosuid` and `nodev` are always set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// `ro`
    pub(crate) read_only: bool,
    /// `noexec`
    pub(crate) no_exec: bool,
    /// `noatime`
    pub(crate) no_atime: bool,
}

/// What a file system holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes in all.
    pub(crate) bytes: u64,
    /// Bytes that are free.
    pub(crate) free_bytes: u64,
    /// Inodes in all.
    pub(crate) inodes: u64,
    /// Inodes that are free.
    pub(crate) free_inodes: u64,
}

/// Why a mount operation did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The kernel refused.
    #[error("{doing} {}: {source}", path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The kernel did not answer; the attempt goes on, off our threads.
    #[error("unmount {}: no answer in {seconds} s, it goes on", path.display())]
    Hanging {
        /// On what.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Something else is mounted there, and is left alone.
    #[error("{} holds a mount of {found}, which is not ours", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// Type and source of what is there.
        found: String,
    },
    /// More mounts lie on each other than anybody makes on purpose.
    #[error("more than {bound} mounts are stacked on {}", path.display())]
    Stacked {
        /// Where.
        path: PathBuf,
        /// The most that are taken off in one go.
        bound: usize,
    },
    /// A line of the kernel's table that no kernel writes.
    #[error("mountinfo: {0}")]
    Malformed(String),
}

impl Error {
    fn system(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::System {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// The mount system calls. Blocking: never called on the executor.
pub(crate) trait Mounter: Send + Sync + fmt::Debug {
    /// Everything that is mounted, as the kernel sees it now.
    fn mounts(&self) -> Result<Vec<Mount>, Error>;

    /// Mounts a new tmpfs on a directory: root mode 0777, `nosuid`, `nodev`, no swap where the kernel can, and no huge pages
    /// but the ones that are made on purpose.
    fn mount_tmpfs(&self, target: &Path, options: &Tmpfs) -> Result<(), Error>;

    /// Changes the size of a tmpfs that is mounted on `target`.
    fn resize_tmpfs(&self, target: &Path, size: Bytes, inodes: u64) -> Result<(), Error>;

    /// Mounts the directory `source` on the directory `target` as well.
    fn bind(&self, source: &Path, target: &Path) -> Result<(), Error>;

    /// Sets the flags of the topmost mount on `target`.
    fn set_flags(&self, target: &Path, flags: Flags) -> Result<(), Error>;

    /// Takes the topmost mount off `target`.
    fn unmount(&self, target: &Path) -> Result<(), Error>;

    /// What the file system at `path` holds.
    fn usage(&self, path: &Path) -> Result<Usage, Error>;
}

/// Type and source for people.
fn describe(mount: &Mount) -> String {
    let source: OsString = mount.source.clone();
    format!("{} {}", mount.fs_type, source.display())
}

#[cfg(test)]
mod conformance;
