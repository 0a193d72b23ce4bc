//! Three pods at the same names at the same time, their clients and sidecars killed now and then, and the driver sweeping:
//! readers see whole objects, and in the end every byte is where it belongs.
#![cfg(test)]

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vineyard_charge::CgroupId;
use vineyard_charge::survey::{Ledger, Surveyor};
use vineyard_store::{Fault, Options, Volume};
use vineyard_tests::commands::{Answer, Cause, Command, Content};
use vineyard_tests::inspect;
use vineyard_tests::pod::{Pod, PodSettings, World};
use vineyard_tests::random::{self, Random};
use vineyard_tests::skip_unless_possible;
use vineyard_tests::watchdog::deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const MIB: u64 = 1 << 20;
const PODS: u32 = 3;
/// Steps of each pod in `make test`; `VINEYARD_STEPS` asks for more.
const STEPS: u64 = 400;
const LIMIT: Duration = Duration::from_secs(60);

/// All that is ever put.
fn contents() -> Vec<Content> {
    let lens = [0, 10, 5000, 5001, 70_000, 300_000, 2 * MIB, 3 * MIB + 1];
    (0..)
        .zip(lens)
        .map(|(seed, len)| Content { seed, len })
        .collect()
}

fn command(random: &mut Random) -> Command {
    let contents = contents();
    let mut name = || format!("name-{}", random.below(4));
    let (name, other) = (name(), name());
    let content = random.one_of(&contents);
    match random.below(100) {
        0..30 => Command::Put {
            name: Some(name),
            content,
            overwrite: random.chance(80),
        },
        30..38 => Command::Write {
            name: Some(name),
            content,
            piece: 60_000,
        },
        38..43 => Command::Link {
            from: name,
            to: other,
        },
        43..58 => Command::Remove { name },
        58..60 => Command::Sweep,
        _ => Command::GetOneOf { name, contents },
    }
}

/// What may happen to somebody whom others get in the way of.
fn judge(command: &Command, answer: &Answer) -> Result<()> {
    match answer {
        Answer::Failed(failure) => match failure.cause {
            Cause::Absent => Ok(()),
            Cause::Exists if matches!(command, Command::Put { .. }) => Ok(()),
            _ => bail!("{command:?}: {failure:?}"),
        },
        Answer::Wrong(why) => bail!("{command:?}: {why}"),
        _ => Ok(()),
    }
}

/// Returns the pod, without its processes: its cgroup still pays.
fn play(world: &World, number: u32, seed: u64, steps: u64) -> Result<Pod> {
    let mut pod = world.started(PodSettings::new(&format!("pod-{number}"), number))?;
    let mut random = Random::new(seed);
    for step in 0..steps {
        let command = command(&mut random);
        let at = format!("pod {number}, seed {seed}, step {step}: {command:?}");
        let _limit = deadline(LIMIT, at.clone());
        one_step(&mut pod, &mut random, &command).context(at)?;
    }
    pod.check_alive()?;
    pod.kill_client()?;
    pod.kill_sidecar()?;
    Ok(pod)
}

fn one_step(pod: &mut Pod, random: &mut Random, command: &Command) -> Result<()> {
    let fate = random.below(100);
    pod.client()?.send(command)?;
    if fate < 6 {
        thread::sleep(Duration::from_micros(random.below(2000)));
    }
    match fate {
        0..4 => {
            pod.kill_client()?;
            return pod.start_client();
        }
        4..6 => {
            pod.kill_sidecar()?;
            pod.start_sidecar()?;
        }
        _ => {}
    }
    let answer = pod.client()?.receive()?;
    judge(command, &answer)
}

#[test]
fn pods_that_get_in_each_others_way_lose_nothing_and_leak_nothing() -> Result<()> {
    skip_unless_possible!();
    let seed = random::seed();
    println!("repeat it by: VINEYARD_SEED={seed} cargo test -p vineyard-tests --test concurrent");
    let steps = random::number("VINEYARD_STEPS").unwrap_or(STEPS);
    let world = World::new(256 * MIB, CLIENT)?;
    let driver = Arc::new(Volume::open(world.volume(), Options::default())?);
    let over = AtomicBool::new(false);
    let pods = thread::scope(|scope| -> Result<Vec<Pod>> {
        let world = &world;
        let players: Vec<_> = (0..PODS)
            .map(|number| scope.spawn(move || play(world, number, seed + u64::from(number), steps)))
            .collect();
        let sweeper = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                driver.sweep()?;
                let report = driver.fsck(false)?;
                // Others are at work: only what is in an object can be judged.
                let bad = |f: Fault| {
                    matches!(
                        f,
                        Fault::Content | Fault::Holes | Fault::Mode | Fault::Foreign
                    )
                };
                if let Some(problem) = report.problems.iter().find(|p| bad(p.fault)) {
                    bail!("{problem:?}");
                }
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let pods = players.into_iter().map(|player| match player.join() {
            Ok(pod) => pod,
            Err(_) => bail!("a player panicked"),
        });
        let pods = pods.collect::<Result<Vec<_>>>();
        over.store(true, Ordering::Relaxed);
        match sweeper.join() {
            Ok(swept) => swept.context("the driver")?,
            Err(_) => bail!("the driver panicked"),
        }
        pods
    })?;
    settle(&world, &driver, &pods)
}

/// Everybody is gone: what is left must be whole objects, each on the bill of a sidecar, and nothing else.
fn settle(world: &World, driver: &Arc<Volume>, pods: &[Pod]) -> Result<()> {
    driver.sweep()?;
    let report = driver.fsck(false)?;
    // Clients were killed between a note and what it is about.
    let problem = report.problems.iter().find(|p| p.fault != Fault::Orphan);
    ensure!(problem.is_none(), "{problem:?}");
    let contents = contents();
    let mut surveyor = Surveyor::open()?;
    for entry in fs::read_dir(world.volume().join(".vineyard/objects"))? {
        let path = entry?.path();
        let whole = contents
            .iter()
            .any(|c| inspect::content(&path, (*c).into(), true).is_ok());
        ensure!(whole, "{} is nothing that was put", path.display());
        let owners = surveyor.summary(fs::File::open(&path)?.as_fd())?.owners;
        let paid = |owner: &CgroupId| pods.iter().any(|pod| pod.sidecar_cgroup().id() == *owner);
        ensure!(
            owners.keys().all(paid),
            "{} is paid by {owners:?}",
            path.display()
        );
    }
    let trash = fs::read_dir(world.volume().join(".vineyard/trash"))?.count();
    ensure!(trash == 0, "{trash} objects are left in the trash");
    let ledger = Ledger::of(world.volume())?;
    ensure!(
        ledger.unreached == 0,
        "{} bytes are out of reach",
        ledger.unreached
    );
    println!(
        "{} objects, {} of them without a name",
        report.objects, report.unnamed
    );
    Ok(())
}

#[test]
fn a_name_that_is_only_re_pointed_is_always_there() -> Result<()> {
    skip_unless_possible!();
    let seed = random::seed();
    let world = World::new(256 * MIB, CLIENT)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let (world, over) = (&world, &over);
        let put = |random: &mut Random| Command::Put {
            name: Some("name".into()),
            content: random.one_of(&contents()),
            overwrite: true,
        };
        let mut first = world.started(PodSettings::new("first", 7))?;
        ensure!(
            !matches!(first.call(&put(&mut Random::new(seed)))?, Answer::Failed(_)),
            "a put"
        );
        let writers: Vec<_> = (0..2)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let name = format!("writer-{number}");
                    let mut pod = world.started(PodSettings::new(&name, number))?;
                    let mut random = Random::new(seed + u64::from(number));
                    while !over.load(Ordering::Relaxed) {
                        let _limit = deadline(LIMIT, "a put");
                        let command = put(&mut random);
                        match pod.call(&command)? {
                            Answer::Object { .. } => {}
                            other => bail!("{command:?}: {other:?}"),
                        }
                    }
                    pod.check_alive()
                })
            })
            .collect();
        let order = Command::GetOneOf {
            name: "name".into(),
            contents: contents(),
        };
        let mut gets = || -> Result<()> {
            for _ in 0..1000 {
                let _limit = deadline(LIMIT, "a get");
                match first.call(&order)? {
                    Answer::Done => {}
                    other => bail!("seed {seed}: {other:?}"),
                }
            }
            Ok(())
        };
        let result = gets();
        over.store(true, Ordering::Relaxed);
        for writer in writers {
            match writer.join() {
                Ok(written) => written?,
                Err(_) => bail!("a writer panicked"),
            }
        }
        result
    })
}
