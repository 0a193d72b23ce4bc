//! Measures what `docs/design/charging.md` reports: reserve, pull, copy and survey on a tmpfs directory.
//!
//! `cargo run --release -p vineyard-charge --example measure -- DIRECTORY` (root for the surveys). Medians of seven runs;
//! compare them with each other, not with other machines.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement ends where something fails"
)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vineyard_charge::recharge::Replace;
use vineyard_charge::survey::Surveyor;
use vineyard_charge::{Extent, OwnPayer, Payer, REGION};

const RUNS: usize = 7;
const MIB: u64 = 1 << 20;

fn unnamed(directory: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)
        .unwrap()
}

/// The median of what `once` takes, and all of them for the spread. The first, cold one does not count.
fn median(mut once: impl FnMut() -> Duration) -> (Duration, Duration, Duration) {
    once();
    let mut times: Vec<Duration> = (0..RUNS).map(|_| once()).collect();
    times.sort_unstable();
    (times[0], times[RUNS / 2], times[RUNS - 1])
}

fn rate(name: &str, bytes: u64, once: impl FnMut() -> Duration) {
    let (best, middle, worst) = median(once);
    let gbs = |t: Duration| bytes as f64 / t.as_secs_f64() / 1e9;
    println!(
        "{name:<58} {:>9.1} µs {:>6.2} GB/s  ({:.2} … {:.2})",
        middle.as_secs_f64() * 1e6,
        gbs(middle),
        gbs(worst),
        gbs(best)
    );
}

fn each(name: &str, count: u32, once: impl FnMut() -> Duration) {
    let (best, middle, worst) = median(once);
    let per = |t: Duration| t.as_secs_f64() * 1e6 / f64::from(count);
    println!(
        "{name:<58} {:>9.2} µs each  ({:.2} … {:.2})",
        per(middle),
        per(best),
        per(worst)
    );
}

fn all(length: u64) -> Extent {
    Extent { offset: 0, length }
}

fn reserves(directory: &Path) {
    let payer = OwnPayer::new();
    let reserve = |size: u64, length: u64| {
        let file = unnamed(directory);
        file.set_len(size).unwrap();
        let start = Instant::now();
        payer.reserve(&[(file.as_fd(), all(length))]).unwrap();
        start.elapsed()
    };
    let gib = 1024 * MIB;
    rate("reserve 1 GiB, size set", gib, || reserve(gib, gib));
    rate("reserve 1 GiB, size not set", gib, || reserve(0, gib));
    for size in [64, 16, 4, 2] {
        let size = size * MIB;
        rate(
            &format!("reserve {} MiB, size set", size / MIB),
            size,
            || reserve(size, size),
        );
    }
    rate("plain fallocate 1 GiB", gib, || {
        let file = unnamed(directory);
        let start = Instant::now();
        nix::fcntl::fallocate(
            &file,
            nix::fcntl::FallocateFlags::empty(),
            0,
            gib.cast_signed(),
        )
        .unwrap();
        start.elapsed()
    });
    for count in [1u32, 10, 200] {
        each(&format!("reserve of {count} files of 4 KiB"), count, || {
            let files: Vec<File> = (0..count).map(|_| unnamed(directory)).collect();
            let batch: Vec<(BorrowedFd<'_>, Extent)> =
                files.iter().map(|f| (f.as_fd(), all(4096))).collect();
            let start = Instant::now();
            payer.reserve(&batch).unwrap();
            start.elapsed()
        });
    }
}

fn filled(path: &Path, size: u64) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap();
    let part = vec![0x5a; 1 << 20];
    let mut offset = 0;
    while offset < size {
        let bytes = usize::try_from((size - offset).min(MIB)).unwrap();
        file.write_all_at(&part[..bytes], offset).unwrap();
        offset += bytes as u64;
    }
    file
}

/// What moving the bill of many files of one size costs: the border between pull and copy.
fn border(directory: &Path) {
    let payer = OwnPayer::new();
    for kib in [4, 64, 128, 256, 512, 1024, 2048, 4096] {
        let size = kib * 1024;
        let count = u32::try_from((64 * MIB / size).min(500)).unwrap();
        let paths: Vec<PathBuf> = (0..count)
            .map(|i| directory.join(format!("measure-{i}")))
            .collect();
        let make = || {
            for path in &paths {
                filled(path, size);
            }
        };
        each(&format!("pull and trim a file of {kib} KiB"), count, || {
            make();
            let start = Instant::now();
            for path in &paths {
                let file = File::options().read(true).write(true).open(path).unwrap();
                payer
                    .pull(file.as_fd(), &[all(size.next_multiple_of(REGION))])
                    .unwrap();
                let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                    | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let rest = size.next_multiple_of(REGION) - size;
                if rest > 0 {
                    nix::fcntl::fallocate(&file, flags, size.cast_signed(), rest.cast_signed())
                        .unwrap();
                }
            }
            start.elapsed()
        });
        let folder = File::open(directory).unwrap();
        let replace = Replace {
            directory: folder.as_fd(),
            scratch: folder.as_fd(),
        };
        let names: Vec<OsString> = paths
            .iter()
            .map(|p| p.file_name().unwrap().to_owned())
            .collect();
        each(
            &format!("copy and rename a file of {kib} KiB"),
            count,
            || {
                make();
                let start = Instant::now();
                for result in replace.copy(&names, &payer) {
                    result.unwrap();
                }
                start.elapsed()
            },
        );
        for path in &paths {
            fs::remove_file(path).unwrap();
        }
    }
}

fn moves(directory: &Path) {
    let payer = OwnPayer::new();
    let size = 512 * MIB;
    let path = directory.join("measure-large");
    rate("pull 512 MiB of 4 KiB pages", size, || {
        let file = filled(&path, size);
        let start = Instant::now();
        assert!(payer.pull(file.as_fd(), &[all(size)]).unwrap().is_empty());
        start.elapsed()
    });
    let Ok(mut surveyor) = Surveyor::open() else {
        return println!("surveys are not measured: only root sees owners");
    };
    rate("survey 512 MiB of huge pages", size, || {
        let file = File::open(&path).unwrap();
        let start = Instant::now();
        surveyor.summary(file.as_fd()).unwrap();
        start.elapsed()
    });
    filled(&path, size);
    rate("survey 512 MiB of 4 KiB pages", size, || {
        let file = File::open(&path).unwrap();
        let start = Instant::now();
        surveyor.summary(file.as_fd()).unwrap();
        start.elapsed()
    });
    fs::remove_file(&path).unwrap();
    let files: Vec<File> = (0..500)
        .map(|_| {
            let file = unnamed(directory);
            file.write_all_at(&[1; 4096], 0).unwrap();
            file
        })
        .collect();
    each("survey a file of 4 KiB", 500, || {
        let start = Instant::now();
        for file in &files {
            surveyor.summary(file.as_fd()).unwrap();
        }
        start.elapsed()
    });
}

fn main() {
    let directory = std::env::args_os()
        .nth(1)
        .map_or_else(|| "/dev/shm".into(), PathBuf::from);
    let own = directory.join(format!("measure-{}", std::process::id()));
    fs::create_dir(&own).unwrap();
    reserves(&own);
    moves(&own);
    border(&own);
    fs::remove_dir_all(own).unwrap();
}
