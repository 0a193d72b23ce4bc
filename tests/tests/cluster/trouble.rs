//! Whoever is killed in the middle: the bytes stay whole, views stay valid, and every byte comes to a bill.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use vineyard_tests::commands::{Command, Content};

use crate::bills::{Bills, pod_processes};
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, PATIENCE, SYSTEM, cluster, left, reached};

const FIRST: Content = Content {
    seed: 11,
    len: 24 * MIB,
};
const PLAIN: Content = Content {
    seed: 12,
    len: 6 * MIB,
};

fn more(seed: u64) -> Content {
    Content { seed, len: 4 * MIB }
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn whoever_is_killed_bytes_stay_whole_and_views_valid() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("trouble");
    let namespace = Namespace::new(&cluster, "trouble")?;
    namespace.claim("data", 128 * MIB)?;
    let pod = Pod {
        writes: Some(64 * MIB),
        restart: "Always",
        ..Pod::waiting("app", "data")
    };
    namespace.apply(pod.object())?;
    namespace.wait_for("pod/app", "{.status.phase}", "Running")?;
    let node = namespace.node("app")?;
    let bills = Bills::new(&namespace, "data", node)?;
    let mut client = Client::start(&namespace, "app")?;
    client.put("first", FIRST)?;
    client.get("first", FIRST, 1)?;
    client.done(&Command::Plain {
        name: "plain".into(),
        content: PLAIN,
    })?;
    let mut written = FIRST.len + PLAIN.len;
    let bill = bills.expect(&[("app", written)])?;
    table.row(
        "a pod puts 24 MiB, writes a file of 6 MiB and keeps a view",
        Some(&bill),
        "",
    );

    // The sidecar, which is the second last thing that a pod wants to lose.
    let before = namespace.field("pod/app", "{.status.initContainerStatuses[0].restartCount}")?;
    let sidecar = pod_processes(
        &cluster,
        node,
        &namespace.field("pod/app", "{.metadata.uid}")?,
        "vineyard-sidecar",
    )?;
    kill(
        *sidecar.first().context("no sidecar runs")?,
        Signal::SIGKILL,
    )?;
    client.done(&Command::Check { view: 1 })?;
    client.put("second", more(13))?;
    written += more(13).len;
    let restarted = reached(|| {
        let now = namespace.field("pod/app", "{.status.initContainerStatuses[0].restartCount}");
        now.is_ok_and(|now| now != before)
    });
    ensure!(restarted, "the sidecar is not restarted");
    let bill = bills.expect(&[("app", written)])?;
    table.row(
        "its sidecar is killed; the client puts 4 MiB more",
        Some(&bill),
        "the put waited for the new sidecar; the view is whole",
    );

    let driver = node_plugin(&namespace, node)?;
    let began = Instant::now();
    let processes = pod_processes(&cluster, node, &driver.1, "vineyard-csi")?;
    kill(
        *processes.first().context("no driver runs")?,
        Signal::SIGKILL,
    )?;
    client.put("third", more(14))?;
    written += more(14).len;
    client.done(&Command::Check { view: 1 })?;
    let is_back = reached(|| {
        let ready = cluster.field(
            SYSTEM,
            &format!("pod/{}", driver.0),
            "{.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}",
        );
        ready.is_ok_and(|it| it.starts_with("true ") && !it.ends_with(" 0"))
    });
    ensure!(is_back, "the driver does not come back");
    let bill = bills.expect(&[("app", written)])?;
    let seconds = format!(
        "ready again after {:.0} s; the put did not fail",
        began.elapsed().as_secs_f64()
    );
    table.row(
        "the driver is killed; the client puts 4 MiB more",
        Some(&bill),
        seconds,
    );

    // By hand, as `kubectl delete pod` of the DaemonSet's pod does: a rolling update.
    cluster.kubectl(&["-n", SYSTEM, "delete", "pod", &driver.0, "--timeout=120s"])?;
    client.put("fourth", more(15))?;
    written += more(15).len;
    let driver = node_plugin(&namespace, node)?;
    cluster.wait_for(
        SYSTEM,
        &format!("pod/{}", driver.0),
        "{.status.containerStatuses[0].ready}",
        "true",
    )?;
    let bill = bills.expect(&[("app", written)])?;
    table.row(
        "the driver's pod is replaced; the client puts 4 MiB more",
        Some(&bill),
        "",
    );

    let kubelet = cluster.node(node).process("kubelet")?;
    // What is executed in a container goes through kubelet.
    drop(client);
    kubelet.end(Signal::SIGKILL, PATIENCE)?;
    cluster.node(node).start_kubelet()?;
    let begin = Instant::now();
    let mut client = loop {
        match Client::start(&namespace, "app") {
            Ok(client) => break client,
            Err(error) => ensure!(begin.elapsed() < PATIENCE, "{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    client.get("first", FIRST, 1)?;
    let bill = bills.expect(&[("app", written)])?;
    table.row(
        "kubelet is killed and started again",
        Some(&bill),
        "nothing is mounted twice",
    );
    ensure!(
        left::mounts(&cluster, &namespace.volume("data")?)? == 2,
        "mounts: the memory and the target"
    );

    // The container that the plain file is charged to.
    drop(client);
    let before = namespace.field("pod/app", "{.status.containerStatuses[0].restartCount}")?;
    let _ = namespace.kubectl(&["exec", "app", "-c", "main", "--", "kill", "1"]);
    let restarted = reached(|| {
        let now = namespace.field(
            "pod/app",
            "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}",
        );
        now.is_ok_and(|now| now.ends_with("true") && !now.starts_with(&before))
    });
    ensure!(restarted, "the container is not restarted");
    let bill = bills.expect(&[("app", written)])?;
    table.row(
        "the application's container is restarted",
        Some(&bill),
        "still the pod's bill",
    );

    let began = Instant::now();
    namespace.kubectl(&["delete", "pod", "app", "--force", "--grace-period=0"])?;
    let bill = bills.expect(&[("retainer", written)])?;
    let gap = format!(
        "on the retainer's bill after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    table.row("the pod is deleted by force", Some(&bill), gap);

    let volume = namespace.volume("data")?;
    namespace.delete(&["pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    table.row("the claim is deleted", None, "nothing is left");
    table.write()
}

/// The pod of the node plugin: name and uid.
fn node_plugin(namespace: &Namespace<'_>, node: u8) -> Result<(String, String)> {
    let mut found = None;
    let there = reached(|| {
        let listed = namespace.cluster.kubectl(&[
            "-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=node",
            &format!("--field-selector=spec.nodeName=n{node}"),
            "-o", "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.deletionTimestamp}{\"\\n\"}{end}",
        ]);
        let listed = listed.unwrap_or_default();
        found = listed.lines().find_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            // One that is going has a third word.
            let (uid, leaving) = rest.split_once(' ')?;
            leaving
                .is_empty()
                .then(|| (name.to_owned(), uid.to_owned()))
        });
        found.is_some()
    });
    ensure!(there, "no node plugin on n{node}");
    found.context("no node plugin")
}
