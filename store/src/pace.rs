//! How long work on a tree may go on that somebody else filled, and may go on filling.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::errno::Errno;

use crate::error::Error;

/// Asked before each step.
#[derive(Debug, Default)]
pub(crate) struct Pace<'a> {
    until: Option<Instant>,
    stop: Option<&'a AtomicBool>,
    over: Cell<bool>,
}

impl<'a> Pace<'a> {
    /// As long as it takes.
    pub(crate) fn free() -> Self {
        Self::default()
    }

    /// Until then, or until somebody sets `stop`.
    pub(crate) fn until(until: Option<Instant>, stop: &'a AtomicBool) -> Self {
        Self {
            until,
            stop: Some(stop),
            over: Cell::new(false),
        }
    }

    /// # Errors
    /// When the work must end here.
    pub(crate) fn go_on(&self) -> Result<(), Error> {
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        let is_stopped = self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
        if is_late || is_stopped {
            self.over.set(true);
            return Err(Error::io(".vineyard", Errno::ETIME));
        }
        Ok(())
    }

    /// Whether it had to end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }
}
