//! How many parts of a stream a consuming reader has taken: the mark `.consumed`.
//!
//! The index of a part is free again once the part is removed. Without the mark a producer that lags behind, or starts
//! anew, would take it and nobody would ever look there.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{readlinkat, renameat};
use nix::unistd::symlinkat;

use crate::error::Error;
use crate::id::ObjectId;
use crate::tree::Tree;

/// How long a reader waits for another one that moves the mark, which takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_micros(50);

/// A symlink in the stream's directory; its target is the number of parts, in decimal.
pub(crate) const CONSUMED: &str = ".consumed";

/// The first index that no consuming reader has taken.
pub(crate) fn read(stream: BorrowedFd<'_>) -> Result<u64, Error> {
    match readlinkat(stream, CONSUMED) {
        Ok(target) => target
            .to_str()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| Error::corrupt(CONSUMED, "its target is no number")),
        Err(Errno::ENOENT) => Ok(0),
        Err(errno) => Err(Error::io(CONSUMED, errno)),
    }
}

/// Says that all parts below `parts` are taken. Done before a part is removed, so that whoever finds its index free
/// finds the mark, too. `stream` was opened for this alone: readers take turns by a lock on it, or the mark could go back.
pub(crate) fn advance(tree: &Tree, stream: BorrowedFd<'_>, parts: u64) -> Result<(), Error> {
    let turn = stream.try_clone_to_owned().map(File::from);
    let turn = turn
        .map_err(|error| Error::io(CONSUMED, Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
    let until = Instant::now() + PATIENCE;
    // Whoever keeps the lock for so long does not play by the rules, and must not stop the others.
    while turn.try_lock().is_err() && Instant::now() < until {
        std::thread::sleep(PAUSE);
    }
    if read(stream)? >= parts {
        return Ok(());
    }
    let at = |errno| Error::io(CONSUMED, errno);
    let id = ObjectId::random().map_err(|errno| Error::io("getrandom", errno))?;
    let digits = id.digits();
    let spare = std::str::from_utf8(&digits).unwrap_or_default();
    symlinkat(parts.to_string().as_str(), tree.tmp.as_fd(), spare).map_err(at)?;
    renameat(tree.tmp.as_fd(), spare, stream, CONSUMED).map_err(|errno| {
        let _ = Tree::unlink(tree.tmp.as_fd(), spare);
        at(errno)
    })
}
