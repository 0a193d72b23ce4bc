//! The first process of a pid namespace: it keeps the namespaces, buries the dead, and takes everything along when it ends.

use std::io::{BufRead, stdin};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// What whoever starts a holder writes to it when it may stay.
pub(super) const STAY: &str = "stay\n";

/// Runs until it is killed, or until whoever started it ends without having said [`STAY`].
///
/// # Errors
/// When the line or signals cannot be waited for.
pub(super) fn hold() -> Result<()> {
    let mut line = String::new();
    stdin().lock().read_line(&mut line)?;
    if line != STAY {
        eprintln!("not told to stay");
        return Ok(());
    }
    hold_on()
}

/// Runs until it is killed.
///
/// # Errors
/// When signals cannot be waited for.
pub(super) fn hold_on() -> Result<()> {
    let mut deaths = SigSet::empty();
    deaths.add(Signal::SIGCHLD);
    deaths.thread_block()?;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => {
                deaths.wait()?;
            }
            _ => {}
        }
    }
}
