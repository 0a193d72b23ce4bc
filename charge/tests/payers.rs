//! What every payer does, in process and over a socket, on a tmpfs that everybody has. Who is billed is tested in `ledger.rs`.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::thread;

use vineyard_charge::{Extent, OwnPayer, Payer, REGION, RemotePayer, ReserveError};

/// Each test asks them all.
fn payers() -> [Box<dyn Payer>; 2] {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("payer.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || support::serve(&listener));
    let remote = RemotePayer::connect(&path, "conformance").unwrap();
    [Box::new(OwnPayer::new()), Box::new(remote)]
}

fn file() -> File {
    tempfile::tempfile_in("/dev/shm").unwrap()
}

fn extent(offset: u64, length: u64) -> Extent {
    Extent { offset, length }
}

fn allocated(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn a_reserve_allocates_every_page_and_leaves_the_size() {
    for payer in payers() {
        for length in [
            0,
            1,
            4095,
            4096,
            4097,
            REGION - 1,
            REGION,
            REGION + 1,
            5 * REGION + 7,
        ] {
            for size in [0, length] {
                let file = file();
                file.set_len(size).unwrap();
                payer.reserve(&[(file.as_fd(), extent(0, length))]).unwrap();
                assert_eq!(
                    allocated(&file),
                    length.next_multiple_of(4096),
                    "of {length}, size {size}"
                );
                assert_eq!(file.metadata().unwrap().len(), size);
            }
        }
    }
}

#[test]
fn reserving_again_allocates_nothing_and_keeps_the_bytes() {
    for payer in payers() {
        let file = file();
        let length = 3 * REGION + 5000;
        file.set_len(length).unwrap();
        let all = [(file.as_fd(), extent(0, length))];
        payer.reserve(&all).unwrap();
        file.write_all_at(b"kept", REGION + 3).unwrap();
        payer.reserve(&all).unwrap();
        let mut read = [0; 4];
        file.read_exact_at(&mut read, REGION + 3).unwrap();
        assert_eq!(&read, b"kept");
        assert_eq!(allocated(&file), length.next_multiple_of(4096));
    }
}

#[test]
fn a_file_grows_extent_by_extent() {
    for payer in payers() {
        let file = file();
        let mut end = 0;
        for step in [4096, 3 * 4096, REGION, 3 * REGION + 4096, 4096] {
            file.set_len(end + step).unwrap();
            payer.reserve(&[(file.as_fd(), extent(end, step))]).unwrap();
            end += step;
            assert_eq!(allocated(&file), end);
        }
    }
}

#[test]
fn a_batch_of_small_files_is_one_reserve() {
    for payer in payers() {
        let files: Vec<File> = (0..200).map(|_| file()).collect();
        let batch: Vec<_> = files.iter().map(|f| (f.as_fd(), extent(0, 1))).collect();
        payer.reserve(&batch).unwrap();
        assert!(files.iter().all(|f| allocated(f) == 4096));
    }
}

#[test]
fn what_the_machine_does_not_have_is_refused_before_anything_is_touched() {
    for payer in payers() {
        let file = file();
        let small = tempfile::tempfile_in("/dev/shm").unwrap();
        let batch = [
            (small.as_fd(), extent(0, 4096)),
            (file.as_fd(), extent(0, 1 << 50)),
        ];
        let error = payer.reserve(&batch).unwrap_err();
        assert!(
            matches!(error, ReserveError::Full(full) if full.asked > 1 << 50),
            "{error}"
        );
        assert_eq!(allocated(&file) + allocated(&small), 0);
    }
}

#[test]
fn odd_offsets_and_impossible_ends_are_refused() {
    for payer in payers() {
        let file = file();
        for (offset, length) in [
            (1, 4096),
            (2048, 10),
            (u64::MAX - 4095, 4096),
            (0, u64::MAX),
        ] {
            let error = payer
                .reserve(&[(file.as_fd(), extent(offset, length))])
                .unwrap_err();
            assert!(matches!(error, ReserveError::Refused { .. }), "{error}");
        }
        let error = payer
            .pull(file.as_fd(), &[extent(4096, REGION)])
            .unwrap_err();
        assert!(matches!(error, ReserveError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_pull_keeps_every_byte() {
    for payer in payers() {
        let file = file();
        let pattern: Vec<u8> = (0..3 * REGION + 100).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&pattern, 0).unwrap();
        let refused = payer.pull(file.as_fd(), &[extent(0, 3 * REGION)]).unwrap();
        let mut read = vec![0; pattern.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == pattern);
        // Which regions a kernel says that it refused differs; that no other region is named, and no byte changes, does not.
        assert!(
            refused
                .iter()
                .all(|offset| [0, REGION, 2 * REGION].contains(offset)),
            "{refused:?}"
        );
    }
}
