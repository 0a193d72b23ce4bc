//! Processes of a test: started in a cgroup, under a uid, and ended by their pidfd.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setuid};

use crate::cgroups::Cgroup;
use crate::watchdog;

/// Waits until `done`, in short steps. Returns whether it was done in time.
pub fn poll(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + watchdog::patient(limit);
    let mut step = Duration::from_micros(200);
    while !done() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(step);
        step = (step * 2).min(Duration::from_millis(20));
    }
    true
}

/// How a process is started.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    /// The file to execute. It need not be reachable for `uid`.
    pub path: &'a Path,
    /// The arguments, without the program's name.
    pub arguments: Vec<&'a OsStr>,
    /// The user and group that it becomes.
    pub uid: u32,
    /// Most bytes of address space; `None` for no limit.
    pub address_space: Option<u64>,
    /// A variable of its environment beside those of the test.
    pub variable: Option<(&'a str, &'a OsStr)>,
}

/// A child process. It is killed and reaped with this guard.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    killed: bool,
}

impl Process {
    /// Starts `program` in `cgroup`. Input and output are pipes, errors go where the test's go.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(program: &Program<'_>, cgroup: &Cgroup) -> Result<Self> {
        // Opened here, as root: the child needs neither the right to see the file nor to join the cgroup.
        let file: OwnedFd = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_PATH)
            .open(program.path)
            .with_context(|| program.path.display().to_string())?
            .into();
        let processes = cgroup.directory().join("cgroup.procs");
        let mut processes = File::options().write(true).open(&processes)?;
        let name = program.path.file_name().unwrap_or_default().to_owned();
        let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
        command
            .arg0(&name)
            .args(&program.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command.envs(program.variable);
        if std::env::var_os("RUST_LOG").is_none() {
            // Refusals are what many tests are about.
            command.env("RUST_LOG", "error");
        }
        let (uid, gid) = (Uid::from_raw(program.uid), Gid::from_raw(program.uid));
        let space = program.address_space;
        let join = move || -> io::Result<()> {
            processes.write_all(b"0")?;
            // Whatever a program's umask: the format says which modes there are.
            umask(Mode::from_bits_truncate(0o077));
            setgroups(&[])?;
            setgid(gid)?;
            setuid(uid)?;
            if let Some(bytes) = space {
                setrlimit(Resource::RLIMIT_AS, bytes, bytes)?;
            }
            // After setuid, which resets it: nothing outlives the thread of the test.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made, on a file that was opened before.
        unsafe { command.pre_exec(join) };
        let child = command
            .spawn()
            .with_context(|| format!("start {}", name.display()))?;
        watchdog::watch(child.id());
        Ok(Self {
            child,
            name: name.display().to_string(),
            killed: false,
        })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Not reaped yet, so the pid is still its own.
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("signal to {}", self.name))
    }

    /// Ends it as `kill -9` does, and reaps it.
    ///
    /// # Errors
    /// When it had died before from another cause: that is never meant.
    pub fn kill(mut self) -> Result<()> {
        self.killed = true;
        self.check_alive()?;
        self.child.kill()?;
        let status = self.child.wait()?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("{} ended with {status} instead of being killed", self.name);
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(mut self, limit: Duration) -> Result<ExitStatus> {
        self.killed = true;
        let mut status = None;
        let ended = poll(limit, || {
            status = self.child.try_wait().unwrap_or_default();
            status.is_some()
        });
        match status {
            Some(status) if ended => Ok(status),
            _ => bail!("{} does not end", self.name),
        }
    }

    /// Says so when the process has ended by itself.
    ///
    /// # Errors
    /// When it has.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.killed = true;
            bail!("{} died: {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        watchdog::forget(self.child.id());
        if !self.killed
            && let Ok(Some(status)) = self.child.try_wait()
        {
            eprintln!("{} had died: {status}", self.name);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
