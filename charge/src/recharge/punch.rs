//! Frees parts of a file that hold nothing, which does not count as a change of it.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use nix::sys::stat::{FileStat, futimens};
use nix::sys::time::TimeSpec;

use crate::payer::{Extent, free};

/// How often it is tried, 127 ms in all.
const ROUNDS: u32 = 8;

/// Frees whole pages of a file that nobody writes to, and again until `is_done`. Returns whether that came.
///
/// Of a huge page the kernel frees a part by splitting it. That fails while somebody looks at one of its pages, such as a
/// survey in another process; the part is then only zeroed, and `fallocate` says nothing.
pub(crate) fn punch(file: BorrowedFd<'_>, extents: &[Extent], is_done: impl Fn() -> bool) -> bool {
    for round in 0..ROUNDS {
        if round > 0 {
            thread::sleep(Duration::from_millis(1 << (round - 1)));
        }
        for extent in extents {
            free(file, *extent);
        }
        if is_done() {
            return true;
        }
    }
    false
}

/// Bytes that are allocated for a file.
pub(crate) fn allocated(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

/// Gives a file the times of access and change that it had. Only its owner may.
///
/// That sets the time of its last change of status to now: whoever made the file sees that its pages are not on his bill any
/// more.
pub(crate) fn restore_times(file: impl AsFd, before: &FileStat) {
    let accessed = TimeSpec::new(before.st_atime, before.st_atime_nsec);
    let modified = TimeSpec::new(before.st_mtime, before.st_mtime_nsec);
    let _ = futimens(file, &accessed, &modified);
}
