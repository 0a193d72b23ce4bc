use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::{FallocateFlags, fallocate};

use super::*;
use crate::cgroup::MemoryCgroup;

/// Owners are shown to root only.
fn surveyor() -> Option<Surveyor> {
    match Surveyor::open() {
        Ok(surveyor) => Some(surveyor),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn file() -> File {
    tempfile::tempfile_in("/dev/shm").unwrap()
}

fn allocated(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn what_this_process_writes_is_charged_to_its_cgroup() {
    let Some(mut surveyor) = surveyor() else {
        return;
    };
    let own = MemoryCgroup::own().map_or(CgroupId::ROOT, |own| own.id());
    for size in [
        0,
        1,
        4095,
        4096,
        4097,
        REGION - 1,
        REGION,
        REGION + 1,
        70 << 20,
    ] {
        let file = file();
        file.write_all_at(&vec![7; usize::try_from(size).unwrap()], 0)
            .unwrap();
        let summary = surveyor.summary(file.as_fd()).unwrap();
        let bytes = size.next_multiple_of(PAGE);
        assert_eq!(summary.present, bytes);
        assert_eq!(summary.owners.get(&own).copied().unwrap_or(0), bytes);
        assert_eq!(summary.unseen, 0);
    }
}

#[test]
fn pages_that_were_allocated_and_never_written_are_seen() {
    let Some(mut surveyor) = surveyor() else {
        return;
    };
    let file = file();
    file.set_len(64 * PAGE).unwrap();
    let pages = |first: i64, count: i64| {
        let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, first * 4096, count * 4096).unwrap();
    };
    pages(3, 5);
    pages(20, 1);
    file.write_all_at(b"written", 40 * PAGE).unwrap();
    let summary = surveyor.summary(file.as_fd()).unwrap();
    assert_eq!(summary.present + summary.unseen, 7 * PAGE);
    if resident_is_exact(&file) {
        assert_eq!(summary.present, 7 * PAGE);
    }
    assert_eq!(allocated(&file), 7 * PAGE, "a survey allocates nothing");
}

#[test]
fn a_hole_is_never_filled_by_looking_at_it() {
    let Some(mut surveyor) = surveyor() else {
        return;
    };
    let file = file();
    file.set_len(100 << 20).unwrap();
    file.write_all_at(b"x", 50 << 20).unwrap();
    let mut seen = Vec::new();
    surveyor
        .regions(file.as_fd(), |region| seen.push(region.clone()))
        .unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].offset, seen[0].present), (50 << 20, PAGE));
    assert!(!seen[0].is_huge);
    assert_eq!(allocated(&file), PAGE);
}

#[test]
fn pages_beyond_the_end_are_counted_but_not_attributed() {
    let Some(mut surveyor) = surveyor() else {
        return;
    };
    let file = file();
    file.write_all_at(b"x", 0).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 5 * 4096).unwrap();
    let summary = surveyor.summary(file.as_fd()).unwrap();
    assert_eq!((summary.present, summary.unseen), (PAGE, 4 * PAGE));
}

#[test]
fn a_file_of_a_hundred_gibibytes_takes_no_more_memory_than_a_small_one() {
    let Some(mut surveyor) = surveyor() else {
        return;
    };
    let before = surveyor.buffer_bytes();
    assert!(before <= 1 << 20);
    let file = file();
    file.set_len(100 << 30).unwrap();
    for island in [0i64, 33 << 30, (100 << 30) - (64 << 20)] {
        fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, island, 64 << 20).unwrap();
    }
    let mut regions = 0;
    let summary = surveyor.regions(file.as_fd(), |_| regions += 1).unwrap();
    assert_eq!(summary.present + summary.unseen, 192 << 20);
    // Earlier kernels do not show what was allocated and never written.
    assert_eq!(regions, if resident_is_exact(&file) { 96 } else { 0 });
    assert_eq!(allocated(&file), 192 << 20);
    assert_eq!(surveyor.buffer_bytes(), before);
}

#[test]
fn a_huge_page_is_recognised() {
    let Some(mut surveyor) = surveyor() else {
        return;
    };
    let file = file();
    file.set_len(2 * REGION).unwrap();
    let all = Extent {
        offset: 0,
        length: REGION,
    };
    use crate::payer::Payer;
    crate::OwnPayer::new()
        .reserve(&[(file.as_fd(), all)])
        .unwrap();
    let mut huge = Vec::new();
    surveyor
        .regions(file.as_fd(), |region| {
            huge.push((region.present, region.is_huge))
        })
        .unwrap();
    // Without huge pages on this kernel the reserve falls back to small ones.
    assert!(
        huge == [(REGION, true)] || huge == [(REGION, false)],
        "{huge:?}"
    );
}

#[test]
fn a_hostile_tree_is_surveyed_to_its_end() {
    if surveyor().is_none() {
        return;
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/one"), vec![1; 5000]).unwrap();
    fs::hard_link(at("a/b/one"), at("two")).unwrap();
    fs::write(at("three"), b"x").unwrap();
    std::os::unix::fs::symlink("/", at("out")).unwrap();
    std::os::unix::fs::symlink("..", at("a/up")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let tree = {
        let root = File::open(directory.path()).unwrap();
        survey_tree(&mut surveyor().unwrap(), root.as_fd()).unwrap()
    };
    assert_eq!(tree.files, 2);
    assert_eq!(tree.present, 3 * PAGE);
    let mut skipped: Vec<_> = tree
        .skipped
        .iter()
        .map(|s| s.path.to_str().unwrap())
        .collect();
    skipped.sort_unstable();
    assert_eq!(skipped, ["fifo", "socket"]);
}

fn resident_is_exact(file: &File) -> bool {
    crate::mapping::resident_pages(file.as_fd(), 0, PAGE).is_ok()
}
