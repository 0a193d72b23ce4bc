//! Time to live, trash, leftovers, and the check of the whole volume.

use std::io::IoSlice;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::support::{Place, name, named, pattern, place};
use vineyard_store::{Fault, Key, Kind, Mode, PutOptions, SweepLimits, SweepReport};

fn faults(place: &Place, repair: bool) -> Vec<Fault> {
    place
        .volume
        .fsck(repair)
        .unwrap()
        .problems
        .iter()
        .map(|p| p.fault)
        .collect()
}

/// A ttl marker with this end for the object at `at`, in the place of its own.
fn expire(place: &Place) {
    for marker in place.own("ttl") {
        let (_, object) = marker.split_once('.').unwrap();
        let ttl = place.path().join(".vineyard/ttl");
        std::fs::rename(
            ttl.join(&marker),
            ttl.join(format!("000000000001.{object}")),
        )
        .unwrap();
    }
}

#[test]
fn a_sweep_removes_what_is_past_its_time_and_nothing_else() {
    let place = place();
    let ttl = |options| PutOptions {
        ttl: Some(Duration::from_secs(3600)),
        ..options
    };
    let put = |options: &PutOptions| {
        place
            .volume
            .put(Kind::Raw, &[IoSlice::new(b"1")], options)
            .unwrap()
    };
    put(&ttl(named("a")));
    let unnamed = put(&ttl(PutOptions::default()));
    put(&named("keep"));
    assert_eq!(place.volume.sweep().unwrap().expired, 0);
    assert_eq!(place.objects().len(), 3);
    expire(&place);
    assert_eq!(place.volume.sweep().unwrap().expired, 2);
    assert!(!place.volume.exists(&name("a")).unwrap());
    assert!(
        place
            .volume
            .get(Key::from(&unnamed), Mode::CopyOnWrite)
            .is_err()
    );
    assert_eq!(place.get("keep").bytes(), b"1");
    assert_eq!(place.own("ttl"), Vec::<String>::new());
}

#[test]
fn a_name_that_was_re_pointed_outlives_the_time_of_its_old_object() {
    let place = place();
    let options = PutOptions {
        ttl: Some(Duration::from_secs(3600)),
        ..named("a")
    };
    place
        .volume
        .put(Kind::Raw, &[IoSlice::new(b"old")], &options)
        .unwrap();
    place.put("a", b"new");
    expire(&place);
    assert_eq!(place.volume.sweep().unwrap().expired, 0);
    assert_eq!(place.get("a").bytes(), b"new");
}

#[test]
fn trash_goes_when_its_last_view_goes() {
    let place = place();
    place.put("x", &pattern(3 << 20, 1));
    let view = place.get("x");
    place.volume.remove(Key::Name(&name("x"))).unwrap();
    let report = place.volume.sweep().unwrap();
    assert_eq!((report.trash, report.mapped), (0, 1));
    drop(view);
    let report = place.volume.sweep().unwrap();
    assert_eq!((report.trash, report.mapped), (1, 0));
    assert_eq!(place.own("trash"), Vec::<String>::new());
}

fn sweep_for(place: &Place, time: u64, stop: bool, rest: u64) -> (bool, SweepReport) {
    let limits = SweepLimits {
        time: Duration::from_secs(time),
        stop: &AtomicBool::new(stop),
        rest: Duration::from_secs(rest),
    };
    let mut report = SweepReport::default();
    let whole = place.volume.sweep_within(&limits, &mut report).unwrap();
    (whole, report)
}

#[test]
fn a_sweep_with_limits_ends_when_it_must_and_leaves_fresh_trash() {
    let place = place();
    let options = PutOptions {
        ttl: Some(Duration::from_secs(3600)),
        ..named("a")
    };
    let put = place
        .volume
        .put(Kind::Raw, &[IoSlice::new(b"1")], &options)
        .unwrap();
    expire(&place);
    place.put("x", &pattern(3 << 20, 1));
    let view = place.get("x");
    place.volume.remove(Key::Name(&name("x"))).unwrap();
    drop(view);
    for (time, stop) in [(0, false), (3600, true)] {
        let (whole, report) = sweep_for(&place, time, stop, 0);
        assert!(!whole);
        assert_eq!(report, SweepReport::default());
    }
    assert!(place.volume.stat(Key::from(&put)).is_ok());
    let (whole, report) = sweep_for(&place, 3600, false, 3600);
    assert!(whole);
    assert_eq!((report.expired, report.trash, report.mapped), (1, 0, 1));
    let (whole, report) = sweep_for(&place, 3600, false, 0);
    assert!(whole);
    assert_eq!((report.expired, report.trash, report.mapped), (0, 1, 0));
}

#[test]
fn what_cannot_be_swept_does_not_keep_the_rest() {
    let place = place();
    let own = place.path().join(".vineyard");
    for (folder, odd) in [
        ("ttl", "000000000001.00000000000000000000000000.raw"),
        ("links", "00000000000000000000000000"),
        ("trash", "00000000000000000000000000.raw"),
    ] {
        let odd = own.join(folder).join(odd);
        std::fs::create_dir_all(odd.join("full/er")).unwrap();
    }
    let options = PutOptions {
        ttl: Some(Duration::from_secs(3600)),
        ..named("a")
    };
    for _ in 0..20 {
        place
            .volume
            .put(Kind::Raw, &[IoSlice::new(b"1")], &options)
            .unwrap();
    }
    place.volume.remove(Key::Name(&name("a"))).unwrap();
    place
        .volume
        .put(Kind::Raw, &[IoSlice::new(b"1")], &options)
        .unwrap();
    expire(&place);
    place.volume.sweep().unwrap_err();
    assert!(!place.volume.exists(&name("a")).unwrap());
    assert_eq!(place.own("ttl").len(), 1);
    let limits = SweepLimits {
        time: Duration::from_secs(3600),
        stop: &AtomicBool::new(false),
        rest: Duration::ZERO,
    };
    let mut report = SweepReport::default();
    place.volume.sweep_within(&limits, &mut report).unwrap_err();
    assert_eq!(report.mapped, 1, "the directory in the trash");
}

#[test]
fn a_sound_volume_has_no_problems() {
    let place = place();
    place.put("a", b"1");
    place.put("deep/er/b", &pattern(3 << 20, 1));
    place
        .volume
        .link(Key::Name(&name("a")), &name("c"), false)
        .unwrap();
    place
        .volume
        .put(
            Kind::Text,
            &[IoSlice::new("caf\u{e9}".as_bytes())],
            &PutOptions::default(),
        )
        .unwrap();
    let mut stream = place.volume.stream_writer(&name("s")).unwrap();
    stream.append(Kind::Raw, &[IoSlice::new(b"1")]).unwrap();
    stream.end().unwrap();
    let member = [IoSlice::new(b"1")];
    place
        .volume
        .put_many(&[(None, Kind::Raw, &member[..])], &named("p"))
        .unwrap();
    std::fs::write(place.path().join("plain.txt"), "1").unwrap();
    let report = place.volume.fsck(false).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(
        (report.objects, report.names, report.plain, report.unnamed),
        (5, 5, 1, 1)
    );
}

#[test]
fn every_kind_of_damage_is_reported_and_what_can_be_is_repaired() {
    let place = place();
    let own = place.path().join(".vineyard");
    let lost = place.put("lost", b"1");
    std::fs::remove_file(own.join(format!("objects/{}.raw", lost.id))).unwrap();
    let open = place.put("open", b"1");
    let path = own.join(format!("objects/{}.raw", open.id));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let moved = place.put("moved", b"1");
    std::fs::create_dir(place.path().join("dir")).unwrap();
    std::fs::rename(place.path().join("moved"), place.path().join("dir/moved")).unwrap();
    symlink("/etc/passwd", place.path().join("foreign")).unwrap();
    std::fs::write(own.join("objects/stray"), "").unwrap();
    std::fs::create_dir(own.join(format!("links/{}", lost.id))).unwrap();
    symlink("-", own.join(format!("ttl/000000000001.{}.raw", lost.id))).unwrap();
    let holes = place.put("holes", &pattern(100, 0));
    let path = own.join(format!("objects/{}.raw", holes.id));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    for kind in ["npy", "arrow", "safetensors", "pack"] {
        let kind = Kind::parse(kind.as_bytes()).unwrap();
        place
            .volume
            .put(kind, &[IoSlice::new(b"nonsense")], &PutOptions::default())
            .unwrap();
    }
    place
        .volume
        .put(Kind::Text, &[IoSlice::new(b"\xff")], &PutOptions::default())
        .unwrap();

    use Fault::*;
    let mut found = faults(&place, true);
    found.sort_by_key(|f| format!("{f:?}"));
    let expected = [
        Content, Content, Content, Content, Content, Foreign, Holes, Lost, Misplaced, Mode, Orphan,
        Stray,
    ];
    assert_eq!(found, expected);
    assert_eq!(place.get("dir/moved").id, Some(moved.id));
    assert_eq!(std::fs::read(place.path().join("dir/moved")).unwrap(), b"1");
    let mut left = faults(&place, false);
    left.sort_by_key(|f| format!("{f:?}"));
    assert_eq!(
        left,
        [
            Content, Content, Content, Content, Content, Foreign, Holes, Stray
        ]
    );
}
