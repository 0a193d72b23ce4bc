//! How many parts of a stream a consuming reader has taken: the mark `.consumed`.
//!
//! The index of a part is free again once the part is removed. Without the mark a producer that lags behind, or starts
//! anew, would take it and nobody would ever look there.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{readlinkat, renameat};
use nix::unistd::symlinkat;

use crate::error::Error;
use crate::id::ObjectId;
use crate::tree::Tree;

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
/// finds the mark, too.
pub(crate) fn advance(tree: &Tree, stream: BorrowedFd<'_>, parts: u64) -> Result<(), Error> {
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
