//! State that must not be shared with a forked child: descriptors, threads and locks that its parent holds.

use std::fmt;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A value that belongs to one process. In a forked child a fresh one takes its place.
pub(crate) struct PerProcess<T> {
    current: AtomicPtr<Owned<T>>,
}

struct Owned<T> {
    pid: u32,
    value: T,
}

impl<T: Abandon> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self {
            current: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// The value of this process; `make` makes it.
    pub(crate) fn get(&self, make: impl Fn() -> T) -> &T {
        let pid = std::process::id();
        loop {
            let current = self.current.load(Ordering::Acquire);
            // SAFETY: the pointer is null or came from `Box::into_raw`; what it points to is freed only by `drop`.
            if let Some(owned) = unsafe { current.as_ref() }
                && owned.pid == pid
            {
                return &owned.value;
            }
            let fresh = Box::into_raw(Box::new(Owned { pid, value: make() }));
            let swapped =
                self.current
                    .compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire);
            if swapped.is_err() {
                // SAFETY: nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
            // SAFETY: as above. The parent's value is leaked on purpose: a lock in it may be held for ever, by a thread
            // that this process does not have.
            } else if let Some(inherited) = unsafe { current.as_ref() } {
                inherited.value.abandon();
            }
        }
    }

    /// The value, if this process has one.
    pub(crate) fn existing(&self) -> Option<&T> {
        // SAFETY: as in `get`.
        let owned = unsafe { self.current.load(Ordering::Acquire).as_ref() }?;
        (owned.pid == std::process::id()).then_some(&owned.value)
    }
}

/// What a forked child does with its copy of the parent's value.
pub(crate) trait Abandon {
    /// Closes inherited descriptors. Must not wait for a lock.
    fn abandon(&self);
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        if current.is_null() {
            return;
        }
        // SAFETY: the pointer came from `Box::into_raw`, and `&mut self` says that nobody uses it any more.
        unsafe {
            if (*current).pid == std::process::id() {
                drop(Box::from_raw(current));
            }
        }
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerProcess")
    }
}

// SAFETY: it hands out `&T` only, to any thread.
unsafe impl<T: Send + Sync> Sync for PerProcess<T> {}
// SAFETY: it owns a `T`.
unsafe impl<T: Send> Send for PerProcess<T> {}
