//! Objects whose size is not known beforehand.

use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vineyard_charge::{Extent, OwnPayer, Payer, REGION, ReserveError};

use crate::support::{named, pattern, place, place_with};
use vineyard_store::{Error, Kind, Options};

#[test]
fn what_is_written_in_pieces_is_one_object_and_is_not_visible_before() {
    let place = place();
    let content = pattern(5 << 20, 1);
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    for piece in content.chunks(77_777) {
        writer.write_all(piece).unwrap();
    }
    assert_eq!(place.objects(), Vec::<String>::new());
    let object = writer.seal(&named("w")).unwrap();
    assert_eq!(object.len, content.len() as u64);
    assert!(place.get("w").bytes() == content);
    let stat = place.volume.stat((&object).into()).unwrap();
    assert_eq!(
        stat.allocated,
        (content.len() as u64).next_multiple_of(4096)
    );
}

#[test]
fn seek_back_rewrites_and_seek_beyond_is_filled_with_pages_of_zeros() {
    let place = place();
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    writer.write_all(b"....").unwrap();
    writer.seek(SeekFrom::Start(1 << 20)).unwrap();
    writer.write_all(b"end").unwrap();
    writer.seek(SeekFrom::Start(1)).unwrap();
    writer.write_all(b"xy").unwrap();
    assert_eq!(writer.seek(SeekFrom::End(0)).unwrap(), (1 << 20) + 3);
    let mut read = [0; 4];
    assert_eq!(writer.read_at(&mut read, 0).unwrap(), 4);
    assert_eq!(&read, b".xy.");
    let object = writer.seal(&named("w")).unwrap();
    let got = place.get("w");
    assert_eq!(&got.bytes()[..5], b".xy.\0");
    assert_eq!(&got.bytes()[1 << 20..], b"end");
    assert!(place.volume.stat((&object).into()).unwrap().allocated > 1 << 20);
}

#[test]
fn truncation_cuts_and_extends() {
    let place = place();
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    writer.write_all(&pattern(3 << 20, 1)).unwrap();
    writer.set_len(10).unwrap();
    writer.set_len(20).unwrap();
    writer.seal(&named("w")).unwrap();
    assert_eq!(
        place.get("w").bytes(),
        [&pattern(10, 1)[..], &[0; 10]].concat()
    );
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let place = place();
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    writer.write_all(&pattern(3 << 20, 1)).unwrap();
    drop(writer);
    assert_eq!(place.objects(), Vec::<String>::new());
}

#[test]
fn an_offset_beyond_every_file_is_an_error() {
    let place = place();
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    writer.seek(SeekFrom::Start(i64::MAX as u64)).unwrap();
    assert!(matches!(writer.append(b"xx"), Err(Error::Io { .. })));
}

/// A payer whose regions somebody looks at for a moment.
#[derive(Debug)]
struct LookedAt(OwnPayer);

impl Payer for LookedAt {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        self.0.reserve(extents)?;
        for (file, extent) in extents {
            let end = extent.offset + extent.length;
            if end.is_multiple_of(REGION) {
                hold(*file, end - REGION);
            }
        }
        Ok(())
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        self.0.pull(file, regions)
    }

    fn give_back(&self, bytes: u64) {
        self.0.give_back(bytes);
    }
}

/// Keeps a page of the file in a pipe for 5 ms.
fn hold(file: BorrowedFd<'_>, offset: u64) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut offset = i64::try_from(offset).unwrap();
    // SAFETY: the descriptors are open, and the offset is ours.
    let moved = unsafe {
        let (from, to) = (file.as_raw_fd(), writer.as_raw_fd());
        libc::splice(from, &raw mut offset, to, std::ptr::null_mut(), 4096, 0)
    };
    assert_eq!(moved, 4096);
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        drop(reader);
    });
}

#[test]
fn nothing_stays_beyond_the_end_although_somebody_looks_at_the_last_huge_page() {
    let place = place_with(Options {
        payer: Some(Arc::new(LookedAt(OwnPayer::new()))),
        ..Options::default()
    });
    let content = pattern((2 << 20) + 100_000, 1);
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    writer.write_all(&content).unwrap();
    let object = writer.seal(&named("w")).unwrap();
    let stat = place.volume.stat((&object).into()).unwrap();
    assert_eq!(
        stat.allocated,
        (content.len() as u64).next_multiple_of(4096)
    );
    assert!(place.get("w").bytes() == content);
}
