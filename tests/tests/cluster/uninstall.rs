//! The end of an installation: the last of `make test-cluster`.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use vineyard_tests::cluster::{Cluster, Node};

use crate::{SYSTEM, open, reached};

/// Kinds outside of namespaces of which the chart makes some, and the driver.
const KINDS: &str = "customresourcedefinitions,mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,\
    csidrivers,storageclasses,priorityclasses,clusterroles,clusterrolebindings,persistentvolumes";

#[test]
#[ignore = "ends the installation: make test-cluster"]
fn when_the_driver_is_uninstalled_nothing_of_it_is_left() -> Result<()> {
    let cluster = open()?;
    let mut helm = cluster.command(cluster.program("helm"))?;
    helm.args(["uninstall", "vineyard", "--namespace", SYSTEM]);
    helm.args(["--wait", "--timeout", "4m"]);
    ensure!(helm.status()?.success(), "helm uninstall");
    cluster.kubectl(&["delete", "namespace", SYSTEM, "--timeout=180s"])?;
    let mut left = String::new();
    let gone = reached(|| {
        left = match look(&cluster) {
            Ok(left) => left.join("\n"),
            Err(error) => format!("{error:#}"),
        };
        left.is_empty()
    });
    ensure!(gone, "{left}");
    Ok(())
}

fn look(cluster: &Cluster) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let objects = cluster.kubectl(&["get", KINDS, "-o", "name"])?;
    left.extend(
        objects
            .lines()
            .filter(|it| it.contains("vineyard"))
            .map(str::to_owned),
    );
    let drivers = "{.items[*].spec.drivers[*].name}";
    let drivers = cluster.field("", "csinodes", drivers)?;
    if !drivers.is_empty() {
        left.push(format!("registered: {drivers}"));
    }
    for n in 1..=cluster.place().nodes()? {
        let node = cluster.node(n);
        let name = node.name();
        left.extend(on(&node)?.into_iter().map(|it| format!("{name}: {it}")));
    }
    Ok(left)
}

/// Mounts, sockets and cgroups of ours on a node. Empty directories stay: Kubernetes makes them, and removes none.
fn on(node: &Node<'_>) -> Result<Vec<String>> {
    let mounts = fs::read_to_string(node.proc()?.join("mountinfo"))?;
    let is_ours = |line: &&str| {
        let point = line.split(' ').nth(4).unwrap_or_default();
        point.contains("vineyard") || line.contains(" vineyard:")
    };
    let mut left: Vec<String> = mounts.lines().filter(is_ours).map(str::to_owned).collect();
    let root = node.root()?;
    for folder in [
        "var/lib/vineyard",
        "run/vineyard",
        "var/lib/kubelet/plugins/vineyard.io",
        "var/lib/kubelet/plugins_registry",
    ] {
        files(&root.join(folder), &mut left);
    }
    let pods = node.memory_cgroup()?.join("kubepods");
    for class in [
        pods.clone(),
        pods.join("burstable"),
        pods.join("besteffort"),
    ] {
        let entries = fs::read_dir(&class).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path().display().to_string());
        left.extend(paths.filter(|path| path.contains("/pod")));
    }
    Ok(left)
}

fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            _ => found.push(entry.path().display().to_string()),
        }
    }
}
