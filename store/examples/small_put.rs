//! Which way does a small put take? Times the candidates and the store itself, in one run, on the volume at the path
//! given (default: a directory under /dev/shm). Prints microseconds and the ratio to a plain file.
//!
//!     cargo run --release -p vineyard-store --example small_put [-- DIRECTORY [BYTES]]
//!
//! The table in docs/adr/0001-small-puts-take-the-stock.md comes from here.

#![expect(clippy::expect_used, reason = "a measurement stops at the first error")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fchmod};
use vineyard_charge::{Extent, OwnPayer, Payer};
use vineyard_store::{Key, Kind, Mode as GetMode, Name, Options, PutOptions, Volume};

const ROUNDS: usize = 5;
const EACH: usize = 4000;

type Timer<'a> = dyn FnMut(&'static str, &mut dyn FnMut(usize)) + 'a;

struct Row {
    what: &'static str,
    /// Median and mean, in microseconds.
    micros: (f64, f64),
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = PathBuf::from(arguments.next().unwrap_or_else(|| "/dev/shm".into()));
    let bytes: usize = arguments
        .next()
        .map_or(1024, |b| b.parse().expect("BYTES is a number"));
    let directory = tempfile::tempdir_in(parent).expect("DIRECTORY can be written");
    let content = vec![7_u8; bytes];

    let mut rows = Vec::new();
    let mut time = |what, operation: &mut dyn FnMut(usize)| {
        rows.push(Row {
            what,
            micros: measure(operation),
        });
    };
    let files = directory.path().join("files");
    std::fs::create_dir(&files).expect("new directory");
    time("plain file: create, write, close", &mut |i| {
        plain(&files, i, &content)
    });
    time("candidate: create, write, chmod, rename", &mut |i| {
        renamed(&files, i, &content)
    });
    time("candidate: unnamed, write, link through /proc", &mut |i| {
        unnamed(&files, i, &content, true)
    });
    time(
        "candidate: unnamed, write, link from the descriptor",
        &mut |i| unnamed(&files, i, &content, false),
    );
    let mut stock = Vec::new();
    time("candidate: from a stock, write, link", &mut |i| {
        stocked(&files, i, &content, &mut stock)
    });
    drop(stock);
    time("plain file: open, read, close", &mut |i| {
        read(&files.join(format!("p{}", i % EACH)))
    });

    for (billed, titles) in [
        (
            false,
            [
                "store without a bill: put",
                "… put with a new name",
                "… put over a name",
                "… get by name",
                "… get by id",
            ],
        ),
        (
            true,
            [
                "store with a payer in process: put",
                "… put with a new name",
                "… put over a name",
                "… get by name",
                "… get by id",
            ],
        ),
    ] {
        let payer: Option<Arc<dyn Payer>> = billed.then(|| Arc::new(OwnPayer::new()) as _);
        let root = directory
            .path()
            .join(if billed { "billed" } else { "local" });
        let volume = Volume::open(
            &root,
            Options {
                payer,
                create: true,
            },
        )
        .expect("volume");
        store(&volume, &content, &titles, &mut time);
    }

    let put = rows[0].micros;
    let get = rows
        .iter()
        .find(|r| r.what.starts_with("plain file: open"))
        .map_or(put, |r| r.micros);
    println!(
        "{bytes} bytes, {ROUNDS} rounds of {EACH}: median and mean in µs, and their ratios to a plain file"
    );
    for row in &rows {
        let base = if row.what.contains("get") || row.what.contains("read") {
            get
        } else {
            put
        };
        let (median, mean) = row.micros;
        println!(
            "{:52} {median:7.2} {mean:7.2}   {:5.2} {:5.2}",
            row.what,
            median / base.0,
            mean / base.1
        );
    }
}

/// Median and mean of one operation, in microseconds; of the round whose mean is the median of the rounds.
fn measure(operation: &mut dyn FnMut(usize)) -> (f64, f64) {
    let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|round| {
            let mut each = Vec::with_capacity(EACH);
            let start = Instant::now();
            let mut last = start;
            for i in 0..EACH {
                operation(round * EACH + i);
                let now = Instant::now();
                each.push((now - last).as_secs_f64() * 1e6);
                last = now;
            }
            let mean = start.elapsed().as_secs_f64() * 1e6 / EACH as f64;
            each.sort_by(f64::total_cmp);
            (each[EACH / 2], mean)
        })
        .collect();
    rounds.sort_by(|a, b| a.1.total_cmp(&b.1));
    rounds[ROUNDS / 2]
}

fn store(volume: &Volume, content: &[u8], titles: &[&'static str; 5], time: &mut Timer<'_>) {
    let slices = [IoSlice::new(content)];
    let put = |options: &PutOptions| volume.put(Kind::Raw, &slices, options).expect("put");
    let mut refs = Vec::new();
    time(titles[0], &mut |_| refs.push(put(&PutOptions::default())));
    let name = |text: String| Name::new(text).expect("a name");
    time(titles[1], &mut |i| {
        drop(put(&PutOptions::named(name(format!("n{i}")))))
    });
    time(titles[2], &mut |i| {
        drop(put(&PutOptions::named(name(format!("n{}", i % 100)))))
    });
    let get = |key: Key<'_>| volume.get(key, GetMode::CopyOnWrite).expect("get");
    time(titles[3], &mut |i| {
        drop(get(Key::Name(&name(format!("n{i}")))))
    });
    time(titles[4], &mut |i| drop(get(Key::from(&refs[i]))));
}

fn plain(directory: &Path, i: usize, content: &[u8]) {
    let mut file = File::create(directory.join(format!("p{i}"))).expect("create");
    file.write_all(content).expect("write");
}

fn read(path: &Path) {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .expect("read");
}

fn renamed(directory: &Path, i: usize, content: &[u8]) {
    let draft = directory.join(format!("t{i}"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .expect("create");
    file.write_all(content).expect("write");
    file.set_permissions(std::fs::Permissions::from_mode(0o444))
        .expect("chmod");
    std::fs::rename(draft, directory.join(format!("r{i}"))).expect("rename");
}

fn open_unnamed(directory: &Path) -> OwnedFd {
    let mode = Mode::from_bits_truncate(0o444);
    let file = open(
        directory,
        OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC,
        mode,
    )
    .expect("O_TMPFILE");
    fchmod(&file, mode).expect("chmod");
    file
}

fn link(file: &OwnedFd, to: &Path, through_proc: bool) {
    let (from, flag) = if through_proc {
        (
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            AtFlags::AT_SYMLINK_FOLLOW,
        )
    } else {
        (String::new(), AtFlags::AT_EMPTY_PATH)
    };
    let from = CString::new(from).expect("no NUL");
    nix::unistd::linkat(file, from.as_c_str(), nix::fcntl::AT_FDCWD, to, flag).expect("link");
}

fn unnamed(directory: &Path, i: usize, content: &[u8], through_proc: bool) {
    let file = open_unnamed(directory);
    nix::unistd::write(&file, content).expect("write");
    link(
        &file,
        &directory.join(format!("{}{i}", if through_proc { 'u' } else { 'v' })),
        through_proc,
    );
}

fn stocked(directory: &Path, i: usize, content: &[u8], stock: &mut Vec<OwnedFd>) {
    if stock.is_empty() {
        stock.extend((0..200).map(|_| open_unnamed(directory)));
        let extent = Extent {
            offset: 0,
            length: content.len().next_multiple_of(4096) as u64,
        };
        let extents: Vec<_> = stock.iter().map(|f| (f.as_fd(), extent)).collect();
        OwnPayer::new().reserve(&extents).expect("reserve");
    }
    let Some(file) = stock.pop() else { return };
    nix::unistd::write(&file, content).expect("write");
    link(&file, &directory.join(format!("s{i}")), false);
}
