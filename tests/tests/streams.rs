//! Hand-over in parts from pod to pod.
#![cfg(test)]

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vineyard_tests::account::{Account, done};
use vineyard_tests::commands::{Answer, Cause, Command, Content};
use vineyard_tests::pod::{Pod, PodSettings, World};
use vineyard_tests::process::poll;
use vineyard_tests::skip_unless_possible;
use vineyard_tests::watchdog::{Deadline, deadline};

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const MIB: u64 = 1 << 20;
const STREAM: &str = "run/stream";

/// How long a sweep may find what it looks at held.
const SWEPT: Duration = Duration::from_secs(20);

fn limit() -> Deadline {
    let test = std::thread::current();
    deadline(Duration::from_secs(120), test.name().unwrap_or_default())
}

fn parts() -> impl Iterator<Item = Content> {
    let lens = [100, 0, 70_000, 3 * MIB, 5000, 300_001, 2 * MIB];
    (0..).zip(lens).map(|(seed, len)| Content { seed, len })
}

fn append(pod: &mut Pod, content: Content) -> Result<()> {
    let stream = STREAM.to_owned();
    match pod.call(&Command::Append { stream, content })? {
        Answer::Object { .. } => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn end(pod: &mut Pod) -> Result<u64> {
    match pod.call(&Command::End {
        stream: STREAM.into(),
    })? {
        Answer::Count(parts) => Ok(parts),
        other => bail!("{other:?}"),
    }
}

fn consume(content: Option<Content>) -> Command {
    Command::Consume {
        stream: STREAM.into(),
        content,
    }
}

#[test]
fn parts_are_billed_to_the_producer_and_free_when_the_consumer_has_them() -> Result<()> {
    skip_unless_possible!();
    let _limit = limit();
    let world = World::new(64 * MIB, CLIENT)?;
    let mut producer = world.started(PodSettings::new("producer", 1))?;
    let mut consumer = world.started(PodSettings::new("consumer", 2))?;
    let payer = producer.sidecar_cgroup().id();
    let mut account = Account::open(&world)?;
    account.ahead(4 * MIB);
    for part in parts() {
        append(&mut producer, part)?;
        account.add(payer, part.len);
        account
            .check(&world)
            .with_context(|| format!("{part:?} appended"))?;
    }
    for part in parts() {
        done(&mut consumer, &consume(Some(part)))?;
        account.take(payer, part.len)?;
        // The consumer is another user: what it removed is swept by the owner, or the driver. Another test that forks at this moment
        // holds what the sweep looks at: then it is asked again.
        let mut checked = Ok(());
        poll(SWEPT, || {
            let swept = done(&mut producer, &Command::Sweep);
            checked = swept.and_then(|_| account.check(&world));
            checked.is_ok()
        });
        checked.with_context(|| format!("{part:?} consumed"))?;
    }
    ensure!(end(&mut producer)? == 7, "parts");
    done(&mut consumer, &consume(None))?;
    // The end mark is a page of the producer's own container.
    account.add(producer.client_cgroup().id(), 1);
    account.check(&world)?;
    consumer.check_alive()?;
    producer.check_alive()
}

#[test]
fn a_stream_whose_producer_is_killed_waits_for_the_next_one_and_loses_nothing() -> Result<()> {
    skip_unless_possible!();
    let _limit = limit();
    let world = World::new(64 * MIB, CLIENT)?;
    let mut producer = world.started(PodSettings::new("producer", 1))?;
    let mut consumer = world.started(PodSettings::new("consumer", 2))?;
    for part in parts() {
        append(&mut producer, part)?;
        producer.kill_client()?;
        producer.start_client()?;
    }
    for part in parts() {
        done(&mut consumer, &consume(Some(part)))?;
    }
    match consumer.call(&consume(None))? {
        Answer::Failed(failure) if failure.cause == Cause::Timeout => Ok(()),
        other => bail!("{other:?} from a stream without a producer"),
    }
}
