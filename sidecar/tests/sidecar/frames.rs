//! What is no frame costs its sender the connection and nobody else anything.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use vineyard_charge::wire;
use vineyard_proto::payer::reply::Body as Reply;
use vineyard_proto::payer::request::Body as Ask;
use vineyard_proto::payer::{GetUsage, Hello, refused::Reason};

use crate::harness::{Client, HANG, Sidecar, Volume};

const ENDED: &str = "vineyard_sidecar_connections_ended_total";
const QUICK: &[&str] = &["--patience", "0.3"];

fn ended(reason: &str) -> String {
    format!("{ENDED}{{reason=\"{reason}\"}}")
}

#[test]
fn garbage_a_huge_length_and_an_empty_frame_end_the_connection() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut other = sidecar.client();
    let garbage = [0xff; 1000];
    let nonsense = Client::frame(40, &[0x5a; 40]);
    let cases: [&[u8]; 5] = [
        &garbage,
        &u32::MAX.to_le_bytes(),
        &(64 * 1024 - 3_u32).to_le_bytes(),
        &[0; 4],
        &nonsense,
    ];
    for (number, bytes) in cases.into_iter().enumerate() {
        let mut client = sidecar.client();
        client.raw(bytes).unwrap();
        client.is_dropped();
        sidecar.eventually(&ended("malformed"), (number + 1) as f64);
        other.usage();
    }
}

#[test]
fn the_largest_frame_is_read() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.stranger();
    let hello = |name: usize| {
        Ask::Hello(Hello {
            version: 1,
            client: "x".repeat(name),
            held_bytes: 0,
        })
    };
    let overhead = client.encode(hello(60_000)).len() - 60_000;
    let frame = client.encode(hello(wire::MAX_FRAME - overhead));
    assert_eq!(frame.len(), wire::MAX_FRAME);
    client.raw(&frame).unwrap();
    let welcome = client.reply().unwrap();
    assert!(matches!(welcome.body, Some(Reply::Welcome(_))));
}

#[test]
fn half_a_frame_and_silence_end_the_connection_after_the_patience() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, QUICK);
    for length in [1, 3, 4, 7] {
        let mut client = sidecar.client();
        let frame = client.encode(Ask::GetUsage(GetUsage {}));
        assert!(length < frame.len() + 4);
        let mut longer = Client::frame(60, &frame);
        longer.truncate(length);
        let begun = Instant::now();
        client.raw(&longer).unwrap();
        client.is_dropped();
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }
    sidecar.eventually(&ended("slow"), 4.0);
}

#[test]
fn half_a_frame_and_a_closed_socket_end_the_connection_at_once() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &["--patience", "3600"]);
    let mut client = sidecar.client();
    client.raw(&Client::frame(60, b"half")).unwrap();
    drop(client);
    sidecar.eventually(&ended("malformed"), 1.0);
}

#[test]
fn bytes_that_trickle_in_end_the_connection_although_it_is_never_silent() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, QUICK);
    let mut client = sidecar.client();
    client.raw(&4000_u32.to_le_bytes()).unwrap();
    let begun = Instant::now();
    while client.raw(&[0]).is_ok() {
        assert!(begun.elapsed() < HANG, "still listened to");
        std::thread::sleep(Duration::from_millis(10));
    }
    sidecar.eventually(&ended("slow"), 1.0);
}

#[test]
fn a_frame_in_a_few_pieces_is_one_frame() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    for split in 1..6 {
        let frame = client.encode(Ask::GetUsage(GetUsage {}));
        let (head, tail) = frame.split_at(split.min(frame.len() - 1));
        client.raw(head).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        client.raw(tail).unwrap();
        assert!(matches!(
            client.reply().unwrap().body,
            Some(Reply::Usage(_))
        ));
    }
}

#[test]
fn descriptors_on_the_first_piece_of_a_frame_belong_to_it() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    let ask = Ask::Reserve(vineyard_proto::payer::Reserve {
        ranges: vec![vineyard_proto::payer::Range {
            offset: 0,
            length: 4096,
        }],
    });
    let frame = client.encode(ask);
    let (head, tail) = frame.split_at(6);
    let sent = wire::send_with_fds(client.stream().as_fd(), head, &[file.as_fd()]).unwrap();
    assert_eq!(sent, head.len());
    std::thread::sleep(Duration::from_millis(20));
    client.raw(tail).unwrap();
    assert!(matches!(
        client.reply().unwrap().body,
        Some(Reply::Reserved(_))
    ));
}

#[test]
fn many_requests_in_one_write_are_answered_in_order() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let frames: Vec<u8> = (0..500)
        .flat_map(|_| client.encode(Ask::GetUsage(GetUsage {})))
        .collect();
    client.raw(&frames).unwrap();
    for id in 2..502 {
        assert_eq!(client.reply().unwrap().id, id);
    }
}

#[test]
fn a_client_that_never_reads_its_replies_is_dropped() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, QUICK);
    let mut client = sidecar.client();
    let frames: Vec<u8> = (0..1000)
        .flat_map(|_| client.encode(Ask::GetUsage(GetUsage {})))
        .collect();
    let begun = Instant::now();
    while client.stream().write_all(&frames).is_ok() {
        assert!(begun.elapsed() < HANG, "still listened to");
    }
    sidecar.eventually(&ended("slow"), 1.0);
}

#[test]
fn the_first_request_must_be_a_hello_of_this_version_and_there_is_only_one() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let hello = |version| {
        Ask::Hello(Hello {
            version,
            client: "test".into(),
            held_bytes: 0,
        })
    };
    let mut eager = sidecar.stranger();
    let mut old = sidecar.stranger();
    let mut twice = sidecar.client();
    for reply in [
        eager.ask(Ask::GetUsage(GetUsage {}), &[]),
        old.ask(hello(2), &[]),
        twice.ask(hello(1), &[]),
    ] {
        let Reply::Refused(refused) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(refused.reason(), Reason::Version);
    }
    for mut client in [eager, old, twice] {
        client.is_dropped();
    }
    sidecar.eventually(&ended("refused"), 3.0);
}

#[test]
fn who_never_says_hello_is_dropped_and_who_did_may_be_silent() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, QUICK);
    let mut quiet = sidecar.client();
    let mut stranger = sidecar.stranger();
    stranger.is_dropped();
    std::thread::sleep(Duration::from_millis(600));
    quiet.usage();
}

#[test]
fn a_request_that_this_version_does_not_know_is_refused_and_the_connection_stays() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    // Field 1 (id) = 9, field 77 = an empty message.
    let unknown = [0x08, 9, 0xea, 0x04, 0];
    client.raw(&Client::frame(5, &unknown)).unwrap();
    let reply = client.reply().unwrap();
    assert_eq!(reply.id, 9);
    assert!(matches!(reply.body, Some(Reply::Refused(_))));
    client.usage();
}

#[test]
fn more_than_two_hundred_descriptors_end_the_connection() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    let many: Vec<BorrowedFd<'_>> = (0..201).map(|_| file.as_fd()).collect();
    client.say(Ask::GetUsage(GetUsage {}), &many);
    client.is_dropped();
    sidecar.eventually(&ended("malformed"), 1.0);
}

#[test]
fn descriptors_on_every_byte_of_a_frame_end_the_connection() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, QUICK);
    let mut client = sidecar.client();
    let file = volume.file();
    let many: Vec<BorrowedFd<'_>> = (0..200).map(|_| file.as_fd()).collect();
    for byte in Client::frame(100, &[0; 100]) {
        if wire::send_with_fds(client.stream().as_fd(), &[byte], &many).is_err() {
            break;
        }
    }
    client.is_dropped();
    sidecar.client();
}
