//! Up to which size is an object better read than mapped? Opens, gets all bytes, adds them up, closes: by `pread` into
//! fresh memory, and by a copy-on-write mapping. Prints microseconds. The border is `MAX_READ` in `get.rs`.
//!
//!     cargo run --release -p vineyard-store --example read_or_map [-- DIRECTORY]
#![expect(clippy::expect_used, reason = "a measurement stops at the first error")]

use std::fs::File;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

fn main() {
    let parent = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "/dev/shm".into()));
    let directory = tempfile::tempdir_in(parent).expect("DIRECTORY can be written");
    println!("    bytes    read µs     map µs");
    for shift in 12..=21 {
        let bytes = 1_usize << shift;
        let path = directory.path().join(bytes.to_string());
        std::fs::write(&path, vec![1; bytes]).expect("write");
        let read = median(|| read(&path, bytes));
        let map = median(|| map(&path, bytes));
        println!("{bytes:9} {read:10.2} {map:10.2}");
    }
}

fn median(mut operation: impl FnMut() -> u64) -> f64 {
    let mut all: Vec<f64> = (0..500)
        .map(|_| {
            let start = Instant::now();
            black_box(operation());
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(64).map(|b| u64::from(*b)).sum()
}

fn read(path: &Path, bytes: usize) -> u64 {
    let file = File::open(path).expect("open");
    file.metadata().expect("stat");
    let mut content = vec![0; bytes];
    file.read_exact_at(&mut content, 0).expect("read");
    sum(&content)
}

fn map(path: &Path, bytes: usize) -> u64 {
    let file = File::open(path).expect("open");
    file.metadata().expect("stat");
    let length = NonZeroUsize::new(bytes).expect("not empty");
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the address; the slice ends before the mapping does.
    unsafe {
        let start = mmap(None, length, prot, MapFlags::MAP_PRIVATE, &file, 0).expect("map");
        let total = sum(std::slice::from_raw_parts(
            start.cast::<u8>().as_ptr(),
            bytes,
        ));
        munmap(start, bytes).expect("unmap");
        total
    }
}
