//! What tests do with a cluster: objects from YAML, and waiting for what becomes of them.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Cluster;
use crate::process::poll;

/// How long anything may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(180);

impl Cluster {
    /// Makes or changes objects.
    ///
    /// # Errors
    /// When the API server does not take them.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let mut command = self.command(self.program("kubectl"))?;
        command.args(["apply", "-f", "-"]);
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = piped.spawn().context("kubectl apply")?;
        child
            .stdin
            .take()
            .context("stdin")?
            .write_all(yaml.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl apply: {}{yaml}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
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
        let mut last = String::new();
        let reached = poll(PATIENCE, || {
            std::thread::sleep(Duration::from_millis(250));
            last = match self.field(namespace, object, path) {
                Ok(now) => now,
                Err(error) => format!("{error:#}"),
            };
            last == value
        });
        if !reached {
            let state = self
                .kubectl(&["-n", namespace, "describe", object])
                .unwrap_or_default();
            bail!("{object}: {path} is {last:?}, not {value:?}\n{state}");
        }
        Ok(())
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
