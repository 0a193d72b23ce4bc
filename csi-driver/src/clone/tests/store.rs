//! The copy of a store is a store.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vineyard_store::{Fault, Key, Kind, Mode as GetMode, Name, Options, PutOptions, Volume};

use super::*;

fn open(root: &Path) -> Arc<Volume> {
    Arc::new(Volume::open(root, Options::default()).unwrap())
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn put(volume: &Volume, text: &str, content: &[u8]) -> vineyard_store::Ref {
    let options = PutOptions::named(name(text));
    let kind = Kind::parse(b"raw").unwrap();
    volume
        .put(kind, &[IoSlice::new(content)], &options)
        .unwrap()
}

fn get(volume: &Volume, text: &str) -> Vec<u8> {
    let name = name(text);
    let object = volume.get(Key::from(&name), GetMode::ReadOnly).unwrap();
    object.bytes().to_vec()
}

#[test]
fn objects_names_streams_and_notes_are_the_same_in_the_copy() {
    let Some(bench) = Bench::new() else { return };
    let source = open(&bench.from);
    put(&source, "small", b"value");
    put(&source, "models/large", &vec![5; 3 << 20]);
    let removed = put(&source, "removed", &vec![6; 1 << 20]);
    source
        .link(Key::Name(&name("small")), &name("second/name"), false)
        .unwrap();
    let mut stream = source.stream_writer(&name("stream")).unwrap();
    for part in 0..3_u8 {
        let kind = Kind::parse(b"raw").unwrap();
        stream
            .append(kind, &[IoSlice::new(&[part; 70_000])])
            .unwrap();
    }
    stream.end().unwrap();
    let options = PutOptions {
        ttl: Some(Duration::from_secs(3600)),
        ..PutOptions::default()
    };
    let kind = Kind::parse(b"raw").unwrap();
    let unnamed = source
        .put(kind, &[IoSlice::new(b"unnamed")], &options)
        .unwrap();
    fs::write(bench.from.join("plain.csv"), "a,b").unwrap();
    // Somebody still looks at it: it is in the trash.
    let held = source.get(Key::Id(removed.id), GetMode::ReadOnly).unwrap();
    source.remove(Key::Name(&name("removed"))).unwrap();
    bench.copy().unwrap();
    drop(held);
    bench.assert_billed();
    assert_eq!(
        fs::read_dir(bench.to.join(".vineyard/trash"))
            .unwrap()
            .count(),
        0
    );
    let copy = open(&bench.to);
    let report = copy.fsck(false).unwrap();
    assert_eq!(report.problems, Vec::new());
    assert_eq!((report.objects, report.unnamed, report.plain), (6, 1, 1));
    for name in ["small", "models/large", "second/name", "stream/00000002"] {
        assert_eq!(get(&copy, name), get(&source, name));
    }
    let again = copy.get(Key::Id(unnamed.id), GetMode::ReadOnly).unwrap();
    assert_eq!(again.bytes(), b"unnamed");
    // The copy is a volume of its own.
    copy.remove(Key::Name(&name("small"))).unwrap();
    assert_eq!(get(&copy, "second/name"), b"value");
    assert_eq!(get(&source, "small"), b"value");
}

#[test]
fn a_store_that_is_written_meanwhile_is_copied_as_one_picture() {
    let Some(bench) = Bench::new() else { return };
    let source = open(&bench.from);
    let writing = Arc::new(AtomicBool::new(true));
    let writers: Vec<_> = (0..2_u32)
        .map(|writer| {
            let (source, writing) = (Arc::clone(&source), Arc::clone(&writing));
            std::thread::spawn(move || {
                let mut round = 0_u32;
                while writing.load(Ordering::Relaxed) {
                    round += 1;
                    let content = round.to_le_bytes().repeat(50_000);
                    // Re-pointed, removed, and in a stream.
                    put(
                        &source,
                        &format!("steady/{writer}/{}", round % 20),
                        &content,
                    );
                    let gone = name(&format!("gone/{writer}/{}", round % 7));
                    let options = PutOptions::named(gone.clone());
                    let kind = Kind::parse(b"raw").unwrap();
                    source
                        .put(kind, &[IoSlice::new(&content)], &options)
                        .unwrap();
                    if round.is_multiple_of(3) {
                        source.remove(Key::Name(&gone)).unwrap();
                    }
                    if round % 50 == 1 {
                        let stream = name(&format!("stream-{writer}-{round}"));
                        let mut stream = source.stream_writer(&stream).unwrap();
                        for _ in 0..5 {
                            stream.append(kind, &[IoSlice::new(b"part")]).unwrap();
                        }
                        stream.end().unwrap();
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    for round in 0..8 {
        bench.copy().unwrap();
        bench.assert_billed();
        let copy = open(&bench.to);
        let report = copy.fsck(false).unwrap();
        // Litter of what was under way is swept in time; a name without its object, or half an object, would be a broken copy.
        let broken = report
            .problems
            .iter()
            .filter(|it| it.fault != Fault::Orphan);
        assert_eq!(
            broken.collect::<Vec<_>>(),
            Vec::<&_>::new(),
            "round {round}"
        );
        for number in 0..20 {
            let path = format!("steady/0/{number}");
            if copy.exists(&name(&path)).unwrap() {
                let content = get(&copy, &path);
                assert_eq!(content, content[..4].repeat(50_000));
            }
        }
        for entry in fs::read_dir(&bench.to).unwrap() {
            let path = entry.unwrap().path();
            if path.join(".end").exists() {
                assert!(path.join("00000004").exists(), "{}", path.display());
            }
        }
        drop(copy);
        bench.payer.reserved.lock().unwrap().clear();
        for entry in fs::read_dir(&bench.to).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
    }
    writing.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
}
