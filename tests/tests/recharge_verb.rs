//! `vineyard recharge` on real cgroups: what an operator types moves the bill, to the byte, and says what it did.
#![cfg(test)]

use std::process::Command as Program;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vineyard_tests::account::{Account, done, get, pages, put};
use vineyard_tests::binaries;
use vineyard_tests::commands::{Command, Content};
use vineyard_tests::pod::{Pod, PodSettings, World};
use vineyard_tests::skip_unless_possible;
use vineyard_tests::watchdog::{Deadline, deadline};

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Two that are copied, and two that are pulled; the second of each is mapped by a reader.
const LENGTHS: [u64; 4] = [5000, 200 * KIB, 300 * KIB, 5 * MIB + 7];

fn limit() -> Deadline {
    let test = std::thread::current();
    deadline(Duration::from_secs(120), test.name().unwrap_or_default())
}

/// What one run said: its exit status and its report, or its error.
fn recharge(world: &World, to: &Pod) -> Result<(Option<i32>, Value)> {
    let output = Program::new(binaries::command_line()?)
        .args(["--json", "--volume"])
        .arg(world.volume())
        .arg("recharge")
        .arg("--to")
        .arg(to.socket())
        .output()?;
    let text = match output.stdout.is_empty() {
        true => output.stderr,
        false => output.stdout,
    };
    let report = serde_json::from_slice(&text);
    let report = report.with_context(|| String::from_utf8_lossy(&text).into_owned())?;
    Ok((output.status.code(), report))
}

fn retainer(world: &World) -> Result<Pod> {
    let mut pod = world.pod(PodSettings::new("retainer", 9))?;
    pod.start_sidecar()?;
    Ok(pod)
}

fn content(number: usize) -> Content {
    Content {
        seed: number as u64,
        len: LENGTHS[number],
    }
}

#[test]
fn the_verb_moves_every_object_to_the_payer_and_does_nothing_the_second_time() -> Result<()> {
    skip_unless_possible!();
    binaries::command_line()?;
    let _limit = limit();
    let world = World::new(64 * MIB, CLIENT)?;
    let mut keeper = retainer(&world)?;
    let mut producer = world.started(PodSettings::new("producer", 1))?;
    let mut consumer = world.started(PodSettings::new("consumer", 2))?;
    let (from, to) = (producer.sidecar_cgroup().id(), keeper.sidecar_cgroup().id());
    let mut account = Account::open(&world)?;
    account.ahead(8 * MIB);
    for (number, len) in LENGTHS.into_iter().enumerate() {
        let name = format!("object-{number}");
        put(&mut producer, &name, content(number))?;
        account.add(from, len);
        let view = u32::try_from(number).ok().filter(|n| n % 2 == 1);
        get(&mut consumer, &name, content(number), true, view)?;
    }
    account.check(&world)?;

    let (code, report) = recharge(&world, &keeper)?;
    ensure!(code == Some(0), "{code:?}: {report}");
    account.transfer(from, to);
    // The reader keeps the file that was copied.
    account.out_of_tree(pages(LENGTHS[1]));
    account.check(&world)?;
    let copied = pages(LENGTHS[0]) + pages(LENGTHS[1]);
    let pulled = pages(LENGTHS[2]) + pages(LENGTHS[3]);
    for (field, expected) in [
        ("objects", 4),
        ("copied_bytes", copied),
        ("pulled_bytes", pulled),
        ("still_viewed", 1),
        ("left_bytes", 0),
        ("failed", 0),
    ] {
        ensure!(report[field] == expected, "{field} in {report}");
    }
    for number in 0..LENGTHS.len() {
        get(
            &mut consumer,
            &format!("object-{number}"),
            content(number),
            false,
            None,
        )?;
    }
    for view in [1, 3] {
        done(&mut consumer, &Command::Check { view })?;
    }

    let (code, report) = recharge(&world, &keeper)?;
    ensure!(code == Some(0), "{code:?}: {report}");
    ensure!(
        report["copied_bytes"] == 0 && report["pulled_bytes"] == 0,
        "{report}"
    );
    account.check(&world)?;
    for pod in [&mut producer, &mut consumer, &mut keeper] {
        pod.check_alive()?;
    }
    Ok(())
}

#[test]
fn a_payer_without_room_leaves_the_rest_where_it_is_and_the_verb_ends_with_6() -> Result<()> {
    skip_unless_possible!();
    binaries::command_line()?;
    let _limit = limit();
    let world = World::new(128 * MIB, CLIENT)?;
    let mut keeper = retainer(&world)?;
    let room = keeper.sidecar_cgroup().memory().usage()? + 20 * MIB;
    keeper.sidecar_cgroup().limit(room)?;
    let mut producer = world.started(PodSettings::new("producer", 1))?;
    let objects = [(0, 30 * MIB), (1, 30 * MIB), (2, 6000)];
    for (seed, len) in objects {
        put(
            &mut producer,
            &format!("object-{seed}"),
            Content { seed, len },
        )?;
    }
    let (code, report) = recharge(&world, &keeper)?;
    ensure!(code == Some(6), "{code:?}: {report}");
    let left = report["left_bytes"].as_u64().context("left_bytes")?;
    ensure!(left >= 40 * MIB, "{report}");
    for (seed, len) in objects {
        let name = format!("object-{seed}");
        get(&mut producer, &name, Content { seed, len }, false, None)?;
    }
    // Nobody was OOM-killed.
    keeper.check_alive()?;
    producer.check_alive()?;
    // With room it goes on from there.
    keeper.sidecar_cgroup().limit(512 * MIB)?;
    let (code, report) = recharge(&world, &keeper)?;
    ensure!(code == Some(0), "{code:?}: {report}");
    ensure!(report["left_bytes"] == 0, "{report}");
    Ok(())
}

#[test]
fn a_socket_that_nobody_listens_at_is_an_error_and_nothing_moves() -> Result<()> {
    skip_unless_possible!();
    binaries::command_line()?;
    let _limit = limit();
    let world = World::new(16 * MIB, CLIENT)?;
    let keeper = world.pod(PodSettings::new("retainer", 9))?;
    let mut producer = world.started(PodSettings::new("producer", 1))?;
    let mut account = Account::open(&world)?;
    account.ahead(8 * MIB);
    put(&mut producer, "object", content(0))?;
    account.add(producer.sidecar_cgroup().id(), LENGTHS[0]);
    let (code, report) = recharge(&world, &keeper)?;
    let error = report["error"].as_str().unwrap_or_default();
    ensure!(
        code == Some(1) && error.contains("nobody listens"),
        "{code:?}: {report}"
    );
    account.check(&world)
}
