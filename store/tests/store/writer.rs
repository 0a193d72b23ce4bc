//! Objects whose size is not known beforehand.

use std::io::{Seek, SeekFrom, Write};

use crate::support::{named, pattern, place};
use vineyard_store::{Error, Kind};

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
