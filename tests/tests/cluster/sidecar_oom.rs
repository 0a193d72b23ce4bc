//! A sidecar whose cgroup runs out of memory: it alone is killed, and comes back without more to spend than it had.

use std::fs;
use std::process::{Command as Process, Stdio};

use anyhow::{Context, Result, ensure};
use vineyard_tests::commands::{Command, Content};

use crate::bills::{Bills, pod_cgroup, pod_processes};
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, cluster, left, reached};

const ALLOWANCE: u64 = 32 * MIB;
const FIRST: Content = Content {
    seed: 41,
    len: 20 * MIB,
};
const SECOND: Content = Content {
    seed: 42,
    len: 6 * MIB,
};
const THIRD: Content = Content {
    seed: 43,
    len: 16 * MIB,
};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_sidecar_that_is_out_of_memory_is_killed_alone_and_cannot_spend_its_allowance_twice()
-> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("sidecar-oom");
    let namespace = Namespace::new(&cluster, "oom")?;
    namespace.claim("data", 128 * MIB)?;
    let pod = Pod {
        writes: Some(ALLOWANCE),
        restart: "Always",
        ..Pod::waiting("app", "data")
    };
    namespace.apply(pod.object())?;
    namespace.wait_for("pod/app", "{.status.phase}", "Running")?;
    let node = namespace.node("app")?;
    let bills = Bills::new(&namespace, "data", node)?;
    let mut client = Client::start(&namespace, "app")?;
    client.put("first", FIRST)?;
    client.get("first", FIRST, 1)?;
    let bill = bills.expect(&[("app", FIRST.len)])?;
    table.row(
        "a pod that may put 32 MiB puts 20 and keeps a view",
        Some(&bill),
        "",
    );

    let uid = namespace.field("pod/app", "{.metadata.uid}")?;
    let killed = exhaust(&pod_cgroup(&cluster, node, &uid)?, || {
        pod_processes(&cluster, node, &uid, "vineyard-sidecar")
    })?;
    client.done(&Command::Check { view: 1 })?;
    client.put("second", SECOND)?;
    let status = "{.status.initContainerStatuses[0]";
    namespace.wait_for(
        "pod/app",
        &format!("{status}.lastState.terminated.reason}}"),
        "OOMKilled",
    )?;
    let bill = bills.expect(&[("app", FIRST.len + SECOND.len)])?;
    let restarts = namespace.field("pod/app", "{.status.containerStatuses[0].restartCount}")?;
    ensure!(restarts == "0", "the application was restarted");
    table.row(
        "its sidecar's cgroup runs out of memory; the client puts 6 MiB more",
        Some(&bill),
        format!("the kernel killed process {killed} of the sidecar alone (OOMKilled); the put waited for the next one; the view is whole"),
    );

    client.put("third", THIRD)?;
    let bill = bills.now()?;
    let (own, retained) = (bill.get("app").copied(), bill.get("retainer").copied());
    let (own, retained) = (own.unwrap_or(0), retained.unwrap_or(0));
    let written = FIRST.len + SECOND.len + THIRD.len;
    ensure!(own <= ALLOWANCE + MIB, "more than its allowance: {bill:?}");
    ensure!(
        (written..written + 4 * MIB).contains(&(own + retained)),
        "{bill:?}"
    );
    table.row(
        "it puts 16 MiB, which are 10 more than it may",
        Some(&bill),
        "what was spent before the kill still counts: the retainer reserves",
    );
    drop(client);
    let volume = namespace.volume("data")?;
    namespace.delete(&["pod/app", "pvc/data"])?;
    left::nothing(&cluster, &volume)?;
    table.write()
}

/// Fills the cgroup of the sidecar's container until the kernel kills the sidecar. Returns its pid.
fn exhaust(
    pod: &std::path::Path,
    sidecar: impl Fn() -> Result<Vec<nix::unistd::Pid>>,
) -> Result<nix::unistd::Pid> {
    let victim = *sidecar()?.first().context("no sidecar runs")?;
    let cgroups = fs::read_dir(pod)?.flatten().map(|entry| entry.path());
    let mut its = cgroups.filter(|path| {
        let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        processes.lines().any(|pid| pid == victim.to_string())
    });
    let cgroup = its.next().context("the sidecar has no cgroup")?;
    // Whatever of it eats memory: of two processes the kernel kills the one that it is told to.
    fs::write(format!("/proc/{victim}/oom_score_adj"), "1000")?;
    let mut eater = Process::new("sh");
    eater
        .args(["-c", "echo $$ >\"$0\" && exec tail /dev/zero"])
        .arg(cgroup.join("cgroup.procs"))
        .stdout(Stdio::null());
    let mut eater = eater.spawn().context("sh")?;
    let gone = reached(|| !std::path::Path::new(&format!("/proc/{victim}")).exists());
    let _ = eater.kill();
    eater.wait()?;
    ensure!(gone, "the sidecar lives");
    Ok(victim)
}
