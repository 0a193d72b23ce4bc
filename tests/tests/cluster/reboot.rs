//! A node that is rebooted loses memory: it is said, and nothing empty takes the place of what was there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use vineyard_tests::commands::{Answer, Cause, Command, Content};

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::parts::Part;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, SYSTEM, cluster, left, reached};

const REBOOTED: u8 = 2;
const OTHER: u8 = 1;

/// A class whose volumes may begin anew.
const ANEW: &str = "vineyard-test-anew";

const CONTENT: Content = Content {
    seed: 71,
    len: 8 * MIB,
};
const AGAIN: Content = Content {
    seed: 72,
    len: 4 * MIB,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_rebooted_node_says_what_it_has_lost_and_shows_nothing_empty_in_its_place() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("reboot");
    let namespace = Namespace::new(&cluster, "reboot")?;
    class(&namespace)?;
    namespace.claim("lost", 64 * MIB)?;
    namespace.apply(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "anew"},
        "spec": {
            "storageClassName": ANEW,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "64Mi"}},
        },
    }))?;
    namespace.claim("elsewhere", 64 * MIB)?;
    let place = |name: &'static str, node| Pod {
        writes: Some(16 * MIB),
        restart: "Always",
        node: Some(node),
        ..Pod::waiting(name, name)
    };
    let pods = [("lost", REBOOTED), ("anew", REBOOTED), ("elsewhere", OTHER)];
    for (name, node) in pods {
        namespace.apply(place(name, node).object())?;
    }
    for (name, _) in pods {
        namespace.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running")?;
        Client::start(&namespace, name)?.put("object", CONTENT)?;
    }
    let bills = Bills::new(&namespace, "elsewhere", OTHER)?;
    let bill = bills.expect(&[("elsewhere", CONTENT.len)])?;
    let mut beside = Client::start(&namespace, "elsewhere")?;
    beside.get("object", CONTENT, 1)?;
    table.row(
        "three pods with a claim each put 8 MiB: one on n1, two on n2, whose classes say fail and recreate",
        Some(&bill),
        "",
    );

    let before = Part::on(&cluster, "node", REBOOTED)?;
    let begin = Instant::now();
    cluster.node(REBOOTED).power_off()?;
    beside.done(&Command::Check { view: 1 })?;
    cluster.node(REBOOTED).boot()?;
    Part::wait(&cluster, "node", REBOOTED, |part| {
        part.uid != before.uid || part.restarts > before.restarts
    })?;
    let up = begin.elapsed();
    let volume = namespace.volume("lost")?;
    let record = format!("vineyardvolume/{volume}");
    cluster.wait_for(SYSTEM, &record, "{.status.phase}", "Lost")?;
    let reason = cluster.field(SYSTEM, &record, "{.status.reason}")?;
    ensure!(reason.contains("was restarted"), "{reason}");
    let condition = "{.status.conditions[?(@.type=='Resident')]['status','reason']}";
    let resident = cluster.field(SYSTEM, &record, condition)?;
    ensure!(resident == "False Lost", "{resident}");
    let reason = reason.split(" (boot").next().unwrap_or_default();
    table.row(
        "n2 loses power and is switched on again",
        None,
        format!(
            "the driver is ready after {:.0} s; phase Lost, condition Resident False: {reason}",
            up.as_secs_f64()
        ),
    );

    for (kind, name) in [
        ("Pod", "lost"),
        ("PersistentVolumeClaim", "lost"),
        ("VineyardVolume", &volume),
    ] {
        said(&namespace, kind, name, "VolumeLost")?;
    }
    // It ran before, so kubelet starts it again: what it must not get is an empty volume.
    std::thread::sleep(Duration::from_secs(3));
    let is_ready = namespace.field("pod/lost", "{.status.containerStatuses[0].ready}")?;
    ensure!(is_ready == "false", "it runs, with what?");
    let second = Pod {
        read_only: true,
        node: Some(REBOOTED),
        ..Pod::running("second", "lost", "ls /data")
    };
    namespace.apply(second.object())?;
    // Kubelet tells one of the pods of a volume, whichever it tries.
    let kubelets = said(&namespace, "Pod", "lost", "FailedMount")?;
    ensure!(kubelets.contains("is lost"), "{kubelets}");
    std::thread::sleep(Duration::from_secs(5));
    ensure!(namespace.field("pod/second", "{.status.phase}")? == "Pending");
    table.row(
        "class with onLoss: fail",
        None,
        "event VolumeLost on the pod that was there, on claim and volume; FailedMount says so, too; neither that pod nor a new one starts",
    );

    let mut client = again(&namespace, "anew")?;
    ensure!(absent(&mut client, "object")?, "it is still there?");
    client.put("object", AGAIN)?;
    let bills_anew = Bills::new(&namespace, "anew", REBOOTED)?;
    let bill = bills_anew.expect(&[("anew", AGAIN.len)])?;
    let anew = namespace.volume("anew")?;
    let generation = cluster.field(
        SYSTEM,
        &format!("vineyardvolume/{anew}"),
        "{.status.generation}",
    )?;
    ensure!(generation == "2", "generation {generation}");
    said(&namespace, "PersistentVolumeClaim", "anew", "VolumeLost")?;
    table.row(
        "class with onLoss: recreate",
        Some(&bill),
        "event VolumeLost; the pod is restarted and finds it empty, as generation 2; it puts 4 MiB",
    );

    beside.done(&Command::Check { view: 1 })?;
    let bill = bills.expect(&[("elsewhere", CONTENT.len)])?;
    let restarts = namespace.field(
        "pod/elsewhere",
        "{.status.containerStatuses[0].restartCount}",
    )?;
    ensure!(restarts == "0");
    table.row(
        "on n1",
        Some(&bill),
        "the view is whole, nothing was restarted",
    );

    drop((beside, client));
    namespace.delete(&["pod/lost", "pod/second", "pod/anew", "pod/elsewhere"])?;
    let elsewhere = namespace.volume("elsewhere")?;
    namespace.delete(&["pvc/lost", "pvc/anew", "pvc/elsewhere"])?;
    for volume in [&volume, &anew, &elsewhere] {
        left::nothing(&cluster, volume)?;
    }
    cluster.kubectl(&["delete", "storageclass", ANEW])?;
    table.row("everything is deleted", None, "nothing is left");
    table.write()
}

fn class(namespace: &Namespace<'_>) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": ANEW},
        "provisioner": "vineyard.io",
        "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": {"onLoss": "recreate"},
    });
    namespace.cluster.apply(&class.to_string())
}

/// Waits until something is said on an object, and returns how.
fn said(namespace: &Namespace<'_>, kind: &str, name: &str, reason: &str) -> Result<String> {
    // Records are in the driver's namespace.
    let space = match kind {
        "VineyardVolume" => SYSTEM,
        _ => &namespace.name,
    };
    let selector = format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
    let path = "jsonpath={.items[*].message}";
    let mut said = String::new();
    let is_said = reached(|| {
        let events = [
            "-n",
            space,
            "get",
            "events",
            "--field-selector",
            &selector,
            "-o",
            path,
        ];
        said = namespace.cluster.kubectl(&events).unwrap_or_default();
        !said.is_empty()
    });
    ensure!(is_said, "no event {reason} on {kind} {name}");
    Ok(said)
}

/// A client in a pod whose containers are being started again.
fn again(namespace: &Namespace<'_>, pod: &str) -> Result<Client> {
    let mut client = None;
    let is_up = reached(|| {
        client = Some(Client::start(namespace, pod));
        client.as_ref().is_some_and(Result::is_ok)
    });
    match client {
        Some(client) if is_up => client,
        other => anyhow::bail!("{pod} does not run again: {:?}", other.map(|it| it.err())),
    }
}

fn absent(client: &mut Client, name: &str) -> Result<bool> {
    let read = client.call(&Command::Read { name: name.into() })?;
    Ok(matches!(read, Answer::Failed(failure) if failure.cause == Cause::Absent))
}
