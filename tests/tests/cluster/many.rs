//! Fifty pods with a claim each, all at once.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;
use vineyard_tests::cluster::Cluster;
use vineyard_tests::commands::{Command, Content};

use crate::bills::{Bills, known};
use crate::namespace::{Namespace, claim};
use crate::pods::Pod;
use crate::table::Table;
use crate::watch::{Watch, has_ended, name};
use crate::{MIB, PATIENCE, cluster, left};

const PODS: usize = 50;
const CAPACITY: u64 = 8 * MIB;
const EACH: u64 = 96 << 10;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn fifty_pods_with_a_claim_each_start_at_once_and_leave_their_bytes() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("many");
    let namespace = Namespace::new(&cluster, "many")?;
    let names: Vec<String> = (0..PODS).map(|n| format!("p{n}")).collect();
    let mut objects = Vec::new();
    for (seed, name) in names.iter().enumerate() {
        let put = Command::Put {
            name: Some("object".into()),
            content: Content {
                seed: seed as u64,
                len: EACH,
            },
            overwrite: false,
        };
        let script = format!(
            "echo '{}' | vineyard-test-client \"$VINEYARD_VOLUME\" $VINEYARD_SOCKET | tee /dev/stderr | grep -q '\"object\"'",
            serde_json::to_string(&put)?
        );
        let pod = Pod {
            writes: Some(4 * MIB),
            memory: 24,
            ..Pod::running(name, name, &script)
        };
        objects.push(claim(name, CAPACITY));
        objects.push(pod.object());
    }
    let before = requests(&cluster)?;
    namespace.apply_all(objects)?;
    let mut watch = Watch::start(&cluster, &["-n", &namespace.name])?;
    watch.until(3 * PATIENCE, |_, pods| {
        pods.len() == PODS && pods.values().all(has_ended)
    })?;
    let phases = watch.pods.values().map(|pod| &pod["status"]["phase"]);
    let failed: Vec<&Value> = phases.filter(|phase| **phase != "Succeeded").collect();
    ensure!(
        failed.is_empty(),
        "{}",
        namespace.kubectl(&["get", "pods"])?
    );
    let mut on = BTreeMap::<String, usize>::new();
    for pod in watch.pods.values() {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or("none");
        *on.entry(node.to_owned()).or_default() += 1;
    }
    let on = on.iter().map(|(node, pods)| format!("{pods} on {node}"));
    let spread = format!("each has put 96 KiB; {}", on.collect::<Vec<_>>().join(", "));
    table.row("50 pods with 50 new claims have run", None, spread);
    let after = requests(&cluster)?;
    let asked = after.iter().filter_map(|(verb, count)| {
        let more = count - before.get(verb).copied().unwrap_or_default();
        (more > 0).then(|| format!("{more} {verb}"))
    });
    let asked = asked.collect::<Vec<_>>().join(", ");
    ensure!(!asked.is_empty(), "the API server has counted nothing");
    table.row("requests about our resources until then", None, asked);

    let pairs = "{range .items[*]}{.metadata.name} {.spec.volumeName}{\"\\n\"}{end}";
    let pairs = namespace.field("pvc", pairs)?;
    let volumes: BTreeMap<&str, &str> = pairs.lines().filter_map(|it| it.split_once(' ')).collect();
    ensure!(volumes.len() == PODS, "{pairs}");
    let known = (1..=cluster.place().nodes()?)
        .map(|node| Ok((format!("n{node}"), (node, known(&namespace, node)?))))
        .collect::<Result<BTreeMap<_, _>>>()?;
    for pod in watch.pods.values() {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let (node, known) = &known[node];
        let bills = Bills::of(&namespace, volumes[name(pod)].to_owned(), *node);
        bills.expect_among(known, &[("retainer", EACH)])?;
    }
    let seen = "all of it on the retainers' bills";
    table.row("the volumes are surveyed one by one", None, seen);

    drop(watch);
    let gone: Vec<String> = volumes.into_values().map(str::to_owned).collect();
    namespace.delete(&["pods,pvc", "--all"])?;
    left::nothing_of(&cluster, &gone)?;
    table.row("pods and claims are deleted", None, "nothing is left");
    table.write()
}

/// What the API server was asked about our resources since it began, by verb.
fn requests(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    for line in metrics.lines() {
        let ours =
            line.starts_with("apiserver_request_total{") && line.contains("group=\"vineyard.io\"");
        let verb = line
            .split("verb=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let count = line
            .rsplit(' ')
            .next()
            .and_then(|count| count.parse::<u64>().ok());
        if let (true, Some(verb), Some(count)) = (ours, verb, count) {
            *counts.entry(verb.to_owned()).or_default() += count;
        }
    }
    Ok(counts)
}
