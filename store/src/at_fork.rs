//! Descriptors that a forked child must not keep: it closes its copies before it does anything else. Else a file that the
//! parent recycles would have a writer for as long as the child lives.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

const NONE: i32 = -1;
/// Nothing but atomics: in a forked child a lock may be held for ever.
static KEPT: [AtomicI32; 64] = [const { AtomicI32::new(NONE) }; 64];
static REGISTERED: Once = Once::new();

/// A descriptor that stays with this process until this is dropped.
#[derive(Debug)]
pub(crate) struct Kept(&'static AtomicI32);

impl Kept {
    /// `None` when there are too many.
    pub(crate) fn new(file: BorrowedFd<'_>) -> Option<Self> {
        REGISTERED.call_once(|| {
            // SAFETY: the function lives as long as the program, and does only what a forked child may.
            unsafe { libc::pthread_atfork(None, None, Some(close_in_child)) };
        });
        let fd = file.as_raw_fd();
        let free = KEPT.iter().find(|place| {
            place
                .compare_exchange(NONE, fd, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        free.map(Self)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.store(NONE, Ordering::Release);
    }
}

extern "C" fn close_in_child() {
    for place in &KEPT {
        let fd = place.swap(NONE, Ordering::AcqRel);
        if fd != NONE {
            // SAFETY: the copy of a descriptor whose owner, in the parent's value, is never used in this process.
            unsafe { libc::close(fd) };
        }
    }
}
