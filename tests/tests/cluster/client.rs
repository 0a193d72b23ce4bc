//! A client of the store in a pod, steered from here.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail, ensure};
use vineyard_tests::commands::{Answer, Command, Content};

use crate::namespace::Namespace;

/// What a client finds in its environment, as `vineyard.open()` does: the webhook has put it there.
const CLIENT: &str = "exec vineyard-test-client \"$VINEYARD_VOLUME\" $VINEYARD_SOCKET";

/// A client that was started in a pod's container, and goes with the guard.
pub(crate) struct Client {
    kubectl: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// Starts one. Where the pod can write, its sidecar pays.
    pub(crate) fn start(namespace: &Namespace<'_>, pod: &str) -> Result<Self> {
        let cluster = namespace.cluster;
        let mut command = cluster.command(cluster.program("kubectl"))?;
        command.args(["-n", &namespace.name, "exec", "-i", pod, "-c", "main", "--"]);
        command.args(["sh", "-c", CLIENT]);
        let mut kubectl = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl exec")?;
        let input = kubectl.stdin.take().context("a pipe")?;
        let output = kubectl.stdout.take().context("a pipe")?;
        let mut client = Self {
            kubectl,
            input,
            output: BufReader::new(output),
        };
        match client.receive()? {
            Answer::Ready => Ok(client),
            other => bail!("the client in {pod} began with {other:?}"),
        }
    }

    /// Has it do something.
    pub(crate) fn call(&mut self, command: &Command) -> Result<Answer> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        self.input
            .write_all(line.as_bytes())
            .context("the client is gone")?;
        self.receive().with_context(|| format!("{command:?}"))
    }

    fn receive(&mut self) -> Result<Answer> {
        let mut line = String::new();
        ensure!(
            self.output.read_line(&mut line)? > 0,
            "the client closed its output"
        );
        Ok(serde_json::from_str(&line)?)
    }

    /// Puts an object.
    pub(crate) fn put(&mut self, name: &str, content: Content) -> Result<()> {
        let put = Command::Put {
            name: Some(name.into()),
            content,
            overwrite: false,
        };
        self.done(&put)
    }

    /// Gets an object without a copy, checks every byte, and holds it as `view`.
    pub(crate) fn get(&mut self, name: &str, content: Content, view: u32) -> Result<()> {
        let get = Command::Get {
            name: name.into(),
            content,
            shared: true,
            view: Some(view),
        };
        self.done(&get)
    }

    /// Has it do something that must not fail.
    pub(crate) fn done(&mut self, command: &Command) -> Result<()> {
        match self.call(command)? {
            Answer::Done | Answer::Object { .. } => Ok(()),
            other => bail!("{command:?}: {other:?}"),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
