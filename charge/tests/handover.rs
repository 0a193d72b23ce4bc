//! Whole volumes change their payer, on real cgroups. Needs root.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapOptions};
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use support::ground::{Ground, MIB, assert_pattern, pattern};
use support::roles::Stingy;
use vineyard_charge::handover::{HandOver, HandOverError, Outcome, Progress};
use vineyard_charge::recharge::Slack;
use vineyard_charge::{CgroupId, Extent, PAGE, Payer, REGION, ReserveError};

const SEALED: u32 = 0o444;

fn pages(size: u64) -> u64 {
    size.next_multiple_of(PAGE)
}

/// Lends by a remount, as a driver does.
struct Remount {
    volume: PathBuf,
    name: String,
    size: AtomicU64,
}

impl Remount {
    fn of(ground: &Ground) -> Self {
        Self {
            volume: ground.volume(),
            name: ground.mount_name(),
            size: AtomicU64::new(ground.ledger().capacity),
        }
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let options = format!("size={size}");
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let name = Some(self.name.as_str());
        Ok(mount(
            name,
            &self.volume,
            None::<&str>,
            flags,
            Some(options.as_str()),
        )?)
    }
}

impl Slack for Remount {
    fn lend(&self, bytes: u64) -> io::Result<()> {
        self.resize(self.size.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    fn take_back(&self, bytes: u64) {
        self.resize(self.size.fetch_sub(bytes, Ordering::Relaxed) - bytes)
            .unwrap();
    }
}

/// What a test hands over, with what is usual.
struct Order<'a> {
    layer: PathBuf,
    stays: Vec<CgroupId>,
    payer: &'a dyn Payer,
    owners: Vec<CgroupId>,
    exclusive: bool,
    slack: &'a dyn Slack,
    until: Option<Instant>,
}

impl<'a> Order<'a> {
    fn new(ground: &Ground, payer: &'a dyn Payer, owner: CgroupId) -> Self {
        Self {
            layer: ground.volume(),
            stays: Vec::new(),
            payer,
            owners: vec![owner],
            exclusive: true,
            slack: &Stingy,
            until: None,
        }
    }

    fn run(&self) -> Result<Outcome, HandOverError> {
        let progress = Progress::default();
        let order = HandOver {
            layer: &self.layer,
            stays: &|owner| self.stays.contains(&owner),
            payer: self.payer,
            payer_owners: &self.owners,
            exclusive: self.exclusive,
            slack: self.slack,
            progress: &progress,
            until: self.until,
        };
        let outcome = order.run();
        if let Ok(outcome) = &outcome {
            assert_eq!(progress.moved(), outcome.moved);
        }
        outcome
    }
}

/// The directories that a volume has.
fn furnish(ground: &Ground) {
    for name in ["objects", "trash", "tmp"] {
        fs::create_dir_all(ground.at(".vineyard").join(name)).unwrap();
    }
}

fn object(ground: &Ground, name: &str) -> PathBuf {
    ground.at(".vineyard/objects").join(name)
}

fn write(path: &Path, size: u64, mode: u32) {
    fs::write(path, pattern(0, size)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn shared(path: &Path) -> Mmap {
    // SAFETY: the tests change a mapped file only by having the kernel move its pages.
    unsafe { Mmap::map(&File::open(path).unwrap()).unwrap() }
}

fn billed(outcome: &Outcome) -> Vec<(CgroupId, u64)> {
    let bills: BTreeMap<_, _> = outcome.billed.clone();
    bills.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().count() == 0
}

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

/// A payer during whose work others are at work, too.
struct During<'a>(&'a dyn Payer, &'a (dyn Fn() + Sync));

impl std::fmt::Debug for During<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("During")
    }
}

impl Payer for During<'_> {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        self.1();
        self.0.reserve(extents)
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        self.1();
        self.0.pull(file, regions)
    }

    fn give_back(&self, bytes: u64) {
        self.0.give_back(bytes);
    }
}

#[test]
fn what_is_removed_or_renamed_or_replaced_during_the_pass_does_not_come_back() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    for name in ["removed", "renamed", "replaced", "kept"] {
        write(&object(&ground, name), 5000, SEALED);
    }
    write(&object(&ground, "large"), 5 * MIB, SEALED);
    let meddle = || {
        let _ = fs::remove_file(object(&ground, "removed"));
        let _ = fs::rename(
            object(&ground, "renamed"),
            ground.at(".vineyard/trash/renamed"),
        );
        fs::write(ground.at("new"), b"theirs").unwrap();
        let _ = fs::rename(ground.at("new"), object(&ground, "replaced"));
        let _ = fs::remove_file(object(&ground, "large"));
    };
    let during = During(&payer, &meddle);
    Order::new(&ground, &during, retainer).run().unwrap();
    assert!(!object(&ground, "removed").exists());
    assert!(!object(&ground, "renamed").exists());
    assert!(!object(&ground, "large").exists());
    assert_eq!(fs::read(object(&ground, "replaced")).unwrap(), b"theirs");
    assert_pattern(&ground.at(".vineyard/trash/renamed"), 5000);
    assert!(is_empty(&ground.at(".vineyard/tmp")));

    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!(ground.bills(), [(retainer, 2 * pages(5000) + PAGE)]);
    ground.assert_used(2 * pages(5000) + PAGE);
}

#[test]
fn a_file_in_the_trash_that_is_filled_anew_is_left_to_its_writer() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let path = ground.at(".vineyard/trash/recycled");
    let size = 9 * MIB + 5000;
    write(&path, size, SEALED);
    let writer = File::options().read(true).write(true).open(&path).unwrap();
    let order = Order::new(&ground, &payer, retainer);
    let outcome = order.run().unwrap();
    let tail = pages(size) % REGION;
    assert_eq!(outcome.left_bytes, tail, "{outcome:?}");
    assert_eq!(outcome.moved, pages(size) - tail);
    drop(writer);
    let changed = || fs::metadata(&path).unwrap().ctime_nsec();
    assert!(order.run().unwrap().is_complete());
    let before = changed();
    assert!(order.run().unwrap().is_complete());
    assert_eq!(
        changed(),
        before,
        "what is on the right bill is not touched"
    );
    assert_pattern(&path, size);
}

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
    for index in 0..500 {
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

#[test]
fn a_hostile_tree_is_handed_over_to_its_end() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let outside = ground.outside("precious");
    fs::write(&outside, b"precious").unwrap();
    symlink(&outside, ground.at("out")).unwrap();
    symlink(ground.outside(""), ground.at("away")).unwrap();
    symlink("..", ground.at(".vineyard/up")).unwrap();
    symlink("long/".repeat(50), ground.at("long")).unwrap();
    nix::unistd::mkfifo(&object(&ground, "fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(ground.at("socket")).unwrap();
    let setuid = ground.at("setuid");
    write(&setuid, 5000, 0o4755);
    // Deeper than any path can say.
    let mut deep = File::open(ground.volume()).unwrap();
    for _ in 0..3000 {
        mkdirat(&deep, "d", Mode::S_IRWXU).unwrap();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        deep = openat(&deep, "d", flags, Mode::empty()).unwrap().into();
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    let bottom = openat(&deep, "bottom", flags, Mode::S_IRUSR).unwrap();
    File::from(bottom)
        .write_all_at(&pattern(0, 5000), 0)
        .unwrap();
    // A lease keeps everybody else from opening.
    let leased = ground.at("leased");
    write(&leased, 5000, 0o644);
    let lease = File::open(&leased).unwrap();
    // SAFETY: plain fcntl calls on a live descriptor; SIGURG is ignored by default.
    unsafe {
        libc::fcntl(lease.as_raw_fd(), 10, libc::SIGURG);
        assert_eq!(
            libc::fcntl(lease.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK),
            0
        );
    }
    // Allocated far beyond its end, and with an attribute.
    let odd = ground.at("odd");
    write(&odd, 100, 0o644);
    let file = File::options().write(true).open(&odd).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 3 << 20).unwrap();
    drop(file);
    let value = [7u8; 3];
    let path = std::ffi::CString::new(odd.to_str().unwrap()).unwrap();
    // SAFETY: strings with their ends, and a buffer with its length.
    let set = unsafe {
        libc::setxattr(
            path.as_ptr(),
            c"trusted.x".as_ptr(),
            value.as_ptr().cast(),
            3,
            0,
        )
    };
    assert_eq!(set, 0);

    let mut order = Order::new(&ground, &payer, retainer);
    let outcome = order.run().unwrap();
    assert_eq!(outcome.left.len(), 1, "{outcome:?}");
    assert_eq!(outcome.left[0].path.as_deref(), Some(Path::new("leased")));
    assert_eq!((outcome.unreached, outcome.unseen), (pages(5000), PAGE));
    drop(lease);
    order.exclusive = false;
    let outcome = order.run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    let total = 3 * pages(5000) + PAGE;
    assert_eq!((outcome.billed[&retainer], outcome.unseen), (total, PAGE));
    ground.assert_used(total + PAGE);
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
    assert_eq!(fs::metadata(&setuid).unwrap().mode() & 0o7777, 0o4755);
    let mut got = [0u8; 8];
    // SAFETY: as above.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            c"trusted.x".as_ptr(),
            got.as_mut_ptr().cast(),
            8,
        )
    };
    assert_eq!((length, &got[..3]), (3, &value[..]));
}
