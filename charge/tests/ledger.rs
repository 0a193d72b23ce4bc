//! Who is billed, on real cgroups: payers of another user in cgroups of their own, a tmpfs of its own. Needs root.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use nix::fcntl::{FallocateFlags, fallocate};
use support::ground::{Ground, MIB, assert_pattern, write_pattern};
use vineyard_charge::{Extent, Limit, PAGE, Payer, REGION, ReserveError};

const SIZES: [u64; 12] = [
    0,
    1,
    4095,
    4096,
    256 * 1024 - 1,
    256 * 1024,
    256 * 1024 + 1,
    REGION - 1,
    REGION,
    REGION + 1,
    2052 * 1024,
    100 * MIB,
];

fn new_file(path: &Path, size: u64) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(size).unwrap();
    file
}

fn all(length: u64) -> Extent {
    Extent { offset: 0, length }
}

#[test]
fn a_reserve_is_billed_to_the_payer_whoever_writes_at_every_size() {
    let Some(mut ground) = Ground::new(300 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", None);
    let payer = ground.payer(pod);
    for size in SIZES {
        let path = ground.at(&size.to_string());
        let file = new_file(&path, size);
        payer.reserve(&[(file.as_fd(), all(size))]).unwrap();
        write_pattern(&file, size);
        let bytes = size.next_multiple_of(PAGE);
        let expected: &[_] = if size == 0 { &[] } else { &[(pod, bytes)] };
        assert_eq!(ground.bills(), expected, "of {size}");
        ground.assert_used(bytes);
        assert_pattern(&path, size);
        fs::remove_file(path).unwrap();
    }
    ground.assert_used(0);
}

#[test]
fn without_its_size_set_first_a_file_is_reserved_all_the_same() {
    let Some(mut ground) = Ground::new(300 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", None);
    let payer = ground.payer(pod);
    let path = ground.at("late");
    let file = new_file(&path, 0);
    let size = 50 * MIB + 5;
    payer.reserve(&[(file.as_fd(), all(size))]).unwrap();
    write_pattern(&file, size);
    assert_eq!(ground.bills(), [(pod, size.next_multiple_of(PAGE))]);
    assert_pattern(&path, size);
}

#[test]
fn a_volume_that_is_almost_full_takes_what_fits_and_refuses_the_rest_whole() {
    let Some(mut ground) = Ground::new(8 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", None);
    let payer = ground.payer(pod);
    let filler = new_file(&ground.at("filler"), 0);
    payer
        .reserve(&[(filler.as_fd(), all(8 * MIB - 2052 * 1024 - PAGE))])
        .unwrap();
    let used = ground.used();

    let too_large = new_file(&ground.at("too large"), 4 * MIB);
    let small = new_file(&ground.at("small"), 1);
    let both = [(small.as_fd(), all(1)), (too_large.as_fd(), all(4 * MIB))];
    let error = payer.reserve(&both).unwrap_err();
    let ReserveError::Full(full) = error else {
        panic!("{error}")
    };
    assert_eq!(full.limit, Limit::Volume);
    assert_eq!((full.asked, full.limit_bytes), (4 * MIB + PAGE, 8 * MIB));
    assert_eq!(full.free, 2052 * 1024 + PAGE);
    ground.assert_used(used);

    // Less than a region is free beyond the first page of one: it is allocated page by page.
    let fits = new_file(&ground.at("fits"), 2052 * 1024);
    payer.reserve(&[(fits.as_fd(), all(2052 * 1024))]).unwrap();
    payer.reserve(&[(small.as_fd(), all(1))]).unwrap();
    ground.assert_used(8 * MIB);
    let batch: Vec<File> = (0..3)
        .map(|i| new_file(&ground.at(&format!("b{i}")), 1))
        .collect();
    let batch: Vec<_> = batch.iter().map(|f| (f.as_fd(), all(1))).collect();
    assert!(matches!(payer.reserve(&batch), Err(ReserveError::Full(_))));
    ground.assert_used(8 * MIB);
}

fn limits_are_respected(ground: &mut Ground, payer: &dyn Payer, pod: vineyard_charge::CgroupId) {
    let before = ground.memory(pod).usage().unwrap();
    for (name, size, length) in [
        ("large", 200 * MIB, 200 * MIB),
        ("just", 64 * MIB, 64 * MIB),
        ("by pages", 0, 200 * MIB),
        ("by pages just", 0, 64 * MIB),
    ] {
        let file = new_file(&ground.at(name), size);
        let error = payer.reserve(&[(file.as_fd(), all(length))]).unwrap_err();
        let ReserveError::Full(full) = error else {
            panic!("{name}: {error}")
        };
        assert_eq!(full.limit, Limit::Cgroup, "{name}");
        assert_eq!(full.asked, length);
        assert!(full.free < length, "{name}: {full}");
    }
    ground.assert_used(0);
    assert_eq!(ground.oom_kills(), 0);
    assert!(ground.memory(pod).usage().unwrap() < before + 3 * MIB);
    // What fits goes on fitting.
    for (index, length) in [20 * MIB, 16 * MIB, PAGE, 3 * PAGE, REGION]
        .into_iter()
        .enumerate()
    {
        let file = new_file(&ground.at(&format!("fits {index}")), length);
        payer.reserve(&[(file.as_fd(), all(length))]).unwrap();
    }
    // Until it is full, in small batches: each is whole or not there.
    let mut reserved = 38 * MIB + 4 * PAGE;
    loop {
        let files: Vec<File> = (0..50)
            .map(|i| new_file(&ground.at(&format!("{reserved}-{i}")), 8 * PAGE))
            .collect();
        let batch: Vec<_> = files.iter().map(|f| (f.as_fd(), all(8 * PAGE))).collect();
        match payer.reserve(&batch) {
            Ok(()) => reserved += 50 * 8 * PAGE,
            Err(ReserveError::Full(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(reserved > 48 * MIB, "{reserved}");
    assert_eq!(ground.bills(), [(pod, reserved)]);
    assert_eq!(ground.oom_kills(), 0);
    assert!(ground.all_alive());
}

#[test]
fn a_limit_of_the_payer_refuses_a_reserve_and_kills_nobody() {
    let Some(mut ground) = Ground::new(1024 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", Some(64 * MIB));
    let payer = ground.payer(pod);
    limits_are_respected(&mut ground, &payer, pod);
}

#[test]
fn a_limit_above_the_payer_refuses_a_reserve_and_kills_nobody() {
    let Some(mut ground) = Ground::new(1024 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", Some(64 * MIB));
    let below = ground.directory_of(pod);
    let container = ground.cgroup_below(&below, "sidecar", None);
    let payer = ground.payer(container);
    limits_are_respected(&mut ground, &payer, container);
}

#[test]
fn a_limit_that_the_payer_cannot_see_refuses_a_reserve_and_kills_nobody() {
    let Some(mut ground) = Ground::new(1024 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", Some(64 * MIB));
    let below = ground.directory_of(pod);
    let container = ground.cgroup_below(&below, "sidecar", None);
    let payer = ground.payer_seeing(container, false);
    limits_are_respected(&mut ground, &payer, container);
}

#[test]
fn however_little_is_left_below_a_hidden_limit_asking_for_it_kills_nobody() {
    let Some(mut ground) = Ground::new(1024 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", None);
    let below = ground.directory_of(pod);
    let neighbour = ground.cgroup_below(&below, "neighbour", None);
    let container = ground.cgroup_below(&below, "sidecar", None);
    let held = new_file(&ground.at("held"), 0);
    let seeing = ground.payer(neighbour);
    seeing.reserve(&[(held.as_fd(), all(32 * MIB))]).unwrap();
    let payer = ground.payer_seeing(container, false);
    let file = new_file(&ground.at("file"), REGION);
    payer.reserve(&[(file.as_fd(), all(PAGE))]).unwrap();
    free(&file, 0, REGION);
    let asked = |length| match payer.reserve(&[(file.as_fd(), all(length))]) {
        Ok(()) => {
            free(&file, 0, REGION);
            true
        }
        Err(ReserveError::Full(full)) => {
            assert_eq!(full.limit, Limit::Cgroup);
            false
        }
        Err(error) => panic!("{error}"),
    };
    let mut left = 2 * REGION;
    while asked(PAGE) {
        left -= 16 * PAGE;
        let usage = ground.memory(pod).usage().unwrap();
        ground.limit(pod, usage + left);
    }

    // One page more is left from step to step, across the 2 MiB that a probe takes and the 4 that a region does.
    let (mut given, mut refused) = (0, 0);
    for length in [PAGE, REGION] {
        let mut granted = 0;
        while granted < 60 {
            match asked(length) {
                true => granted += 1,
                false => refused += 1,
            }
            free(&held, given, PAGE);
            given += PAGE;
        }
    }
    assert!(refused > 100, "{refused}");
    assert_eq!(ground.oom_kills(), 0);
    assert!(ground.all_alive());
}

#[test]
fn many_clients_at_a_limit_get_what_fits_and_kill_nobody() {
    for limits_are_seen in [true, false] {
        let Some(mut ground) = Ground::new(1024 * MIB) else {
            return;
        };
        let pod = ground.cgroup("pod", Some(96 * MIB));
        let below = ground.directory_of(pod);
        let container = ground.cgroup_below(&below, "sidecar", None);
        let first = ground.payer_seeing(container, limits_are_seen);
        let clients = [first, ground.client(), ground.client(), ground.client()];
        let volume = ground.volume();
        let full: u32 = thread::scope(|scope| {
            let threads: Vec<_> = clients
                .iter()
                .map(|payer| scope.spawn(|| fill_and_free(payer, &volume)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert!(full > 0, "the limit was never met");
        assert_eq!(ground.oom_kills(), 0, "limits seen: {limits_are_seen}");
        assert!(ground.all_alive());
        ground.assert_used(0);
    }
}

/// Reserves files of changing sizes until they do not fit, frees them all, and again. Returns how often it was full.
fn fill_and_free(payer: &dyn Payer, volume: &Path) -> u32 {
    let mut full = 0;
    for round in 0..6 {
        let mut held = Vec::new();
        for length in [PAGE, 9 * MIB, 40 * PAGE, 5 * MIB + PAGE, REGION]
            .into_iter()
            .cycle()
        {
            let file = File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .open(volume)
                .unwrap();
            file.set_len(if round % 2 == 0 { length } else { 0 })
                .unwrap();
            match payer.reserve(&[(file.as_fd(), all(length))]) {
                Ok(()) => held.push(file),
                Err(ReserveError::Full(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        full += 1;
    }
    full
}

fn free(file: &File, offset: u64, length: u64) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, offset.cast_signed(), length.cast_signed()).unwrap();
}

#[test]
fn page_cache_of_the_pod_makes_room_for_a_reserve() {
    let Some(mut ground) = Ground::new(1024 * MIB) else {
        return;
    };
    let pod = ground.cgroup("pod", Some(64 * MIB));
    let cached = ground.outside("cached");
    let file_system = nix::sys::statfs::statfs(cached.parent().unwrap()).unwrap();
    if file_system.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
        return eprintln!("skipped: no disk here, so no page cache");
    }
    ground.write_in(pod, &cached, 100 * MIB);
    assert!(
        ground.memory(pod).usage().unwrap() > 40 * MIB,
        "the cgroup is full of page cache"
    );
    let payer = ground.payer(pod);
    for (name, size) in [("huge", 24 * MIB), ("pages", 0)] {
        let file = new_file(&ground.at(name), size);
        payer.reserve(&[(file.as_fd(), all(24 * MIB))]).unwrap();
        // Pages beyond the end are billed, but no survey shows to whom.
        file.set_len(24 * MIB).unwrap();
    }
    assert_eq!(ground.bills(), [(pod, 48 * MIB)]);
    assert_eq!(ground.oom_kills(), 0);
    assert!(ground.all_alive());
}
