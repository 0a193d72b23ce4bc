//! How long pods take to start with a claim and without: `make cluster-bench`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::namespace::{Namespace, claim};
use crate::pods::{Pod, without_claim};
use crate::table::write;
use crate::watch::{Watch, name};
use crate::{MIB, PATIENCE, cluster};

const PODS: usize = 50;

/// Kinds of pods, taken in turns so that all meet the same machine.
const KINDS: [&str; 4] = [
    "no claim",
    "a claim that it reads",
    "a claim that it writes",
    "a new claim that it writes",
];

#[test]
#[ignore = "slow: make cluster-bench"]
fn pods_start_without_a_claim_and_with_one() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "latency")?;
    namespace.claim("used", 64 * MIB)?;
    let keeper = Pod {
        node: Some(1),
        writes: Some(0),
        ..Pod::waiting("keeper", "used")
    };
    namespace.apply(keeper.object())?;
    namespace.wait_for("pod/keeper", "{.status.phase}", "Running")?;
    let mut watch = Watch::start(&cluster, &["-n", &namespace.name])?;
    let mut took = [const { Vec::new() }; KINDS.len()];
    for round in 0..PODS {
        for (kind, took) in took.iter_mut().enumerate() {
            let pod_name = format!("p{kind}-{round}");
            let claim_name = if kind == 3 { &pod_name } else { "used" };
            let pod = Pod {
                node: Some(1),
                read_only: kind == 1,
                writes: (kind > 1).then_some(MIB),
                ..Pod::waiting(&pod_name, claim_name)
            };
            let objects = match kind {
                0 => vec![without_claim(pod.object())],
                3 => vec![claim(&pod_name, 8 * MIB), pod.object()],
                _ => vec![pod.object()],
            };
            let begin = Instant::now();
            namespace.apply_all(objects)?;
            let runs = |pod: &Value| name(pod) == pod_name && pod["status"]["phase"] == "Running";
            let at = watch.until(PATIENCE, |_, pods| pods.values().any(runs))?;
            took.push(at - begin);
            namespace.delete(&[&format!("pod/{pod_name}")])?;
            if kind == 3 {
                namespace.delete(&[&format!("pvc/{pod_name}")])?;
            }
        }
    }
    let mut shown = String::from("| pod with | p50, s | p99, s |\n|---|---:|---:|\n");
    for (kind, took) in KINDS.into_iter().zip(&mut took) {
        took.sort();
        ensure!(took.len() == PODS, "{kind}");
        let [half, last] = [50, 99].map(|percent| seconds(took, percent));
        shown += &format!("| {kind} | {half:.2} | {last:.2} |\n");
    }
    eprintln!("{shown}");
    write("benchmarks.md", "pod-start", &shown)
}

/// A percentile of sorted times, by the nearest rank.
fn seconds(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    let found = sorted.get(rank.saturating_sub(1));
    found.map_or(f64::NAN, Duration::as_secs_f64)
}
