//! What is put is what is got, for every size, and views never change.

use std::io::IoSlice;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::{name, named, pattern, place};
use vineyard_store::{Content, Error, Key, Kind, Mode, PutOptions};

const SIZES: [usize; 14] = [
    0,
    1,
    4095,
    4096,
    4097,
    16383,
    16384,
    65536,
    65537,
    256 << 10,
    (2 << 20) - 1,
    2 << 20,
    (2 << 20) + 1,
    9_000_001,
];

#[test]
fn every_size_comes_back_as_it_was_put() {
    let place = place();
    for len in SIZES {
        let content = pattern(len, 3);
        let at = format!("sizes/{len}");
        let put = place.put(&at, &content);
        assert_eq!(put.len, len as u64);
        for mode in [Mode::CopyOnWrite, Mode::ReadOnly] {
            let got = place.volume.get(Key::Name(&name(&at)), mode).unwrap();
            assert!(got.bytes() == content, "{len} by name");
            assert_eq!(got.id, Some(put.id));
            assert_eq!(got.kind, Kind::Raw);
        }
        let by_id = place
            .volume
            .get(Key::Id(put.id), Mode::CopyOnWrite)
            .unwrap();
        assert!(by_id.bytes() == content, "{len} by id");
    }
}

#[test]
fn a_sealed_file_is_read_only_and_has_no_holes() {
    let place = place();
    for len in SIZES {
        let put = place.put("x", &pattern(len, 0));
        let path = place
            .path()
            .join(format!(".vineyard/objects/{}.raw", put.id));
        let meta = std::fs::metadata(path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o444);
        assert!(meta.blocks() * 512 >= len as u64, "{len}");
    }
}

#[test]
fn slices_are_joined_in_order() {
    let place = place();
    let parts: Vec<Vec<u8>> = (0..5000_usize).map(|i| pattern(i % 97, 9)).collect();
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
    place
        .volume
        .put(Kind::Text, &slices, &named("joined"))
        .unwrap();
    assert!(place.get("joined").bytes() == parts.concat());
}

#[test]
fn slices_of_a_large_object_are_joined_whatever_their_borders() {
    let place = place();
    let lens = [1, 0, (64 << 20) - 1, 3, 5 << 20, 0, 70_000_000, 4095, 1];
    let parts: Vec<Vec<u8>> = (9..)
        .zip(lens)
        .map(|(seed, len)| pattern(len, seed))
        .collect();
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
    let put = place
        .volume
        .put(Kind::Raw, &slices, &named("large"))
        .unwrap();
    assert_eq!(put.len, lens.iter().sum::<usize>() as u64);
    assert!(place.get("large").bytes() == parts.concat());
}

#[test]
fn put_twice_keeps_the_first_view_intact_and_removes_its_object() {
    let place = place();
    for len in [100, 3 << 20] {
        place.put("x", &pattern(len, 1));
        let first = place.get("x");
        place.put("x", &pattern(len, 2));
        assert!(first.bytes() == pattern(len, 1));
        assert!(place.get("x").bytes() == pattern(len, 2));
        assert_eq!(place.objects().len(), 1);
    }
    assert_eq!(place.own("tmp"), Vec::<String>::new());
}

#[test]
fn put_without_overwrite_refuses_and_leaves_nothing() {
    let place = place();
    place.put("x", b"first");
    for len in [10, 3 << 20] {
        let options = PutOptions {
            overwrite: false,
            ..named("x")
        };
        let again = place
            .volume
            .put(Kind::Raw, &[IoSlice::new(&pattern(len, 0))], &options);
        assert!(matches!(again, Err(Error::Exists { .. })));
    }
    assert_eq!(place.get("x").bytes(), b"first");
    assert_eq!(place.objects().len(), 1);
}

#[test]
fn writing_to_a_copy_on_write_view_changes_neither_the_store_nor_other_views() {
    let place = place();
    let content = pattern(3 << 20, 1);
    place.put("x", &content);
    let (one, other) = (place.get("x"), place.get("x"));
    let Content::Mapped(mapping) = &one.content else {
        panic!("not mapped")
    };
    assert_eq!(mapping.as_ptr() as usize % (2 << 20), 0);
    // SAFETY: the mapping is copy-on-write and 3 MiB long.
    unsafe { mapping.as_mut_ptr().write_bytes(0xff, 2 << 20) };
    assert!(other.bytes() == content);
    assert!(place.get("x").bytes() == content);
}

#[test]
fn a_view_outlives_its_removed_object() {
    let place = place();
    let content = pattern(3 << 20, 1);
    place.put("x", &content);
    let view = place.get("x");
    assert!(place.volume.remove(Key::Name(&name("x"))).unwrap());
    assert!(matches!(
        place.volume.get(Key::Name(&name("x")), Mode::CopyOnWrite),
        Err(Error::NotFound { .. })
    ));
    assert!(view.bytes() == content);
    assert_eq!(place.own("trash").len(), 1);
    let trash = place.volume.usage().unwrap().trash;
    assert!((3 << 20..=4 << 20).contains(&trash), "{trash}");
}

#[test]
fn names_of_any_depth_are_found_by_plain_tools_too() {
    let place = place();
    place.put("a/b/c/d", b"deep");
    assert_eq!(
        std::fs::read(place.path().join("a/b/c/d")).unwrap(),
        b"deep"
    );
    assert_eq!(place.get("a/b/c/d").bytes(), b"deep");
}

#[test]
fn a_plain_file_is_got_by_its_extension() {
    let place = place();
    std::fs::write(place.path().join("a.npy"), b"not really").unwrap();
    let got = place.get("a.npy");
    assert_eq!((got.id, got.kind), (None, Kind::Npy));
    assert_eq!(got.bytes(), b"not really");
}

#[test]
fn a_name_whose_object_is_gone_is_lost_not_empty() {
    let place = place();
    let put = place.put("x", b"1");
    std::fs::remove_file(
        place
            .path()
            .join(format!(".vineyard/objects/{}.raw", put.id)),
    )
    .unwrap();
    let got = place.volume.get(Key::Name(&name("x")), Mode::CopyOnWrite);
    assert!(matches!(got, Err(Error::Lost { .. })), "{got:?}");
}

#[test]
fn symlinks_that_leave_the_volume_are_not_followed() {
    let place = place();
    let outside = crate::support::memory_directory();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), place.path().join("dir")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), place.path().join("file")).unwrap();
    for at in ["dir/secret", "file"] {
        assert!(
            place
                .volume
                .get(Key::Name(&name(at)), Mode::CopyOnWrite)
                .is_err()
        );
    }
    assert!(
        place
            .volume
            .put(Kind::Raw, &[IoSlice::new(b"x")], &named("dir/new"))
            .is_err()
    );
    assert!(!outside.path().join("new").exists());
    assert_eq!(place.objects(), Vec::<String>::new());
}

#[test]
fn a_fifo_in_the_place_of_an_object_is_refused_without_waiting() {
    let place = place();
    let put = place.put("x", b"1");
    let path = place
        .path()
        .join(format!(".vineyard/objects/{}.raw", put.id));
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    assert!(
        place
            .volume
            .get(Key::Name(&name("x")), Mode::CopyOnWrite)
            .is_err()
    );
}
