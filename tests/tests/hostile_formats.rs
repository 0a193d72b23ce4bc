//! Mutations of the golden files of every kind: an error or bytes, never a crash, a hang or memory beyond the file's size.
#![cfg(test)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vineyard_store::format::{arrow, npy, pack, pickle, safetensors};
use vineyard_store::{Key, Mode, Name, Options, Volume};
use vineyard_tests::random::{self, Random};
use vineyard_tests::watchdog::deadline;

/// Cases of each golden file in `make test`; `VINEYARD_CASES` asks for more.
const CASES: u64 = 2000;
/// Every so often the whole volume is checked too.
const FSCK: u64 = 20;
/// What an operation may allocate beyond a multiple of the file's size: fixed buffers, messages, names.
const FIXED: usize = 160 << 10;
/// Decoded tables are larger than written ones.
const TIMES: usize = 8;

/// Counts what is allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../store/tests/golden")
}

/// Golden objects of all versions: their kinds and bytes.
fn objects() -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for version in fs::read_dir(golden())? {
        let files = version?.path().join("files");
        for file in fs::read_dir(files).into_iter().flatten() {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(object) = name.strip_prefix(".vineyard_objects_")
                && let Some((_, kind)) = object.split_once('.')
            {
                all.push((kind.to_owned(), fs::read(&path)?));
            }
        }
    }
    all.sort();
    Ok(all)
}

/// Makes one to four changes.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)]) {
    for _ in 0..1 + random.below(4) {
        let len = bytes.len();
        let at = if random.chance(50) {
            // Footers and the tables before them decide about everything else.
            len.saturating_sub(1 + random.index(160))
        } else {
            random.index(len)
        };
        match random.below(9) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            1..4 => overwrite(bytes, at & !7, &edge(random).to_le_bytes()),
            4 => overwrite(bytes, at & !3, &edge(random).to_le_bytes()[..4]),
            5 => bytes.truncate(random.index(len + 1)),
            6 => bytes.extend((0..random.below(200)).map(|i| i.to_le_bytes()[0].wrapping_mul(37))),
            7 => {
                let (_, other) = &others[random.index(others.len())];
                let from = random.index(other.len());
                let part = &other[from..];
                overwrite(bytes, at, &part[..part.len().min(64)]);
            }
            _ => {
                let part: Vec<u8> = bytes.drain(at..len.min(at + random.index(64))).collect();
                let to = random.index(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
        }
    }
    if random.chance(70) {
        mend_checksum(bytes);
    }
}

/// Numbers at which arithmetic breaks.
fn edge(random: &mut Random) -> u64 {
    let base = random.one_of(&[
        0,
        1,
        64,
        1 << 16,
        u64::from(u32::MAX) - 40,
        u64::from(u32::MAX),
        1 << 40,
        i64::MAX as u64,
        u64::MAX - 40,
        u64::MAX,
    ]);
    base.wrapping_add(random.below(80)).wrapping_sub(40)
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(with) {
        *byte = *new;
    }
}

/// Both of our containers end in a footer of 40 bytes that says where its table starts and what the checksum from there
/// is: with the right one, everything behind the checksum is reached too.
fn mend_checksum(bytes: &mut [u8]) {
    let Some(footer) = bytes.len().checked_sub(40) else {
        return;
    };
    let table = bytes[footer..footer + 8]
        .try_into()
        .map_or(u64::MAX, u64::from_le_bytes);
    let Some(table) = usize::try_from(table).ok().filter(|t| *t <= footer) else {
        return;
    };
    let sum = crc32fast::hash(&bytes[table..footer]).to_le_bytes();
    bytes[footer + 28..footer + 32].copy_from_slice(&sum);
}

/// Everything that reads an object. What it says does not matter, only that it says something.
fn read(volume: &Arc<Volume>, name: &Name, member: &Name, fsck: bool) {
    let key = Key::Name(name);
    let _ = volume.stat(key);
    for mode in [Mode::CopyOnWrite, Mode::ReadOnly] {
        let Ok(object) = volume.get(key, mode) else {
            continue;
        };
        let bytes = object.bytes();
        let _ = arrow::check(bytes);
        let _ = pack::check(bytes);
        let _ = safetensors::check(bytes);
        if let Ok(header) = npy::Header::parse(bytes) {
            let _ = (
                header.elements(),
                header.item_bytes(),
                header.check(bytes.len() as u64),
            );
        }
        if let Ok(pickle) = pickle::Pickle::parse(bytes) {
            let sum = |range: &[u8]| range.iter().fold(0_u8, |a, b| a ^ b);
            std::hint::black_box(
                pickle
                    .buffers
                    .iter()
                    .map(|b| sum(&bytes[b.clone()]))
                    .fold(0, |a, b| a ^ b),
            );
            std::hint::black_box(sum(pickle.stream));
        }
    }
    if let Ok(pack) = volume.open_pack(key, Mode::CopyOnWrite) {
        let bytes = pack.mapping().as_slice();
        for (key, _, range) in pack.members() {
            std::hint::black_box(bytes[range].iter().fold(0_u8, |a, b| a ^ b));
            let _ = pack.find(key);
        }
    }
    let _ = volume.get(Key::Name(member), Mode::CopyOnWrite);
    let _ = volume.stat(Key::Name(member));
    let _ = volume.exists(member);
    if fsck {
        let _ = volume.fsck(false);
    }
}

#[test]
fn mutated_objects_of_every_kind_are_errors_and_nothing_worse() -> Result<()> {
    let objects = objects()?;
    let kinds: std::collections::BTreeSet<&str> = objects.iter().map(|(k, _)| k.as_str()).collect();
    for kind in [
        "arrow",
        "npy",
        "pack",
        "pickle",
        "raw",
        "safetensors",
        "text",
    ] {
        ensure!(kinds.contains(kind), "there is no golden {kind}");
    }
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let volume = Arc::new(Volume::open(directory.path(), Options::default())?);
    let (name, member) = (Name::new("name")?, Name::new("name/alice")?);
    let link = directory.path().join("name");
    let seed = random::seed();
    let cases = random::number("VINEYARD_CASES").unwrap_or(CASES);
    let mut random = Random::new(seed);
    // Errors are expected: only a panic must be loud.
    read(&volume, &name, &member, true);
    for (number, (kind, bytes)) in objects.iter().enumerate() {
        for case in 0..cases {
            let what = || {
                format!(
                    "golden object {number} ({kind}), case {case}, VINEYARD_SEED={seed} VINEYARD_CASES={cases}"
                )
            };
            let mut bytes = bytes.clone();
            mutate(&mut random, &mut bytes, &objects);
            // Any bytes may come under any kind.
            let kind = if random.chance(80) {
                kind
            } else {
                &objects[random.index(objects.len())].0
            };
            let file = format!(".vineyard/objects/{:026}.{kind}", case % 7);
            let path = directory.path().join(&file);
            fs::write(&path, &bytes)?;
            symlink(&file, &link)?;
            let _deadline = deadline(Duration::from_secs(20), what());
            let before = LIVE.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let fsck = case % FSCK == 0;
            let read = catch_unwind(AssertUnwindSafe(|| read(&volume, &name, &member, fsck)));
            let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
            if read.is_err() {
                bail!("panic: {}", what());
            }
            ensure!(
                peak <= FIXED + TIMES * bytes.len(),
                "{peak} bytes allocated for {}: {}",
                bytes.len(),
                what()
            );
            fs::remove_file(&link)?;
            fs::remove_file(&path).context("the object")?;
        }
        println!(
            "{} of {} objects, {cases} mutations each",
            number + 1,
            objects.len()
        );
    }
    Ok(())
}
