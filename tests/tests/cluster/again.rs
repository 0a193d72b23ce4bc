//! A writer comes back to a node that has less room than half of its volume: what is retained there is not requested again.

use anyhow::{Result, ensure};
use serde_json::Value;
use vineyard_tests::commands::Content;

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::{Pod, ballast};
use crate::table::{Table, mib};
use crate::watch::{bytes, has_ended, requested};
use crate::{MIB, cluster, left, reached};

const CAPACITY: u64 = 512 * MIB;
const OBJECTS: u64 = 5;
const EACH: u64 = 60 * MIB;
const MORE: Content = Content {
    seed: 49,
    len: 16 * MIB,
};

/// What is left of the node when the writer comes back.
const ROOM: u64 = 200 * MIB;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_writer_comes_back_to_a_node_with_less_room_than_half_of_its_volume() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("again");
    let namespace = Namespace::new(&cluster, "again")?;
    namespace.claim("data", CAPACITY)?;
    let producer = Pod {
        writes: Some(OBJECTS * EACH + 8 * MIB),
        memory: 128,
        ..Pod::waiting("producer", "data")
    };
    namespace.apply(producer.object())?;
    namespace.wait_for("pod/producer", "{.status.phase}", "Running")?;
    let node = namespace.node("producer")?;
    let bills = Bills::new(&namespace, "data", node)?;
    let mut client = Client::start(&namespace, "producer")?;
    for object in 0..OBJECTS {
        client.put(&format!("o{object}"), content(object))?;
    }
    drop(client);
    let written = OBJECTS * EACH;
    bills.expect(&[("producer", written)])?;
    namespace.delete(&["pod/producer"])?;
    let bill = bills.expect(&[("retainer", written)])?;
    let mut room = Room::of(&namespace, node)?;
    // What the hand-over was given beyond need is given back.
    let settled = reached(|| {
        room = Room::of(&namespace, node).unwrap_or_default();
        (written..written + 100 * MIB).contains(&room.retained)
    });
    ensure!(settled, "{room:?}");
    table.row(
        "300 MiB in a volume of 512 MiB are retained",
        Some(&bill),
        format!(
            "the retainer requests {}; {} of the node are free",
            mib(room.retained),
            mib(room.free)
        ),
    );

    let filled = (room.free - ROOM) / MIB;
    namespace.apply(ballast("ballast", node, filled))?;
    namespace.wait_for("pod/ballast", "{.status.phase}", "Running")?;
    let room = Room::of(&namespace, node)?;
    ensure!(room.free < CAPACITY / 2, "{room:?}");
    let writer = Pod {
        writes: Some(32 * MIB),
        memory: 96,
        node: Some(node),
        ..Pod::waiting("writer", "data")
    };
    namespace.apply(writer.object())?;
    namespace.wait_for("pod/writer", "{.status.phase}", "Running")?;
    let mut client = Client::start(&namespace, "writer")?;
    for object in 0..OBJECTS {
        client.get(
            &format!("o{object}"),
            content(object),
            u32::try_from(object)?,
        )?;
    }
    client.put("more", MORE)?;
    let bill = bills.expect(&[("retainer", written), ("writer", MORE.len)])?;
    let then = Room::of(&namespace, node)?;
    table.row(
        "other pods take the node; a writer comes back, reads everything and puts 16 MiB",
        Some(&bill),
        format!(
            "{} were free, less than half of the capacity; {} are now",
            mib(room.free),
            mib(then.free)
        ),
    );

    drop(client);
    let volume = namespace.volume("data")?;
    namespace.delete(&["pod/ballast", "pod/writer", "pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    table.write()
}

const fn content(object: u64) -> Content {
    Content {
        seed: 40 + object,
        len: EACH,
    }
}

/// Memory of a node as the scheduler counts it.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// What no pod has requested.
    pub(crate) free: u64,
    /// What the node's retainer requests.
    pub(crate) retained: u64,
}

impl Room {
    pub(crate) fn of(namespace: &Namespace<'_>, node: u8) -> Result<Self> {
        let cluster = namespace.cluster;
        let path = "{.status.allocatable.memory}";
        let offered = cluster.field("", &format!("node/n{node}"), path)?;
        let offered = bytes(&Value::String(offered))?;
        let here = format!("--field-selector=spec.nodeName=n{node}");
        let pods = cluster.kubectl(&["get", "pods", "--all-namespaces", &here, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods)?;
        let (mut used, mut retained) = (0, 0);
        let pods = pods["items"].as_array().into_iter().flatten();
        for pod in pods.filter(|pod| !has_ended(pod)) {
            let spec = &pod["spec"];
            let natives = spec["initContainers"].as_array().into_iter().flatten();
            let natives = natives.filter(|it| it["restartPolicy"] == "Always");
            let containers = spec["containers"].as_array().into_iter().flatten();
            for container in natives.chain(containers) {
                let name = container["name"].as_str().unwrap_or_default();
                let bytes = requested(pod, name)?;
                used += bytes;
                retained += if name == "retainer" { bytes } else { 0 };
            }
        }
        Ok(Self {
            free: offered.saturating_sub(used),
            retained,
        })
    }
}
