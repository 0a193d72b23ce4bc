//! One client's misbehaviour, size or death is not another's business.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vineyard_charge::wire;
use vineyard_proto::payer::reply::Body as Reply;
use vineyard_proto::payer::request::Body as Ask;
use vineyard_proto::payer::{Range, Reserve};

use crate::harness::{Client, HANG, Sidecar, Volume};

const MIB: u64 = 1 << 20;
const SLOW: &str = "vineyard_sidecar_connections_ended_total{reason=\"slow\"}";

fn open_files(sidecar: &Sidecar) -> usize {
    fs::read_dir(format!("/proc/{}/fd", sidecar.pid()))
        .unwrap()
        .count()
}

/// The descriptors of a sidecar that has everything open that it keeps open.
fn warm(sidecar: &Sidecar, volume: &Volume) -> usize {
    let mut client = sidecar.client();
    let file = volume.file();
    for bytes in [4096, 5 * MIB] {
        assert!(matches!(
            client.reserve(&[&file], bytes),
            Reply::Reserved(_)
        ));
        client.give_back(bytes);
    }
    drop(client);
    sidecar.eventually("vineyard_sidecar_connections", 0.0);
    open_files(sidecar)
}

fn eventually_open(sidecar: &Sidecar, wanted: usize) {
    let begun = Instant::now();
    while open_files(sidecar) > wanted {
        let open = open_files(sidecar);
        assert!(
            begun.elapsed() < HANG,
            "{open} files are open, not {wanted}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_thousand_clients_are_served_and_leave_nothing_behind() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let before = warm(&sidecar, &volume);
    let mut clients: Vec<Client> = (0..1000).map(|_| sidecar.client()).collect();
    sidecar.eventually("vineyard_sidecar_connections", 1000.0);
    let file = volume.file();
    for client in &mut clients {
        assert!(matches!(client.reserve(&[&file], 4096), Reply::Reserved(_)));
        client.give_back(4096);
    }
    drop(clients);
    sidecar.eventually("vineyard_sidecar_connections", 0.0);
    eventually_open(&sidecar, before);
}

#[test]
fn clients_beyond_the_limits_hear_busy_and_the_others_go_on() {
    let volume = Volume::shared();
    let flags = ["--max-connections", "4", "--max-connections-per-uid", "3"];
    let sidecar = Sidecar::start(&volume, &flags);
    let mut clients: Vec<Client> = (0..3).map(|_| sidecar.client()).collect();
    let mut late = sidecar.stranger();
    let Some(Reply::Refused(refused)) = late.reply().unwrap().body else {
        panic!("not refused");
    };
    assert!(refused.message.contains('3'), "{}", refused.message);
    late.is_dropped();
    for client in &mut clients {
        client.usage();
    }
    clients.pop();
    sidecar.eventually("vineyard_sidecar_connections", 2.0);
    sidecar.client();
}

#[test]
fn half_frames_with_descriptors_occupy_nothing_in_the_sidecar() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &["--patience", "3600"]);
    let before = warm(&sidecar, &volume) + 1;
    let mut witness = sidecar.client();
    let file = volume.file();
    let many: Vec<BorrowedFd<'_>> = (0..200).map(|_| file.as_fd()).collect();
    let half = Client::frame(100, b"half");
    let senders: Vec<Client> = (0..20).map(|_| sidecar.client()).collect();
    for client in &senders {
        wire::send_with_fds(client.stream().as_fd(), &half, &many).unwrap();
    }
    for _ in 0..20 {
        witness.usage();
        assert!(open_files(&sidecar) <= before + senders.len());
    }
}

#[test]
fn a_client_that_dies_with_requests_in_flight_leaves_no_trace() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &["--allowance", "1GiB"]);
    let before = warm(&sidecar, &volume);
    for round in 0..20 {
        let mut client = sidecar.client();
        let files = volume.files(10);
        for file in &files {
            let ranges = vec![Range {
                offset: 0,
                length: if round % 2 == 0 { 4096 } else { 3 * MIB },
            }];
            client.say(Ask::Reserve(Reserve { ranges }), &[file.as_fd()]);
        }
    }
    sidecar.eventually("vineyard_sidecar_connections", 0.0);
    eventually_open(&sidecar, before);
    sidecar.client();
}

#[test]
fn a_well_behaved_client_gets_every_answer_while_others_misbehave() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &["--patience", "0.2", "--allowance", "256MiB"]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut workers = Vec::new();
        workers.push(scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let mut bad = sidecar.client();
                let frame = match rounds % 4 {
                    0 => u32::MAX.to_le_bytes().to_vec(),
                    1 => vec![0xff; 4000],
                    2 => Client::frame(100, b"half"),
                    _ => Client::frame(3, b"xyz"),
                };
                let _ = bad.raw(&frame);
                rounds += 1;
            }
            rounds
        }));
        workers.push(scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let mut big = sidecar.client();
                let file = volume.file();
                assert!(matches!(
                    big.reserve(&[&file], 128 * MIB),
                    Reply::Reserved(_)
                ));
                drop(file);
                big.give_back(128 * MIB);
                rounds += 1;
            }
            rounds
        }));
        let mut good = sidecar.client();
        for _ in 0..500 {
            let files = volume.files(20);
            let all: Vec<_> = files.iter().collect();
            assert!(matches!(good.reserve(&all, 4096), Reply::Reserved(_)));
            drop(files);
            good.give_back(20 * 4096);
        }
        done.store(true, Ordering::Relaxed);
        for worker in workers {
            assert!(worker.join().unwrap() > 0);
        }
    });
}

#[test]
fn small_requests_pass_a_large_one_that_is_under_way() {
    let volume = Volume::shared();
    let flags = ["--allowance", "4GiB", "--max-large", "1"];
    let sidecar = Sidecar::start(&volume, &flags);
    let mut big = sidecar.client();
    let mut small = sidecar.client();
    let files = volume.files(6);
    for file in &files {
        let ranges = vec![Range {
            offset: 0,
            length: 200 * MIB,
        }];
        big.say(Ask::Reserve(Reserve { ranges }), &[file.as_fd()]);
    }
    let mut passed = 0;
    for _ in &files {
        loop {
            small.usage();
            passed += 1;
            if big.has_reply() {
                break;
            }
            thread::sleep(Duration::from_micros(100));
        }
        assert!(matches!(
            big.reply().unwrap().body,
            Some(Reply::Reserved(_))
        ));
    }
    assert!(passed > files.len(), "only {passed} small requests passed");
}

/// Long against what the tests do meanwhile. Not longer: a process that another test starts at this moment has copies of both ends until
/// it executes its program, closes the one that lingers first, and holds the other, which would end the wait.
const LINGER: Duration = Duration::from_secs(30);

/// A TCP socket whose last close takes this long: its peer does not read what it was sent.
fn lingering(time: Duration) -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    sender.set_nonblocking(true).unwrap();
    while (&sender).write(&[0; 65536]).is_ok() {}
    sender.set_nonblocking(false).unwrap();
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: i32::try_from(time.as_secs()).unwrap(),
    };
    nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    (sender.into(), peer)
}

#[test]
fn a_descriptor_that_hangs_when_closed_hangs_only_its_sender() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut good = sidecar.client();
    let mut bad = sidecar.client();
    let (descriptor, peer) = lingering(LINGER);
    let ranges = vec![Range {
        offset: 0,
        length: 4096,
    }];
    bad.say(Ask::Reserve(Reserve { ranges }), &[descriptor.as_fd()]);
    drop(descriptor);
    for _ in 0..200 {
        good.usage();
        assert!(!bad.has_reply(), "nothing hangs");
        thread::sleep(Duration::from_millis(1));
    }
    // The peer that goes ends the wait.
    drop(peer);
    assert!(matches!(bad.reply().unwrap().body, Some(Reply::Refused(_))));
}

#[test]
fn a_descriptor_that_hangs_in_the_queue_of_a_dropped_client_hangs_nobody() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &["--patience", "0.2"]);
    let mut good = sidecar.client();
    let mut bad = sidecar.client();
    let (descriptor, peer) = lingering(LINGER);
    let half = Client::frame(100, b"half");
    wire::send_with_fds(bad.stream().as_fd(), &half, &[descriptor.as_fd()]).unwrap();
    drop(descriptor);
    sidecar.eventually(SLOW, 1.0);
    for _ in 0..100 {
        good.usage();
    }
    drop(peer);
    bad.is_dropped();
}
