//! The real binary, and clients that can say anything to it.

mod cgroup;
mod client;
mod volume;

pub(crate) use cgroup::Cgroup;
pub(crate) use client::Client;
pub(crate) use volume::{Volume, allocated};

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than anything takes on a busy machine: only a hang meets it.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A running `vineyard-sidecar`, killed when dropped.
pub(crate) struct Sidecar {
    child: Child,
    socket: PathBuf,
    metrics: SocketAddr,
    log: Mutex<Receiver<String>>,
}

impl Sidecar {
    /// Serves `volume` with an allowance of 64 MiB unless `flags` say otherwise.
    pub(crate) fn start(volume: &Volume, flags: &[&str]) -> Self {
        Self::spawn(Command::new(Self::BINARY), volume, flags)
    }

    pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vineyard-sidecar");

    /// As [`start`](Self::start) by a command that ends in the binary.
    pub(crate) fn spawn(mut command: Command, volume: &Volume, flags: &[&str]) -> Self {
        let socket = volume.side().join("v.sock");
        command
            .arg("--listen")
            .arg(&socket)
            .arg("--volume")
            .arg(volume.path())
            .args(["--metrics", "127.0.0.1:0"])
            .args(flags);
        if !flags.contains(&"--allowance") {
            command.args(["--allowance", "64MiB"]);
        }
        let mut child = command
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (lines, log) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let mut metrics = None;
        loop {
            let line = log.recv_timeout(HANG).expect("the sidecar did not start");
            if let Some((_, address)) = line.split_once("metrics address=") {
                metrics = address.trim().parse().ok();
            }
            if line.contains(" serving ") {
                break;
            }
        }
        Self {
            child,
            socket,
            metrics: metrics.expect("no metrics address in the log"),
            log: Mutex::new(log),
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client that has said hello.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.stranger();
        client.hello();
        client
    }

    /// A client that has said nothing yet.
    pub(crate) fn stranger(&self) -> Client {
        Client::connect(&self.socket)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end of the process.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < HANG, "the sidecar does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a line of the log that contains `text`.
    pub(crate) fn logged(&self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let left = HANG.saturating_sub(begun.elapsed());
            let line = self.log.lock().unwrap().recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("{text:?} was not logged"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// What the metrics address answers to a raw request.
    pub(crate) fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn metrics(&self) -> String {
        let answer = self.http("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        body.to_owned()
    }

    /// The value of one sample, written as in the exposition; 0 when it is not there yet.
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let text = self.metrics();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |number| number.parse().unwrap())
    }

    /// Waits until a sample has a value.
    pub(crate) fn eventually(&self, sample: &str, wanted: f64) {
        let begun = Instant::now();
        loop {
            let value = self.metric(sample);
            if (value - wanted).abs() < 0.5 {
                return;
            }
            assert!(begun.elapsed() < HANG, "{sample} is {value}, not {wanted}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
