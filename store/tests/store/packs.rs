//! Many small values in one object.

use std::io::IoSlice;

use crate::support::{name, named, pattern, place};
use vineyard_store::{Content, Error, Key, Kind, Mode, PutOptions};

#[test]
fn members_are_got_by_key_and_keep_their_kinds() {
    let place = place();
    let big = pattern(300_000, 4);
    let (alice, bob, empty) = (
        [IoSlice::new(b"al"), IoSlice::new(b"ice")],
        [IoSlice::new(&big)],
        [],
    );
    let members = [
        (Some("zoe/alice"), Kind::Text, &alice[..]),
        (Some("bob"), Kind::Npy, &bob[..]),
        (Some("empty"), Kind::parse(b"custom").unwrap(), &empty[..]),
    ];
    place
        .volume
        .put_many(&members, &named("d/features"))
        .unwrap();
    let alice = place.get("d/features/zoe/alice");
    assert_eq!((alice.kind, alice.bytes()), (Kind::Text, &b"alice"[..]));
    let bob = place.get("d/features/bob");
    assert_eq!(bob.kind, Kind::Npy);
    assert!(bob.bytes() == big);
    let Content::Mapped(mapping) = &bob.content else {
        panic!("not mapped")
    };
    assert_eq!(mapping.as_ptr() as usize % 64, 0);
    // SAFETY: the mapping is copy-on-write.
    unsafe { mapping.as_mut_ptr().write(0) };
    assert!(place.get("d/features/bob").bytes() == big);
    assert_eq!(place.get("d/features/empty").bytes(), b"");
    assert!(place.volume.exists(&name("d/features/bob")).unwrap());
    assert!(!place.volume.exists(&name("d/features/eve")).unwrap());
    assert_eq!(
        place
            .volume
            .stat(Key::Name(&name("d/features/bob")))
            .unwrap()
            .len,
        300_000
    );
    for missing in [
        "d/features/",
        "d/features/eve",
        "d/features/bob/x",
        "d/none/bob",
    ] {
        let Ok(missing) = vineyard_store::Name::new(missing) else {
            continue;
        };
        let got = place.volume.get(Key::Name(&missing), Mode::CopyOnWrite);
        assert!(
            matches!(got, Err(Error::NotFound { .. })),
            "{missing} {got:?}"
        );
    }
}

#[test]
fn members_without_a_key_have_their_index() {
    let place = place();
    let values: Vec<[u8; 4]> = (0..1000_u32).map(u32::to_le_bytes).collect();
    let slices: Vec<[IoSlice<'_>; 1]> = values.iter().map(|v| [IoSlice::new(v)]).collect();
    let members: Vec<_> = slices.iter().map(|s| (None, Kind::Raw, &s[..])).collect();
    let pack = place.volume.put_many(&members, &named("many")).unwrap();
    assert_eq!(place.get("many/00000777").bytes(), 777_u32.to_le_bytes());
    let open = place
        .volume
        .open_pack(Key::from(&pack), Mode::ReadOnly)
        .unwrap();
    assert_eq!(open.len(), 1000);
    for (index, (key, kind, range)) in open.members().enumerate() {
        assert_eq!((key, kind), (format!("{index:08}").as_str(), Kind::Raw));
        assert_eq!(open.mapping().as_slice()[range], values[index]);
    }
    assert!(open.find("00000999").is_some());
    assert!(open.find("00001000").is_none());
}

#[test]
fn an_empty_pack_is_a_pack() {
    let place = place();
    let pack = place.volume.put_many(&[], &named("none")).unwrap();
    assert!(
        place
            .volume
            .open_pack(Key::from(&pack), Mode::ReadOnly)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn keys_that_could_not_be_names_and_keys_that_come_twice_are_refused() {
    let place = place();
    for keys in [["a", "a"], ["a", "../b"], ["a", ""]] {
        let members = keys.map(|k| (Some(k), Kind::Raw, &[][..]));
        assert!(
            place
                .volume
                .put_many(&members, &PutOptions::default())
                .is_err()
        );
    }
    assert_eq!(place.objects(), Vec::<String>::new());
}

#[test]
fn a_damaged_pack_gives_errors_but_never_a_wrong_place_in_memory() {
    let place = place();
    let one = [IoSlice::new(b"one")];
    let members = [
        (Some("a"), Kind::Raw, &one[..]),
        (Some("b"), Kind::Text, &one[..]),
    ];
    let pack = place.volume.put_many(&members, &named("p")).unwrap();
    let path = place
        .path()
        .join(format!(".vineyard/objects/{}.pack", pack.id));
    let good = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x81;
        std::fs::write(&path, &bad).unwrap();
        let key = name("p/a");
        if let Ok(got) = place.volume.get(Key::Name(&key), Mode::CopyOnWrite) {
            assert!(got.bytes().len() <= good.len());
        }
        assert!(
            at < 128
                || place
                    .volume
                    .open_pack(Key::from(&pack), Mode::ReadOnly)
                    .is_err(),
            "byte {at}"
        );
    }
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(
            place
                .volume
                .open_pack(Key::from(&pack), Mode::ReadOnly)
                .is_err()
        );
        assert!(
            place
                .volume
                .get(Key::Name(&name("p/a")), Mode::CopyOnWrite)
                .is_err()
        );
    }
}

#[test]
fn a_member_of_a_pack_is_not_removed_alone() {
    let place = place();
    let content = [IoSlice::new(b"1")];
    let members = [(Some("a"), Kind::Raw, &content[..])];
    place.volume.put_many(&members, &named("p")).unwrap();
    let refused = place.volume.remove(Key::Name(&name("p/a")));
    assert!(
        matches!(&refused, Err(Error::Foreign { why, .. }) if why.contains("pack")),
        "{refused:?}"
    );
    assert!(!place.volume.remove(Key::Name(&name("p/b"))).unwrap());
    assert!(place.volume.exists(&name("p/a")).unwrap());
}
