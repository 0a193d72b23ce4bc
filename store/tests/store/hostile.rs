//! Whatever bytes and whatever tree somebody plants: errors, never a panic, a hang, or a step outside.

use std::io::IoSlice;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use vineyard_store::format::{arrow, npy, pack, pickle, safetensors};
use vineyard_store::{Key, Kind, ListOptions, Mode, Name, PutOptions};

use crate::support::{name, place};

/// The golden files: sound content of every kind.
fn seeds() -> Vec<Vec<u8>> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1/files");
    let mut paths: Vec<_> = std::fs::read_dir(files)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

/// One way to damage content.
#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    Word(Index, u64),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Move(Index, Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let word = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 32),
        0..4096_u64,
        any::<u64>()
    ];
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, b)| Damage::Byte(at, b)),
        3 => (any::<Index>(), word).prop_map(|(at, w)| Damage::Word(at, w)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), vec(any::<u8>(), 0..100)).prop_map(|(at, b)| Damage::Insert(at, b)),
        1 => (any::<Index>(), any::<Index>(), 1..64_usize).prop_map(|(a, b, n)| Damage::Move(a, b, n)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
    match damage {
        Damage::Byte(at, b) => {
            let at = place(at, bytes);
            bytes.get_mut(at).into_iter().for_each(|x| *x = *b);
        }
        Damage::Word(at, word) => {
            // Words at the end: that is where footers are.
            let at = bytes.len().saturating_sub(place(at, bytes) % 64 + 8);
            bytes[at..]
                .iter_mut()
                .zip(word.to_le_bytes())
                .for_each(|(x, w)| *x = w);
        }
        Damage::Cut(at) => bytes.truncate(place(at, bytes)),
        Damage::Insert(at, more) => {
            let at = place(at, bytes);
            bytes.splice(at..at, more.iter().copied());
        }
        Damage::Move(from, to, n) => {
            let from = place(from, bytes);
            let part = bytes[from..bytes.len().min(from + n)].to_vec();
            let to = place(to, bytes);
            bytes.splice(to..to, part);
        }
    }
}

/// Every parser on the same bytes. What they accept must lie in the bytes.
fn parse_all(bytes: &[u8]) {
    if let Ok(parsed) = pickle::Pickle::parse(bytes) {
        assert!(parsed.stream.len() + parsed.meta.len() <= bytes.len());
        assert!(
            parsed
                .buffers
                .iter()
                .all(|r| r.start <= r.end && r.end <= bytes.len())
        );
        assert!(parsed.buffers.len() <= bytes.len() / 16);
    }
    if let Ok(header) = npy::Header::parse(bytes) {
        assert!(header.data <= bytes.len());
        let _ = header.check(bytes.len() as u64);
    }
    let _ = arrow::check(bytes);
    let _ = safetensors::check(bytes);
    let _ = pack::check(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_of_every_kind_are_parsed_without_harm(
        seed in any::<Index>(),
        damages in vec(damage(), 1..6),
    ) {
        let seeds = seeds();
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        parse_all(&bytes);
    }

    #[test]
    fn any_bytes_are_parsed_without_harm(bytes in vec(any::<u8>(), 0..300)) {
        parse_all(&bytes);
    }

    #[test]
    fn any_text_is_a_name_or_an_error(text in "[a./\\x00v\u{e9}]{0,12}|.vineyard.*|(a/){0,600}") {
        if let Ok(name) = Name::new(text.clone()) {
            assert!(!text.split('/').any(|c| c.is_empty() || c == "." || c == ".."));
            assert!(!name.as_str().contains('\0'));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_pack_in_a_volume_gives_members_or_errors(damages in vec(damage(), 1..4)) {
        let place = place();
        let member = [IoSlice::new(b"value")];
        let keys: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
        let members: Vec<_> = keys.iter().map(|k| (Some(k.as_str()), Kind::Raw, &member[..])).collect();
        let pack = place.volume.put_many(&members, &PutOptions::named(name("p"))).unwrap();
        let path = place.path().join(format!(".vineyard/objects/{}.pack", pack.id));
        let mut bytes = std::fs::read(&path).unwrap();
        damages.iter().for_each(|d| apply(&mut bytes, d));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        for key in ["p/k0", "p/k7", "p/zzz"] {
            if let Ok(got) = place.volume.get(Key::Name(&name(key)), Mode::CopyOnWrite) {
                assert!(got.bytes().len() <= bytes.len());
            }
        }
        if let Ok(open) = place.volume.open_pack(Key::from(&pack), Mode::ReadOnly) {
            assert!(open.members().all(|(_, _, range)| range.end <= bytes.len()));
        }
        let _ = place.volume.fsck(false).unwrap();
    }
}

#[test]
fn a_tree_full_of_traps_is_walked_to_its_end() {
    let place = place();
    let put = place.put("sound", b"1");
    let root = place.path();
    let own = root.join(".vineyard");
    let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fifo(&root.join("fifo"));
    fifo(&own.join(format!("objects/{}.text", put.id)));
    for directory in ["objects", "trash", "ttl", "links", "tmp"] {
        let directory = own.join(directory);
        fifo(&directory.join("fifo"));
        std::fs::create_dir(directory.join("0")).unwrap();
        symlink("/", directory.join("outside")).unwrap();
        symlink("loop", directory.join("loop")).unwrap();
        std::fs::write(directory.join("caf\u{e9}"), "x").unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink(".", root.join("here")).unwrap();
    symlink("../..", root.join("above")).unwrap();
    symlink(".vineyard/trash/fifo", root.join("trash")).unwrap();
    symlink(".vineyard/objects/fifo", root.join("object")).unwrap();
    symlink(
        format!(".vineyard/objects/{}.text", put.id),
        root.join("fifo-object"),
    )
    .unwrap();
    std::fs::create_dir_all(root.join("d/".repeat(400))).unwrap();
    let bad = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\xfe");
    std::fs::write(root.join(bad), "not UTF-8").unwrap();

    let options = ListOptions {
        stat: true,
        ..ListOptions::default()
    };
    let listed: Vec<_> = place
        .volume
        .list(&options)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(
        listed
            .iter()
            .any(|l| l.name.as_str() == "sound" && l.stat.is_some())
    );
    assert!(listed.iter().all(|l| l.name.as_str().is_char_boundary(0)));
    for entry in &listed {
        let got = place.volume.get(Key::Name(&entry.name), Mode::CopyOnWrite);
        assert_eq!(
            got.is_ok(),
            entry.name.as_str() == "sound",
            "{entry:?} {got:?}"
        );
    }
    for at in [
        "here/sound",
        "above/etc/passwd",
        "loop/x",
        "fifo/x",
        "sound/x",
    ] {
        assert!(
            place
                .volume
                .get(Key::Name(&name(at)), Mode::CopyOnWrite)
                .is_err(),
            "{at}"
        );
    }
    assert!(
        place
            .volume
            .wait(&[name("here/sound")], Some(Duration::from_millis(5)))
            .is_err()
    );
    let _ = place.volume.sweep();
    let report = place.volume.fsck(true).unwrap();
    assert!(!report.is_clean());
    place.volume.usage().unwrap();
    assert_eq!(place.get("sound").bytes(), b"1");
}
