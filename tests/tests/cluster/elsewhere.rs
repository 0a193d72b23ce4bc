//! A volume that is booked on one node, and pods of it on another one.

use anyhow::{Result, ensure};
use vineyard_tests::commands::{Command, Content};

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, SYSTEM, cluster, left, reached};

const PUT: Content = Content {
    seed: 61,
    len: 8 * MIB,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_volume_is_where_its_first_pod_is_and_pods_on_other_nodes_wait() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("elsewhere");
    let namespace = Namespace::new(&cluster, "elsewhere")?;
    namespace.claim("data", 32 * MIB)?;
    // As the scheduler says it of a pod that then goes away.
    let chosen = "volume.kubernetes.io/selected-node=n1";
    namespace.kubectl(&["annotate", "pvc/data", chosen])?;
    namespace.wait_for("pvc/data", "{.status.phase}", "Bound")?;
    let volume = namespace.volume("data")?;
    let record = format!("vineyardvolume/{volume}");
    let booked = cluster.field(SYSTEM, &record, "{.status.booked}")?;
    ensure!(booked == "n1", "booked on {booked}");
    let first = Pod {
        node: Some(2),
        ..Pod::waiting("first", "data")
    };
    namespace.apply(first.object())?;
    namespace.wait_for("pod/first", "{.status.phase}", "Running")?;
    let mut client = Client::start(&namespace, "first")?;
    client.put("object", PUT)?;
    client.get("object", PUT, 1)?;
    let bills = Bills::new(&namespace, "data", 2)?;
    let bill = bills.expect(&[("first", PUT.len)])?;
    let booked = cluster.field(SYSTEM, &record, "{.status.booked} {.status.home}")?;
    ensure!(booked == "n2 n2", "booked and home: {booked}");
    table.row(
        "a volume is booked on n1, and its first pod comes to n2, where it puts 8 MiB",
        Some(&bill),
        "it is booked on n2 now",
    );

    let second = Pod {
        node: Some(1),
        ..Pod::waiting("second", "data")
    };
    namespace.apply(second.object())?;
    let events = [
        "get",
        "events",
        "--field-selector=involvedObject.name=second,reason=FailedMount",
        "-o=jsonpath={.items[*].message}",
    ];
    let mut said = String::new();
    let waits = reached(|| {
        said = namespace.kubectl(&events).unwrap_or_default();
        said.contains("is on node n2, where 1 pods use it")
    });
    ensure!(waits, "{said}");
    namespace.delete(&["pod/second"])?;
    client.done(&Command::Check { view: 1 })?;
    let bill = bills.expect(&[("first", PUT.len)])?;
    table.row(
        "another one comes to n1",
        Some(&bill),
        "it waits, its events say where the volume is; the first one's view is whole",
    );
    drop(client);
    namespace.delete(&["pod/first", "pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    table.write()
}
