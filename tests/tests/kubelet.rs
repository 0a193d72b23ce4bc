//! A replayed kubelet and everybody whom it starts: the driver, the retainer, sidecars and clients of three users, killed at random.
//!
//! `VINEYARD_SEED=n` plays one schedule, `VINEYARD_SCHEDULES=n` that many (default: 3).
#![cfg(test)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use vineyard_tests::progress::Progress;
use vineyard_tests::random::{number, seed};
use vineyard_tests::watchdog::deadline;
use vineyard_tests::{binaries, kubelet, skip_unless_possible};

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");

#[test]
fn every_byte_comes_to_the_right_bill_whoever_is_killed() -> Result<()> {
    skip_unless_possible!();
    binaries::driver()?;
    // Whatever is mounted goes with this thread, also when the test is killed.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).context("a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let first = seed();
    let alone = number("VINEYARD_SEED").map(|_| 1);
    let count = alone.or_else(|| number("VINEYARD_SCHEDULES")).unwrap_or(3);
    let (mut puts, mut refused, mut kills) = (0, 0, 0);
    let progress = Progress::of(count);
    for seed in first..first + count {
        let _limit = deadline(Duration::from_secs(500), format!("schedule {seed}"));
        let played = kubelet::play(seed, CLIENT);
        let more = progress.played(seed, played.is_err());
        match played {
            Ok(played) => {
                puts += played.puts;
                refused += played.refused;
                kills += played.kills;
            }
            Err(error) => eprintln!(
                "{error:?}\nagain: VINEYARD_SEED={seed} cargo test -p vineyard-tests --test kubelet"
            ),
        }
        if !more {
            break;
        }
    }
    println!("{count} schedules from seed {first}: {puts} puts, {refused} refused, {kills} kills");
    let failed = progress.end();
    ensure!(failed.is_empty(), "schedules that failed: {failed:?}");
    ensure!(count == 1 || puts > refused, "hardly anything is put");
    Ok(())
}
