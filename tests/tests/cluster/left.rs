//! What a volume must not leave behind.

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};
use vineyard_tests::cluster::Cluster;
use vineyard_tests::process::poll;

use crate::SYSTEM;

/// How long a node may take to drop what is deleted.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until nothing is left of a volume on any node, nor in the records.
pub(crate) fn nothing(cluster: &Cluster, volume: &str) -> Result<()> {
    let mut found = String::new();
    let gone = poll(PATIENCE, || match look(cluster, volume) {
        Ok(None) => true,
        Ok(Some(what)) => {
            found = what;
            false
        }
        Err(error) => {
            found = format!("{error:#}");
            false
        }
    });
    if !gone {
        bail!("left of {volume}: {found}");
    }
    Ok(())
}

fn look(cluster: &Cluster, volume: &str) -> Result<Option<String>> {
    let records = cluster.kubectl(&["-n", SYSTEM, "get", "vineyardvolumes", "-o", "name"])?;
    if records.contains(volume) {
        return Ok(Some(records));
    }
    for n in 1..=cluster.place().nodes()? {
        let node = cluster.node(n);
        let mounts = fs::read_to_string(node.proc()?.join("mountinfo"))?;
        if let Some(mount) = mounts.lines().find(|line| line.contains(volume)) {
            return Ok(Some(mount.to_owned()));
        }
        let layer = node.root()?.join("var/lib/vineyard/layers").join(volume);
        if layer.exists() {
            return Ok(Some(layer.display().to_string()));
        }
    }
    Ok(None)
}

/// How often a volume is mounted on all nodes, as their first processes see it.
pub(crate) fn mounts(cluster: &Cluster, volume: &str) -> Result<usize> {
    let mut count = 0;
    for n in 1..=cluster.place().nodes()? {
        let mounts = fs::read_to_string(cluster.node(n).proc()?.join("mountinfo"))?;
        count += mounts.lines().filter(|line| line.contains(volume)).count();
    }
    Ok(count)
}
