//! Sealing: a filled file becomes an object, and gets its name and its time to live.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::symlinkat;

use crate::error::Error;
use crate::kind::Kind;
use crate::mapping::PAGE;
use crate::name::{Name, ObjectFile};
use crate::object::{PutOptions, Ref};
use crate::tree::Tree;
use crate::volume::Volume;

/// From `fcntl.h`; libc does not have it.
const F_SETSIG: libc::c_int = 10;

impl Volume {
    /// Links a filled, unnamed file and names it. If that fails, the object is gone again.
    pub(crate) fn seal_file(
        &self,
        file: BorrowedFd<'_>,
        kind: Kind,
        len: u64,
        options: &PutOptions,
    ) -> Result<Ref, Error> {
        let object = self
            .tree()
            .link(file, kind)
            .map_err(|e| self.no_room(e, len))?;
        let done = self
            .mark(&object, options)
            .and_then(|()| match &options.name {
                Some(name) => self.point(name, &object, options.overwrite),
                None => Ok(()),
            });
        if let Err(error) = done {
            self.unmark(&object, options);
            let _ = Tree::unlink(self.tree().objects.as_fd(), object.as_str());
            return Err(error);
        }
        Ok(Ref {
            id: object.id,
            kind,
            len,
            name: options.name.clone(),
        })
    }

    fn no_room(&self, error: Error, asked: u64) -> Error {
        match &error {
            Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC) => {
                self.full(asked)
            }
            _ => error,
        }
    }

    /// Notes when the object is not needed any more.
    fn mark(&self, object: &ObjectFile, options: &PutOptions) -> Result<(), Error> {
        let Some(marker) = options.ttl.map(|ttl| ttl_marker(object, ttl)) else {
            return Ok(());
        };
        let target = options.name.as_ref().map_or("-", Name::as_str);
        symlinkat(target, self.tree().ttl.as_fd(), marker.as_str())
            .map_err(|errno| self.failed(".vineyard/ttl", errno, 0))
    }

    fn unmark(&self, object: &ObjectFile, options: &PutOptions) {
        if let Some(ttl) = options.ttl {
            let _ = Tree::unlink(self.tree().ttl.as_fd(), &ttl_marker(object, ttl));
        }
    }
}

/// `<unix seconds, 12 digits>.<id>.<kind>`.
fn ttl_marker(object: &ObjectFile, ttl: Duration) -> String {
    let end = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_add(ttl);
    // Rounded up, and no more than the digits hold: that is in 31,000 years.
    let seconds = (end.as_secs() + 1).min(999_999_999_999);
    format!("{seconds:012}.{}", object.as_str())
}

/// Refuses a file that has pages which were never allocated: they would be charged to whoever reads them.
pub(crate) fn refuse_holes(file: BorrowedFd<'_>, len: u64) -> Result<(), Error> {
    let stat = fstat(file).map_err(|errno| Error::io("stat", errno))?;
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    if allocated < len.next_multiple_of(PAGE) {
        return Err(Error::Holes { allocated, len });
    }
    Ok(())
}

/// A lease that is granted proves that nobody has the file open for writing. It is given up at once: whoever holds a
/// lease gets a signal when somebody opens the file.
pub(crate) fn nobody_writes(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    lease(file, libc::F_RDLCK)
}

/// The same for any other use of the file: open or mapped.
pub(crate) fn nobody_uses(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    lease(file, libc::F_WRLCK)
}

fn lease(file: BorrowedFd<'_>, kind: libc::c_int) -> Result<bool, Errno> {
    use std::os::fd::AsRawFd;
    let fd = file.as_raw_fd();
    // SIGIO kills by default; in the moment that the lease is held, a breaker sends SIGURG, which is ignored by default.
    // SAFETY: plain fcntl calls on a borrowed, open descriptor.
    let granted = unsafe {
        Errno::result(libc::fcntl(fd, F_SETSIG, libc::SIGURG))?;
        Errno::result(libc::fcntl(fd, libc::F_SETLEASE, kind))
    };
    match granted {
        Ok(_) => {
            // SAFETY: as above.
            Errno::result(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) })?;
            Ok(true)
        }
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}
