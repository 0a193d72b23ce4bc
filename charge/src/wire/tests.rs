use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vineyard_proto::payer::{Hello, Pull, Range, Request, Reserve, request};

use super::*;

fn reserve(id: u64, ranges: usize) -> Request {
    let ranges = (0..ranges as u64)
        .map(|offset| Range { offset, length: 1 })
        .collect();
    Request {
        id,
        body: Some(request::Body::Reserve(Reserve { ranges })),
    }
}

fn hello(id: u64, client: &str) -> Request {
    let hello = Hello {
        version: 1,
        client: client.to_owned(),
        held_bytes: 0,
    };
    Request {
        id,
        body: Some(request::Body::Hello(hello)),
    }
}

fn file_with(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn text_of(fd: OwnedFd) -> String {
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn descriptors_arrive_with_the_frame_that_they_were_sent_with() {
    let (client, server) = UnixStream::pair().unwrap();
    let files: Vec<File> = ["a", "b", "c"].map(file_with).into();
    let (a, b, c) = (files[0].as_fd(), files[1].as_fd(), files[2].as_fd());
    for (message, fds) in [
        (hello(1, "x"), vec![]),
        (reserve(2, 2), vec![a, b]),
        (hello(3, "y"), vec![]),
        (reserve(4, 1), vec![c]),
    ] {
        send(client.as_fd(), &encode(&message).unwrap(), &fds).unwrap();
    }
    drop(client);
    let mut frames = Frames::new();
    let mut seen = Vec::new();
    loop {
        while let Some((request, fds)) = frames.next::<Request>().unwrap() {
            let texts: String = fds.into_iter().map(text_of).collect();
            seen.push((request.id, texts));
        }
        if frames.fill(server.as_fd()).unwrap() == 0 {
            break;
        }
    }
    let expected = [(1, ""), (2, "ab"), (3, ""), (4, "c")].map(|(id, t)| (id, t.to_owned()));
    assert_eq!(seen, expected);
    assert!(!frames.is_partial());
}

#[test]
fn two_hundred_descriptors_pass_and_one_more_is_an_error() {
    let (client, server) = UnixStream::pair().unwrap();
    let file = file_with("x");
    let frame = encode(&reserve(1, 200)).unwrap();
    send(client.as_fd(), &frame, &[file.as_fd(); 200]).unwrap();
    let mut frames = Frames::new();
    let fds = loop {
        if let Some((_, fds)) = frames.next::<Request>().unwrap() {
            break fds;
        }
        frames.fill(server.as_fd()).unwrap();
    };
    assert_eq!(fds.len(), 200);
    send(client.as_fd(), &frame, &[file.as_fd(); 201]).unwrap();
    let refused = loop {
        match frames.fill(server.as_fd()) {
            Ok(_) => assert!(frames.next::<Request>().unwrap().is_none()),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn received_descriptors_do_not_survive_exec() {
    let (client, server) = UnixStream::pair().unwrap();
    let file = file_with("x");
    send(client.as_fd(), b"f", &[file.as_fd()]).unwrap();
    let mut fds = Vec::new();
    receive_with_fds(server.as_fd(), &mut [0; 8], &mut fds).unwrap();
    let flags = nix::fcntl::fcntl(&fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_ne!(flags & libc::FD_CLOEXEC, 0);
}

#[test]
fn a_frame_that_is_too_large_is_refused_before_it_is_read() {
    let (mut client, server) = UnixStream::pair().unwrap();
    client.write_all(&u32::MAX.to_le_bytes()).unwrap();
    let mut frames = Frames::new();
    frames.fill(server.as_fd()).unwrap();
    assert!(matches!(
        frames.next::<Request>(),
        Err(WireError::TooLarge { .. })
    ));
    let too_long = hello(1, &"x".repeat(MAX_FRAME));
    assert!(matches!(encode(&too_long), Err(WireError::TooLarge { .. })));
}

#[test]
fn a_closed_peer_is_an_error_and_not_a_signal() {
    let (client, server) = UnixStream::pair().unwrap();
    drop(server);
    let error = send(client.as_fd(), b"frame", &[]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_frames_or_an_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        pieces in proptest::collection::vec(1usize..40, 1..40),
    ) {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut frames = Frames::new();
        let mut rest = bytes.as_slice();
        for piece in pieces.into_iter().cycle() {
            let Some((now, later)) = rest.split_at_checked(piece.min(rest.len())) else { break };
            if now.is_empty() { break }
            client.write_all(now).unwrap();
            frames.fill(server.as_fd()).unwrap();
            match frames.next::<Request>() {
                Ok(_) => {}
                Err(_) => return Ok(()),
            }
            rest = later;
        }
    }

    #[test]
    fn frames_survive_being_cut_anywhere(ids in proptest::collection::vec(any::<u64>(), 1..8), piece in 1usize..30) {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut stream = Vec::new();
        for id in &ids {
            let pull = Pull { ranges: vec![Range { offset: *id, length: 7 }] };
            stream.extend(encode(&Request { id: *id, body: Some(request::Body::Pull(pull)) }).unwrap());
        }
        let mut frames = Frames::new();
        let mut seen = Vec::new();
        for part in stream.chunks(piece) {
            client.write_all(part).unwrap();
            frames.fill(server.as_fd()).unwrap();
            while let Some((request, _)) = frames.next::<Request>().unwrap() {
                seen.push(request.id);
            }
        }
        prop_assert_eq!(seen, ids);
    }
}
