//! Running programs inside the namespaces that another process keeps open.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, fork, pipe2, setsid};

use crate::process::poll;

/// The network, mount and pid namespaces of a process.
#[derive(Clone, Copy, Debug)]
pub struct Namespaces {
    holder: Pid,
}

/// What becomes of the process in between, which is in the pid namespace of its parent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    /// It waits, and ends as the program does.
    Waits,
    /// It ends at once: the program is on its own.
    Leaves,
}

impl Namespaces {
    /// Those of `holder`, which must live as long as they are used.
    #[must_use]
    pub fn of(holder: Pid) -> Self {
        Self { holder }
    }

    /// A command that runs inside, in the directory that this process is in, and ends with whoever waits for it.
    ///
    /// # Errors
    /// When the holder is gone.
    pub fn command(self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        enter(&mut command, Some(self), Between::Waits, None)?;
        Ok(command)
    }

    /// Runs a program inside to its end.
    ///
    /// # Errors
    /// When it does not end well; with what it wrote.
    pub fn run(self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program)?;
        output(command.args(arguments), program)
    }
}

/// Runs a command to its end and returns what it wrote.
///
/// # Errors
/// When it does not end well; with what it wrote to standard error.
pub(super) fn output(command: &mut Command, name: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| name.to_owned())?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!(
            "{name} {}: {}: {}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a program, inside of `namespaces` when there are any, in a session of its own and with its output in `log`. It outlives
/// this process. Returns its pid as this process sees it.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start(
    command: &mut Command,
    namespaces: Option<Namespaces>,
    stdin: Stdio,
    log: &Path,
) -> Result<Pid> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = OpenOptions::new().create(true).append(true).open(log);
    let out = out.with_context(|| log.display().to_string())?;
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    command.stdin(stdin).stdout(out.try_clone()?).stderr(out);
    enter(command, namespaces, Between::Leaves, Some(write))?;
    let status = command.status().with_context(|| name.clone())?;
    if !status.success() {
        bail!("{name} is not started: {status}");
    }
    let mut pid = [0; 4];
    File::from(read).read_exact(&mut pid).context("pid")?;
    Ok(Pid::from_raw(i32::from_ne_bytes(pid)))
}

/// The only child of `parent`, as soon as it has one.
///
/// # Errors
/// When it gets none.
pub(super) fn child_of(parent: Pid) -> Result<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let mut child = None;
    poll(Duration::from_secs(10), || {
        let children = fs::read_to_string(&path).unwrap_or_default();
        child = children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        child.is_some()
    });
    child
        .map(Pid::from_raw)
        .with_context(|| format!("process {parent} has no child"))
}

fn enter(
    command: &mut Command,
    namespaces: Option<Namespaces>,
    between: Between,
    report: Option<OwnedFd>,
) -> Result<()> {
    let holder = namespaces.map(|it| pidfd(it.holder)).transpose()?;
    let directory = CString::new(std::env::current_dir()?.as_os_str().as_bytes())?;
    let isolate = move || -> io::Result<()> {
        if let Some(holder) = &holder {
            let which =
                CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
            setns(holder, which)?;
            // Entering a mount namespace leads to its root.
            let _ = chdir(directory.as_c_str());
        }
        // Only children are in the pid namespace that was entered.
        // SAFETY: this process has one thread, because it was forked itself.
        match unsafe { fork() }? {
            ForkResult::Child => {
                match between {
                    Between::Waits => nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?,
                    Between::Leaves => drop(setsid()?),
                }
                Ok(())
            }
            ForkResult::Parent { child } => {
                if let Some(report) = &report {
                    nix::unistd::write(report, &child.as_raw().to_ne_bytes())?;
                }
                leave(between, child)
            }
        }
    };
    // SAFETY: between fork and exec only system calls are made, on descriptors and strings made before.
    unsafe { command.pre_exec(isolate) };
    Ok(())
}

fn leave(between: Between, child: Pid) -> ! {
    // Else it would keep open what tells the parent that the program runs.
    // SAFETY: closes descriptors of this process, which uses none of them any more.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    let code = match between {
        Between::Leaves => 0,
        Between::Waits => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, code)) => break code,
                Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                Err(nix::errno::Errno::EINTR) | Ok(_) => {}
                Err(_) => break 127,
            }
        },
    };
    // SAFETY: ends this process without touching what it shares with its parent.
    unsafe { libc::_exit(code) }
}

fn pidfd(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: takes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd)?;
    if fd < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("process {pid}"));
    }
    // SAFETY: the kernel just made it, nobody else has it. It is closed on exec.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    debug_assert!(fd.as_raw_fd() > 2);
    Ok(fd)
}
