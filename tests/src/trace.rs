//! Runs a process from system call to system call, so that it can be killed at each of them in turn.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The main thread of a child of this thread, traced. It runs on when this is dropped.
#[derive(Debug)]
pub struct Tracee {
    pid: Pid,
    stopped: bool,
}

impl Tracee {
    /// Stops the process.
    ///
    /// # Errors
    /// When it may not be traced.
    pub fn attach(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
        let mut tracee = Self {
            pid,
            stopped: false,
        };
        tracee.interrupt()?;
        Ok(tracee)
    }

    /// Runs until the process has entered or left system calls `stops` times, and leaves it there: true. Or until it is
    /// `finished`: false.
    ///
    /// # Errors
    /// When it ends.
    pub fn run(
        &mut self,
        stops: usize,
        mut finished: impl FnMut() -> Result<bool>,
    ) -> Result<bool> {
        let mut left = stops;
        loop {
            if self.stopped {
                if left == 0 {
                    return Ok(true);
                }
                ptrace::syscall(self.pid, None)?;
                self.stopped = false;
            }
            match waitpid(self.pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))? {
                WaitStatus::PtraceSyscall(_) => {
                    self.stopped = true;
                    left -= 1;
                }
                WaitStatus::PtraceEvent(..) => self.stopped = true,
                WaitStatus::Stopped(_, signal) => ptrace::syscall(self.pid, Some(signal))?,
                WaitStatus::StillAlive => {
                    if finished()? {
                        return Ok(false);
                    }
                    thread::sleep(Duration::from_micros(20));
                }
                other => bail!("the traced process ended: {other:?}"),
            }
        }
    }

    fn interrupt(&mut self) -> Result<()> {
        ptrace::interrupt(self.pid)?;
        while !self.stopped {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => self.stopped = true,
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.pid, Some(signal))?,
                other => bail!("the traced process ended: {other:?}"),
            }
        }
        Ok(())
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if !self.stopped && self.interrupt().is_err() {
            return;
        }
        let _ = ptrace::detach(self.pid, None);
    }
}
