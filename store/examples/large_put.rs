//! How fast are large puts and gets? Times the store against a plain file in the same run, on the volume at the path
//! given (default: a directory under /dev/shm).
//!
//!     cargo run --release -p vineyard-store --example large_put [-- DIRECTORY [MIB [ROUNDS]]]
#![expect(clippy::expect_used, reason = "a measurement stops at the first error")]

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use vineyard_charge::{OwnPayer, Payer};
use vineyard_store::{Key, Kind, Mode, Name, Options, PutOptions, Volume};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = PathBuf::from(arguments.next().unwrap_or_else(|| "/dev/shm".into()));
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |n| n.parse().expect("a number"))
    };
    let (mib, rounds) = (number(256), number(5));
    let directory = tempfile::tempdir_in(parent).expect("DIRECTORY can be written");
    // Not all the same, and touched.
    let content: Vec<u8> = (0..mib << 20)
        .map(|i| u8::try_from(i % 251).unwrap_or(0))
        .collect();
    let bytes = content.len() as f64;
    let plain = directory.path().join("plain");

    let mut table: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut note = |what, start: Instant| {
        let seconds = start.elapsed().as_secs_f64();
        match table.iter_mut().find(|(w, _)| *w == what) {
            Some((_, all)) => all.push(seconds),
            None => table.push((what, vec![seconds])),
        }
    };
    let open = |billed: bool| {
        let payer: Option<Arc<dyn Payer>> = billed.then(|| Arc::new(OwnPayer::new()) as _);
        let root = directory
            .path()
            .join(if billed { "billed" } else { "local" });
        Arc::new(
            Volume::open(
                &root,
                Options {
                    payer,
                    create: true,
                },
            )
            .expect("volume"),
        )
    };
    let name = Name::new("x").expect("a name");
    let options = PutOptions::named(name.clone());
    for _ in 0..rounds {
        let start = Instant::now();
        File::create(&plain)
            .expect("create")
            .write_all(&content)
            .expect("write");
        note("plain file: write", start);
        let start = Instant::now();
        let mut back = Vec::new();
        File::open(&plain)
            .expect("open")
            .read_to_end(&mut back)
            .expect("read");
        note("plain file: read", start);
        drop(back);
        std::fs::remove_file(&plain).expect("remove");

        for (billed, titles) in [
            (
                false,
                [
                    "store without a bill: put",
                    "… get",
                    "… get and read all",
                    "… put where one was removed",
                    "… create where one was removed",
                    "… fill",
                    "… seal",
                ],
            ),
            (
                true,
                [
                    "store with a payer: put",
                    "… billed: get",
                    "… billed: get and read all",
                    "… billed: put where one was removed",
                    "… billed: create where one was",
                    "… billed: fill",
                    "… billed: seal",
                ],
            ),
        ] {
            let volume = open(billed);
            let start = Instant::now();
            volume
                .put(Kind::Raw, &[IoSlice::new(&content)], &options)
                .expect("put");
            note(titles[0], start);
            let start = Instant::now();
            let got = volume
                .get(Key::Name(&name), Mode::CopyOnWrite)
                .expect("get");
            note(titles[1], start);
            assert_eq!(sum(got.bytes()), sum(&content));
            drop(got);
            let start = Instant::now();
            let got = volume
                .get(Key::Name(&name), Mode::CopyOnWrite)
                .expect("get");
            std::hint::black_box(sum(got.bytes()));
            note(titles[2], start);
            drop(got);
            volume.remove(Key::Name(&name)).expect("remove");
            let start = Instant::now();
            volume
                .put(Kind::Raw, &[IoSlice::new(&content)], &options)
                .expect("put");
            note(titles[3], start);
            volume.remove(Key::Name(&name)).expect("remove");
            let start = Instant::now();
            let draft = volume
                .create(Kind::Raw, content.len() as u64)
                .expect("create");
            note(titles[4], start);
            let start = Instant::now();
            // SAFETY: the draft has as many writable bytes.
            unsafe {
                draft
                    .as_mut_ptr()
                    .copy_from_nonoverlapping(content.as_ptr(), content.len())
            };
            note(titles[5], start);
            let start = Instant::now();
            let sealed = draft.seal(&options).expect("seal");
            note(titles[6], start);
            drop(sealed);
            volume.remove(Key::Name(&name)).expect("remove");
        }
    }
    println!("{mib} MiB, {rounds} rounds: median, and the best");
    for (what, seconds) in &mut table {
        seconds.sort_by(f64::total_cmp);
        let (median, best) = (seconds[seconds.len() / 2], seconds[0]);
        let rate = |s: f64| bytes / s / 1e9;
        println!(
            "{what:32} {:9.3} ms {:7.1} GB/s   best {:9.3} ms {:7.1} GB/s",
            median * 1e3,
            rate(median),
            best * 1e3,
            rate(best)
        );
    }
}

/// Touches every cache line.
fn sum(bytes: &[u8]) -> u64 {
    let (_, words, _) = {
        // SAFETY: every bit pattern is a u64.
        unsafe { bytes.align_to::<u64>() }
    };
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}
