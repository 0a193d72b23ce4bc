//! On a real cluster with the driver installed: `make cluster-test`. One test at a time, because a node is easily full.

mod again;
mod bills;
mod client;
mod controller;
mod cover;
mod elsewhere;
mod examples;
mod fan_out;
mod first;
mod forgotten;
mod journey;
mod latency;
mod left;
mod lines;
mod many;
mod namespace;
mod parts;
mod plugin;
mod pods;
mod reboot;
mod refused;
mod retainer;
mod room;
mod sidecar_oom;
mod soak_steps;
mod table;
mod trouble;
mod uninstall;
mod upgrade;
mod watch;
mod webhook_down;
mod workloads;

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vineyard_tests::cluster::Cluster;
use vineyard_tests::process::poll;

use crate::pods::Pod;

const MIB: u64 = 1 << 20;

/// How long whatever is restarted may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks that cost a process each.
const PAUSE: Duration = Duration::from_millis(250);

/// Where the driver is.
const SYSTEM: &str = "vineyard-system";

/// The cluster that the environment names.
fn open() -> Result<Cluster> {
    let id = std::env::var("VINEYARD_TEST_CLUSTER").unwrap_or_else(|_| "dev".into());
    let id = id.parse().map_err(anyhow::Error::msg)?;
    Cluster::open(&id).context("run make cluster-up")
}

/// The same, when its webhook answers.
fn cluster() -> Result<Cluster> {
    let cluster = open()?;
    compact();
    wait_for_the_webhook(&cluster)?;
    Ok(cluster)
}

/// Large objects change their bill in pieces of 2 MiB, which a machine that has just compiled for an hour has few of.
fn compact() {
    let _ = fs::write("/proc/sys/vm/compact_memory", "1");
}

/// Kubernetes admits pods as they are while it does not reach the webhook; and it learns of it a moment after the controller is ready.
fn wait_for_the_webhook(cluster: &Cluster) -> Result<()> {
    let mut last = None;
    reached(|| last.insert(injects(cluster)).is_ok());
    last.context("nobody asked")?
}

/// Requires that a pod which is made now would get the sidecar.
fn injects(cluster: &Cluster) -> Result<()> {
    let mut pod = Pod::waiting("probe", "claim").object();
    pod["metadata"]["annotations"]["vineyard.io/inject"] = json!("enabled");
    let names = "jsonpath={.spec.initContainers[*].name}";
    let dry = ["create", "--dry-run=server", "-o", names, "-f", "-"];
    let added = cluster.feed(&dry, &pod.to_string())?;
    ensure!(added == "vineyard-sidecar", "the webhook added {added:?}");
    Ok(())
}

/// Waits until something is so that costs a process or more to look at.
fn reached(mut is_so: impl FnMut() -> bool) -> bool {
    poll(PATIENCE, || {
        is_so() || {
            thread::sleep(PAUSE);
            false
        }
    })
}
