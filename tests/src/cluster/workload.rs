//! What tests do with a cluster: objects from YAML, and waiting for what becomes of them.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Cluster;

/// How long anything may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(180);

impl Cluster {
    /// Makes or changes objects.
    ///
    /// # Errors
    /// When the API server does not take them.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        // The API server validates anyway; kubectl would fetch all definitions of types first.
        self.feed(&["apply", "--validate=false", "-f", "-"], yaml)
            .map(drop)
    }

    /// Runs kubectl with objects on its standard input, and returns what it wrote.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn feed(&self, arguments: &[&str], yaml: &str) -> Result<String> {
        let mut command = self.command(self.program("kubectl"))?;
        command.args(arguments);
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = piped.spawn().context("kubectl")?;
        child
            .stdin
            .take()
            .context("stdin")?
            .write_all(yaml.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}{yaml}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Reads one field of an object.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn field(&self, namespace: &str, object: &str, path: &str) -> Result<String> {
        self.kubectl(&[
            "-n",
            namespace,
            "get",
            object,
            "-o",
            &format!("jsonpath={path}"),
        ])
    }

    /// Waits until a field of an object has a value.
    ///
    /// # Errors
    /// When it does not get it; with what kubectl says about the object.
    pub fn wait_for(&self, namespace: &str, object: &str, path: &str, value: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < end {
            if self.watch(namespace, object, path, value, end, &mut last)? {
                return Ok(());
            }
            // There is no such object yet, or the API server has ended the watch.
            thread::sleep(Duration::from_millis(250));
        }
        let state = self
            .kubectl(&["-n", namespace, "describe", object])
            .unwrap_or_default();
        bail!("{object}: {path} is {last:?}, not {value:?}\n{state}");
    }

    /// Follows a field until it has the value, or nothing more is told. One kubectl that watches costs a small machine less than
    /// one for each look.
    fn watch(
        &self,
        namespace: &str,
        object: &str,
        path: &str,
        value: &str,
        end: Instant,
        last: &mut String,
    ) -> Result<bool> {
        let mut command = self.command(self.program("kubectl"))?;
        let path = format!("jsonpath={path}{{\"\\n\"}}");
        command
            .args(["-n", namespace, "get", object, "--watch", "-o", &path])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut kubectl = command.spawn().context("kubectl")?;
        let output = kubectl.stdout.take().context("a pipe")?;
        let mut output = BufReader::new(output);
        let found = follow(&mut output, value, end, last);
        let _ = kubectl.kill();
        let _ = kubectl.wait();
        found
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// When it stays.
    pub fn wait_until_gone(&self, namespace: &str, object: &str) -> Result<()> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["-n", namespace, "wait", object, "--for=delete", &limit])?;
        Ok(())
    }
}

/// Reads lines until one is the value. Returns whether one was; `last` is what came last.
fn follow(
    output: &mut BufReader<ChildStdout>,
    value: &str,
    end: Instant,
    last: &mut String,
) -> Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut pipe = [PollFd::new(output.get_ref().as_fd(), PollFlags::POLLIN)];
        if output.buffer().is_empty() && poll(&mut pipe, timeout)? == 0 {
            return Ok(false);
        }
        let mut line = String::new();
        if output.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        line.trim_end_matches('\n').clone_into(last);
        if last == value {
            return Ok(true);
        }
    }
}
