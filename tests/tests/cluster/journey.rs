//! The life of a volume: put, read elsewhere, retained, read again, written again, deleted. Each step with its bill.

use anyhow::{Result, ensure};
use vineyard_tests::commands::{Command, Content};

use crate::bills::Bills;
use crate::client::Client;
use crate::cluster;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::{Table, mib};
use crate::{MIB, left};

const OBJECT: Content = Content {
    seed: 1,
    len: 48 * MIB,
};
const PLAIN: Content = Content {
    seed: 2,
    len: 8 * MIB,
};
const SECOND: Content = Content {
    seed: 3,
    len: 16 * MIB,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn every_byte_is_on_the_bill_of_whoever_put_it_then_of_the_retainer_and_never_of_a_reader()
-> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("journey");
    let namespace = Namespace::new(&cluster, "journey")?;
    namespace.claim("data", 128 * MIB)?;
    let producer = Pod {
        writes: Some(96 * MIB),
        ..Pod::waiting("producer", "data")
    };
    namespace.apply(producer.object())?;
    namespace.wait_for("pod/producer", "{.status.phase}", "Running")?;
    let node = namespace.node("producer")?;
    let bills = Bills::new(&namespace, "data", node)?;
    let bill = bills.expect(&[("retainer", 0)])?;
    table.row(
        "claim of 128 MiB provisioned, a pod runs",
        Some(&bill),
        format!("node n{node}"),
    );

    let mut client = Client::start(&namespace, "producer")?;
    client.put("table", OBJECT)?;
    client.done(&Command::Plain {
        name: "notes.txt".into(),
        content: PLAIN,
    })?;
    let written = OBJECT.len + PLAIN.len;
    let bill = bills.expect(&[("producer", written)])?;
    let counted = bills.counter("producer")?;
    ensure!(
        counted.abs_diff(bill["producer"]) <= 2 * MIB,
        "{counted}, {bill:?}"
    );
    let (told, after) = bills.summary("producer", bill["producer"])?;
    table.row(
        "it puts an object of 48 MiB and writes a plain file of 8 MiB",
        Some(&bill),
        format!(
            "its cgroup counts {}; kubelet tells {} after {} s",
            mib(counted),
            mib(told),
            after.as_secs()
        ),
    );

    let reader = Pod {
        read_only: true,
        node: Some(node),
        ..Pod::waiting("reader", "data")
    };
    namespace.apply(reader.object())?;
    namespace.wait_for("pod/reader", "{.status.phase}", "Running")?;
    let mut reading = Client::start(&namespace, "reader")?;
    reading.get("table", OBJECT, 1)?;
    let read = bills.expect(&[("producer", written)])?;
    ensure!(read == bill, "a reader changed a bill: {read:?}");
    let counted = bills.counter("reader")?;
    ensure!(counted == 0, "the reader is charged {counted}");
    table.row(
        "a second pod maps the object and checks every byte",
        Some(&read),
        "the reader is charged 0 bytes: no copy",
    );

    drop(client);
    namespace.delete(&["pod", "producer"])?;
    let bill = bills.expect(&[("retainer", written)])?;
    reading.done(&Command::Check { view: 1 })?;
    table.row(
        "the producer is gone",
        Some(&bill),
        "the reader's view is whole",
    );

    drop(reading);
    namespace.delete(&["pod", "reader"])?;
    let again = Pod {
        read_only: true,
        node: Some(node),
        ..Pod::waiting("again", "data")
    };
    namespace.apply(again.object())?;
    namespace.wait_for("pod/again", "{.status.phase}", "Running")?;
    let mut reading = Client::start(&namespace, "again")?;
    reading.get("table", OBJECT, 1)?;
    reading.get("notes.txt", PLAIN, 2)?;
    let bill = bills.expect(&[("retainer", written)])?;
    table.row(
        "no pod had it for a while; another reader",
        Some(&bill),
        "both are whole",
    );

    let writer = Pod {
        writes: Some(24 * MIB),
        node: Some(node),
        ..Pod::waiting("writer", "data")
    };
    namespace.apply(writer.object())?;
    namespace.wait_for("pod/writer", "{.status.phase}", "Running")?;
    let mut client = Client::start(&namespace, "writer")?;
    client.put("second", SECOND)?;
    let bill = bills.expect(&[("retainer", written), ("writer", SECOND.len)])?;
    table.row(
        "a writer returns and puts 16 MiB",
        Some(&bill),
        "nothing is counted twice",
    );

    drop((reading, client));
    namespace.delete(&["pod", "again", "writer"])?;
    let bill = bills.expect(&[("retainer", written + SECOND.len)])?;
    let (told, after) = bills.summary("retainer", bill["retainer"])?;
    let seen = format!(
        "kubelet tells {} of the retainer after {} s",
        mib(told),
        after.as_secs()
    );
    table.row("both are gone", Some(&bill), seen);
    let volume = namespace.volume("data")?;
    namespace.delete(&["pvc", "data"])?;
    cluster.wait_until_gone("", &format!("pv/{volume}"))?;
    left::nothing(&cluster, &volume)?;
    table.row(
        "the claim is deleted",
        None,
        "no mount, record or directory is left",
    );
    table.write()
}
