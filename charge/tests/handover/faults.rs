//! Payers and drivers that die, stop, or are somewhere else.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vineyard_charge::REGION;
use vineyard_charge::handover::{HandOver, HandOverError, Progress};

use crate::order::{During, Order, SEALED, furnish, is_empty, object, pages, write};
use crate::support::ground::{Ground, MIB, assert_pattern};
use crate::support::roles::Stingy;

#[test]
fn a_payer_that_is_billed_elsewhere_gets_nothing() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let wrong = ground.cgroup("wrong", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(wrong);
    write(&object(&ground, "small"), 5000, SEALED);
    let inode = || fs::metadata(object(&ground, "small")).unwrap().ino();
    let before = inode();
    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert_eq!((outcome.moved, outcome.left_bytes), (0, pages(5000)));
    assert!(
        outcome.left[0].reason.contains("is charged to"),
        "{outcome:?}"
    );
    assert_eq!(inode(), before);
    ground.assert_used(pages(5000));
}

#[test]
fn a_payer_that_dies_ends_the_pass_and_the_next_one_goes_on() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    for index in 0..1000 {
        write(&object(&ground, &format!("{index}.raw")), 5000, SEALED);
    }
    let used = ground.used();
    let calls = AtomicU64::new(0);
    let process = ground.last();
    let kill = || {
        if calls.fetch_add(1, Ordering::Relaxed) == 3 {
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    };
    let during = During(&payer, &kill);
    let error = Order::new(&ground, &during, retainer).run().unwrap_err();
    assert!(matches!(error, HandOverError::Payer(_)), "{error}");
    let moved = ground.ledger().billed(&[retainer]);
    assert!(moved > 0 && moved < used, "{moved}");
    ground.assert_used(used);
    assert!(is_empty(&ground.at(".vineyard/tmp")));

    let payer = ground.payer(retainer);
    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!(outcome.moved, used - moved);
    assert_eq!(ground.bills(), [(retainer, used)]);
}

#[test]
fn a_driver_may_be_killed_at_any_moment() {
    let Some(mut ground) = Ground::new(128 * MIB) else {
        return;
    };
    furnish(&ground);
    let driver = ground.cgroup("driver", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let sizes: Vec<u64> = (0..2000).map(|index| 1 + index * 37).collect();
    for (index, size) in sizes.iter().enumerate() {
        write(&object(&ground, &format!("{index}.raw")), *size, SEALED);
    }
    write(&object(&ground, "large.raw"), 20 * MIB + 5, SEALED);
    let used = ground.used();
    for round in 0..8 {
        ground.driver(driver, retainer);
        std::thread::sleep(Duration::from_millis(10 + 25 * round));
        ground.kill_last();
        // At most a copy that has its first name, and the end of the large file in one huge page.
        let leftover: u64 = fs::read_dir(ground.at(".vineyard/tmp"))
            .unwrap()
            .map(|entry| pages(entry.unwrap().metadata().unwrap().len()))
            .sum();
        let more = ground.used() - used;
        assert!(more == leftover || more - leftover < REGION, "{more}");
        for (index, size) in sizes.iter().enumerate() {
            assert_pattern(&object(&ground, &format!("{index}.raw")), *size);
        }
    }
    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert!(is_empty(&ground.at(".vineyard/tmp")));
    assert_eq!(ground.bills(), [(retainer, used)]);
    ground.assert_used(used);
    assert_pattern(&object(&ground, "large.raw"), 20 * MIB + 5);
}

#[test]
fn what_a_killed_driver_left_is_swept_and_other_files_are_not() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let tmp = ground.at(".vineyard/tmp");
    write(&object(&ground, "small"), 5000, SEALED);
    fs::write(tmp.join("new"), b"copy").unwrap();
    let inode = fs::metadata(tmp.join("new")).unwrap().ino();
    fs::rename(tmp.join("new"), tmp.join(format!("recharge.17.{inode}"))).unwrap();
    fs::write(tmp.join("recharge.17.18"), b"of somebody else").unwrap();
    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(outcome.left_bytes == 0, "{outcome:?}");
    let names: Vec<_> = fs::read_dir(&tmp)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["recharge.17.18"]);
}

#[test]
fn a_pass_stops_when_its_time_is_up_and_another_finishes() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    for index in 0..2000 {
        write(&object(&ground, &format!("{index}.raw")), 5000, SEALED);
    }
    let used = ground.used();
    let mut order = Order::new(&ground, &payer, retainer);
    order.until = Some(Instant::now());
    let outcome = order.run().unwrap();
    assert!(outcome.interrupted && !outcome.is_complete());
    assert_eq!(outcome.moved, 0);
    order.until = Some(Instant::now() + Duration::from_secs(600));
    let calls = AtomicU64::new(0);
    let progress = Progress::default();
    let stop = || {
        if calls.fetch_add(1, Ordering::Relaxed) == 1 {
            progress.stop();
        }
    };
    let during = During(&payer, &stop);
    let stopped = HandOver {
        layer: &order.layer,
        stays: &|_| false,
        payer: &during,
        payer_owners: &order.owners,
        exclusive: true,
        slack: &Stingy,
        progress: &progress,
        until: None,
    };
    let stopped = stopped.run().unwrap();
    assert!(stopped.interrupted && stopped.moved > 0 && stopped.moved < used);
    let outcome = order.run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!(outcome.moved, used - stopped.moved);
}
