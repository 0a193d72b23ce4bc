//! The driver's own pods: which they are, killing one in the middle of something, and waiting until they work again.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use vineyard_tests::cluster::Cluster;

use crate::bills::pod_processes;
use crate::{SYSTEM, reached};

/// A pod of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: u8,
    pub(crate) is_ready: bool,
    /// How often its containers were restarted, in all.
    pub(crate) restarts: u64,
    /// The image of its first container.
    pub(crate) image: String,
    /// Memory that its first container requests, in bytes.
    pub(crate) request: u64,
}

impl Part {
    fn of(pod: &Value) -> Option<Self> {
        // One that is on its way out is none any more.
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return None;
        }
        let (container, status) = (&pod["spec"]["containers"][0], &pod["status"]);
        let statuses = status["containerStatuses"].as_array();
        let statuses = || statuses.into_iter().flatten();
        let request = container["resources"]["requests"]["memory"].as_str();
        Some(Self {
            name: pod["metadata"]["name"].as_str()?.into(),
            uid: pod["metadata"]["uid"].as_str()?.into(),
            node: pod["spec"]["nodeName"]
                .as_str()?
                .strip_prefix('n')?
                .parse()
                .ok()?,
            is_ready: statuses().next().is_some() && statuses().all(|it| it["ready"] == true),
            restarts: statuses()
                .filter_map(|it| it["restartCount"].as_u64())
                .sum(),
            image: container["image"].as_str()?.into(),
            request: request.map_or(0, bytes),
        })
    }

    /// All of one component: `node`, `retainer` or `controller`.
    pub(crate) fn all(cluster: &Cluster, component: &str) -> Result<Vec<Self>> {
        let pods = Self::pods(cluster, component)?;
        Ok(pods.iter().filter_map(Self::of).collect())
    }

    /// The same with those that are on their way out.
    fn pods(cluster: &Cluster, component: &str) -> Result<Vec<Value>> {
        let label = format!("app.kubernetes.io/component={component}");
        let listed = cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-l", &label, "-o", "json"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        listed["items"].as_array().cloned().context("no list")
    }

    /// The one on a node.
    pub(crate) fn on(cluster: &Cluster, component: &str, node: u8) -> Result<Self> {
        let mut all = Self::all(cluster, component)?.into_iter();
        let found = all.find(|part| part.node == node);
        found.with_context(|| format!("no {component} on n{node}"))
    }

    /// Waits until `so` holds of the one on a node, which is ready.
    pub(crate) fn wait(
        cluster: &Cluster,
        component: &str,
        node: u8,
        so: impl Fn(&Self) -> bool,
    ) -> Result<Self> {
        let mut last = None;
        let is_so = reached(|| {
            let now = last.insert(Self::on(cluster, component, node));
            now.as_ref().is_ok_and(|part| part.is_ready && so(part))
        });
        ensure!(is_so, "{component} on n{node}: {last:?}");
        last.context("nobody looked")?
    }

    /// Kills its processes that run a program of this name.
    pub(crate) fn kill(&self, cluster: &Cluster, program: &str) -> Result<()> {
        let processes = pod_processes(cluster, self.node, &self.uid, program)?;
        ensure!(!processes.is_empty(), "{} runs no {program}", self.name);
        for process in processes {
            kill(process, Signal::SIGKILL)?;
        }
        Ok(())
    }
}

/// Bytes of a quantity, as far as we write such.
pub(crate) fn bytes(quantity: &str) -> u64 {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let found = units
        .iter()
        .find_map(|(unit, shift)| Some((quantity.strip_suffix(unit)?, *shift)));
    let (number, shift) = found.unwrap_or((quantity, 0));
    number.parse::<u64>().map_or(0, |number| number << shift)
}

/// The Deployment of the controller.
const CONTROLLER: &str = "deployment/vineyard-controller";

/// As long as this is there, so many controllers run; then as many as before.
pub(crate) struct Replicas<'a> {
    cluster: &'a Cluster,
    before: String,
}

impl<'a> Replicas<'a> {
    pub(crate) fn set(cluster: &'a Cluster, number: usize) -> Result<Self> {
        let before = cluster.field(SYSTEM, CONTROLLER, "{.spec.replicas}")?;
        let replicas = Self { cluster, before };
        replicas.scale(&number.to_string())?;
        let mut all = Vec::new();
        let are_there = reached(|| {
            // One that is on its way out still serves the webhook for a while.
            let pods = Part::pods(cluster, "controller").unwrap_or_default();
            all = pods.iter().filter_map(Part::of).collect();
            pods.len() == number && all.len() == number && all.iter().all(|part| part.is_ready)
        });
        ensure!(are_there, "not {number} controllers: {all:?}");
        Ok(replicas)
    }

    fn scale(&self, number: &str) -> Result<()> {
        let replicas = format!("--replicas={number}");
        let scale = ["-n", SYSTEM, "scale", CONTROLLER, &replicas];
        self.cluster.kubectl(&scale).map(drop)
    }
}

impl Drop for Replicas<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.scale(&self.before) {
            eprintln!("not as many controllers as before: {error:#}");
        }
    }
}
