//! Reserve, give back and pull: what is allocated, what is counted, what is refused.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;

use vineyard_proto::payer::reply::Body as Reply;
use vineyard_proto::payer::request::Body as Ask;
use vineyard_proto::payer::{Pull, Range, Reserve, full, refused::Reason};

use crate::harness::{Cgroup, Client, Sidecar, Volume, allocated};

const MIB: u64 = 1 << 20;

fn reason(reply: &Reply) -> Reason {
    match reply {
        Reply::Refused(refused) => refused.reason(),
        other => panic!("{other:?}"),
    }
}

fn range(offset: u64, length: u64) -> Ask {
    Ask::Reserve(Reserve {
        ranges: vec![Range { offset, length }],
    })
}

#[test]
fn a_batch_of_two_hundred_files_is_allocated_and_counted_in_pages() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let files = volume.files(200);
    let all: Vec<&File> = files.iter().collect();
    assert!(matches!(client.reserve(&all, 1000), Reply::Reserved(_)));
    for file in &files {
        assert_eq!(allocated(file), 4096);
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
    assert_eq!(client.spent(), 200 * 4096);
    assert_eq!(client.give_back(100 * 4096).spent_bytes, 100 * 4096);
}

#[test]
fn a_large_file_is_allocated_whole_and_its_size_stays() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    assert!(matches!(
        client.reserve(&[&file], 20 * MIB + 1),
        Reply::Reserved(_)
    ));
    assert_eq!(allocated(&file), 20 * MIB + 4096);
    assert_eq!(file.metadata().unwrap().len(), 0);
    assert_eq!(client.spent(), 20 * MIB + 4096);
}

#[test]
fn beyond_the_allowance_is_full_with_the_numbers_and_allocates_nothing() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    assert!(matches!(
        client.reserve(&[&file], 60 * MIB),
        Reply::Reserved(_)
    ));
    let more = volume.file();
    let Reply::Full(full) = client.reserve(&[&more], 5 * MIB) else {
        panic!("not full");
    };
    assert_eq!(full.limit(), full::Limit::Allowance);
    assert_eq!(
        (full.asked_bytes, full.free_bytes, full.limit_bytes),
        (5 * MIB, 4 * MIB, 64 * MIB)
    );
    assert_eq!(allocated(&more), 0);
    assert!(matches!(
        client.reserve(&[&more], 4 * MIB),
        Reply::Reserved(_)
    ));
}

#[test]
fn beyond_the_volume_is_full_and_the_allowance_is_free_again() {
    let Some(volume) = Volume::own("8m") else {
        return;
    };
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    for bytes in [9 * MIB, 8 * MIB + 1] {
        let file = volume.file();
        let Reply::Full(full) = client.reserve(&[&file], bytes) else {
            panic!("not full");
        };
        assert_eq!(full.limit(), full::Limit::Volume);
        assert_eq!(full.limit_bytes, 8 * MIB);
        assert_eq!(allocated(&file), 0);
        assert_eq!(client.spent(), 0);
    }
}

#[test]
fn several_volumes_are_served_each_with_its_own_capacity() {
    let (Some(large), Some(small), Some(foreign)) =
        (Volume::own("64m"), Volume::own("4m"), Volume::own("4m"))
    else {
        return;
    };
    let flags = ["--volume", small.path().to_str().unwrap()];
    let sidecar = Sidecar::start(&large, &flags);
    let mut client = sidecar.client();
    let (first, second) = (large.file(), small.file());
    let reply = client.reserve(&[&first, &second], 3 * MIB);
    assert!(matches!(reply, Reply::Reserved(_)), "{reply:?}");
    let Reply::Full(full) = client.reserve(&[&large.file(), &small.file()], 3 * MIB) else {
        panic!("not full");
    };
    assert_eq!(
        (full.limit(), full.limit_bytes),
        (full::Limit::Volume, 4 * MIB)
    );
    assert_eq!(client.spent(), 6 * MIB);
    let reply = client.reserve(&[&foreign.file()], 4096);
    assert_eq!(reason(&reply), Reason::Descriptor);
}

#[test]
fn beyond_the_cgroups_limit_is_full_and_nobody_is_killed() {
    let (Some(volume), Some(cgroup)) = (Volume::own("512m"), Cgroup::new()) else {
        return;
    };
    cgroup.limit(64 * MIB);
    let flags = ["--allowance", "1GiB"];
    let mut sidecar = Sidecar::spawn(cgroup.command(), &volume, &flags);
    let mut client = sidecar.client();
    let mut held = Vec::new();
    for bytes in [100 * MIB, 9 * MIB, MIB, 4096].into_iter().cycle().take(60) {
        let file = volume.file();
        match client.reserve(&[&file], bytes) {
            Reply::Reserved(_) => held.push(file),
            Reply::Full(full) => {
                assert_eq!(full.limit(), full::Limit::Cgroup);
                assert_eq!(full.limit_bytes, 64 * MIB);
                assert_eq!(allocated(&file), 0);
            }
            other => panic!("{other:?}"),
        }
    }
    let truth: u64 = held.iter().map(allocated).sum();
    assert!(truth > 40 * MIB, "only {truth} bytes fit");
    assert!((truth..=64 * MIB).contains(&client.spent()));
    assert_eq!(cgroup.oom_kills(), 0);
    assert!(sidecar.is_running());
}

#[test]
fn what_is_not_a_file_of_the_volume_is_refused_and_the_connection_stays() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let path = volume.path().join("object");
    File::create(&path).unwrap().write_all(b"x").unwrap();
    let fifo = volume.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let both = |path: &std::path::Path| OpenOptions::new().read(true).write(true).open(path);
    let elsewhere = tempfile::tempfile_in("/tmp").unwrap();
    let memory = File::from(
        nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap(),
    );
    for (what, descriptor) in [
        ("fifo", both(&fifo).unwrap().into()),
        ("pipe", pipe.into()),
        ("socket", socket.into()),
        ("directory", File::open(volume.path()).unwrap().into()),
        ("/dev/zero", both("/dev/zero".as_ref()).unwrap().into()),
        ("/proc file", File::open("/proc/self/stat").unwrap().into()),
        ("other device", elsewhere.into()),
        ("memfd", memory.into()),
        ("read-only", File::open(&path).unwrap().into()),
    ] {
        let descriptor: std::os::fd::OwnedFd = descriptor;
        let reply = client.ask(range(0, 4096), &[descriptor.as_fd()]);
        assert_eq!(reason(&reply), Reason::Descriptor, "{what}");
    }
    let good = volume.file();
    let reply = client.ask(range(0, 4096), &[good.as_fd(), good.as_fd()]);
    assert_eq!(reason(&reply), Reason::Descriptor);
    let reply = client.ask(range(0, 4096), &[]);
    assert_eq!(reason(&reply), Reason::Descriptor);
    assert_eq!(client.spent(), 0);
    assert!(matches!(client.reserve(&[&good], 4096), Reply::Reserved(_)));
}

#[test]
fn a_good_file_before_a_bad_one_is_not_allocated() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let (good, bad) = (volume.file(), File::open("/proc/self/stat").unwrap());
    let reply = client.reserve(&[&good, &bad], 4096);
    assert_eq!(reason(&reply), Reason::Descriptor);
    assert_eq!(allocated(&good), 0);
}

#[test]
fn ranges_that_are_none_are_refused() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    for (offset, length) in [
        (0, 0),
        (1, 4096),
        (u64::MAX, 1),
        (4096, u64::MAX),
        (i64::MAX as u64, 4096),
        (0, i64::MAX as u64),
    ] {
        let reply = client.ask(range(offset, length), &[file.as_fd()]);
        assert_eq!(reason(&reply), Reason::Range, "{offset} {length}");
    }
    assert_eq!(client.spent(), 0);
    assert_eq!(allocated(&file), 0);
    let reply = client.ask(range(0, 1 << 62), &[file.as_fd()]);
    assert!(matches!(reply, Reply::Full(_)), "{reply:?}");
}

#[test]
fn descriptors_on_other_requests_are_refused() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    let ask = Ask::GetUsage(vineyard_proto::payer::GetUsage {});
    assert_eq!(
        reason(&client.ask(ask, &[file.as_fd()])),
        Reason::Descriptor
    );
}

fn pull(client: &mut Client, file: &File, ranges: &[(u64, u64)]) -> Reply {
    let ranges = ranges
        .iter()
        .map(|&(offset, length)| Range { offset, length })
        .collect();
    client.ask(Ask::Pull(Pull { ranges }), &[file.as_fd()])
}

#[test]
fn a_read_only_file_is_pulled_and_keeps_its_content() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let content: Vec<u8> = (0..=u8::MAX).cycle().step_by(7).take(8 << 20).collect();
    let path = volume.path().join("object");
    std::fs::write(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    let Reply::Pulled(pulled) = pull(&mut client, &file, &[(0, 4 * MIB), (4 * MIB, 4 * MIB)])
    else {
        panic!("not pulled");
    };
    assert!(pulled.refused.iter().all(|offset| offset % (2 * MIB) == 0));
    assert!(std::fs::read(&path).unwrap() == content);
    let moved = 4 - pulled.refused.len() as u64;
    assert!(client.spent() <= moved * 2 * MIB);
}

#[test]
fn pulls_that_are_none_are_refused() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    for ranges in [
        &[(4096, 2 * MIB)][..],
        &[(0, 0)],
        &[(0, u64::MAX)],
        &[(0, 1 << 40)],
    ] {
        let reply = pull(&mut client, &file, ranges);
        assert_eq!(reason(&reply), Reason::Range, "{ranges:?}");
    }
    let reply = pull(&mut client, &file, &[(0, 66 * MIB)]);
    assert_eq!(reason(&reply), Reason::Busy);
    let foreign = File::open("/proc/self/stat").unwrap();
    let reply = pull(&mut client, &foreign, &[(0, 2 * MIB)]);
    assert_eq!(reason(&reply), Reason::Descriptor);
}
