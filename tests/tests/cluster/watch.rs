//! Pods as the API server tells of them: every change, in its order, when it came. The scheduler knows them in the same way.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Deserializer, Value};
use vineyard_tests::cluster::Cluster;

/// Pods that are followed until the guard goes.
pub(crate) struct Watch {
    kubectl: Child,
    events: Receiver<(Instant, Value)>,
    /// By uid, as they were told of last.
    pub(crate) pods: BTreeMap<String, Value>,
}

impl Watch {
    /// Follows the pods that `arguments` of kubectl choose.
    pub(crate) fn start(cluster: &Cluster, arguments: &[&str]) -> Result<Self> {
        let mut command = cluster.command(cluster.program("kubectl"))?;
        command.args([
            "get",
            "pods",
            "--watch",
            "--output-watch-events",
            "-o",
            "json",
        ]);
        let mut kubectl = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl get --watch")?;
        let output = BufReader::new(kubectl.stdout.take().context("a pipe")?);
        let (send, events) = channel();
        thread::spawn(move || {
            for event in Deserializer::from_reader(output).into_iter::<Value>() {
                let Ok(event) = event else { return };
                if send.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            kubectl,
            events,
            pods: BTreeMap::new(),
        })
    }

    /// Waits for the next change, and returns when it came; `None` when nothing comes for so long.
    pub(crate) fn next(&mut self, patience: Duration) -> Result<Option<Instant>> {
        let (at, mut event) = match self.events.recv_timeout(patience) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("kubectl has stopped to watch"),
        };
        let kind = event["type"].take();
        let pod = event["object"].take();
        let uid = pod["metadata"]["uid"].as_str();
        let uid = uid.with_context(|| format!("no pod: {pod}"))?.to_owned();
        match kind.as_str() {
            Some("DELETED") => drop(self.pods.remove(&uid)),
            _ => drop(self.pods.insert(uid, pod)),
        }
        Ok(Some(at))
    }

    /// Waits for changes until the pods are as `enough` wants them. Returns when they were.
    pub(crate) fn until(
        &mut self,
        patience: Duration,
        mut enough: impl FnMut(Instant, &BTreeMap<String, Value>) -> bool,
    ) -> Result<Instant> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let at = self.next(left)?;
            ensure!(at.is_some(), "not in {patience:?}: {}", self.shown());
            if let Some(at) = at.filter(|at| enough(*at, &self.pods)) {
                return Ok(at);
            }
        }
    }

    fn shown(&self) -> String {
        let one = |pod: &Value| format!("{} {}", name(pod), pod["status"]);
        self.pods.values().map(one).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// A pod's name.
pub(crate) fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether a pod has ended, so that the scheduler counts it no more.
pub(crate) fn has_ended(pod: &Value) -> bool {
    matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

/// Bytes of a quantity as Kubernetes writes it.
pub(crate) fn bytes(quantity: &Value) -> Result<u64> {
    let text = quantity.as_str().unwrap_or("0");
    let digits = text.trim_end_matches(char::is_alphabetic);
    let times = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        other => bail!("{other} of {text}"),
    };
    Ok(digits.parse::<u64>().with_context(|| text.to_owned())? * times)
}

/// Memory that the scheduler counts for the container `name` of a pod: what it asks for or, while that is being changed, has.
pub(crate) fn requested(pod: &Value, name: &str) -> Result<u64> {
    let of = |list: &Value| {
        let mut all = list.as_array().into_iter().flatten();
        all.find(|it| it["name"] == name).cloned()
    };
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let asked = of(&spec["containers"]).or_else(|| of(&spec["initContainers"]));
    let asked = asked.map_or(Ok(0), |it| bytes(&it["resources"]["requests"]["memory"]))?;
    let has = of(&status["containerStatuses"]).or_else(|| of(&status["initContainerStatuses"]));
    let has = has.unwrap_or_default();
    let allocated = bytes(&has["allocatedResources"]["memory"])?;
    let actual = bytes(&has["resources"]["requests"]["memory"])?;
    Ok(asked.max(allocated).max(actual))
}
