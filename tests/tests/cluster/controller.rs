//! The controller is killed in the middle of its work; and of two of them, the one that leads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use vineyard_tests::cluster::Cluster;

use crate::lines::Lines;
use crate::namespace::{Namespace, claim};
use crate::parts::{Part, Replicas};
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, PAUSE, SYSTEM, cluster, injects, left, reached};

const CLAIMS: u64 = 6;
const EACH: u64 = 16 * MIB;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_controller_that_is_killed_in_the_middle_books_nothing_twice_and_leaves_nothing() -> Result<()>
{
    let cluster = cluster()?;
    let mut table = Table::new("controller");
    killed(&cluster, &mut table)?;
    led(&cluster, &mut table)?;
    table.write()
}

fn killed(cluster: &Cluster, table: &mut Table) -> Result<()> {
    let namespace = Namespace::new(cluster, "ctrl")?;
    let before = booked(cluster)?;
    let names: Vec<String> = (0..CLAIMS).map(|n| format!("c{n}")).collect();
    let records = ["-n", SYSTEM, "vineyardvolumes"];
    let booking = Lines::of(cluster, &records, "{.metadata.name} {.status.phase}")?;
    // The pods first, which wait for their claims: the webhook is gone together with the rest.
    let objects: Vec<[Value; 2]> = names.iter().map(|it| wanted(&namespace, it)).collect();
    let list = |which: usize| {
        let items: Vec<&Value> = objects.iter().map(|pair| &pair[which]).collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    };
    cluster.apply(&list(1))?;
    let controller = only(cluster)?;
    kill_when(
        cluster,
        &controller,
        |line| line.ends_with("Booked"),
        &booking,
        || cluster.apply(&list(0)),
    )?;
    let phases = namespace.kubectl(&["get", "pvc", "-o", "jsonpath={.items[*].status.phase}"])?;
    let bound = phases.matches("Bound").count();
    ensure!(bound < names.len(), "killed too late: all are bound");
    for name in &names {
        namespace.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running")?;
    }
    let now = booked(cluster)?;
    ensure!(now == before + CLAIMS * EACH, "{before} and {now} booked");
    table.row(
        "six claims at once; controller and provisioner are killed when the first is booked",
        None,
        format!("{bound} were bound then; all six pods run, and 6 × 16 MiB are booked"),
    );

    let volumes = names
        .iter()
        .map(|name| namespace.volume(name))
        .collect::<Result<Vec<_>>>()?;
    let objects = |kind: &str| names.iter().map(|name| format!("{kind}/{name}")).collect();
    let (pods, claims): (Vec<String>, Vec<String>) = (objects("pod"), objects("pvc"));
    namespace.delete(&pods.iter().map(String::as_str).collect::<Vec<_>>())?;
    let deleting = Lines::of(cluster, &records, "{.status.phase}")?;
    let controller = ready(cluster, &controller)?;
    kill_when(
        cluster,
        &controller,
        |line| line == "Deleting",
        &deleting,
        || namespace.delete(&claims.iter().map(String::as_str).collect::<Vec<_>>()),
    )?;
    for volume in &volumes {
        left::nothing(cluster, volume)?;
    }
    let mut now = booked(cluster)?;
    let is_free = reached(|| {
        now = booked(cluster).unwrap_or(now);
        now == before
    });
    ensure!(is_free, "{now} are booked, {before} were");
    ready(cluster, &controller)?;
    table.row(
        "all six are deleted; both are killed when the first deletion has begun",
        None,
        "nothing is left, nothing stays booked",
    );
    Ok(())
}

fn led(cluster: &Cluster, table: &mut Table) -> Result<()> {
    let namespace = Namespace::new(cluster, "leader")?;
    let _two = Replicas::set(cluster, 2)?;
    let leader = leader(cluster)?;
    let (asked, missed) = while_asking(cluster, || {
        cluster.kubectl(&[
            "-n",
            SYSTEM,
            "delete",
            "pod",
            &follower(cluster, &leader)?,
            "--timeout=120s",
        ])?;
        let both = reached(|| {
            Part::all(cluster, "controller")
                .is_ok_and(|all| all.iter().filter(|it| it.is_ready).count() == 2)
        });
        ensure!(both, "no second controller");
        Ok(())
    })?;
    ensure!(missed == 0, "{missed} of {asked} pods were not injected");
    table.row(
        "two controllers; one is deleted, as when its node is drained",
        None,
        format!("all of {asked} pods that were asked for meanwhile were injected"),
    );

    let leader = self::leader(cluster)?;
    let mut took = Duration::ZERO;
    let (asked, missed) = while_asking(cluster, || {
        leader.kill(cluster, "csi-provisioner")?;
        leader.kill(cluster, "vineyard-csi")?;
        cluster.kubectl(&[
            "-n",
            SYSTEM,
            "delete",
            "pod",
            &leader.name,
            "--force",
            "--grace-period=0",
        ])?;
        let begin = Instant::now();
        namespace.claim("data", EACH)?;
        let pod = Pod {
            writes: Some(0),
            ..Pod::waiting("app", "data")
        };
        namespace.apply(pod.object())?;
        namespace.wait_for("pvc/data", "{.status.phase}", "Bound")?;
        took = begin.elapsed();
        Ok(())
    })?;
    let next = self::leader(cluster)?;
    ensure!(next.uid != leader.uid, "nobody else leads");
    namespace.wait_for("pod/app", "{.status.phase}", "Running")?;
    table.row(
        "the one that leads is killed, with its pod",
        None,
        format!(
            "a new claim is bound after {:.0} s by the other one; {} of {asked} pods were injected meanwhile",
            took.as_secs_f64(),
            asked - missed,
        ),
    );
    let volume = namespace.volume("data")?;
    namespace.delete(&["pod/app", "pvc/data"])?;
    left::nothing(cluster, &volume)
}

/// A claim and a pod with it.
fn wanted(namespace: &Namespace<'_>, name: &str) -> [Value; 2] {
    let pod = Pod {
        writes: Some(0),
        memory: 16,
        ..Pod::waiting(name, name)
    };
    let claim = claim(name, EACH);
    let mut pod = pod.object();
    pod["metadata"]["annotations"]["vineyard.io/inject"] = json!("enabled");
    [claim, pod].map(|mut object| {
        object["metadata"]["namespace"] = json!(namespace.name);
        object
    })
}

/// Kills controller and provisioner when a line comes, while something is done.
fn kill_when(
    cluster: &Cluster,
    controller: &Part,
    is_it: impl Fn(&str) -> bool,
    lines: &Lines,
    work: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    thread::scope(|scope| {
        let working = scope.spawn(work);
        lines.wait(is_it)?;
        controller.kill(cluster, "vineyard-csi")?;
        controller.kill(cluster, "csi-provisioner")?;
        working
            .join()
            .map_err(|_| anyhow!("whoever works panicked"))?
    })
}

/// The only controller.
fn only(cluster: &Cluster) -> Result<Part> {
    let mut all = Part::all(cluster, "controller")?;
    ensure!(all.len() == 1, "{all:?}");
    all.pop().context("no controller")
}

/// Waits until the only controller works again.
fn ready(cluster: &Cluster, controller: &Part) -> Result<Part> {
    Part::wait(cluster, "controller", controller.node, |part| {
        part.uid == controller.uid
    })
}

/// The controller whose provisioner leads.
fn leader(cluster: &Cluster) -> Result<Part> {
    let mut found = None;
    let leads = reached(|| {
        let holder = cluster.field(SYSTEM, "lease/vineyard-io", "{.spec.holderIdentity}");
        let holder = holder.unwrap_or_default();
        let all = Part::all(cluster, "controller").unwrap_or_default();
        found = all.into_iter().find(|part| holder.starts_with(&part.name));
        found.is_some()
    });
    ensure!(leads, "nobody leads");
    found.context("nobody leads")
}

fn follower(cluster: &Cluster, leader: &Part) -> Result<String> {
    let mut all = Part::all(cluster, "controller")?.into_iter();
    let other = all.find(|part| part.uid != leader.uid);
    Ok(other.context("no second controller")?.name)
}

/// What is booked on all nodes.
fn booked(cluster: &Cluster) -> Result<u64> {
    let path = "{range .items[*]}{.status.bookedBytes}{\"\\n\"}{end}";
    let booked = cluster.field(SYSTEM, "vineyardnodes", path)?;
    let each = booked.lines().map(str::parse::<u64>);
    Ok(each.collect::<Result<Vec<_>, _>>()?.iter().sum())
}

/// Asks again and again for a pod that needs the sidecar, and makes none, while something else is done. Returns how often, and how often it
/// would not have been injected.
fn while_asking(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<(u32, u32)> {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut missed) = (0, 0);
            while !ended.load(Ordering::Relaxed) {
                asked += 1;
                missed += u32::from(injects(cluster).is_err());
                thread::sleep(PAUSE);
            }
            (asked, missed)
        });
        let worked = work();
        ended.store(true, Ordering::Relaxed);
        let counts = asking
            .join()
            .map_err(|_| anyhow!("whoever asks panicked"))?;
        worked.map(|()| counts)
    })
}
