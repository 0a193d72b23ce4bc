//! On a real cluster with the driver installed: `make cluster-test`. One test at a time, because a node is easily full.

mod bills;
mod client;
mod fan_out;
mod first;
mod journey;
mod left;
mod namespace;
mod pods;
mod room;
mod table;
mod trouble;

use anyhow::{Context, Result};
use vineyard_tests::cluster::Cluster;

const MIB: u64 = 1 << 20;

/// Where the driver is.
const SYSTEM: &str = "vineyard-system";

/// The cluster that the environment names.
fn cluster() -> Result<Cluster> {
    let id = std::env::var("VINEYARD_TEST_CLUSTER").unwrap_or_else(|_| "dev".into());
    let id = id.parse().map_err(anyhow::Error::msg)?;
    Cluster::open(&id).context("run make cluster-up")
}
