//! What the rest rests on: the driver is registered, and an ordinary file in a claim outlives its pod.

use anyhow::{Result, ensure};

use crate::cluster;
use crate::namespace::Namespace;
use crate::pods::Pod;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn every_kubelet_knows_the_driver() -> Result<()> {
    let cluster = cluster()?;
    for n in 1..=cluster.place().nodes()? {
        let node = format!("csinode/n{n}");
        cluster.wait_for("", &node, "{.spec.drivers[*].name}", "vineyard.io")?;
        let keys = cluster.field("", &node, "{.spec.drivers[*].topologyKeys}")?;
        ensure!(
            keys.contains("vineyard.io/node") && keys.contains("vineyard.io/pool"),
            "{keys}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn what_a_pod_wrote_is_read_by_the_next_and_gone_with_its_claim() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "file")?;
    namespace.claim("data", 64 << 20)?;
    // Nothing is provisioned before the scheduler has chosen a node.
    namespace.wait_for("pvc/data", "{.status.phase}", "Pending")?;
    let script = "echo precious >/data/file; stat -f -c %T /data";
    namespace.apply(Pod::running("writer", "data", script).object())?;
    let added = namespace.field("pod/writer", "{.spec.initContainers[*].name}")?;
    ensure!(added == "vineyard-sidecar", "the webhook added {added:?}");
    namespace.wait_for("pod/writer", "{.status.phase}", "Succeeded")?;
    ensure!(namespace.kubectl(&["logs", "writer", "-c", "main"])?.trim() == "tmpfs");
    let node = namespace.node("writer")?;
    let volume = namespace.volume("data")?;
    // A volume is never pinned to one node, only to the nodes of its pool.
    let terms = cluster.field(
        "",
        &format!("pv/{volume}"),
        "{.spec.nodeAffinity.required.nodeSelectorTerms}",
    )?;
    ensure!(
        terms.contains("vineyard.io/pool") && !terms.contains("vineyard.io/node"),
        "{terms}"
    );
    namespace.delete(&["pod", "writer"])?;
    let reader = Pod {
        read_only: true,
        node: Some(node),
        ..Pod::running("reader", "data", "cat /data/file")
    };
    namespace.apply(reader.object())?;
    let added = namespace.field("pod/reader", "{.spec.initContainers[*].name}")?;
    ensure!(added.is_empty(), "a reader got {added:?}");
    namespace.wait_for("pod/reader", "{.status.phase}", "Succeeded")?;
    ensure!(namespace.kubectl(&["logs", "reader", "-c", "main"])?.trim() == "precious");
    namespace.delete(&["pod/reader", "pvc/data"])?;
    cluster.wait_until_gone("", &format!("pv/{volume}"))
}
