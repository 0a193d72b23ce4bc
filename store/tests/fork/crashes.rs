//! A writer that is killed at any moment leaves nothing half-written and nothing that is not listed.

use std::io::{IoSlice, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vineyard_charge::{OwnPayer, Payer};
use vineyard_store::{Error, Key, Kind, ListOptions, Mode, Options, PutOptions, Volume};

use crate::alone;
use crate::mounted::Mounted;
use crate::support::{name, named};

const SIZES: [usize; 7] = [1, 4096, 5000, 70_000, 1 << 20, (2 << 20) + 5, 5 << 20];

/// Content that tells whether it is whole: every byte is the length, modulo 251.
fn content(len: usize) -> Vec<u8> {
    vec![u8::try_from(len % 251).unwrap(); len]
}

fn is_whole(bytes: &[u8]) -> bool {
    SIZES.contains(&bytes.len()) && bytes.iter().all(|b| usize::from(*b) == bytes.len() % 251)
}

/// Puts in every way there is, for ever.
fn write_for_ever(volume: &Arc<Volume>, seed: usize) -> Result<(), Error> {
    let contents = SIZES.map(content);
    for i in seed.. {
        let bytes = &contents[i % SIZES.len()];
        let at = named(&format!("d{}/n{}", i % 3, i % 5));
        match i % 4 {
            0 => drop(volume.put(Kind::Raw, &[IoSlice::new(bytes)], &at)?),
            1 => {
                let draft = volume.create(Kind::Raw, bytes.len() as u64)?;
                // SAFETY: the draft has as many writable bytes.
                unsafe { draft.as_mut_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
                draft.seal(&at)?;
            }
            2 => {
                let mut writer = volume.writer(Kind::Raw)?;
                for piece in bytes.chunks(99_999) {
                    writer.write_all(piece).unwrap();
                }
                writer.seal(&at)?;
            }
            _ => {
                let options = PutOptions {
                    ttl: Some(Duration::from_secs(3600)),
                    ..at
                };
                volume.put(Kind::Raw, &[IoSlice::new(bytes)], &options)?;
                volume.remove(Key::Name(&name(&format!("d{}/n{}", (i + 1) % 3, i % 5))))?;
            }
        }
    }
    Ok(())
}

/// Bytes of all files below `path`, as allocated.
fn allocated(path: &Path) -> u64 {
    std::fs::read_dir(path)
        .unwrap()
        .map(Result::unwrap)
        .map(|entry| {
            let meta = std::fs::symlink_metadata(entry.path()).unwrap();
            if meta.is_dir() {
                allocated(&entry.path())
            } else {
                meta.blocks() * 512
            }
        })
        .sum()
}

fn kill_writers(payer: Option<Arc<dyn Payer>>) {
    let Some(mounted) = Mounted::new(256 << 20) else {
        return;
    };
    let volume = Arc::new(
        Volume::open(
            mounted.path(),
            Options {
                payer,
                create: true,
            },
        )
        .unwrap(),
    );
    for round in 0..40_usize {
        // SAFETY: the child uses the volume, which is safe after a fork, and ends by signal or `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            volume.after_fork_in_child();
            let failed = write_for_ever(&volume, round).is_err();
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(i32::from(failed)) };
        }
        std::thread::sleep(Duration::from_micros(500 + 977 * (round as u64 % 23)));
        let mut status = 0;
        // SAFETY: the child is ours.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, &raw mut status, 0);
        }
        assert!(
            libc::WIFSIGNALED(status),
            "the child ended by itself: {status}"
        );
        assert_eq!(mounted.used(), allocated(mounted.path()), "round {round}");
        for listed in volume.list(&ListOptions::default()).unwrap() {
            let found = listed.unwrap().name;
            let got = volume.get(Key::Name(&found), Mode::CopyOnWrite).unwrap();
            assert!(
                is_whole(got.bytes()),
                "round {round}: {found} has {} bytes",
                got.bytes().len()
            );
        }
        let report = volume.fsck(false).unwrap();
        assert!(report.is_clean(), "round {round}: {:?}", report.problems);
        assert!(
            report.unnamed <= round as u64 + 1,
            "one per death at most: {}",
            report.unnamed
        );
    }
    volume.remove_prefix("").unwrap();
    volume.sweep().unwrap();
    let report = volume.fsck(true).unwrap();
    assert!(report.is_clean());
}

#[test]
fn a_killed_writer_without_a_bill_leaves_only_whole_objects() {
    let _alone = alone();
    kill_writers(None);
}

#[test]
fn a_killed_writer_with_a_payer_leaves_only_whole_objects() {
    let _alone = alone();
    kill_writers(Some(Arc::new(OwnPayer::new())));
}
