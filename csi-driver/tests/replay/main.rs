//! A replayed kubelet: its calls in its order, with its repetitions, while the driver is killed and the node reboots.
//!
//! `VINEYARD_SEED=n` plays one schedule, `VINEYARD_SCHEDULES=n` that many (default: 60).

#![expect(
    clippy::unwrap_used,
    reason = "a test: what cannot be unwrapped is a failure"
)]

mod busy;
mod capacity;
mod chance;
mod clones;
mod driver;
mod kubelet;
mod life;
mod paths;
mod pods;
mod points;
#[expect(unreachable_pub, reason = "public where it belongs")]
#[path = "../../../tests/src/progress.rs"]
mod progress;
mod requests;
mod rpc;
mod sandbox;
mod schedule;
mod targets;
mod trees;
mod wire;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How long anything may take: as many times longer as `VINEYARD_PATIENCE` says, for emulated machines.
fn patient(limit: Duration) -> Duration {
    let times = number("VINEYARD_PATIENCE").and_then(|times| times.try_into().ok());
    limit * times.unwrap_or(1)
}

/// The first seed, and how many follow.
fn seeds() -> (u64, u64) {
    if let Some(seed) = number("VINEYARD_SEED") {
        return (seed, 1);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let count = number("VINEYARD_SCHEDULES").unwrap_or(60);
    (now.as_secs().wrapping_mul(100_000), count)
}

/// What repeats a schedule.
fn again(seed: u64) -> String {
    let points = if cfg!(feature = "failpoints") {
        " --features failpoints"
    } else {
        ""
    };
    format!(
        "VINEYARD_SEED={seed} cargo test -p vineyard-csi{points} --test replay whenever_the_driver"
    )
}

#[test]
fn nothing_leaks_and_no_content_changes_whenever_the_driver_is_killed() {
    let (first, count) = seeds();
    let deaths = Mutex::new(BTreeMap::<String, u64>::new());
    let progress = progress::Progress::of(count);
    sandbox::each(count, |index, folder| {
        let seed = first + index;
        let play = || sandbox::runtime().block_on(schedule::play(seed, folder));
        let died = catch_unwind(AssertUnwindSafe(play));
        match &died {
            Ok(died) => {
                let mut deaths = deaths.lock().unwrap();
                for (point, times) in died {
                    *deaths.entry(point.clone()).or_default() += times;
                }
            }
            Err(_) => eprintln!("again: {}", again(seed)),
        }
        match progress.played(seed, died.is_err()) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    let deaths = deaths.into_inner().unwrap();
    let times: u64 = deaths.values().sum();
    println!("{count} schedules from seed {first}; killed {times} times inside: {deaths:?}");
    assert_eq!(progress.end(), [0; 0], "failed; above is what repeats them");
}
