//! Leases: the kernel's answer to who else has a file open.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::RechargeError;

/// Which signal tells that a lease is being broken; not in every libc.
const F_SETSIG: libc::c_int = 10;

/// Whether a read lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Whoever wants to write waits until the lease is given up.
    Yes,
    /// This process may not take leases on the file, or its file system knows none.
    No,
}

pub(super) struct Lease;

impl Lease {
    /// Takes a read lease, which ends when `file` is closed at the latest.
    pub(super) fn take(file: BorrowedFd<'_>) -> Result<Held, RechargeError> {
        // SAFETY: plain fcntl calls on a live descriptor.
        let result = unsafe {
            // Who breaks a lease sends a signal; the default one would end this process, this one is ignored by default.
            libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK)
        };
        if result == 0 {
            return Ok(Held::Yes);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Open for writing, or mapped writable and shared.
            Some(libc::EAGAIN) => Err(RechargeError::Changed),
            Some(libc::EACCES | libc::EPERM | libc::EINVAL | libc::ENOLCK) => Ok(Held::No),
            _ => Err(error.into()),
        }
    }

    /// Gives it up.
    pub(super) fn end(file: BorrowedFd<'_>) {
        // SAFETY: a plain fcntl call on a live descriptor.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }

    /// Whether nobody has asked to write since.
    pub(super) fn is_whole(file: BorrowedFd<'_>) -> bool {
        // SAFETY: a plain fcntl call on a live descriptor.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
    }

    /// Whether nobody else has the file open or mapped, once [`take`](Self::take) was tried. `false` also when that cannot be
    /// told.
    pub(super) fn is_alone(file: BorrowedFd<'_>) -> bool {
        // SAFETY: a plain fcntl call on a live descriptor.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0 }
    }
}
