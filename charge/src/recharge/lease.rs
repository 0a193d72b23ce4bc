//! Leases: the kernel's answer to who else has a file open.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::RechargeError;

/// Which signal tells that a lease is being broken; not in every libc.
const F_SETSIG: libc::c_int = 10;

/// A read lease, as far as there is one: whoever wants to write to the file waits until it is given up.
#[derive(Debug)]
pub(super) struct Lease<'a> {
    file: BorrowedFd<'a>,
    /// `false`: this process may not take leases on the file, or its file system knows none.
    held: bool,
}

impl<'a> Lease<'a> {
    /// Takes a read lease, which ends when it is dropped, or `file` is closed.
    pub(super) fn take(file: BorrowedFd<'a>) -> Result<Self, RechargeError> {
        // SAFETY: plain fcntl calls on a live descriptor.
        let result = unsafe {
            // Who breaks a lease sends a signal; the default one would end this process, this one is ignored by default.
            libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK)
        };
        if result == 0 {
            return Ok(Self { file, held: true });
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Open for writing, or mapped writable and shared.
            Some(libc::EAGAIN) => Err(RechargeError::Changed),
            Some(libc::EACCES | libc::EPERM | libc::EINVAL | libc::ENOLCK) => {
                Ok(Self { file, held: false })
            }
            _ => Err(error.into()),
        }
    }

    /// Whether there is one.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Whether somebody has asked to write since.
    pub(super) fn is_being_broken(&self) -> bool {
        // SAFETY: a plain fcntl call on a live descriptor.
        let is_whole =
            || unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK };
        self.held && !is_whole()
    }

    /// Whether nobody else has the file open or mapped. `false` also when that cannot be told.
    pub(super) fn is_alone(&self) -> bool {
        // SAFETY: a plain fcntl call on a live descriptor.
        unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0 }
    }

    /// Leaves the end of it to whoever closes the file: for one that nobody else can open any more.
    pub(super) fn ends_with_the_file(mut self) {
        self.held = false;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.held {
            // SAFETY: a plain fcntl call on a live descriptor.
            unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        }
    }
}
