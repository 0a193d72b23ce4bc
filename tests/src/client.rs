//! The test's end of a client process.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroups::Cgroup;
use crate::commands::{Answer, Command};
use crate::process::{Process, Program};

/// A client process.
#[derive(Debug)]
pub struct Client {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// How a client is started.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions<'a> {
    /// The test client's program: `env!("CARGO_BIN_EXE_vineyard-test-client")`.
    pub program: &'a Path,
    /// The volume.
    pub volume: &'a Path,
    /// The payer's socket.
    pub socket: Option<&'a Path>,
    /// Its user and group.
    pub uid: u32,
    /// Most bytes of address space.
    pub address_space: Option<u64>,
}

impl Client {
    /// Starts a client in `cgroup` and waits until it has opened the volume.
    ///
    /// # Errors
    /// When it does not start or cannot open the volume.
    pub fn start(options: &ClientOptions<'_>, cgroup: &Cgroup) -> Result<Self> {
        let mut arguments: Vec<&OsStr> = vec![options.volume.as_os_str()];
        arguments.extend(options.socket.map(Path::as_os_str));
        let program = Program {
            path: options.program,
            arguments,
            uid: options.uid,
            address_space: options.address_space,
            variable: None,
        };
        let mut process = Process::start(&program, cgroup)?;
        let input = process.child().stdin.take().context("a pipe")?;
        let output = process.child().stdout.take().context("a pipe")?;
        let mut client = Self {
            process,
            input,
            output: BufReader::new(output),
        };
        match client.receive()? {
            Answer::Ready => Ok(client),
            other => bail!("the client began with {other:?}"),
        }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Sends a command and waits for the answer.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn call(&mut self, command: &Command) -> Result<Answer> {
        self.send(command)?;
        self.receive().with_context(|| format!("{command:?}"))
    }

    /// Sends a command.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn send(&mut self, command: &Command) -> Result<()> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        self.input
            .write_all(line.as_bytes())
            .context("the client is gone")
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn receive(&mut self) -> Result<Answer> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            self.process.check_alive()?;
            bail!("the client closed its output");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Whether an answer is there.
    ///
    /// # Errors
    /// When the pipe fails.
    pub fn has_answered(&self) -> Result<bool> {
        let mut pipe = [PollFd::new(
            self.output.get_ref().as_fd(),
            PollFlags::POLLIN,
        )];
        Ok(poll(&mut pipe, PollTimeout::ZERO)? > 0)
    }

    /// Ends it as `kill -9` does. What it was doing may be done or not.
    ///
    /// # Errors
    /// When it had died before.
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }
}
