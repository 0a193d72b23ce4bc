//! The bill of a producer that goes: to the retainer, while readers look at the bytes.
#![cfg(test)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vineyard_charge::{CgroupId, RemotePayer};
use vineyard_tests::account::{SIZES, create, done, get, pages, put, remove};
use vineyard_tests::commands::{Command, Content};
use vineyard_tests::model::PAGE;
use vineyard_tests::pod::{Pod, PodSettings, World};
use vineyard_tests::recharge::{Recharged, recharge};
use vineyard_tests::skip_unless_possible;
use vineyard_tests::watchdog::test_deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(300);

fn move_bill(world: &World, from: &[CgroupId], to: &Pod, payer: &RemotePayer) -> Result<Recharged> {
    recharge(world.mount(), from, &to.cgroup().memory().subtree()?, payer)
}

/// Views of every object: shared, copy-on-write, and copy-on-write with every page written to.
fn look(pod: &mut Pod, number: u32, name: &str, object: Content) -> Result<()> {
    let view = number * 3;
    get(pod, name, object, true, Some(view))?;
    get(pod, name, object, false, Some(view + 1))?;
    get(pod, name, object, false, Some(view + 2))?;
    done(pod, &Command::Dirty { view: view + 2 })
}

fn look_again(pod: &mut Pod, number: u32) -> Result<()> {
    for view in number * 3..number * 3 + 3 {
        done(pod, &Command::Check { view })?;
    }
    Ok(())
}

#[test]
fn every_length_goes_to_the_retainer_under_the_eyes_of_its_readers() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, [mut producer, mut consumer], mut account) = World::with_pods(512 * MIB, CLIENT)?;
    let (mut keeper, payer) = world.payer(PodSettings::new("retainer", 9))?;
    let (from, to) = (producer.sidecar_cgroup().id(), keeper.sidecar_cgroup().id());
    account.ahead(8 * MIB);
    for (number, len) in SIZES.into_iter().enumerate() {
        let name = format!("object-{len}");
        let object = Content::new(number as u64, len);
        put(&mut producer, &name, object)?;
        account.add(from, len);
        look(&mut consumer, u32::try_from(number)?, &name, object)?;
    }
    account.check(&world)?;
    let owners = producer.cgroup().memory().subtree()?;
    let moved = move_bill(&world, &owners, &keeper, &payer)?;
    println!("{moved:?}");
    account.transfer(from, to);
    // Views of small files keep the old one; those up to the length that is mapped are copies of their own.
    let twice = SIZES
        .iter()
        .filter(|len| (64 << 10..=256 << 10).contains(*len));
    account.out_of_tree(twice.map(|len| pages(*len)).sum());
    account.check(&world)?;
    ensure!(
        moved.still_viewed > 0,
        "small files that are mapped are not reported: {moved:?}"
    );
    for (number, len) in SIZES.into_iter().enumerate() {
        let object = Content::new(number as u64, len);
        look_again(&mut consumer, u32::try_from(number)?).with_context(|| format!("{len}"))?;
        get(&mut consumer, &format!("object-{len}"), object, false, None)?;
    }
    producer.check_alive()?;
    consumer.check_alive()?;
    keeper.check_alive()?;
    producer.kill_client()?;
    consumer.kill_client()?;
    account.out_of_tree(0);
    account.ahead(0);
    account.check(&world)
}

#[test]
fn a_removed_producers_bytes_wait_on_its_parents_bill_and_go_to_the_retainer() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, [mut producer, mut consumer], mut account) = World::with_pods(256 * MIB, CLIENT)?;
    let (mut keeper, payer) = world.payer(PodSettings::new("retainer", 9))?;
    account.ahead(8 * MIB);
    let objects = [
        (0, 5000),
        (1, 200_000),
        (2, 300_000),
        (3, 8 * MIB),
        (4, 40 * MIB + 7),
    ];
    for (number, len) in objects {
        let name = format!("object-{number}");
        let object = Content::new(number.into(), len);
        match number % 2 {
            0 => put(&mut producer, &name, object)?,
            _ => create(&mut producer, number, &name, object)?,
        }
        account.add(producer.sidecar_cgroup().id(), len);
        look(&mut consumer, number, &name, object)?;
    }
    let plain = Content::new(9, 3 * MIB + 1);
    let name = "plain".to_owned();
    done(
        &mut producer,
        &Command::Plain {
            name,
            content: plain,
        },
    )?;
    account.add(producer.client_cgroup().id(), plain.len);
    account.check(&world)?;
    let (sidecar, client) = (
        producer.sidecar_cgroup().id(),
        producer.client_cgroup().id(),
    );
    producer.remove()?;
    let orphaned = world.run().id();
    account.transfer(sidecar, orphaned);
    account.transfer(client, orphaned);
    account.check(&world).context("after the pod is gone")?;
    move_bill(&world, &[orphaned], &keeper, &payer)?;
    account.transfer(orphaned, keeper.sidecar_cgroup().id());
    account.out_of_tree(pages(200_000));
    account.check(&world).context("after the recharge")?;
    for (number, len) in objects {
        look_again(&mut consumer, number)?;
        get(
            &mut consumer,
            &format!("object-{number}"),
            Content::new(number.into(), len),
            false,
            None,
        )?;
    }
    consumer.check_alive()?;
    keeper.check_alive()
}

#[test]
fn a_bill_can_go_back_and_forth() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, mut pod, mut account) = World::with_pod(64 * MIB, CLIENT)?;
    let (mut keeper, payer) = world.payer(PodSettings::new("retainer", 9))?;
    let (mut second, other) = world.payer(PodSettings::new("second", 3))?;
    account.ahead(8 * MIB);
    let from = pod.sidecar_cgroup().id();
    for (number, len) in [6 * MIB, 4 * MIB + 1, PAGE].into_iter().enumerate() {
        let object = Content::new(number as u64, len);
        put(&mut pod, &format!("object-{number}"), object)?;
        account.add(from, len);
    }
    account.check(&world)?;
    move_bill(&world, &[from], &keeper, &payer)?;
    account.transfer(from, keeper.sidecar_cgroup().id());
    account.check(&world)?;
    for round in 0..3 {
        move_bill(&world, &[keeper.sidecar_cgroup().id()], &second, &other)?;
        account.transfer(keeper.sidecar_cgroup().id(), second.sidecar_cgroup().id());
        account
            .check(&world)
            .with_context(|| format!("there, round {round}"))?;
        move_bill(&world, &[second.sidecar_cgroup().id()], &keeper, &payer)?;
        account.transfer(second.sidecar_cgroup().id(), keeper.sidecar_cgroup().id());
        account
            .check(&world)
            .with_context(|| format!("back, round {round}"))?;
    }
    for (number, len) in [6 * MIB, 4 * MIB + 1, PAGE].into_iter().enumerate() {
        get(
            &mut pod,
            &format!("object-{number}"),
            Content::new(number as u64, len),
            false,
            None,
        )?;
    }
    keeper.check_alive()?;
    second.check_alive()
}

#[test]
fn a_full_volume_is_handed_over_too() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, mut pod, mut account) = World::with_pod(32 * MIB, CLIENT)?;
    let (mut keeper, payer) = world.payer(PodSettings::new("retainer", 9))?;
    account.ahead(MIB);
    let from = pod.sidecar_cgroup().id();
    let free = 32 * MIB - world.mount().used()?;
    // Objects of one kind only: copies of small ones need room for a moment.
    for (number, len) in [300_000, 2052 << 10, 7 * MIB + 5].into_iter().enumerate() {
        put(
            &mut pod,
            &format!("object-{number}"),
            Content::new(number as u64, len),
        )?;
        account.add(from, len);
    }
    let rest = free - account.of(from);
    put(&mut pod, "rest", Content::new(9, rest))?;
    account.add(from, rest);
    account.ahead(0);
    account.check(&world)?;
    move_bill(&world, &[from], &keeper, &payer)?;
    account.transfer(from, keeper.sidecar_cgroup().id());
    account.check(&world)?;
    ensure!(
        world.mount().capacity()? == 32 * MIB,
        "the volume keeps what it was lent"
    );
    remove(&mut pod, "rest")?;
    account.take(keeper.sidecar_cgroup().id(), rest)?;
    account.check(&world)?;
    keeper.check_alive()
}
