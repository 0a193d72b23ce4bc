//! While nobody answers for the webhook: who needs it waits, with an event that says why, and nobody else does.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vineyard_tests::commands::Content;

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::parts::Replicas;
use crate::pods::Pod;
use crate::table::Table;
use crate::workloads::{deployment, pods_of, wait_until_gone};
use crate::{MIB, cluster, left, reached};

const CONTENT: Content = Content {
    seed: 61,
    len: 4 * MIB,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn while_the_webhook_is_away_only_pods_that_write_wait_and_are_replaced_when_it_is_back()
-> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("webhook-down");
    let namespace = Namespace::new(&cluster, "nohook")?;
    let node = 1;
    // One for each pod that is refused: kubelet tries a volume again, not a pod, so it makes others that share its claim wait, too.
    for claim in ["data", "other"] {
        namespace.claim(claim, 64 * MIB)?;
        let fill = Pod {
            node: Some(node),
            ..Pod::running(claim, claim, "echo precious >/data/file")
        };
        namespace.apply(fill.object())?;
    }
    for name in ["data", "other"] {
        namespace.wait_for(&format!("pod/{name}"), "{.status.phase}", "Succeeded")?;
    }
    namespace.delete(&["pod/data", "pod/other"])?;

    let away = Replicas::set(&cluster, 0)?;
    let mut plain = Pod::running("plain", "none", "true").object();
    plain["spec"]["volumes"] = serde_json::json!([]);
    plain["spec"]["containers"][0]["volumeMounts"] = serde_json::json!([]);
    let begin = Instant::now();
    namespace.apply(plain)?;
    let admitted = begin.elapsed();
    namespace.wait_for("pod/plain", "{.status.phase}", "Succeeded")?;
    table.row(
        "no controller runs; a pod without a claim",
        None,
        format!(
            "admitted after {:.1} s, done after {:.1} s",
            admitted.as_secs_f64(),
            begin.elapsed().as_secs_f64()
        ),
    );

    let reader = Pod {
        read_only: true,
        node: Some(node),
        ..Pod::running("reader", "data", "cat /data/file")
    };
    namespace.apply(reader.object())?;
    namespace.wait_for("pod/reader", "{.status.phase}", "Succeeded")?;
    ensure!(namespace.kubectl(&["logs", "reader", "-c", "main"])?.trim() == "precious");
    table.row("a pod that only reads the claim", None, "runs, and reads");

    let writer = |name, claim| Pod {
        writes: Some(8 * MIB),
        node: Some(node),
        ..Pod::waiting(name, claim)
    };
    namespace.apply(writer("alone", "other").object())?;
    namespace.apply(deployment(&writer("app", "data")))?;
    let mut refused = String::new();
    let pods = || -> Result<Vec<String>> {
        Ok([vec!["alone".to_owned()], pods_of(&namespace, "app")?].concat())
    };
    ensure!(pods()?.len() == 2, "{:?}", pods()?);
    for pod in pods()? {
        let said = reached(|| {
            refused = events_of(&namespace, &pod).unwrap_or_default();
            refused.contains("SidecarMissing")
        });
        ensure!(said, "no event on {pod}: {refused}");
        ensure!(
            refused.contains("Delete it: its successor is injected"),
            "{refused}"
        );
        let phase = namespace.field(&format!("pod/{pod}"), "{.status.phase}")?;
        ensure!(phase == "Pending", "{pod} is {phase}");
    }
    let message = refused.trim().replace('|', " ");
    table.row(
        "a pod that writes, and one of a Deployment",
        None,
        format!("neither starts; on each of them: {message}"),
    );

    let old = pods_of(&namespace, "app")?.pop().context("a pod")?;
    let begin = Instant::now();
    drop(away);
    namespace.wait_for("deployment/app", "{.status.readyReplicas}", "1")?;
    let new = pods_of(&namespace, "app")?.pop().context("a pod")?;
    ensure!(new != old, "{old} runs");
    ensure!(namespace.field("pod/alone", "{.status.phase}")? == "Pending");
    let mut client = Client::start(&namespace, &new)?;
    client.put("object", CONTENT)?;
    let bills = Bills::new(&namespace, "data", node)?;
    let bill = bills.expect(&[("retainer", 0), (&new, CONTENT.len)])?;
    table.row(
        "the controller is back",
        Some(&bill),
        format!(
            "the Deployment's pod was replaced and runs, with its sidecar, after {:.0} s; the other one waits for its owner",
            begin.elapsed().as_secs_f64()
        ),
    );
    drop(client);
    let volumes = [namespace.volume("data")?, namespace.volume("other")?];
    namespace.delete(&["deployment/app", "pod/alone", "pod/reader", "pod/plain"])?;
    wait_until_gone(&namespace, "app")?;
    namespace.delete(&["pvc/data", "pvc/other"])?;
    for volume in &volumes {
        left::nothing(&cluster, volume)?;
    }
    table.write()
}

/// What was said of a pod.
fn events_of(namespace: &Namespace<'_>, pod: &str) -> Result<String> {
    namespace.kubectl(&[
        "get",
        "events",
        "--field-selector",
        &format!("involvedObject.kind=Pod,involvedObject.name={pod},reason=SidecarMissing"),
        "-o",
        "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}",
    ])
}
