//! Recycled files: the pages of what was removed serve the next object, and nobody ever sees the wrong one.

use std::io::IoSlice;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use vineyard_store::{Key, Kind, Mode, Options, PutOptions, Ref, Volume};

use crate::mounted::Mounted;
use crate::support::{Place, name, named, pattern, place};

const MIB: usize = 1 << 20;

fn file(place: &Place, object: &Ref) -> PathBuf {
    let file = format!(".vineyard/objects/{}.{}", object.id, object.kind);
    place.path().join(file)
}

fn inode(place: &Place, object: &Ref) -> u64 {
    std::fs::metadata(file(place, object)).unwrap().ino()
}

fn remove(place: &Place, at: &str) {
    assert!(place.volume.remove(Key::Name(&name(at))).unwrap());
}

#[test]
fn the_pages_of_a_removed_object_serve_the_next_one_of_any_size() {
    // As long, shorter within a huge page, longer, at the borders of pages; without huge pages.
    for lens in [
        [
            20 * MIB,
            20 * MIB,
            17 * MIB + 5,
            31 * MIB + 4097,
            17 * MIB - 1,
        ],
        [3 * MIB, 2 * MIB - 5, MIB + MIB / 2, MIB + 1, MIB],
    ] {
        let place = place();
        let mut before = None;
        for (round, len) in lens.into_iter().enumerate() {
            let content = pattern(len, u8::try_from(round).unwrap());
            std::thread::sleep(Duration::from_millis(20));
            let start = SystemTime::now() - Duration::from_millis(10);
            let object = place.put("x", &content);
            assert!(place.volume.stat((&object).into()).unwrap().modified >= start);
            let inode = inode(&place, &object);
            assert_eq!(*before.get_or_insert(inode), inode, "{len}");
            assert!(place.get("x").bytes() == content, "{len}");
            let stat = std::fs::metadata(file(&place, &object)).unwrap();
            assert_eq!(stat.mode() & 0o7777, 0o444);
            let pages = (len as u64).next_multiple_of(4096);
            assert_eq!(stat.blocks() * 512, pages, "{len}");
            assert_eq!(place.own("trash"), Vec::<String>::new());
            assert!(place.volume.fsck(false).unwrap().is_clean());
            remove(&place, "x");
            assert_eq!(place.objects(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_file_without_huge_pages_is_not_made_a_large_one() {
    let place = place();
    let small = place.put("x", &pattern(MIB + 1, 1));
    let small = inode(&place, &small);
    remove(&place, "x");
    let large = place.put("y", &pattern(3 * MIB, 2));
    assert_ne!(inode(&place, &large), small);
    let again = place.put("x", &pattern(MIB, 3));
    assert_eq!(inode(&place, &again), small);
}

#[test]
fn an_object_is_built_in_the_pages_of_a_removed_one_and_stays_private_after_the_seal() {
    let place = place();
    let old = place.put("x", &pattern(16 * MIB, 1));
    let old = inode(&place, &old);
    remove(&place, "x");
    let draft = place.volume.create(Kind::Raw, 16 << 20).unwrap();
    assert_eq!(place.own("trash").len(), 1);
    let content = pattern(16 * MIB, 2);
    // SAFETY: the draft has so many writable bytes.
    unsafe {
        draft
            .as_mut_ptr()
            .copy_from(content.as_ptr(), content.len())
    };
    let (object, view) = draft.seal(&named("y")).unwrap();
    assert_eq!(inode(&place, &object), old);
    // SAFETY: the view is copy-on-write.
    unsafe { view.as_mut_ptr().write(!content[0]) };
    assert!(place.get("y").bytes() == content);
    // The view keeps it from being recycled again.
    remove(&place, "y");
    let next = place.put("z", &pattern(16 * MIB, 3));
    assert_ne!(inode(&place, &next), old);
    assert!(view.as_slice()[1..] == content[1..]);
}

#[test]
fn what_somebody_views_is_not_recycled() {
    let place = place();
    for mode in [Mode::CopyOnWrite, Mode::ReadOnly] {
        let content = pattern(10 * MIB, 7);
        let old = inode(&place, &place.put("x", &content));
        let view = place.volume.get(Key::Name(&name("x")), mode).unwrap();
        remove(&place, "x");
        let next = place.put("y", &pattern(10 * MIB, 8));
        assert_ne!(inode(&place, &next), old);
        assert!(view.bytes() == content);
    }
    let path = file(&place, &place.put("x", &pattern(10 * MIB, 7)));
    let open = std::fs::File::open(path).unwrap();
    remove(&place, "x");
    let next = place.put("y", &pattern(10 * MIB, 8));
    assert_ne!(inode(&place, &next), open.metadata().unwrap().ino());
}

#[test]
fn what_others_pay_for_now_or_made_is_not_recycled() {
    let place = place();
    let object = place.put("x", &pattern(10 * MIB, 1));
    // As a recharge leaves it: only the time of its last change is another.
    let stat = std::fs::File::open(file(&place, &object)).unwrap();
    let modified = stat.metadata().unwrap().modified().unwrap();
    stat.set_modified(modified).unwrap();
    drop(stat);
    remove(&place, "x");
    assert_eq!(place.own("trash"), Vec::<String>::new());
    place.put("x", &pattern(10 * MIB, 2));
    let other = Volume::open(place.path(), Options::default()).unwrap();
    assert!(other.remove(Key::Name(&name("x"))).unwrap());
    assert_eq!(place.own("trash"), Vec::<String>::new());
}

#[test]
fn a_sweep_by_somebody_else_gets_what_is_kept() {
    let place = place();
    let other = Volume::open(place.path(), Options::default()).unwrap();
    place.put("x", &pattern(20 * MIB, 1));
    remove(&place, "x");
    assert_eq!(place.own("trash").len(), 1);
    let usage = place.volume.usage().unwrap();
    assert_eq!((usage.trash, usage.trash_objects), (0, 0));
    other.sweep().unwrap();
    assert_eq!(place.own("trash"), Vec::<String>::new());
    assert_eq!(other.usage().unwrap().trash, 0);
}

#[test]
fn what_is_kept_goes_when_it_is_idle_and_with_its_volume() {
    let place = place();
    place.put("x", &pattern(20 * MIB, 1));
    remove(&place, "x");
    let Place { directory, volume } = place;
    let trash = directory.path().join(".vineyard/trash");
    let kept = || std::fs::read_dir(&trash).unwrap().count();
    assert_eq!(kept(), 1);
    drop(volume);
    assert_eq!(kept(), 0);
}

#[test]
fn a_volume_that_is_full_but_for_recycled_files_is_not_full() {
    let Some(mounted) = Mounted::new(128 << 20) else {
        return;
    };
    let open = || Arc::new(Volume::open(mounted.path(), Options::default()).unwrap());
    let (one, two) = (open(), open());
    let content = pattern(20 * MIB, 1);
    let put = |volume: &Volume, at: &str, len: usize| {
        volume.put(Kind::Raw, &[IoSlice::new(&content[..len])], &named(at))
    };
    put(&one, "x", 20 * MIB).unwrap();
    let used = mounted.used();
    assert!(one.remove(Key::Name(&name("x"))).unwrap());
    assert_eq!(mounted.used(), used, "the file is kept");
    assert_eq!(one.usage().unwrap().used, used - (20 << 20));
    // The last one needs it.
    for number in 0..6 {
        put(&two, &format!("two-{number}"), 20 * MIB).unwrap();
    }
    for number in 0..6 {
        let got = two.get(Key::Name(&name(&format!("two-{number}"))), Mode::ReadOnly);
        assert!(got.unwrap().bytes() == content);
    }
    two.remove_prefix("").unwrap();
    drop((one, two));
}

#[test]
fn nobody_ever_reads_a_mixture_of_two_objects() {
    let place = place();
    let contents: Vec<Vec<u8>> = (0..4).map(|seed| vec![seed; 9 * MIB]).collect();
    place.put("x", &contents[0]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let got = place.volume.get(Key::Name(&name("x")), Mode::ReadOnly);
                let Ok(got) = got else { continue };
                let bytes = got.bytes();
                assert_eq!(bytes.len(), 9 * MIB);
                assert!(bytes.iter().step_by(4096).all(|b| *b == bytes[0]));
                count += 1;
            }
            count
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for round in 0..200 {
            if round % 2 == 0 {
                let _ = place.volume.remove(Key::Name(&name("x")));
            }
            let options = PutOptions::named(name("x"));
            let slices = [IoSlice::new(&contents[round % 4])];
            place.volume.put(Kind::Raw, &slices, &options).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}
