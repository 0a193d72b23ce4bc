//! Copies the content of one volume into another's empty memory. Blocking; nobody sees the copy before it is whole.
//!
//! The source is a hostile tree that may change meanwhile: only regular files are ever opened, never through a symlink, never
//! waiting for a lease or a FIFO for long. Sealed objects cannot change; a name is copied with the object that it points to at
//! that moment. Plain files are copied as they are found. Every page is allocated by a payer before it is written.

mod attributes;
mod files;
#[cfg(test)]
mod tests;
mod walk;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use vineyard_charge::{Full, Payer, ReserveError};

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Regular files; one with several names counts once.
    pub(crate) files: u64,
    /// Directories, without the root.
    pub(crate) directories: u64,
    /// Symlinks, names among them.
    pub(crate) symlinks: u64,
    /// Bytes of files.
    pub(crate) bytes: u64,
    /// Sockets, FIFOs and devices, which are left out.
    pub(crate) skipped: u64,
}

/// How far a copy is, and whether it shall end. Shared with whoever waits for it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// Percent of the source's bytes; 100 only says that the last ones are near.
    pub(crate) fn percent(&self) -> u64 {
        let (done, total) = (&self.done, &self.total);
        let total = total.load(Ordering::Relaxed).max(1);
        (done.load(Ordering::Relaxed).saturating_mul(100) / total).min(100)
    }

    /// Ends the copy at its next step.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), Error> {
        match self.stopped.load(Ordering::Relaxed) {
            true => Err(Error::Stopped),
            false => Ok(()),
        }
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Why a copy is not whole. What there is of it is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The payer or the volume has no room for it.
    #[error("no room for the copy: {0}")]
    Full(Full),
    /// More files, or longer names, than fit.
    #[error("{}: no room for another file or name", path.display())]
    NoInodes {
        /// Below the volume.
        path: PathBuf,
    },
    /// The payer does not reserve, for now.
    #[error("the copy's bytes cannot be billed: {0}")]
    Payer(ReserveError),
    /// Somebody holds a lease on a file and does not give it up.
    #[error("{}: somebody holds a lease on it", path.display())]
    Leased {
        /// Below the volume.
        path: PathBuf,
    },
    /// No path leads there in one go.
    #[error("a path below {} is too long to be copied", path.display())]
    TooDeep {
        /// Below the volume.
        path: PathBuf,
    },
    /// It was told to end.
    #[error("the copy was stopped")]
    Stopped,
    /// The kernel refused.
    #[error("{doing} {}: {source}", path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// Below the volume.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

impl Error {
    fn system(doing: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        let (path, source) = (path.to_owned(), source.into());
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC) => Self::NoInodes { path },
            Some(Errno::ENAMETOOLONG) => Self::TooDeep { path },
            _ => Self::System {
                doing,
                path,
                source,
            },
        }
    }
}

impl From<ReserveError> for Error {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::Full(full) => Self::Full(full),
            other => Self::Payer(other),
        }
    }
}

/// Copies everything below the directory `from` into the empty directory `to`, which nobody else sees. `payer` is billed.
///
/// # Errors
/// When not everything was copied. Files that vanish meanwhile, sockets, FIFOs and devices do not count.
pub(crate) fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    payer: &dyn Payer,
    progress: &Progress,
) -> Result<Report, Error> {
    let root = Path::new(".");
    let usage = fstatvfs(from).map_err(|errno| Error::system("stat", root, errno))?;
    let used = (usage.blocks() - usage.blocks_free()) * usage.fragment_size();
    progress.total.store(used, Ordering::Relaxed);
    walk::Walk::new(from, to, payer, progress)?.run()
}
