//! One pod, many clients, and a driver or a sidecar that is killed while they put and get.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use vineyard_tests::commands::{Answer, Cause, Content};
use vineyard_tests::node::Node;
use vineyard_tests::process::poll;
use vineyard_tests::random::Random;
use vineyard_tests::watchdog::deadline;

use crate::pod::{Pod, get, put, recorded};
use crate::{MIB, possible};

const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn a_pod_puts_what_the_driver_grants_and_hears_full_beyond_it() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "one pod");
    let mut node = Node::new(&["--grant-chunk", "4MiB"])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, Some("32MiB"))?;
    pod.start_client()?;
    let content = |seed, len| Content { seed, len };
    for (index, len) in [1, 100, 5000, 300_000, 3 * MIB, 10 * MIB]
        .into_iter()
        .enumerate()
    {
        let name = format!("n/{index}");
        let answer = pod.put(0, &name, content(index as u64, len))?;
        ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
        pod.get(0, &name, content(index as u64, len))?;
    }
    let granted = recorded(&node, "p1", "granted")?;
    let charged = pod.charged()?;
    ensure!(
        charged >= 13 * MIB && granted >= Some(charged),
        "{charged} of {granted:?}"
    );
    ensure!(granted <= Some(32 * MIB));
    // There is no retainer: what the allowance does not cover is refused with its numbers.
    let Answer::Failed(failure) = pod.put(0, "large", content(9, 24 * MIB))? else {
        anyhow::bail!("more than is allowed");
    };
    ensure!(failure.cause == Cause::Allowance, "{failure:?}");
    ensure!(failure.message.contains("33554432"), "{failure:?}");
    pod.unpublish(&mut node, true)?;
    ensure!(node.record("p1")?.is_none());
    node.unstage("data")?;
    node.delete("data")?;
    ensure!(node.mounts()?.is_empty(), "{:?}", node.mounts()?);
    Ok(())
}

#[test]
fn a_killed_driver_loses_no_put_and_no_get_and_grants_nothing_twice() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "eight clients");
    let mut node = Node::new(&["--grant-chunk", "4MiB"])?;
    node.create("data", 512 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, Some("512MiB"))?;
    let clients = 8;
    for _ in 0..clients {
        pod.start_client()?;
    }
    let mut random = Random::new(7);
    let mut sum = 0;
    let rounds = 24;
    for round in 0..rounds {
        let content = |client: usize| Content {
            seed: (round * clients + client) as u64,
            len: [100, 70_000, MIB, 3 * MIB][(round + client) % 4],
        };
        let name = |client: usize| format!("r{round}/c{client}");
        for client in 0..clients {
            pod.clients[client].send(&put(&name(client), content(client)))?;
            sum += content(client).len;
        }
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(random.below(4000)));
            node.kill()?;
            std::thread::sleep(Duration::from_millis(random.below(60)));
            node.start()?;
        }
        for client in 0..clients {
            let answer = pod.clients[client].receive()?;
            ensure!(
                matches!(answer, Answer::Object { .. }),
                "round {round}: {answer:?}"
            );
        }
        for client in 0..clients {
            let other = (client + 1) % clients;
            let answer = pod.clients[client].call(&get(&name(other), content(other)))?;
            ensure!(
                !matches!(answer, Answer::Failed(_) | Answer::Wrong(_)),
                "{answer:?}"
            );
        }
    }
    let (charged, granted) = (pod.charged()?, recorded(&node, "p1", "granted")?);
    ensure!(
        charged >= sum && granted >= Some(charged),
        "{charged} of {granted:?}"
    );
    ensure!(granted <= Some(512 * MIB));
    let ahead = granted.unwrap_or_default() - charged;
    println!(
        "{sum} bytes put, {charged} charged, {ahead} granted ahead after {} kills",
        rounds / 2
    );
    // Eight stocks, two chunks.
    ensure!(
        ahead <= (8 * 32 + 8) * MIB,
        "{ahead} bytes were granted for nothing"
    );
    pod.unpublish(&mut node, false)
}

#[test]
fn a_killed_sidecar_takes_what_was_granted_for_spent_until_it_is_measured() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "a sidecar");
    let mut node = Node::new(&["--grant-chunk", "4MiB"])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, None)?;
    pod.start_client()?;
    let content = |seed, len| Content { seed, len };
    pod.put(0, "kept", content(1, 30 * MIB))?;
    pod.put(0, "removed", content(2, 20 * MIB))?;
    pod.kill_sidecar()?;
    let removed = vineyard_tests::commands::Command::Remove {
        name: "removed".into(),
    };
    pod.clients[0].call(&removed)?;
    pod.start_sidecar()?;
    // 64 MiB less the 30 that are left: measured, because as granted there would be 12.
    let answer = pod.put(0, "again", content(3, 31 * MIB))?;
    ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
    let answer = pod.put(0, "more", content(4, 4 * MIB))?;
    ensure!(
        matches!(answer, Answer::Failed(_)),
        "spent twice: {answer:?}"
    );
    ensure!(pod.charged()? <= 64 * MIB);
    pod.get(0, "kept", content(1, 30 * MIB))?;
    pod.unpublish(&mut node, true)
}

#[test]
fn a_sidecar_says_that_it_leaves_and_one_that_comes_back_takes_it_back() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "leaving");
    let mut node = Node::new(&[])?;
    node.create("data", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, None)?;
    pod.start_client()?;
    pod.put(
        0,
        "kept",
        Content {
            seed: 1,
            len: 10 * MIB,
        },
    )?;
    for is_away in [false, true] {
        if is_away {
            node.kill()?;
        }
        let begun = Instant::now();
        pod.signal_sidecar(Signal::SIGTERM)?;
        if is_away {
            node.start()?;
        }
        let leaves = || recorded(&node, "p1", "leaving").is_ok_and(|it| it.is_some());
        ensure!(poll(LIMIT, leaves), "the driver does not know");
        println!(
            "on record {:?} after SIGTERM, driver away: {is_away}",
            begun.elapsed()
        );
        let (leaving, charged) = (recorded(&node, "p1", "leaving")?, pod.charged()?);
        ensure!(leaving >= Some(charged), "{charged} of {leaving:?}");
        // Whoever is connected is served to the end.
        pod.put(0, "late", Content { seed: 2, len: MIB })?;
        pod.clients.clear();
        pod.wait_for_sidecar()?;
        pod.start_sidecar()?;
        let stays = || recorded(&node, "p1", "leaving").is_ok_and(|it| it.is_none());
        ensure!(poll(LIMIT, stays), "it came back");
        pod.start_client()?;
        pod.get(
            0,
            "kept",
            Content {
                seed: 1,
                len: 10 * MIB,
            },
        )?;
    }
    pod.unpublish(&mut node, true)
}

#[test]
fn claims_may_be_published_after_the_sidecar_has_started() -> Result<()> {
    possible!();
    let _limit = deadline(LIMIT, "a late claim");
    let mut node = Node::new(&[])?;
    node.create("data", 64 * MIB)?;
    node.create("more", 64 * MIB)?;
    let mut pod = Pod::start(&mut node, 1, Some("100MiB"))?;
    pod.start_client()?;
    pod.put(0, "one", Content { seed: 1, len: MIB })?;
    let more = node.publish("more", "p1", false)?;
    pod.open(&more)?;
    let answer = pod.put(
        1,
        "two",
        Content {
            seed: 2,
            len: 3 * MIB,
        },
    )?;
    ensure!(matches!(answer, Answer::Object { .. }), "{answer:?}");
    pod.clients.clear();
    node.unpublish("more", "p1")?;
    pod.unpublish(&mut node, true)
}
