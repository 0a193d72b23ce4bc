//! `helm upgrade` while pods work: node plugins and controller are replaced, and nobody who uses a volume notices.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use vineyard_tests::cluster::Cluster;
use vineyard_tests::commands::{Command, Content};

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::parts::Part;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, SYSTEM, cluster, left};

const KEPT: Content = Content {
    seed: 81,
    len: 12 * MIB,
};
const VIEWED: Content = Content {
    seed: 82,
    len: 24 * MIB,
};
/// What is put again and again meanwhile.
const SMALL: Content = Content {
    seed: 83,
    len: 64 << 10,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn an_upgrade_breaks_no_view_loses_no_byte_and_moves_no_bill() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("upgrade");
    let namespace = Namespace::new(&cluster, "upgrade")?;
    // On one node all is retained, on the other one a pod works.
    namespace.claim("kept", 64 * MIB)?;
    namespace.claim("used", 128 * MIB)?;
    let place = |name: &'static str, claim: &'static str, node| Pod {
        writes: Some(64 * MIB),
        node: Some(node),
        restart: "Always",
        ..Pod::waiting(name, claim)
    };
    namespace.apply(place("filler", "kept", 1).object())?;
    namespace.apply(place("app", "used", 2).object())?;
    for name in ["filler", "app"] {
        namespace.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running")?;
    }
    Client::start(&namespace, "filler")?.put("object", KEPT)?;
    namespace.delete(&["pod/filler"])?;
    let mut client = Client::start(&namespace, "app")?;
    client.put("viewed", VIEWED)?;
    client.get("viewed", VIEWED, 1)?;
    let (kept, used) = (
        Bills::new(&namespace, "kept", 1)?,
        Bills::new(&namespace, "used", 2)?,
    );
    let retained = kept.expect(&[("retainer", KEPT.len)])?;
    let own = used.expect(&[("app", VIEWED.len)])?;
    table.row("12 MiB are retained on n1", Some(&retained), "");
    table.row(
        "24 MiB are a pod's on n2, which has a view of them",
        Some(&own),
        "",
    );

    let plugins = Part::all(&cluster, "node")?;
    let controllers = Part::all(&cluster, "controller")?;
    let retainers = Part::all(&cluster, "retainer")?;
    let begin = Instant::now();
    let (puts, longest) = while_putting(&mut client, || {
        upgrade(&cluster)?;
        // Helm is content when all but one of them are ready.
        for before in &plugins {
            Part::wait(&cluster, "node", before.node, |it| it.uid != before.uid)?;
        }
        Ok(())
    })?;
    let took = begin.elapsed();
    for now in Part::all(&cluster, "controller")? {
        ensure!(
            now.is_ready && controllers.iter().all(|it| it.uid != now.uid),
            "{now:?}"
        );
    }
    for before in &retainers {
        let now = Part::on(&cluster, "retainer", before.node)?;
        ensure!(
            now.uid == before.uid && now.restarts == before.restarts,
            "{now:?}"
        );
    }
    client.done(&Command::Check { view: 1 })?;
    let restarts = namespace.field("pod/app", "{.status.initContainerStatuses[0].restartCount}")?;
    ensure!(restarts == "0", "the sidecar was restarted");
    let written = VIEWED.len + puts * SMALL.len;
    let own = used.expect(&[("app", written)])?;
    table.row(
        "helm upgrade with other values replaces node plugins and controller, while the pod puts 64 KiB after 64 KiB",
        Some(&own),
        format!(
            "{:.0} s, {puts} puts, none failed, the longest took {:.1} s; the view is whole, no sidecar and no retainer was restarted",
            took.as_secs_f64(),
            longest.as_secs_f64()
        ),
    );
    let retained = kept.expect(&[("retainer", KEPT.len)])?;
    table.row("what is retained on n1", Some(&retained), "");

    drop(client);
    namespace.delete(&["pod/app"])?;
    let retained = used.expect(&[("retainer", written)])?;
    table.row(
        "the pod is deleted",
        Some(&retained),
        "the new plugins hand over what the old ones granted",
    );
    let volumes = [namespace.volume("kept")?, namespace.volume("used")?];
    namespace.delete(&["pvc/kept", "pvc/used"])?;
    for volume in &volumes {
        left::nothing(&cluster, volume)?;
    }
    table.write()
}

/// Upgrades the release to a value that changes every pod template. Returns when all is rolled out.
fn upgrade(cluster: &Cluster) -> Result<()> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/vineyard");
    let mark = format!("upgrade={}", std::process::id());
    let mut command = cluster.command(cluster.program("helm"))?;
    command.args(["upgrade", "vineyard"]).arg(chart);
    command.args([
        "--namespace",
        SYSTEM,
        "--reuse-values",
        "--wait=legacy",
        "--timeout=4m",
    ]);
    for part in ["node", "controller"] {
        command.arg(format!("--set-string={part}.podAnnotations.{mark}"));
    }
    let output = command.stdin(Stdio::null()).output().context("helm")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm upgrade: {said}");
    Ok(())
}

/// Puts one object after the other while something else is done. Returns how many, and how long the longest took.
fn while_putting(
    client: &mut Client,
    work: impl FnOnce() -> Result<()>,
) -> Result<(u64, Duration)> {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let putting = scope.spawn(|| -> Result<(u64, Duration)> {
            let (mut puts, mut longest) = (0, Duration::ZERO);
            while !ended.load(Ordering::Relaxed) {
                let begin = Instant::now();
                client.put(&format!("small/{puts}"), SMALL)?;
                longest = longest.max(begin.elapsed());
                puts += 1;
                thread::sleep(Duration::from_millis(200));
            }
            Ok((puts, longest))
        });
        let worked = work();
        ended.store(true, Ordering::Relaxed);
        let put = putting
            .join()
            .map_err(|_| anyhow!("whoever puts panicked"))?;
        worked.and(put)
    })
}
