//! Capacity: it grows while pods have it, is never booked twice, and a full node sends pods elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use vineyard_tests::commands::{Answer, Cause, Command, Content};

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, cluster, left};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_volume_grows_while_a_pod_has_it() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("expand");
    let namespace = Namespace::new(&cluster, "expand")?;
    namespace.claim("data", 32 * MIB)?;
    let pod = Pod {
        writes: Some(64 * MIB),
        ..Pod::waiting("app", "data")
    };
    namespace.apply(pod.object())?;
    namespace.wait_for("pod/app", "{.status.phase}", "Running")?;
    let bills = Bills::new(&namespace, "data", namespace.node("app")?)?;
    let mut client = Client::start(&namespace, "app")?;
    let (first, second) = (
        Content {
            seed: 21,
            len: 20 * MIB,
        },
        Content {
            seed: 22,
            len: 30 * MIB,
        },
    );
    client.put("first", first)?;
    let put = Command::Put {
        name: Some("second".into()),
        content: second,
        overwrite: false,
    };
    let refused = client.call(&put)?;
    ensure!(
        matches!(&refused, Answer::Failed(failure) if failure.cause == Cause::Volume || failure.cause == Cause::Allowance),
        "{refused:?}"
    );
    let bill = bills.expect(&[("app", first.len)])?;
    table.row(
        "32 MiB, of which 20 are used: a put of 30 MiB",
        Some(&bill),
        "refused; nothing is killed",
    );
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"64Mi"}}}}"#;
    namespace.kubectl(&["patch", "pvc", "data", "-p", patch])?;
    namespace.wait_for("pvc/data", "{.status.capacity.storage}", "64Mi")?;
    client.done(&put)?;
    let bill = bills.now()?;
    let sum = bill.get("app").unwrap_or(&0) + bill.get("retainer").unwrap_or(&0);
    let written = first.len + second.len;
    ensure!((written..written + 2 * MIB).contains(&sum), "{bill:?}");
    table.row(
        "the claim is raised to 64 MiB while the pod runs: again",
        Some(&bill),
        "it fits; above the allowance, which was the capacity when the pod began, the retainer reserves",
    );
    drop(client);
    let volume = namespace.volume("data")?;
    namespace.delete(&["pod/app", "pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    table.write()
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_full_node_sends_pods_elsewhere_and_nothing_is_booked_twice() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("room");
    let namespace = Namespace::new(&cluster, "room")?;
    // Each node offers 1 GiB.
    let claims = ["one", "two", "three"];
    for name in claims {
        namespace.claim(name, 700 * MIB)?;
    }
    let begin = |claim: &'static str| {
        let pod = Pod {
            writes: Some(0),
            ..Pod::waiting(claim, claim)
        };
        namespace.apply(pod.object())
    };
    begin("one")?;
    namespace.wait_for("pod/one", "{.status.phase}", "Running")?;
    let first = namespace.node("one")?;
    table.row(
        "two nodes of 1 GiB; a pod with a claim of 700 MiB",
        None,
        format!("runs on n{first}"),
    );
    begin("two")?;
    namespace.wait_for("pod/two", "{.status.phase}", "Running")?;
    let second = namespace.node("two")?;
    ensure!(second != first, "both on n{first}");
    table.row("another one", None, format!("runs on n{second}"));
    begin("three")?;
    let reason = "{.status.conditions[?(@.type=='PodScheduled')].reason}";
    namespace.wait_for("pod/three", reason, "Unschedulable")?;
    // It is tried again, and never in vain.
    std::thread::sleep(Duration::from_secs(5));
    ensure!(namespace.field("pod/three", "{.status.phase}")? == "Pending");
    ensure!(namespace.field("pvc/three", "{.status.phase}")? == "Pending");
    let reason = namespace.field(
        "pod/three",
        "{.status.conditions[?(@.type=='PodScheduled')].message}",
    )?;
    table.row(
        "a third one",
        None,
        format!("waits: {}", reason.replace('|', " ")),
    );
    namespace.delete(&["pod/two", "pvc/two"])?;
    namespace.wait_for("pod/three", "{.status.phase}", "Running")?;
    let third = namespace.node("three")?;
    ensure!(third == second, "on n{third}");
    table.row(
        "the second is deleted",
        None,
        format!("the third runs on n{third}"),
    );
    let volumes = [namespace.volume("one")?, namespace.volume("three")?];
    namespace.delete(&["pod/one", "pod/three", "pvc/one", "pvc/three"])?;
    for volume in &volumes {
        left::nothing(&cluster, volume)?;
    }
    table.write()
}
