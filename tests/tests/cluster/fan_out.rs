//! Ten writers at once in one volume.

use std::thread;

use anyhow::{Result, anyhow, ensure};
use vineyard_tests::commands::Content;

use crate::bills::Bills;
use crate::client::Client;
use crate::cluster;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::{Table, mib};
use crate::{MIB, left};

const WRITERS: u64 = 10;
const OBJECTS: u64 = 3;
const EACH: u64 = 2 * MIB + 4096;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn ten_writers_at_once_are_billed_their_own_and_the_retainer_all_of_it_when_they_have_gone()
-> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("fan-out");
    let namespace = Namespace::new(&cluster, "fanout")?;
    namespace.claim("data", 128 * MIB)?;
    let names: Vec<String> = (0..WRITERS).map(|n| format!("writer-{n}")).collect();
    for name in &names {
        let pod = Pod {
            writes: Some(12 * MIB),
            memory: 32,
            // One node at a time may have this claim.
            node: Some(1),
            ..Pod::waiting(name, "data")
        };
        namespace.apply(pod.object())?;
    }
    for name in &names {
        namespace.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running")?;
    }
    let bills = Bills::new(&namespace, "data", 1)?;
    let bill = bills.expect(&[("retainer", 0)])?;
    table.row("ten pods with one claim run", Some(&bill), "");

    let mut clients = names
        .iter()
        .map(|name| Client::start(&namespace, name))
        .collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let put = |(writer, client): (usize, &mut Client)| -> Result<()> {
            for object in 0..OBJECTS {
                let seed = writer as u64 * OBJECTS + object;
                client.put(&format!("w{writer}/{object}"), Content { seed, len: EACH })?;
            }
            Ok(())
        };
        let running: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|work| scope.spawn(move || put(work)))
            .collect();
        running
            .into_iter()
            .try_for_each(|it| it.join().map_err(|_| anyhow!("a writer panicked"))?)
    })?;
    let own: Vec<(&str, u64)> = names
        .iter()
        .map(|name| (name.as_str(), OBJECTS * EACH))
        .collect();
    let bill = bills.expect(&own)?;
    for name in &names {
        let counted = bills.counter(name)?;
        ensure!(
            counted.abs_diff(bill[name]) <= 2 * MIB,
            "{name}: {counted}, {bill:?}"
        );
    }
    let seen = format!("{} each, and so say their cgroups", mib(OBJECTS * EACH));
    table.row("each puts three objects at the same time", None, seen);

    drop(clients);
    let all: Vec<String> = names.iter().map(|name| format!("pod/{name}")).collect();
    namespace.delete(&all.iter().map(String::as_str).collect::<Vec<_>>())?;
    let written = WRITERS * OBJECTS * EACH;
    let bill = bills.expect(&[("retainer", written)])?;
    table.row("all ten are deleted at the same time", Some(&bill), "");

    let reader = Pod {
        read_only: true,
        node: Some(1),
        ..Pod::waiting("reader", "data")
    };
    namespace.apply(reader.object())?;
    namespace.wait_for("pod/reader", "{.status.phase}", "Running")?;
    let mut reading = Client::start(&namespace, "reader")?;
    for seed in 0..WRITERS * OBJECTS {
        let (writer, object) = (seed / OBJECTS, seed % OBJECTS);
        let content = Content { seed, len: EACH };
        reading.get(
            &format!("w{writer}/{object}"),
            content,
            u32::try_from(seed)?,
        )?;
    }
    drop(reading);
    let volume = namespace.volume("data")?;
    namespace.delete(&["pod/reader", "pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    table.row(
        "a reader checks all 30 objects; everything is deleted",
        None,
        "nothing is left",
    );
    table.write()
}
