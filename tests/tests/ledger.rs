//! Whole stack, real cgroups: who pays for what is put, got, removed and refused, to the byte.
#![cfg(test)]

use std::time::Duration;

use anyhow::{Context, Result};
use vineyard_tests::account::{Account, SIZES, create, done, get, pages, put, put_refused, remove};
use vineyard_tests::commands::{Cause, Command, Content};
use vineyard_tests::pod::{PodSettings, World};
use vineyard_tests::skip_unless_possible;
use vineyard_tests::watchdog::test_deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn every_length_is_on_the_sidecars_bill_and_readers_pay_nothing() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, [mut producer, mut consumer], mut account) = World::with_pods(512 * MIB, CLIENT)?;
    let payer = producer.sidecar_cgroup().id();
    account.ahead(8 * MIB);
    for (number, len) in SIZES.into_iter().enumerate() {
        let view = u32::try_from(number)?;
        for way in ["put", "create"] {
            let (name, object) = (format!("{way}-{len}"), Content::new(number as u64, len));
            match way {
                "put" => put(&mut producer, &name, object)?,
                _ => create(&mut producer, view, &name, object)?,
            }
            account.add(payer, len);
            account.check(&world).with_context(|| name.clone())?;
            get(&mut consumer, &name, object, true, None)?;
            get(&mut consumer, &name, object, false, Some(view))?;
            done(&mut consumer, &Command::Dirty { view })?;
            account
                .check(&world)
                .with_context(|| format!("{name} after a reader"))?;
            get(&mut producer, &name, object, false, None)?;
            done(&mut consumer, &Command::Check { view })?;
            done(&mut consumer, &Command::Release { view })?;
            remove(&mut producer, &name)?;
            account.take(payer, len)?;
            match way {
                "put" => {}
                // Its memory is still the producer's, whatever became of the name.
                _ if len > vineyard_tests::model::MAX_READ => account.add(payer, len),
                _ => account.out_of_tree(pages(len)),
            }
            account
                .check(&world)
                .with_context(|| format!("{name} removed"))?;
            if way == "create" {
                done(&mut producer, &Command::Check { view })?;
                done(&mut producer, &Command::Release { view })?;
                done(&mut producer, &Command::Sweep)?;
                if len > vineyard_tests::model::MAX_READ {
                    account.take(payer, len)?;
                }
                account.out_of_tree(0);
                account
                    .check(&world)
                    .with_context(|| format!("{name} released"))?;
            }
        }
    }
    producer.check_alive()?;
    consumer.check_alive()?;
    producer.kill_client()?;
    consumer.kill_client()?;
    account.ahead(0);
    account.check(&world)
}

#[test]
fn a_draft_that_is_never_sealed_is_billed_to_the_sidecar_and_gone_with_its_client() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, mut pod, mut account) = World::with_pod(64 * MIB, CLIENT)?;
    let before = pod.sidecar_cgroup().memory().usage()?;
    let object = Content::new(1, 24 * MIB + 5);
    done(
        &mut pod,
        &Command::Create {
            view: 1,
            content: object,
        },
    )?;
    account.out_of_tree(pages(object.len));
    account.ahead(8 * MIB);
    account.check(&world)?;
    // The kernel counts in batches, and the sidecar's own memory comes and goes.
    let billed = pod.sidecar_cgroup().memory().usage()? - before;
    anyhow::ensure!(
        billed + MIB >= pages(object.len),
        "the sidecar's cgroup holds {billed} more bytes"
    );
    pod.kill_client()?;
    account.out_of_tree(0);
    account.ahead(0);
    account.check(&world)
}

#[test]
fn an_almost_full_volume_takes_what_fits_to_the_page_and_refuses_the_rest() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    for room in [4096, MIB, 2 * MIB, 2 * MIB + 4096, 5 * MIB - 4096] {
        let (world, mut pod, mut account) = World::with_pod(32 * MIB, CLIENT)?;
        let payer = pod.sidecar_cgroup().id();
        account.ahead(8 * MIB);
        let fill = 32 * MIB - world.mount().used()? - room;
        put(&mut pod, "fill", Content::new(1, fill))?;
        account.add(payer, fill);
        account.check(&world)?;
        let message = put_refused(&mut pod, Content::new(2, room + 1), Cause::Volume)?;
        anyhow::ensure!(message.contains("full"), "{message}");
        account.check(&world).context("after a refused put")?;
        put(&mut pod, "last", Content::new(3, room)).context("exactly what fits")?;
        account.add(payer, room);
        account.check(&world)?;
        put_refused(&mut pod, Content::new(4, 1), Cause::Volume)?;
        get(&mut pod, "fill", Content::new(1, fill), false, None)?;
        get(&mut pod, "last", Content::new(3, room), false, None)?;
        pod.check_alive()?;
        pod.kill_client()?;
        account.ahead(0);
        account.check(&world)?;
    }
    Ok(())
}

#[test]
fn a_put_beyond_the_sidecars_limit_is_refused_and_nobody_is_killed() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, mut pod, mut account) = World::with_pod(512 * MIB, CLIENT)?;
    pod.sidecar_cgroup().limit(64 * MIB)?;
    let payer = pod.sidecar_cgroup().id();
    account.ahead(8 * MIB);
    for len in [65 * MIB, 100 * MIB + 1, 300 * MIB] {
        put_refused(&mut pod, Content::new(1, len), Cause::Cgroup)?;
        account.check(&world)?;
        pod.check_alive()?;
    }
    // Into the last free page by small steps: ordinary ones and those that are reserved ahead.
    let mut count = 0;
    for (len, most) in [(10 * MIB, 10), (MIB, 30), (100_000, 200), (5000, 200)] {
        for _ in 0..most {
            let command = Command::Put {
                name: Some(format!("object-{count}")),
                content: Content::new(count, len),
                overwrite: true,
            };
            match pod.call(&command)? {
                vineyard_tests::commands::Answer::Object { .. } => account.add(payer, len),
                _ => break,
            }
            count += 1;
        }
        account.check(&world)?;
        pod.check_alive()?;
    }
    anyhow::ensure!(
        account.of(payer) > 40 * MIB,
        "only {} bytes fit",
        account.of(payer)
    );
    Ok(())
}

#[test]
fn a_put_beyond_the_pods_limit_is_refused_and_nobody_is_killed() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let world = World::new(512 * MIB, CLIENT)?;
    let mut settings = PodSettings::new("pod", 1);
    settings.limit = Some(128 * MIB);
    let mut pod = world.started(settings)?;
    let mut account = Account::open(&world)?;
    account.ahead(8 * MIB);
    // 80 MiB in the client's own memory, and as much again on the bill: too much for the pod.
    put_refused(&mut pod, Content::new(1, 80 * MIB), Cause::Cgroup)?;
    account.check(&world)?;
    pod.check_alive()?;
    put(&mut pod, "object", Content::new(2, 20 * MIB))?;
    account.add(pod.sidecar_cgroup().id(), 20 * MIB);
    account.check(&world)?;
    pod.check_alive()
}

#[test]
fn an_allowance_is_never_exceeded_not_even_by_a_restarted_sidecar() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let world = World::new(256 * MIB, CLIENT)?;
    let mut settings = PodSettings::new("pod", 1);
    settings.allowance = 32 * MIB;
    let mut pod = world.started(settings)?;
    let payer = pod.sidecar_cgroup().id();
    let mut account = Account::open(&world)?;
    account.ahead(8 * MIB);
    put(&mut pod, "a", Content::new(1, 20 * MIB))?;
    account.add(payer, 20 * MIB);
    for restart in [false, true] {
        if restart {
            pod.kill_sidecar()?;
            pod.start_sidecar()?;
        }
        put_refused(&mut pod, Content::new(2, 20 * MIB), Cause::Allowance)?;
        account.check(&world)?;
    }
    // What is removed, by whomever, may be put again.
    remove(&mut pod, "a")?;
    account.take(payer, 20 * MIB)?;
    for round in 0..3 {
        put(&mut pod, "b", Content::new(3, 24 * MIB)).with_context(|| format!("round {round}"))?;
        account.add(payer, 24 * MIB);
        account.check(&world)?;
        pod.kill_sidecar()?;
        remove(&mut pod, "b")?;
        account.take(payer, 24 * MIB)?;
        pod.start_sidecar()?;
        account.check(&world)?;
    }
    pod.check_alive()
}

#[test]
fn an_ordinary_file_is_on_the_bill_of_the_container_that_writes_it() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, mut pod, mut account) = World::with_pod(64 * MIB, CLIENT)?;
    let object = Content::new(1, 3 * MIB + 17);
    let name = "plain".to_owned();
    done(
        &mut pod,
        &Command::Plain {
            name,
            content: object,
        },
    )?;
    account.add(pod.client_cgroup().id(), object.len);
    account.ahead(8 * MIB);
    account.check(&world)?;
    get(&mut pod, "plain", object, false, None)?;
    account.check(&world)?;
    remove(&mut pod, "plain")?;
    account.take(pod.client_cgroup().id(), object.len)?;
    account.check(&world)
}
