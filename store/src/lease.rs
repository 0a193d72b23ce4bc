//! Leases: how the kernel says whether anybody else has a file open or mapped.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// From `fcntl.h`; libc does not have them.
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// What a breaker sends, if anything: ignored by default, where SIGIO would kill.
pub(crate) const BROKEN: libc::c_int = libc::SIGURG;

#[repr(C)]
struct Owner {
    kind: libc::c_int,
    id: libc::pid_t,
}

/// Whether nobody has the file open for writing. The lease is given up at once: whoever holds one gets a signal when
/// somebody opens the file.
pub(crate) fn nobody_writes(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    probe(file, libc::F_RDLCK)
}

/// Whether nobody else uses the file at all: has it open or mapped.
pub(crate) fn nobody_uses(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    probe(file, libc::F_WRLCK)
}

fn probe(file: BorrowedFd<'_>, kind: libc::c_int) -> Result<bool, Errno> {
    set_signal(file)?;
    match set(file, kind) {
        Ok(()) => set(file, libc::F_UNLCK).map(|()| true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Takes a write lease and keeps it. `thread` is told when somebody wants to open the file.
///
/// # Errors
/// `EAGAIN` when somebody else uses the file.
pub(crate) fn take_for(file: BorrowedFd<'_>, thread: libc::pid_t) -> Result<(), Errno> {
    let owner = Owner {
        kind: F_OWNER_TID,
        id: thread,
    };
    // SAFETY: a plain fcntl call on a borrowed, open descriptor; the kernel reads one `Owner`.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) })?;
    set_signal(file)?;
    set(file, libc::F_WRLCK)
}

/// Whether a write lease is held and nobody waits for it to go.
pub(crate) fn is_held(file: BorrowedFd<'_>) -> bool {
    // SAFETY: a plain fcntl call on a borrowed, open descriptor.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_WRLCK }
}

/// Gives up the lease that is held.
pub(crate) fn release(file: BorrowedFd<'_>) {
    // There is nothing to do about a lease that is gone already.
    let _ = set(file, libc::F_UNLCK);
}

fn set_signal(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: as above.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, BROKEN) }).map(drop)
}

fn set(file: BorrowedFd<'_>, kind: libc::c_int) -> Result<(), Errno> {
    // SAFETY: as above.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}
