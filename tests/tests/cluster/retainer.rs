//! What becomes of retained bytes when something becomes of the retainer: its container, its pod, its image.

use std::time::Instant;

use anyhow::{Result, ensure};
use vineyard_tests::cluster::Cluster;
use vineyard_tests::commands::{Command, Content};

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::parts::{Part, bytes};
use crate::pods::Pod;
use crate::table::{Table, mib};
use crate::{MIB, SYSTEM, cluster, left, reached};

const NODE: u8 = 1;
const FIRST: Content = Content {
    seed: 51,
    len: 24 * MIB,
};
const SECOND: Content = Content {
    seed: 52,
    len: 8 * MIB,
};

/// What the retainer requests for itself.
const OWN: u64 = 16 * MIB;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn retained_bytes_follow_the_retainer_through_a_crash_a_new_pod_and_a_new_image() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("retainer");
    let namespace = Namespace::new(&cluster, "retainer")?;
    namespace.claim("data", 64 * MIB)?;
    let bills = produce(&namespace, "first", FIRST)?;
    let reader = Pod {
        read_only: true,
        node: Some(NODE),
        ..Pod::waiting("reader", "data")
    };
    namespace.apply(reader.object())?;
    namespace.wait_for("pod/reader", "{.status.phase}", "Running")?;
    let mut reading = Client::start(&namespace, "reader")?;
    reading.get("first", FIRST, 1)?;
    let begin = Instant::now();
    namespace.delete(&["pod/first"])?;
    let bill = bills.expect(&[("retainer", FIRST.len)])?;
    let (told, after) = requested(&cluster, FIRST.len, begin)?;
    table.row(
        "a pod that put 24 MiB is deleted",
        Some(&bill),
        format!("the retainer's pod has {told} allocated, {after}"),
    );

    let mut written = FIRST.len;
    let before = Part::on(&cluster, "retainer", NODE)?;
    produce(&namespace, "second", SECOND)?;
    let begin = Instant::now();
    before.kill(&cluster, "vineyard-csi")?;
    namespace.delete(&["pod/second"])?;
    written += SECOND.len;
    let bill = bills.expect(&[("retainer", written)])?;
    let gap = begin.elapsed();
    let restarted = |part: &Part| part.restarts > before.restarts;
    let now = Part::wait(&cluster, "retainer", NODE, restarted)?;
    ensure!(now.uid == before.uid, "another pod: {now:?}");
    reading.done(&Command::Check { view: 1 })?;
    table.row(
        "the retainer is killed, and at the same moment a pod that put 8 MiB is deleted",
        Some(&bill),
        format!(
            "its pod keeps what it held; the rest is on its bill after {:.1} s",
            gap.as_secs_f64()
        ),
    );

    let begin = Instant::now();
    cluster.kubectl(&["-n", SYSTEM, "delete", "pod", &now.name, "--timeout=120s"])?;
    let lost = begin.elapsed();
    let between = bills.now()?;
    let others = between.iter().filter(|(who, _)| *who != "retainer");
    let orphaned: u64 = others.map(|(_, bytes)| bytes).sum();
    let bill = bills.expect(&[("retainer", written)])?;
    let gap = begin.elapsed().saturating_sub(lost);
    let next = Part::wait(&cluster, "retainer", NODE, |part| part.uid != before.uid)?;
    let (told, after) = requested(&cluster, written, begin)?;
    reading.done(&Command::Check { view: 1 })?;
    table.row(
        "the retainer's pod is deleted",
        Some(&bill),
        format!(
            "{} were on no pod's bill; all on the next retainer's {:.1} s later, with {told} allocated {after}",
            mib(orphaned),
            gap.as_secs_f64()
        ),
    );

    let begin = Instant::now();
    upgrade(&cluster, &next.image)?;
    let bill = bills.expect(&[("retainer", written)])?;
    let (told, _) = requested(&cluster, written, begin)?;
    reading.done(&Command::Check { view: 1 })?;
    table.row(
        "retainers get another image, and the first again",
        Some(&bill),
        format!(
            "containers restarted in place, one node after the other, pods and requests ({told}) stay; {:.0} s",
            begin.elapsed().as_secs_f64()
        ),
    );

    drop(reading);
    let volume = namespace.volume("data")?;
    let begin = Instant::now();
    namespace.delete(&["pod/reader", "pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    let lowered = reached(|| {
        Part::on(&cluster, "retainer", NODE).is_ok_and(|part| part.request < OWN + written)
    });
    let now = Part::on(&cluster, "retainer", NODE)?;
    ensure!(lowered, "{now:?} still requests what is gone");
    table.row(
        "the claim is deleted",
        None,
        format!(
            "the retainer requests {} again after {:.1} s",
            mib(now.request),
            begin.elapsed().as_secs_f64()
        ),
    );
    table.write()
}

/// A pod that puts something and waits.
fn produce<'a>(namespace: &'a Namespace<'a>, name: &str, content: Content) -> Result<Bills<'a>> {
    let pod = Pod {
        writes: Some(content.len),
        node: Some(NODE),
        ..Pod::waiting(name, "data")
    };
    namespace.apply(pod.object())?;
    namespace.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running")?;
    Client::start(namespace, name)?.put(name, content)?;
    Bills::new(namespace, "data", NODE)
}

/// Waits until the retainer's pod requests room for so much, and kubelet has allocated that. Returns how much, and after how long.
fn requested(cluster: &Cluster, retained: u64, begin: Instant) -> Result<(String, String)> {
    let mut allocated = 0;
    let mut part = Part::on(cluster, "retainer", NODE);
    let is_so = reached(|| {
        part = Part::on(cluster, "retainer", NODE);
        let Ok(part) = &part else { return false };
        let told = cluster.field(
            SYSTEM,
            &format!("pod/{}", part.name),
            "{.status.containerStatuses[0].allocatedResources.memory}",
        );
        allocated = bytes(&told.unwrap_or_default());
        part.request >= OWN + retained && allocated >= OWN + retained
    });
    ensure!(is_so, "{allocated} allocated for {retained}: {part:?}");
    let seconds = begin.elapsed().as_secs_f64();
    Ok((mib(allocated), format!("after {seconds:.1} s")))
}

/// Gives all retainers another image, and the first one again.
fn upgrade(cluster: &Cluster, image: &str) -> Result<()> {
    let other = format!("{image}-again");
    let nodes = 1..=cluster.place().nodes()?;
    for n in nodes.clone() {
        let inside = cluster.node(n).namespaces()?;
        inside.run(
            "ctr",
            &["-n", "k8s.io", "image", "tag", "--force", image, &other],
        )?;
    }
    for wanted in [other.as_str(), image] {
        let before = Part::all(cluster, "retainer")?;
        let set = format!("retainer={wanted}");
        cluster.kubectl(&[
            "-n",
            SYSTEM,
            "set",
            "image",
            "daemonset/vineyard-retainer",
            &set,
        ])?;
        for n in nodes.clone() {
            let before = before.iter().find(|part| part.node == n);
            Part::wait(cluster, "retainer", n, |part| {
                part.image == wanted
                    && before.is_some_and(|it| it.uid == part.uid && part.restarts > it.restarts)
            })?;
        }
    }
    Ok(())
}
