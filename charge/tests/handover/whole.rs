//! Whole volumes: who pays afterwards, and that nobody notices.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use memmap2::MmapOptions;
use vineyard_charge::{Extent, Payer, REGION};

use crate::order::{
    Order, Remount, SEALED, billed, furnish, is_empty, object, pages, shared, write,
};
use crate::support::ground::{Ground, MIB, assert_pattern, pattern};

#[test]
fn everything_of_a_dead_producer_is_handed_over_under_its_readers() {
    let Some(mut ground) = Ground::new(200 * MIB) else {
        return;
    };
    furnish(&ground);
    fs::create_dir_all(ground.at("a/b")).unwrap();
    let pod = ground.cgroup("producer", None);
    let first = ground.cgroup("first", None);
    let retainer = ground.cgroup("retainer", None);
    let (huge, payer) = (ground.payer(first), ground.payer(retainer));
    let sizes = [0, 1, 4097, 256 << 10, (256 << 10) + 1, REGION, 5 * MIB + 7];
    let mut files = Vec::new();
    for size in sizes {
        for path in [
            object(&ground, &format!("{size}.raw")),
            ground.at(".vineyard/trash").join(format!("{size}.raw")),
            ground.at("a/b").join(format!("{size}")),
        ] {
            ground.write_in(pod, &path, size);
            let mode = if path.starts_with(ground.at("a")) {
                0o640
            } else {
                SEALED
            };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
            files.push((path, size));
        }
    }
    // One in huge pages, as a store makes it.
    let path = object(&ground, "huge.npy");
    fs::write(&path, "").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let size = 12 * MIB + 5000;
    file.set_len(size).unwrap();
    let all = Extent {
        offset: 0,
        length: size,
    };
    huge.reserve(&[(file.as_fd(), all)]).unwrap();
    file.write_all_at(&pattern(0, size), 0).unwrap();
    drop(file);
    fs::set_permissions(&path, fs::Permissions::from_mode(SEALED)).unwrap();
    files.push((path, size));
    fs::hard_link(ground.at("a/b/4097"), ground.at("a/second name")).unwrap();
    symlink("../objects/1.raw", ground.at(".vineyard/tmp/note")).unwrap();
    ground.remove(pod);
    ground.kill_last();

    let payer = {
        drop(payer);
        ground.payer(retainer)
    };
    let readers: Vec<_> = files
        .iter()
        .filter(|(_, size)| *size > 0)
        .map(|(path, _)| shared(path))
        .collect();
    // SAFETY: as `shared`.
    let mut private = unsafe {
        MmapOptions::new()
            .map_copy(&File::open(&files.last().unwrap().0).unwrap())
            .unwrap()
    };
    private[5000] ^= 0xff;
    let facts = |path: &Path| {
        let m = fs::metadata(path).unwrap();
        (
            (m.mode(), m.uid(), m.gid(), m.len()),
            (m.mtime(), m.mtime_nsec()),
            m.ino(),
        )
    };
    let before: Vec<_> = files.iter().map(|(path, _)| facts(path)).collect();
    let used = ground.used();

    let order = Order::new(&ground, &payer, retainer);
    let outcome = order.run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!(outcome.moved, used);
    assert_eq!(billed(&outcome), [(retainer, used)]);
    assert_eq!(ground.bills(), [(retainer, used)]);
    ground.assert_used(used);
    for ((path, size), before) in files.iter().zip(&before) {
        assert_pattern(path, *size);
        // Also the inode: who views a file keeps it.
        let after = facts(path);
        if *size > 0 {
            assert_eq!(after, *before, "{}", path.display());
        }
    }
    for (reader, (_, size)) in readers.iter().zip(files.iter().filter(|(_, s)| *s > 0)) {
        assert!(reader[..] == pattern(0, *size)[..]);
    }
    assert_eq!(private[5000], pattern(5000, 1)[0] ^ 0xff);
    drop((readers, private));

    let again = order.run().unwrap();
    assert_eq!((again.moved, again.is_complete()), (0, true), "{again:?}");
    assert_eq!(billed(&again), [(retainer, used)]);
    assert_eq!(fs::read_dir(ground.at(".vineyard/tmp")).unwrap().count(), 1);
    assert_eq!(ground.oom_kills(), 0);
}

#[test]
fn what_live_pods_pay_for_stays_and_their_plain_files_are_not_torn() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let live = ground.cgroup("live", None);
    let gone = ground.cgroup("gone", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    ground.write_in(live, &object(&ground, "live.raw"), 3 * MIB);
    ground.write_in(live, &ground.at("live"), 5000);
    let plain = ground.at("plain");
    ground.write_in(gone, &plain, 2 * REGION + 9000);
    ground.write_in(gone, &ground.at("small"), 9000);
    let open = ground.at("open");
    ground.write_in(gone, &open, 9000);
    let writer = File::options().append(true).open(&open).unwrap();

    let mut order = Order::new(&ground, &payer, retainer);
    order.stays = vec![live];
    order.exclusive = false;
    let outcome = order.run().unwrap();
    let lived = 3 * MIB + pages(5000);
    assert_eq!(outcome.moved, 2 * REGION + pages(9000), "{outcome:?}");
    assert_eq!(outcome.left_bytes, 2 * pages(9000));
    let mut left: Vec<_> = outcome
        .left
        .iter()
        .map(|it| (it.path.clone().unwrap(), it.bytes, it.owner))
        .collect();
    left.sort();
    let of = |name: &str| (name.into(), pages(9000), Some(gone));
    assert_eq!(left, [of("open"), of("plain")]);
    assert_eq!(ground.ledger().billed(&[live]), lived);
    drop(writer);

    order.exclusive = true;
    let outcome = order.run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    let ledger = ground.ledger();
    assert_eq!(ledger.billed(&[live]), lived);
    assert_eq!(ledger.billed(&[live, retainer]), ledger.used);
    assert_pattern(&plain, 2 * REGION + 9000);
    assert_pattern(&open, 9000);
}

#[test]
fn a_volume_that_is_full_to_the_last_page_lends_and_gets_back() {
    let capacity = 16 * MIB;
    let Some(mut ground) = Ground::new(capacity) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let large = object(&ground, "large.raw");
    write(&large, 5 * MIB + 1, SEALED);
    for index in 0..500 {
        write(&object(&ground, &format!("{index}.raw")), 5000, SEALED);
    }
    write(&ground.at("plain"), 5000, 0o644);
    let viewed = shared(&object(&ground, "7.raw"));
    let free = ground.ledger().capacity - ground.used();
    write(&ground.at("filler"), free, 0o644);
    ground.assert_used(capacity);

    let order = Order::new(&ground, &payer, retainer);
    let without = order.run().unwrap();
    assert!(without.left_bytes > 0, "{without:?}");
    let slack = Remount::of(&ground);
    let order = Order {
        slack: &slack,
        ..order
    };
    let outcome = order.run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!(ground.bills(), [(retainer, capacity)]);
    let ledger = ground.ledger();
    assert_eq!((ledger.used, ledger.capacity), (capacity, capacity));
    assert!(viewed[..] == pattern(0, 5000)[..]);
    assert_pattern(&large, 5 * MIB + 1);
    for index in 0..500 {
        assert_pattern(&object(&ground, &format!("{index}.raw")), 5000);
    }
    assert!(is_empty(&ground.at(".vineyard/tmp")));
}

#[test]
fn a_payer_without_room_gets_what_fits_and_nobody_is_killed() {
    let Some(mut ground) = Ground::new(200 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", Some(24 * MIB));
    let payer = ground.payer(retainer);
    write(&object(&ground, "large.raw"), 40 * MIB, SEALED);
    for index in 0..300 {
        write(&object(&ground, &format!("{index}.raw")), 100_000, SEALED);
    }
    let used = ground.used();
    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(
        outcome.moved > 8 * MIB && outcome.left_bytes > 30 * MIB,
        "{outcome:?}"
    );
    assert_eq!(outcome.moved + outcome.left_bytes, used);
    assert_eq!(ground.ledger().billed(&[retainer]), outcome.moved);
    assert!(!outcome.left.is_empty() && outcome.left.len() <= 100);
    assert_eq!(ground.oom_kills(), 0);
    assert!(ground.all_alive());
    assert_pattern(&object(&ground, "large.raw"), 40 * MIB);
}

#[test]
fn bytes_that_no_path_reaches_are_found_where_they_are_mapped_or_open() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let pod = ground.cgroup("producer", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let sizes = [5000, 3 * MIB + 5, 7000, 9000];
    let paths: Vec<_> = sizes
        .iter()
        .map(|size| object(&ground, &format!("{size}.raw")))
        .collect();
    for (path, size) in paths.iter().zip(sizes) {
        ground.write_in(pod, path, size);
    }
    let (small, large) = (shared(&paths[0]), shared(&paths[1]));
    let open = File::open(&paths[2]).unwrap();
    let written = File::options()
        .read(true)
        .write(true)
        .open(&paths[3])
        .unwrap();
    for path in &paths {
        fs::remove_file(path).unwrap();
    }
    ground.remove(pod);
    let used = ground.used();
    assert_eq!(ground.ledger().unreached, used);

    let mut order = Order::new(&ground, &payer, retainer);
    order.exclusive = false;
    let outcome = order.run().unwrap();
    assert_eq!(outcome.moved, used - pages(9000), "{outcome:?}");
    // Somebody writes to this one.
    assert_eq!((outcome.left_bytes, outcome.unreached), (pages(9000), 0));
    assert_eq!(outcome.left[0].path, None);
    assert_eq!(outcome.billed[&retainer], used - pages(9000));
    ground.assert_used(used);
    assert!(small[..] == pattern(0, 5000)[..] && large[..] == pattern(0, 3 * MIB + 5)[..]);
    drop((small, large, open, written));
    ground.assert_used(0);
}
