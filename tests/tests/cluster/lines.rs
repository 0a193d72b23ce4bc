//! What kubectl tells of objects as they change, line by line, while something else goes on.

use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;
use std::{io::BufRead, io::BufReader, thread};

use anyhow::{Context, Result, bail};
use vineyard_tests::cluster::Cluster;

use crate::PATIENCE;

/// A watch, which goes with the guard.
pub(crate) struct Lines {
    kubectl: Child,
    lines: Receiver<String>,
}

impl Lines {
    /// Watches what `get` lists, as the JSONPath shows it. Returns when the watch has begun, if there is anything to be listed yet.
    pub(crate) fn of(cluster: &Cluster, get: &[&str], path: &str) -> Result<Self> {
        let mut command = cluster.command(cluster.program("kubectl"))?;
        let output = format!("jsonpath={path}{{\"\\n\"}}");
        command
            .arg("get")
            .args(get)
            .args(["--watch", "-o", &output])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut kubectl = command.spawn().context("kubectl")?;
        let output = kubectl.stdout.take().context("a pipe")?;
        let (told, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { kubectl, lines })
    }

    /// Waits for a line.
    pub(crate) fn wait(&self, is_it: impl Fn(&str) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if is_it(&line) => return Ok(()),
                Ok(_) => {}
                Err(_) => bail!("kubectl did not tell what was waited for"),
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
