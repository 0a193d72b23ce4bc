//! `bench`: quick rates on this volume, next to plain files on the same file system in the same run.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{IoSlice, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use vineyard_store::{Key, Kind, Mode, Name, PutOptions, Volume};

use crate::args::Settings;
use crate::bytes::{human, parse, rate};
use crate::exit::Outcome;
use crate::output::columns;
use crate::progress;

const SMALL: usize = 1024;
/// Small operations of one round.
const BATCH: usize = 1000;

/// Measure put and get on this volume against plain file writes and reads, in the same run
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// Size of the large object
    #[arg(long, default_value = "256MiB", value_parser = parse)]
    size: u64,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// One operation, ours and theirs.
#[derive(Serialize)]
struct Row {
    what: &'static str,
    bytes: u64,
    /// Median seconds of one operation.
    vineyard_seconds: f64,
    file_seconds: f64,
    /// How many times faster than the plain file.
    ratio: f64,
}

/// Where the measurement works; removed with all it holds at the end, also after an error.
struct Scratch<'v> {
    volume: &'v Volume,
    prefix: String,
    directory: PathBuf,
}

impl<'v> Scratch<'v> {
    fn new(volume: &'v Volume) -> anyhow::Result<Self> {
        let prefix = format!("vineyard-bench-{}", std::process::id());
        let directory = volume.root().join(format!("{prefix}-files"));
        fs::create_dir(&directory)?;
        Ok(Self {
            volume,
            prefix,
            directory,
        })
    }

    fn name(&self, index: usize) -> Result<Name, vineyard_store::Error> {
        Name::new(format!("{}/{index}", self.prefix))
    }

    fn put(&self, index: usize, content: &[u8]) -> anyhow::Result<()> {
        let options = PutOptions::named(self.name(index)?);
        self.volume
            .put(Kind::Raw, &[IoSlice::new(content)], &options)?;
        Ok(())
    }

    fn clear(&self) -> anyhow::Result<()> {
        self.volume.remove_prefix(&format!("{}/", self.prefix))?;
        Ok(())
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = self.clear();
        let _ = fs::remove_dir(self.volume.root().join(&self.prefix));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Bench {
    /// Measures and prints.
    pub(crate) fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let volume = settings.billed_volume()?;
        let large = vec![0x5a_u8; usize::try_from(self.size)?];
        let small = vec![0xa5_u8; SMALL];
        let scratch = Scratch::new(&volume)?;
        let bar = progress::count("measuring", u64::from(self.rounds));
        let mut times = [const { Vec::new() }; 8];
        for _ in 0..self.rounds {
            for (sample, times) in round(&scratch, &large, &small)?.into_iter().zip(&mut times) {
                times.push(sample);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        drop(scratch);
        let [
            put,
            write,
            get,
            read,
            put_small,
            write_small,
            get_small,
            read_small,
        ] = times.map(median);
        let rows = [
            row("put", self.size, put, write),
            row("get and read", self.size, get, read),
            row("put", SMALL as u64, put_small, write_small),
            row("get", SMALL as u64, get_small, read_small),
        ];
        settings.format.print_rows(&rows, table)?;
        Ok(Outcome::Done)
    }
}

/// Seconds of each operation: large put, write, get, read, then the same for one of the small ones.
fn round(scratch: &Scratch<'_>, large: &[u8], small: &[u8]) -> anyhow::Result<[Duration; 8]> {
    let name = scratch.name(0)?;
    let file = scratch.directory.join("large");
    let put = timed(|| scratch.put(0, large))?;
    let get = timed(|| {
        Ok(touch(
            scratch
                .volume
                .get(Key::Name(&name), Mode::ReadOnly)?
                .bytes(),
        ))
    })?;
    scratch.clear()?;
    let write = timed(|| write_file(&file, large))?;
    let read = timed(|| Ok(touch(&fs::read(&file)?)))?;
    fs::remove_file(&file)?;

    let names = (0..BATCH)
        .map(|i| scratch.name(i))
        .collect::<Result<Vec<_>, _>>()?;
    let files: Vec<PathBuf> = (0..BATCH)
        .map(|i| scratch.directory.join(i.to_string()))
        .collect();
    let each = |time: Duration| time / u32::try_from(BATCH).unwrap_or(u32::MAX);
    let put_small = each(timed(|| {
        (0..BATCH).try_for_each(|i| scratch.put(i, small))
    })?);
    let get_small = each(timed(|| {
        names.iter().try_for_each(|name| {
            black_box(scratch.volume.get(Key::Name(name), Mode::ReadOnly)?);
            Ok(())
        })
    })?);
    scratch.clear()?;
    let write_small = each(timed(|| {
        files.iter().try_for_each(|file| write_file(file, small))
    })?);
    let read_small = each(timed(|| {
        files.iter().try_for_each(|file| {
            black_box(fs::read(file)?);
            Ok(())
        })
    })?);
    files.iter().try_for_each(fs::remove_file)?;
    Ok([
        put,
        write,
        get,
        read,
        put_small,
        write_small,
        get_small,
        read_small,
    ])
}

/// What a careful program does with a plain file: nobody sees it half-written.
fn write_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let half = path.with_extension("half");
    File::create(&half)?.write_all(content)?;
    Ok(fs::rename(half, path)?)
}

/// Reads a byte of every cache line.
fn touch(bytes: &[u8]) -> u64 {
    black_box(bytes.iter().step_by(64).map(|b| u64::from(*b)).sum())
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    black_box(work()?);
    Ok(start.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn row(what: &'static str, bytes: u64, ours: Duration, file: Duration) -> Row {
    let (ours, file) = (ours.as_secs_f64().max(1e-9), file.as_secs_f64());
    Row {
        what,
        bytes,
        vineyard_seconds: ours,
        file_seconds: file,
        ratio: file / ours,
    }
}

fn table(rows: &[Row]) -> String {
    let speed = |bytes: u64, seconds: f64| {
        if bytes > SMALL as u64 {
            format!("{:.1} GB/s", rate(bytes, Duration::from_secs_f64(seconds)))
        } else {
            format!("{:.1} µs", seconds * 1e6)
        }
    };
    columns(
        &["operation", "bytes", "vineyard", "plain file", "ratio"],
        &[1, 2, 3, 4],
        rows.iter().map(|row| {
            vec![
                row.what.to_owned(),
                human(row.bytes),
                speed(row.bytes, row.vineyard_seconds),
                speed(row.bytes, row.file_seconds),
                format!("{:.1}×", row.ratio),
            ]
        }),
    )
}
