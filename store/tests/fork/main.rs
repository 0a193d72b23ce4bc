//! What happens when processes fork and die. A program of its own: a child that another test forks would hold copies of
//! this one's files and views, and the tests here run one at a time for the same reason.
#![cfg(test)]

use std::sync::{Mutex, MutexGuard, PoisonError};

mod crashes;
mod inheritance;
#[path = "../store/mounted.rs"]
#[expect(
    dead_code,
    reason = "shared with the other test program, which uses all of it"
)]
mod mounted;
#[path = "../store/support.rs"]
#[expect(
    dead_code,
    reason = "shared with the other test program, which uses all of it"
)]
mod support;

static ALONE: Mutex<()> = Mutex::new(());

/// Keeps the other tests of this program waiting.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
