//! Links, puts and creates at names that others remove all the time, with their directories: they succeed, or somebody
//! was faster; nothing else ever comes of it, and nothing is left that the format does not know.
#![cfg(test)]

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vineyard_store::{Error, Fault, Key, Kind, Mode, Name, Options, PutOptions, Volume};
use vineyard_tests::random::{self, Random};
use vineyard_tests::watchdog::deadline;

/// Steps of each writer in `make test`; `VINEYARD_STEPS` asks for more. The removers go on as long as they do.
const STEPS: u64 = 2000;
const WRITERS: u64 = 3;
const REMOVERS: u64 = 3;

/// Names that meet often: some in directories that go with their last name.
fn name(random: &mut Random) -> Result<Name> {
    let leaf = random.below(3);
    let text = match random.below(4) {
        0 => format!("name-{leaf}"),
        1 => format!("a/{leaf}"),
        2 => format!("a/b/{leaf}"),
        _ => format!("c/{leaf}"),
    };
    Ok(Name::new(text)?)
}

/// What was done, so that a test in which nobody meets anybody is found out.
#[derive(Debug, Default)]
struct Tally {
    links: AtomicU64,
    late_links: AtomicU64,
    seals: AtomicU64,
    removed: AtomicU64,
    gets: AtomicU64,
}

impl Tally {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Somebody removed it, or what it was about, or has taken the place.
fn raced<T>(result: Result<T, Error>, what: &str) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. } | Error::Lost { .. } | Error::Exists { .. }) => Ok(None),
        Err(error) => bail!("{what}: {error:?}"),
    }
}

/// Lengths below and above what is read, mapped, and announced before it is named.
fn content(random: &mut Random) -> Vec<u8> {
    let len = random.one_of(&[1, 5000, 70_000, (1 << 20) + 1]);
    vec![u8::try_from(len % 251).unwrap_or(0); len]
}

fn options(random: &mut Random) -> Result<PutOptions> {
    Ok(PutOptions {
        overwrite: random.chance(70),
        ..PutOptions::named(name(random)?)
    })
}

fn write(volume: &Arc<Volume>, random: &mut Random, tally: &Tally) -> Result<()> {
    match random.below(10) {
        0..2 => {
            let bytes = content(random);
            let put = volume.put(Kind::Raw, &[IoSlice::new(&bytes)], &options(random)?);
            raced(put, "put")?;
        }
        2..5 => {
            let bytes = content(random);
            let draft = volume.create(Kind::Raw, bytes.len() as u64)?;
            // SAFETY: a draft's memory is its own and as long as it was asked for.
            unsafe { draft.as_mut_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
            let sealed = draft.seal(&options(random)?).map_err(Error::from);
            Tally::add(&tally.seals, u64::from(raced(sealed, "seal")?.is_some()));
        }
        5..9 => {
            let (from, to) = (name(random)?, name(random)?);
            let linked = volume.link(Key::Name(&from), &to, random.chance(70));
            match raced(linked, "link")? {
                Some(()) => Tally::add(&tally.links, 1),
                None => Tally::add(&tally.late_links, 1),
            }
        }
        _ => {
            let (from, to) = (name(random)?, name(random)?);
            raced(volume.rename(&from, &to, true), "rename")?;
        }
    }
    Ok(())
}

fn remove(volume: &Arc<Volume>, random: &mut Random, tally: &Tally) -> Result<()> {
    let removed = match random.below(10) {
        0..6 => u64::from(volume.remove(Key::Name(&name(random)?))?),
        6..9 => volume.remove_prefix(random.one_of(&["a/", "a/b/", "c/", "name-", "a"]))?,
        _ => {
            let name = name(random)?;
            if let Some(object) = raced(volume.get(Key::Name(&name), Mode::CopyOnWrite), "get")? {
                let bytes = object.bytes();
                let first = bytes.first().copied().unwrap_or(0);
                ensure!(bytes.iter().all(|b| *b == first), "{name} is torn");
                Tally::add(&tally.gets, 1);
            }
            0
        }
    };
    Tally::add(&tally.removed, removed);
    Ok(())
}

type Step = fn(&Arc<Volume>, &mut Random, &Tally) -> Result<()>;

fn play(
    root: &Path,
    seed: u64,
    one_step: Step,
    tally: &Tally,
    goes_on: impl Fn(u64) -> bool,
) -> Result<()> {
    // Descriptors of its own, as another process has them.
    let volume = Arc::new(Volume::open(root, Options::default())?);
    let mut random = Random::new(seed);
    let mut step = 0;
    while goes_on(step) {
        let at = || format!("seed {seed}, step {step}");
        let _limit = deadline(Duration::from_secs(60), at());
        one_step(&volume, &mut random, tally).with_context(at)?;
        step += 1;
    }
    Ok(())
}

#[test]
fn links_and_creates_among_heavy_removals_succeed_or_find_nothing() -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("vineyard-test-")
        .tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())?;
    let root = directory.path();
    let seed = random::seed();
    println!("repeat it by: VINEYARD_SEED={seed} cargo test -p vineyard-tests --test races");
    let steps = random::number("VINEYARD_STEPS").unwrap_or(STEPS);
    let volume = Arc::new(Volume::open(root, Options::default())?);
    let tally = Tally::default();
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let (tally, over) = (&tally, &over);
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| scope.spawn(move || play(root, seed + n, write, tally, |step| step < steps)))
            .collect();
        let removers: Vec<_> = (WRITERS..WRITERS + REMOVERS)
            .map(|n| {
                let goes_on = |_| !over.load(Ordering::Relaxed);
                scope.spawn(move || play(root, seed + n, remove, tally, goes_on))
            })
            .collect();
        let written = join(writers);
        over.store(true, Ordering::Relaxed);
        join(removers).and(written)
    })?;
    println!("{tally:?}");
    for (what, count) in [
        ("links", &tally.links),
        ("links that came too late", &tally.late_links),
        ("seals", &tally.seals),
        ("removals", &tally.removed),
    ] {
        ensure!(count.load(Ordering::Relaxed) > 0, "no {what} at all");
    }
    settle(&volume, root)
}

fn join(players: Vec<ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    let joined = players.into_iter().map(|player| match player.join() {
        Ok(played) => played,
        Err(_) => bail!("a player panicked"),
    });
    joined.fold(Ok(()), Result::and)
}

/// Everybody is gone: names that a removal and a link together have lost (docs/adr/0004) are mended, and the rest is sound.
fn settle(volume: &Arc<Volume>, root: &Path) -> Result<()> {
    volume.sweep()?;
    let report = volume.fsck(true)?;
    let bad = |fault: Fault| !matches!(fault, Fault::Lost | Fault::Orphan);
    let problem = report.problems.iter().find(|p| bad(p.fault) || !p.repaired);
    ensure!(problem.is_none(), "{problem:?}");
    let again = volume.fsck(false)?;
    ensure!(again.problems.is_empty(), "{:?}", again.problems);
    volume.remove_prefix("")?;
    volume.sweep()?;
    for own in ["objects", "trash", "tmp", "links"] {
        let left: Vec<_> = std::fs::read_dir(root.join(".vineyard").join(own))?.collect();
        ensure!(left.is_empty(), "left in {own}: {left:?}");
    }
    Ok(())
}
