//! A volume in a temporary directory, and the binary that works on it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// What one call of the binary gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Answer {
    /// Asserts success.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.err);
        self
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    /// The lines of JSON on standard output.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The line of JSON on standard error.
    pub(crate) fn error(&self) -> Value {
        serde_json::from_str(self.err.lines().last().unwrap()).unwrap()
    }
}

/// A volume of its own for each test.
#[derive(Debug)]
pub(crate) struct Session {
    directory: TempDir,
    volume: PathBuf,
}

impl Session {
    /// A directory for a volume; the first `put` makes the volume.
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("vineyard-test-")
            .tempdir()
            .unwrap();
        let volume = directory.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        Self { directory, volume }
    }

    pub(crate) fn volume(&self) -> &Path {
        &self.volume
    }

    /// A path beside the volume.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The binary, on this volume and without a sidecar.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vineyard"));
        command
            .env("VINEYARD_VOLUME", &self.volume)
            .env_remove("VINEYARD_SOCKET");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Answer {
        answer(self.command().args(arguments))
    }

    /// Runs it with `input` as its standard input.
    pub(crate) fn feed(&self, arguments: &[&str], input: &[u8]) -> Answer {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end before it reads.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        Answer {
            code: output.status.code().unwrap(),
            out: output.stdout,
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Puts `content` under `name`.
    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        self.feed(&["put", "-", name], content).ok();
    }
}

pub(crate) fn answer(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    Answer {
        code: output.status.code().unwrap(),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
