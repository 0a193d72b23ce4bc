//! A replayed kubelet: its calls in its order, with its repetitions, while the driver is killed and the node reboots.
//!
//! `VINEYARD_SEED=n` runs one schedule, `VINEYARD_SCHEDULES=n` that many (default: 12).

#![expect(
    clippy::unwrap_used,
    reason = "a test: what cannot be unwrapped is a failure"
)]

mod chance;
mod driver;
mod kubelet;

use std::time::{SystemTime, UNIX_EPOCH};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use chance::Chance;
use kubelet::Kubelet;

/// Steps of one schedule.
const STEPS: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_leaks_and_no_content_changes_whenever_the_driver_is_killed() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let seeds = match number("VINEYARD_SEED") {
        Some(seed) => vec![seed],
        None => {
            let count = number("VINEYARD_SCHEDULES").unwrap_or(12);
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs();
            (0..count)
                .map(|index| now.wrapping_mul(100_000) + index)
                .collect()
        }
    };
    // A thread may have a mount namespace of its own, and its children, the drivers, have it too.
    let played = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS) {
            eprintln!("skipped: no mount namespace of our own: {errno}");
            return;
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for seed in seeds {
            eprintln!(
                "again: VINEYARD_SEED={seed} cargo test -p vineyard-csi --test replay -- --nocapture"
            );
            runtime.block_on(play(seed));
        }
    });
    played.join().unwrap();
}

async fn play(seed: u64) {
    let mut chance = Chance::new(seed);
    let folder = tempfile::Builder::new()
        .prefix("vineyard-test-replay.")
        .tempdir()
        .unwrap();
    let mut kubelet = Kubelet::new(folder.path(), chance.fork());
    for _ in 0..STEPS {
        match chance.below(20) {
            0..=3 => kubelet.provision().await,
            4..=9 => kubelet.start_pod().await,
            10..=13 => kubelet.stop_pod().await,
            14 => kubelet.expand().await,
            15 => kubelet.stats().await,
            16 => kubelet.delete_unused().await,
            17 => kubelet.restart().await,
            18 => kubelet.kill_driver(),
            _ if chance.below(4) == 0 => kubelet.reboot().await,
            _ => kubelet.check_content(),
        }
    }
    kubelet.clean_up().await;
    kubelet.assert_nothing_is_left();
}
