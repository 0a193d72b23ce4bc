//! What the scheduler counts while a pod ends: at no moment less than what is in the volume.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use vineyard_tests::commands::Content;

use crate::bills::{Bills, pod_processes};
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::{Table, mib};
use crate::watch::{Watch, has_ended, name, requested};
use crate::{MIB, PATIENCE, SYSTEM, cluster, left};

const ALLOWANCE: u64 = 96 * MIB;
const OBJECT: Content = Content {
    seed: 31,
    len: 64 * MIB,
};

/// Memory that a sidecar, and a retainer, request for themselves.
const SIDECAR: u64 = 32 * MIB;
const RETAINER: u64 = 16 * MIB;

/// Who is killed while the pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    Nobody,
    Sidecar,
    Driver,
}

/// What was seen while a pod ended.
#[derive(Debug)]
struct Seen {
    /// The least that was counted for the bytes of the volume.
    least: u64,
    /// How long it was less than there were.
    gap: Duration,
    changes: usize,
    whole: Duration,
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn while_a_pod_ends_the_scheduler_counts_its_bytes_at_every_moment() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("cover");
    let namespace = Namespace::new(&cluster, "cover")?;
    let cases = [
        (Killed::Nobody, "a pod with 64 MiB is deleted"),
        (
            Killed::Sidecar,
            "its sidecar is killed at the moment of the deletion",
        ),
        (
            Killed::Driver,
            "the driver is killed at the moment of the deletion",
        ),
    ];
    for (case, (killed, step)) in cases.into_iter().enumerate() {
        let claim = format!("data-{case}");
        namespace.claim(&claim, 128 * MIB)?;
        let pod = Pod {
            writes: Some(ALLOWANCE),
            memory: 160,
            ..Pod::waiting("app", &claim)
        };
        namespace.apply(pod.object())?;
        namespace.wait_for("pod/app", "{.status.phase}", "Running")?;
        let bills = Bills::new(&namespace, &claim, namespace.node("app")?)?;
        let mut client = Client::start(&namespace, "app")?;
        client.put("object", OBJECT)?;
        drop(client);
        let bill = bills.expect(&[("app", OBJECT.len)])?;
        let seen = end(&namespace, &bills, killed)?;
        if killed == Killed::Nobody {
            ensure!(
                seen.gap.is_zero() && seen.least >= bill["app"],
                "{seen:?}, {bill:?}"
            );
        }
        let bill = bills.expect(&[("retainer", OBJECT.len)])?;
        let gap = match seen.gap.is_zero() {
            true => "no gap".into(),
            false => format!("less than there was for {:.2} s", seen.gap.as_secs_f64()),
        };
        let told = format!(
            "at least {} of requests for {} at each of {} changes in {:.1} s: {gap}",
            mib(seen.least),
            mib(OBJECT.len),
            seen.changes,
            seen.whole.as_secs_f64()
        );
        table.row(step, Some(&bill), told);
        let volume = namespace.volume(&claim)?;
        namespace.delete(&[&format!("pvc/{claim}")])?;
        left::nothing(&cluster, &volume)?;
    }
    table.write()
}

/// Deletes the pod, and looks at what is counted until nobody counts it any more and the retainer has its bytes.
fn end(namespace: &Namespace<'_>, bills: &Bills<'_>, killed: Killed) -> Result<Seen> {
    let node = bills.node();
    let on_node = format!("--field-selector=spec.nodeName=n{node}");
    let mut watch = Watch::start(namespace.cluster, &["--all-namespaces", &on_node])?;
    let uid = namespace.field("pod/app", "{.metadata.uid}")?;
    watch.until(PATIENCE, |_, pods| pods.contains_key(&uid))?;
    // What is there already comes first.
    while watch.next(Duration::from_secs(1))?.is_some() {}
    ensure!(counted(&watch.pods)? >= OBJECT.len, "too little before");
    let victim = match killed {
        Killed::Nobody => None,
        Killed::Sidecar => Some((uid.clone(), "vineyard-sidecar")),
        Killed::Driver => {
            let is_driver = |pod: &&Value| {
                pod["metadata"]["namespace"] == SYSTEM && name(pod).starts_with("vineyard-node")
            };
            let driver = watch.pods.values().find(is_driver).context("no driver")?;
            let uid = driver["metadata"]["uid"].as_str().unwrap_or_default();
            Some((uid.to_owned(), "vineyard-csi"))
        }
    };
    let begin = Instant::now();
    namespace.kubectl(&["delete", "pod", "app", "--wait=false"])?;
    if let Some((uid, program)) = victim {
        for process in pod_processes(namespace.cluster, node, &uid, program)? {
            kill(process, Signal::SIGKILL)?;
        }
    }
    let mut seen = Seen {
        least: counted(&watch.pods)?,
        gap: Duration::ZERO,
        changes: 0,
        whole: Duration::ZERO,
    };
    let mut short_since = None;
    let mut failed = None;
    let at = watch.until(PATIENCE, |at, pods| {
        let counted = match counted(pods) {
            Ok(counted) => counted,
            Err(error) => {
                failed = Some(error);
                return true;
            }
        };
        seen.changes += 1;
        seen.least = seen.least.min(counted);
        if counted < OBJECT.len {
            short_since.get_or_insert(at);
        } else if let Some(since) = short_since.take() {
            seen.gap += at - since;
        }
        pods.get(&uid).is_none_or(has_ended) && short_since.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    seen.whole = at - begin;
    namespace.kubectl(&["wait", "pod/app", "--for=delete", "--timeout=180s"])?;
    Ok(seen)
}

/// What the pods that have not ended request for bytes in volumes, beside what they need themselves.
fn counted(pods: &BTreeMap<String, Value>) -> Result<u64> {
    let live = pods.values().filter(|pod| !has_ended(pod));
    live.map(|pod| {
        let sidecar = requested(pod, "vineyard-sidecar")?.saturating_sub(SIDECAR);
        let retainer = requested(pod, "retainer")?.saturating_sub(RETAINER);
        Ok(sidecar + retainer)
    })
    .sum()
}
