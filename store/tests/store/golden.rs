//! Volumes of every version of the format that there ever was can be read. `tests/golden/generate.py` has written them
//! from the document, without this code.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vineyard_store::format::pickle::{Pickle, Tail};
use vineyard_store::{Key, Kind, ListOptions, Mode, Options, PutOptions, Volume};

use crate::support::{memory_directory, name, place};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// Builds the tree that `tree.txt` describes.
fn build() -> (tempfile::TempDir, Arc<Volume>) {
    let directory = memory_directory();
    let at = |path: &str| directory.path().join(path);
    let tree = std::fs::read_to_string(golden().join("tree.txt")).unwrap();
    for line in tree.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["dir", path] => std::fs::create_dir(at(path)).unwrap(),
            ["link", path, target] => symlink(target, at(path)).unwrap(),
            ["file", path, mode, source] => {
                std::fs::copy(golden().join("files").join(source), at(path)).unwrap();
                let mode = u32::from_str_radix(mode, 8).unwrap();
                std::fs::set_permissions(at(path), std::fs::Permissions::from_mode(mode)).unwrap();
            }
            _ => panic!("{line}"),
        }
    }
    let options = Options {
        payer: None,
        create: false,
    };
    let volume = Arc::new(Volume::open(directory.path(), options).unwrap());
    (directory, volume)
}

#[test]
fn version_1_gives_what_was_put() {
    let (_directory, volume) = build();
    let expected = std::fs::read_to_string(golden().join("expected.txt")).unwrap();
    for line in expected.lines() {
        let [path, kind, len, crc] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let got = volume
            .get(Key::Name(&name(path)), Mode::CopyOnWrite)
            .unwrap();
        assert_eq!(got.kind.as_str(), kind, "{path}");
        assert_eq!(got.bytes().len().to_string(), len, "{path}");
        assert_eq!(
            format!("{:08x}", crc32fast::hash(got.bytes())),
            crc,
            "{path}"
        );
        assert!(volume.exists(&name(path)).unwrap());
    }
}

#[test]
fn version_1_is_sound_and_can_be_worked_on() {
    let (_directory, volume) = build();
    let report = volume.fsck(false).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(
        (report.objects, report.names, report.plain, report.unnamed),
        (14, 14, 1, 1)
    );
    let mut reader = volume.stream_reader(&name("scores")).unwrap();
    for part in ["part 0", "part 1"] {
        let got = reader.next(Some(Duration::ZERO)).unwrap().unwrap();
        assert_eq!(got.bytes(), part.as_bytes());
    }
    assert!(reader.next(Some(Duration::ZERO)).unwrap().is_none());
    let swept = volume.sweep().unwrap();
    assert_eq!((swept.expired, swept.trash), (1, 1));
    for gone in ["shared", "also"] {
        assert!(!volume.exists(&name(gone)).unwrap());
    }
    volume
        .put(
            Kind::Raw,
            &[IoSlice::new(b"new")],
            &PutOptions::named(name("raw")),
        )
        .unwrap();
    assert!(volume.fsck(false).unwrap().is_clean());
    let names = volume.list(&ListOptions::default()).unwrap().count();
    assert_eq!(names, 14, "12 names, a plain file and a stream");
}

/// The content of the golden object at `path`.
fn content(volume: &Volume, path: &str) -> Vec<u8> {
    volume
        .get(Key::Name(&name(path)), Mode::ReadOnly)
        .unwrap()
        .bytes()
        .to_vec()
}

#[test]
fn the_same_members_make_the_same_pack() {
    let (_directory, volume) = build();
    let pack = volume
        .open_pack(Key::Name(&name("features")), Mode::ReadOnly)
        .unwrap();
    let bytes = pack.mapping().as_slice();
    // Kinds are numbered as they come in the order of the keys, whatever the order of the members.
    let members: BTreeMap<_, _> = pack
        .members()
        .map(|(key, kind, range)| (key, (kind, &bytes[range])))
        .collect();
    let slices: Vec<_> = members
        .iter()
        .rev()
        .map(|(k, (kind, b))| (Some(*k), *kind, [IoSlice::new(b)]))
        .collect();
    let members: Vec<_> = slices
        .iter()
        .map(|(key, kind, slice)| (*key, *kind, &slice[..]))
        .collect();
    let place = place();
    place
        .volume
        .put_many(&members, &PutOptions::named(name("again")))
        .unwrap();
    assert!(content(&place.volume, "again") == bytes);
}

#[test]
fn the_same_parts_make_the_same_pickle() {
    let (_directory, volume) = build();
    let bytes = content(&volume, "run/7/pickle");
    let parsed = Pickle::parse(&bytes).unwrap();
    assert!(!parsed.buffers.is_empty());
    let lens: Vec<u64> = parsed.buffers.iter().map(|r| r.len() as u64).collect();
    let buffers: Vec<&[u8]> = parsed.buffers.iter().map(|r| &bytes[r.clone()]).collect();
    let tail = Tail::new(
        parsed.stream.len() as u64,
        &lens,
        parsed.meta,
        parsed.read_only,
    )
    .unwrap();
    let again: Vec<u8> = tail
        .slices(parsed.stream, &buffers)
        .iter()
        .flat_map(|s| s.to_vec())
        .collect();
    assert!(again == bytes);
    let plain = content(&volume, "run/plain.pickle");
    assert_eq!(Pickle::parse(&plain).unwrap().stream, plain);
}
