//! Driver, kubelet, retainer and controllers are killed in the middle of every step of a volume's life on a node.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use vineyard_tests::cluster::Cluster;
use vineyard_tests::commands::Content;
use vineyard_tests::process::poll;

use crate::bills::{Bills, pod_processes};
use crate::client::Client;
use crate::lines::Lines;
use crate::namespace::Namespace;
use crate::parts::Part;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, PATIENCE, SYSTEM, cluster, left, reached, wait_for_the_webhook};

const NODE: u8 = 1;
/// How long a kubelet may take to unstage, also after an attempt that failed.
const UNSTAGED: Duration = Duration::from_secs(60);
const CONTENT: Content = Content {
    seed: 91,
    len: 8 * MIB,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn whoever_is_killed_in_the_middle_of_a_step_it_is_done_once_and_its_bytes_are_billed_once()
-> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("steps");
    for victim in Victim::ALL {
        life(&cluster, victim, &mut table)?;
    }
    table.write()
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Driver,
    Kubelet,
    Retainer,
    RetainerPod,
    Controllers,
}

impl Victim {
    const ALL: [Self; 5] = [
        Self::Driver,
        Self::Kubelet,
        Self::Retainer,
        Self::RetainerPod,
        Self::Controllers,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Driver => "the driver is killed",
            Self::Kubelet => "kubelet is killed",
            Self::Retainer => "the retainer's container is killed",
            Self::RetainerPod => "the retainer's pod is deleted",
            Self::Controllers => "controller and provisioner are killed",
        }
    }

    /// Ends it as soon as `now` returns, and sees to it that it is started again.
    fn end_when(self, cluster: &Cluster, now: impl FnOnce() -> Result<()>) -> Result<()> {
        match self {
            Self::Driver => killed_when(cluster, "node", now),
            Self::Retainer => killed_when(cluster, "retainer", now),
            Self::Kubelet => {
                let node = cluster.node(NODE);
                let kubelet = node.process("kubelet")?;
                now()?;
                kubelet.end(Signal::SIGKILL, PATIENCE)?;
                node.start_kubelet()
            }
            Self::RetainerPod => {
                let part = Part::wait(cluster, "retainer", NODE, |_| true)?;
                now()?;
                cluster.kubectl(&["-n", SYSTEM, "delete", "pod", &part.name, "--wait=false"])?;
                Part::wait(cluster, "retainer", NODE, |next| next.uid != part.uid).map(drop)
            }
            Self::Controllers => {
                let all = Part::all(cluster, "controller")?;
                now()?;
                for part in all {
                    part.kill(cluster, "vineyard-csi")?;
                    part.kill(cluster, "csi-provisioner")?;
                }
                wait_for_the_webhook(cluster)
            }
        }
    }
}

/// Kills the process of a component on the node as soon as `now` returns; kubelet starts it again.
fn killed_when(cluster: &Cluster, component: &str, now: impl FnOnce() -> Result<()>) -> Result<()> {
    let part = Part::wait(cluster, component, NODE, |_| true)?;
    let processes = pod_processes(cluster, NODE, &part.uid, "vineyard-csi")?;
    let process = processes.into_iter().min().context("it does not run")?;
    now()?;
    Ok(kill(process, Signal::SIGKILL)?)
}

fn life(cluster: &Cluster, victim: Victim, table: &mut Table) -> Result<()> {
    let namespace = Namespace::new(cluster, &format!("steps-{victim:?}").to_lowercase())?;
    let mut row = |step: &str, bill, seen: &str| {
        table.row(&format!("{} {step}", victim.name()), bill, seen);
    };
    namespace.claim("data", 64 * MIB)?;
    // Volumes are named after the claim's uid.
    let volume = format!("pvc-{}", namespace.field("pvc/data", "{.metadata.uid}")?);
    let layer = format!("/layers/{volume} ");
    let pod = |name: &'static str| Pod {
        writes: Some(16 * MIB),
        node: Some(NODE),
        ..Pod::waiting(name, "data")
    };

    victim.end_when(cluster, || {
        namespace.apply(pod("first").object())?;
        wait_for_mount(cluster, &layer, true)
    })?;
    namespace.wait_for("pod/first", "{.status.phase}", "Running")?;
    put(&namespace, "first")?;
    let bills = Bills::new(&namespace, "data", NODE)?;
    let bill = bills.expect(&[("first", CONTENT.len)])?;
    row(
        "while the volume is staged",
        Some(&bill),
        "the pod runs, and puts 8 MiB",
    );

    victim.end_when(cluster, || {
        namespace.apply(pod("second").object())?;
        wait_for_mount(cluster, &target(&namespace, "second", &volume)?, true)
    })?;
    namespace.wait_for("pod/second", "{.status.phase}", "Running")?;
    client(&namespace, "second")?.get("first", CONTENT, 1)?;
    put(&namespace, "second")?;
    let both = [("first", CONTENT.len), ("second", CONTENT.len)];
    let bill = bills.expect(&both)?;
    let mounts = left::mounts(cluster, &volume)?;
    ensure!(mounts == 3, "{mounts} mounts: memory and two targets");
    row(
        "while it is published",
        Some(&bill),
        "a second pod runs, reads, and puts 8 MiB; nothing is mounted twice",
    );

    let second = target(&namespace, "second", &volume)?;
    victim.end_when(cluster, || {
        namespace.kubectl(&["delete", "pod", "second", "--wait=false"])?;
        wait_for_mount(cluster, &second, false)
    })?;
    cluster.wait_until_gone(&namespace.name, "pod/second")?;
    let bill = bills.expect(&[("first", CONTENT.len), ("retainer", CONTENT.len)])?;
    row("while it is unpublished", Some(&bill), "");

    let record = format!("vineyardvolume/{volume}");
    victim.end_when(cluster, || {
        let path = "{.status.publications}";
        let published = Lines::of(cluster, &["-n", SYSTEM, &record], path)?;
        namespace.kubectl(&["delete", "pod", "first", "--wait=false"])?;
        // What comes next, if it has not begun yet.
        published.wait(|line| line == "[]" || line.is_empty())
    })?;
    cluster.wait_until_gone(&namespace.name, "pod/first")?;
    let bill = bills.expect(&[("retainer", 2 * CONTENT.len)])?;
    let mut staged = String::new();
    let is_unstaged = poll(UNSTAGED, || {
        staged = cluster
            .field(SYSTEM, &record, "{.status.stagings}")
            .unwrap_or_default();
        staged == "[]"
    });
    // One that was killed after unpublish does not know the volume any more when it is back (kubernetes/kubernetes#85476).
    let may_forget = matches!(victim, Victim::Kubelet);
    ensure!(is_unstaged || may_forget, "{staged}");
    let seen = match is_unstaged {
        true => "nothing stays staged",
        false => "the new kubelet never unstages it; it is deleted all the same",
    };
    row("while it is unstaged", Some(&bill), seen);

    victim.end_when(cluster, || {
        namespace.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
        wait_for_mount(cluster, &layer, false)
    })?;
    left::nothing(cluster, &volume)?;
    row("while its memory is dropped", None, "nothing is left");
    Ok(())
}

/// Waits until something is mounted on the node, or not any more.
fn wait_for_mount(cluster: &Cluster, what: &str, is_there: bool) -> Result<()> {
    let table = cluster.node(NODE).proc()?.join("mountinfo");
    let is_so = poll(PATIENCE, || {
        let mounts = fs::read_to_string(&table).unwrap_or_default();
        mounts.contains(what) == is_there
    });
    ensure!(is_so, "{what} is not as it should be");
    Ok(())
}

/// Where a pod has the volume, as mounts show it.
fn target(namespace: &Namespace<'_>, pod: &str, volume: &str) -> Result<String> {
    let uid = namespace.field(&format!("pod/{pod}"), "{.metadata.uid}")?;
    Ok(format!("/pods/{uid}/volumes/kubernetes.io~csi/{volume}/"))
}

/// A client in a pod, as soon as kubelet lets anybody in.
fn client(namespace: &Namespace<'_>, pod: &str) -> Result<Client> {
    let mut last = None;
    reached(|| last.insert(Client::start(namespace, pod)).is_ok());
    last.context("nobody tried")?
}

fn put(namespace: &Namespace<'_>, pod: &str) -> Result<()> {
    client(namespace, pod)?.put(pod, CONTENT)
}
