//! Bills that move, on real cgroups: the producer's cgroup goes, a retainer of another user pays from then on. Needs root.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod support;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use memmap2::{Mmap, MmapOptions};
use nix::mount::{MsFlags, mount};
use support::ground::{Ground, MIB, assert_pattern, pattern};
use vineyard_charge::recharge::{Large, Moved, RechargeError, Replace, SMALL, Slack};
use vineyard_charge::survey::Surveyor;
use vineyard_charge::{CgroupId, Extent, PAGE, Payer, REGION, ReserveError};

fn pages(size: u64) -> u64 {
    size.next_multiple_of(PAGE)
}

/// Until nothing is left: pages that are in use at some moment, as on a busy machine, are in a later round.
fn recharge(path: &Path, payer: &dyn Payer, owner: CgroupId, slack: Option<&dyn Slack>) -> Moved {
    let (begin, mut bytes) = (Instant::now(), 0);
    loop {
        let moved = recharge_once(path, payer, owner, slack);
        bytes += moved.bytes;
        if moved.left == 0 || begin.elapsed() > support::patience() {
            return Moved { bytes, ..moved };
        }
    }
}

fn recharge_once(
    path: &Path,
    payer: &dyn Payer,
    owner: CgroupId,
    slack: Option<&dyn Slack>,
) -> Moved {
    let file = File::open(path).unwrap();
    let writable = File::options().read(true).write(true).open(path).unwrap();
    let large = Large {
        file: file.as_fd(),
        exclusive: Some(writable.as_fd()),
        stays: &|it| it == owner,
        slack,
    };
    large
        .recharge(&mut Surveyor::open().unwrap(), payer)
        .unwrap()
}

fn shared(path: &Path) -> Mmap {
    // SAFETY: the tests change a mapped file only by having the kernel move its pages.
    unsafe { Mmap::map(&File::open(path).unwrap()).unwrap() }
}

#[test]
fn a_pull_moves_the_bill_of_a_dead_producer_under_its_readers_at_every_size() {
    let Some(mut ground) = Ground::new(300 * MIB) else {
        return;
    };
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let kib = 1024;
    for size in [
        1,
        SMALL + 1,
        REGION - 1,
        REGION,
        REGION + 1,
        2052 * kib,
        5 * MIB + 7,
        100 * MIB,
    ] {
        let pod = ground.cgroup("producer", None);
        let path = ground.at("object");
        ground.write_in(pod, &path, size);
        assert_eq!(ground.bills(), [(pod, pages(size))]);
        ground.remove(pod);

        let reader = shared(&path);
        // SAFETY: as `shared`.
        let mut private = unsafe {
            MmapOptions::new()
                .map_copy(&File::open(&path).unwrap())
                .unwrap()
        };
        private[0] ^= 0xff;
        let last = private.len() - 1;
        private[last] ^= 0xff;

        let moved = recharge(&path, &payer, retainer, None);
        assert_eq!(moved.left, 0, "of {size}: {moved:?}");
        assert_eq!(moved.bytes, pages(size));
        assert_eq!(ground.bills(), [(retainer, pages(size))], "of {size}");
        ground.assert_used(pages(size));
        assert_pattern(&path, size);
        let mut expected = pattern(0, size);
        assert!(reader[..] == expected[..]);
        expected[0] ^= 0xff;
        expected[last] ^= 0xff;
        assert!(private[..] == expected[..]);
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(ground.oom_kills(), 0);
}

#[test]
fn a_bill_moves_again_and_again_also_of_huge_pages_that_are_mapped() {
    let Some(mut ground) = Ground::new(300 * MIB) else {
        return;
    };
    let pod = ground.cgroup("producer", None);
    let owners = [ground.cgroup("a", None), ground.cgroup("b", None)];
    let payers = owners.map(|owner| ground.payer(owner));
    let path = ground.at("object");
    let size = 40 * MIB + 5000;
    ground.write_in(pod, &path, size);
    let reader = shared(&path);
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let made = modified();
    for round in 0..4 {
        let moved = recharge(&path, &payers[round % 2], owners[round % 2], None);
        assert_eq!(moved.left, 0, "round {round}: {moved:?}");
        assert_eq!(modified(), made);
        assert_eq!(ground.bills(), [(owners[round % 2], pages(size))]);
        assert!(reader[..] == pattern(0, size)[..]);
    }
    ground.assert_used(pages(size));
}

#[test]
fn a_huge_page_without_a_zero_byte_moves_when_nobody_else_maps_it() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    let owners = [ground.cgroup("a", None), ground.cgroup("b", None)];
    let payers = owners.map(|owner| ground.payer(owner));
    let path = ground.at("object");
    fs::write(&path, vec![0xff; 4 << 20]).unwrap();
    recharge(&path, &payers[0], owners[0], None);
    assert_eq!(ground.bills(), [(owners[0], 2 * REGION)]);
    let moved = recharge(&path, &payers[1], owners[1], None);
    assert_eq!(moved.left, 0, "{moved:?}");
    assert_eq!(ground.bills(), [(owners[1], 2 * REGION)]);
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0xff));
}

#[test]
fn a_file_that_others_may_write_is_moved_as_far_as_that_is_safe() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    let pod = ground.cgroup("producer", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let path = ground.at("plain");
    let size = 3 * REGION + 9000;
    ground.write_in(pod, &path, size);
    let file = File::open(&path).unwrap();
    let large = Large {
        file: file.as_fd(),
        exclusive: None,
        stays: &|it| it == retainer,
        slack: None,
    };
    let moved = large
        .recharge(&mut Surveyor::open().unwrap(), &payer)
        .unwrap();
    assert_eq!((moved.bytes, moved.left), (3 * REGION, pages(9000)));
    assert_eq!(moved.leftovers.len(), 1);
    assert_eq!(moved.leftovers[0].owners, [(pod, pages(9000))]);
    assert_eq!(ground.bills(), [(retainer, 3 * REGION), (pod, pages(9000))]);
    ground.assert_used(pages(size));
    assert_pattern(&path, size);
}

#[test]
fn holes_stay_holes() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    let pod = ground.cgroup("producer", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let path = ground.at("sparse");
    ground.write_in(pod, &path, 3 * PAGE);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(10 * MIB).unwrap();
    let moved = recharge(&path, &payer, retainer, None);
    assert_eq!(moved.left, 0, "{moved:?}");
    assert_eq!(ground.bills(), [(retainer, 3 * PAGE)]);
    ground.assert_used(3 * PAGE);
}

/// Lends by a remount, as a driver does.
struct Remount {
    volume: PathBuf,
    name: String,
    capacity: u64,
}

impl Remount {
    fn resize(&self, size: u64) -> io::Result<()> {
        let options = format!("size={size}");
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some(self.name.as_str()),
            &self.volume,
            None::<&str>,
            flags,
            Some(options.as_str()),
        )?;
        Ok(())
    }
}

impl Slack for Remount {
    fn lend(&self, bytes: u64) -> io::Result<()> {
        self.resize(self.capacity + bytes)
    }

    fn take_back(&self, _bytes: u64) {
        self.resize(self.capacity).unwrap();
    }
}

#[test]
fn a_full_volume_lends_the_room_that_the_end_of_a_file_needs() {
    let capacity = 8 * MIB;
    let Some(mut ground) = Ground::new(capacity) else {
        return;
    };
    let pod = ground.cgroup("producer", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let path = ground.at("object");
    let size = capacity - 700 * 1024 - 1;
    ground.write_in(pod, &path, size);
    let filler = ground.at("filler");
    ground.write_in(pod, &filler, capacity - pages(size));
    ground.assert_used(capacity);

    let without = recharge_once(&path, &payer, retainer, None);
    assert!(without.left > 0 && without.left < REGION, "{without:?}");
    let slack = Remount {
        volume: ground.volume(),
        name: ground.mount_name(),
        capacity,
    };
    let with = recharge(&path, &payer, retainer, Some(&slack));
    assert_eq!(with.left, 0, "{with:?}");
    let ledger = ground.ledger();
    assert_eq!((ledger.used, ledger.capacity), (capacity, capacity));
    assert_eq!(ledger.billed(&[retainer]), pages(size));
    assert_pattern(&path, size);
}

#[test]
fn a_payer_without_room_leaves_the_rest_where_it_is_and_kills_nobody() {
    let Some(mut ground) = Ground::new(300 * MIB) else {
        return;
    };
    let pod = ground.cgroup("producer", None);
    let retainer = ground.cgroup("retainer", Some(32 * MIB));
    let payer = ground.payer(retainer);
    let path = ground.at("object");
    ground.write_in(pod, &path, 100 * MIB);
    let moved = recharge_once(&path, &payer, retainer, None);
    assert!(moved.bytes > 16 * MIB && moved.left > 60 * MIB, "{moved:?}");
    assert_eq!(moved.bytes + moved.left, 100 * MIB);
    assert_eq!(ground.bills(), [(pod, moved.left), (retainer, moved.bytes)]);
    assert_eq!(ground.oom_kills(), 0);
    assert!(ground.all_alive());
    assert_pattern(&path, 100 * MIB);
}

struct Small {
    volume: File,
    scratch: File,
}

impl Small {
    fn new(ground: &Ground) -> Self {
        fs::create_dir(ground.at("tmp")).unwrap();
        Self {
            volume: File::open(ground.volume()).unwrap(),
            scratch: File::open(ground.at("tmp")).unwrap(),
        }
    }

    fn replace(&self) -> Replace<'_> {
        Replace {
            directory: self.volume.as_fd(),
            scratch: self.scratch.as_fd(),
        }
    }
}

#[test]
fn small_files_are_replaced_by_equal_ones_on_the_payers_bill() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    let pod = ground.cgroup("producer", None);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let small = Small::new(&ground);
    let sizes = [0, 1, 4095, 4096, 4097, SMALL - 1, SMALL];
    let names: Vec<OsString> = sizes.iter().map(|s| format!("{s}.raw").into()).collect();
    let mut before = Vec::new();
    for (size, name) in sizes.iter().zip(&names) {
        let path = ground.volume().join(name);
        ground.write_in(pod, &path, *size);
        std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        before.push(fs::metadata(&path).unwrap());
    }
    ground.remove(pod);
    let viewed = shared(&ground.at("4097.raw"));

    let copied = small.replace().copy(&names, &payer);
    let total: u64 = sizes.iter().map(|size| pages(*size)).sum();
    assert_eq!(ground.bills(), [(retainer, total)]);
    // The old inode lives as long as its reader.
    assert_eq!(ground.ledger().unreached, 2 * PAGE);
    assert!(viewed[..] == pattern(0, 4097)[..]);
    drop(viewed);
    ground.assert_used(total);
    for (index, size) in sizes.iter().enumerate() {
        let result = copied[index].as_ref().unwrap();
        assert_eq!(
            (result.bytes, result.still_viewed),
            (pages(*size), *size == 4097)
        );
        let path = ground.volume().join(&names[index]);
        let after = fs::metadata(&path).unwrap();
        let facts = |m: &fs::Metadata| {
            (
                m.mode(),
                m.uid(),
                m.gid(),
                m.mtime(),
                m.mtime_nsec(),
                m.len(),
            )
        };
        assert_eq!(facts(&after), facts(&before[index]));
        assert_pattern(&path, *size);
    }
    assert_eq!(fs::read_dir(ground.at("tmp")).unwrap().count(), 0);
}

#[test]
fn a_payer_without_room_copies_what_fits_and_leaves_the_others_alone() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    let pod = ground.cgroup("producer", None);
    let retainer = ground.cgroup("retainer", Some(16 * MIB));
    let payer = ground.payer(retainer);
    let small = Small::new(&ground);
    let names: Vec<OsString> = (0..150).map(|i| format!("{i}").into()).collect();
    for name in &names {
        let path = ground.volume().join(name);
        fs::write(&path, pattern(0, SMALL)).unwrap();
    }
    let _ = pod;
    let copied = small.replace().copy(&names, &payer);
    let done = copied.iter().flatten().count() as u64;
    assert!(done > 30 && done < 64, "{done}");
    assert!(
        copied
            .iter()
            .all(|c| matches!(c, Ok(_) | Err(RechargeError::Payer(ReserveError::Full(_)))))
    );
    assert_eq!(ground.ledger().billed(&[retainer]), done * SMALL);
    ground.assert_used(150 * SMALL);
    assert_eq!(ground.oom_kills(), 0);
    for name in &names {
        assert_pattern(&ground.volume().join(name), SMALL);
    }
}

/// A payer during whose work somebody tries to write to the original.
#[derive(Debug)]
struct Meddling<'a>(&'a dyn Payer, PathBuf);

impl Payer for Meddling<'_> {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        // A patient writer would wait until the copy is in place, or given up.
        let impatient = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.1);
        assert_eq!(impatient.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        self.0.reserve(extents)
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        self.0.pull(file, regions)
    }

    fn give_back(&self, bytes: u64) {
        self.0.give_back(bytes);
    }
}

#[test]
fn a_file_that_somebody_writes_to_stays_as_its_writer_left_it() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let small = Small::new(&ground);
    let path = ground.at("object");
    fs::write(&path, vec![7; 10_000]).unwrap();
    let names = ["object".into()];
    let meddling = Meddling(&payer, path.clone());
    let mut results = vec![small.replace().copy(&names, &meddling)];

    let writer = File::options().read(true).write(true).open(&path).unwrap();
    results.push(small.replace().copy(&names, &payer));
    // SAFETY: nobody else uses these bytes.
    let mut mapped = unsafe { MmapOptions::new().map_mut(&writer).unwrap() };
    drop(writer);
    mapped[100..106].copy_from_slice(b"theirs");
    results.push(small.replace().copy(&names, &payer));
    for result in results {
        assert!(
            matches!(result[0], Err(RechargeError::Changed)),
            "{result:?}"
        );
    }
    assert_eq!(&fs::read(&path).unwrap()[100..106], b"theirs");
    assert_eq!(ground.ledger().billed(&[retainer]), 0);
    ground.assert_used(pages(10_000));
    drop(mapped);
    small.replace().copy(&names, &payer).remove(0).unwrap();
    assert_eq!(ground.bills(), [(retainer, pages(10_000))]);
    assert_eq!(&fs::read(&path).unwrap()[100..106], b"theirs");
}

#[test]
fn what_is_not_one_file_with_one_name_is_not_copied() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let small = Small::new(&ground);
    fs::write(ground.at("one"), b"x").unwrap();
    fs::hard_link(ground.at("one"), ground.at("two")).unwrap();
    std::os::unix::fs::symlink("one", ground.at("link")).unwrap();
    nix::unistd::mkfifo(&ground.at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let names = ["one", "link", "fifo", "tmp", "none", "../x"].map(OsString::from);
    let copied = small.replace().copy(&names, &payer);
    assert!(copied.iter().all(Result::is_err), "{copied:?}");
    assert_eq!(ground.ledger().billed(&[retainer]), 0);
}
