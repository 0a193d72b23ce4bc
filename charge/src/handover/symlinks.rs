//! Symlinks of more than 127 bytes take a page of the volume each. Who is charged for it is not to be seen, nor can it be moved.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use crate::tree::{self, Visit};

/// What all of them take.
pub(super) fn bytes(root: BorrowedFd<'_>) -> u64 {
    let mut symlinks = Symlinks { bytes: 0 };
    // Whatever cannot be read was reported before.
    let _ = tree::walk(root, &mut symlinks);
    symlinks.bytes
}

struct Symlinks {
    bytes: u64,
}

impl Visit for Symlinks {
    type Stop = Infallible;

    fn file(&mut self, _: BorrowedFd<'_>, _: &OsStr, _: &Path) -> Result<(), Infallible> {
        Ok(())
    }

    fn left(&mut self, _: BorrowedFd<'_>, _: &Path) -> Result<(), Infallible> {
        Ok(())
    }

    fn symlink(&mut self, directory: BorrowedFd<'_>, name: &OsStr) {
        if let Ok(stat) = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            && stat.st_mode & libc::S_IFMT == libc::S_IFLNK
        {
            self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
    }

    fn odd(&mut self, _: &Path, _: &'static str) {}

    fn skipped(&mut self, _: &Path, _: &str) {}
}
