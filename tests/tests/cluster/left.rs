//! What a volume must not leave behind.

use std::fs;

use anyhow::{Result, bail};
use vineyard_tests::cluster::Cluster;

use crate::{SYSTEM, reached};

/// Waits until nothing is left of a volume on any node, nor in the records.
pub(crate) fn nothing(cluster: &Cluster, volume: &str) -> Result<()> {
    nothing_of(cluster, &[volume.to_owned()])
}

/// The same, of many volumes.
pub(crate) fn nothing_of(cluster: &Cluster, volumes: &[String]) -> Result<()> {
    let mut found = String::new();
    let gone = reached(|| match look(cluster, volumes) {
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
        bail!("left: {found}");
    }
    Ok(())
}

fn look(cluster: &Cluster, volumes: &[String]) -> Result<Option<String>> {
    let records = cluster.kubectl(&["-n", SYSTEM, "get", "vineyardvolumes", "-o", "name"])?;
    let is_one = |text: &&str| volumes.iter().any(|volume| text.contains(volume));
    if let Some(record) = records.lines().find(is_one) {
        return Ok(Some(record.to_owned()));
    }
    for n in 1..=cluster.place().nodes()? {
        let node = cluster.node(n);
        let mounts = fs::read_to_string(node.proc()?.join("mountinfo"))?;
        if let Some(mount) = mounts.lines().find(is_one) {
            return Ok(Some(mount.to_owned()));
        }
        let layers = node.root()?.join("var/lib/vineyard/layers");
        let mut layers = volumes.iter().map(|volume| layers.join(volume));
        if let Some(layer) = layers.find(|layer| layer.exists()) {
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
