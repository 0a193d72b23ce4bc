//! Ctrl-C while a cluster starts: nothing may be left.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, exit};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::ClusterId;

/// Runs this program again, as a child that starts the cluster. An interrupt ends that child first, so nobody makes what is
/// removed then.
///
/// # Errors
/// What the kernel says.
pub(super) fn start_in_child(id: &ClusterId) -> Result<ExitCode> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let mut command = Command::new(std::env::current_exe()?);
    // Not in the terminal's process group, or Ctrl-C would end it anywhere.
    command
        .args(std::env::args_os().skip(1))
        .arg("--child")
        .process_group(0);
    let die_with_parent = || Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: between fork and exec only a system call is made.
    unsafe { command.pre_exec(die_with_parent) };
    let mut child = command.spawn().context("start")?;
    loop {
        let signal = signals.wait()?;
        if signal == Signal::SIGCHLD {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(ExitCode::SUCCESS),
                Some(_) => return Ok(ExitCode::FAILURE),
                None => continue,
            }
        }
        eprintln!("interrupted: removing cluster {id}");
        child.kill()?;
        child.wait()?;
        super::remove(id)?;
        exit(128 + signal as i32);
    }
}
