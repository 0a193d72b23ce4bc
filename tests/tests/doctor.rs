//! `vineyard doctor` in a cgroup of its own says of this kernel what the ledgers show.
#![cfg(test)]

use std::ffi::OsStr;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vineyard_charge::cgroup::{Hierarchy, Version};
use vineyard_tests::binaries;
use vineyard_tests::cgroups::Cgroup;
use vineyard_tests::pod::World;
use vineyard_tests::process::{Process, Program};
use vineyard_tests::watchdog::deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const MIB: u64 = 1 << 20;

/// What it says in this cgroup, about a tmpfs that is a volume.
fn doctor(world: &World, cgroup: &Cgroup) -> Result<Vec<Value>> {
    let arguments = ["doctor", "--json", "--volume"].map(OsStr::new);
    let program = Program {
        path: binaries::command_line()?,
        arguments: [arguments.as_slice(), &[world.volume().as_os_str()]].concat(),
        uid: 0,
        address_space: None,
        variable: None,
    };
    let mut process = Process::start(&program, cgroup)?;
    let mut report = String::new();
    let mut output = process.child().stdout.take().context("its output")?;
    output.read_to_string(&mut report)?;
    process.wait(Duration::from_secs(60))?;
    println!("{report}");
    let report: Value = serde_json::from_str(&report)?;
    Ok(report["checks"].as_array().context("no checks")?.clone())
}

#[test]
fn the_doctor_finds_that_bills_work_wherever_these_tests_run() -> Result<()> {
    vineyard_tests::skip_unless_possible!();
    binaries::command_line()?;
    let _limit = deadline(Duration::from_secs(120), "the doctor");
    let world = World::new(64 * MIB, CLIENT)?;
    let pod = world.run().child("pod")?;
    let container = pod.child("container")?;
    pod.limit(256 * MIB)?;
    let checks = doctor(&world, &container)?;
    let check = |name: &str| {
        let found = checks.iter().find(|check| check["name"] == name);
        found.with_context(|| format!("{name} is not checked"))
    };
    for name in [
        "kernel",
        "cgroup-hierarchy",
        "memory-cgroup",
        "limits-visible",
        "create-cgroups",
        "collapse",
        "collapse-charges-us",
        "page-owners",
        "seal-by-link",
        "write-lease",
        "volume",
        "headroom",
    ] {
        let check = check(name)?;
        ensure!(check["status"] == "ok", "{check}");
    }
    let version = match Hierarchy::detect()?.version {
        Version::V1 => "version 1",
        Version::V2 => "version 2",
    };
    let layout = check("cgroup-hierarchy")?;
    ensure!(
        layout["found"]
            .as_str()
            .is_some_and(|it| it.contains(version)),
        "{layout}"
    );
    let own = check("memory-cgroup")?;
    let id = container.id().0.to_string();
    ensure!(
        own["found"].as_str().is_some_and(|it| it.ends_with(&id)),
        "{own}"
    );
    // 256 MiB are the pod's, not the container's.
    let room = check("headroom")?;
    ensure!(
        room["found"]
            .as_str()
            .is_some_and(|it| it.contains("MiB are free")),
        "{room}"
    );
    Ok(())
}
