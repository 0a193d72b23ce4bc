//! One connection to the sidecar, without any of the real client's good manners.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use prost::Message;
use vineyard_charge::wire;
use vineyard_proto::payer::reply::Body as Reply;
use vineyard_proto::payer::request::Body as Ask;
use vineyard_proto::payer::{self, GetUsage, GiveBack, Hello, Range, Request, Reserve};

use super::HANG;

pub(crate) struct Client {
    stream: UnixStream,
    last: u64,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        Self { stream, last: 0 }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(crate) fn hello(&mut self) -> payer::Welcome {
        self.hello_with(1, 0)
    }

    pub(crate) fn hello_with(&mut self, version: u32, held_bytes: u64) -> payer::Welcome {
        let hello = Hello {
            version,
            client: "test".into(),
            held_bytes,
        };
        match self.ask(Ask::Hello(hello), &[]) {
            Reply::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A frame with whatever length and content, and its descriptors.
    pub(crate) fn frame(length: u32, body: &[u8]) -> Vec<u8> {
        let mut frame = length.to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        frame
    }

    pub(crate) fn encode(&mut self, ask: Ask) -> Vec<u8> {
        self.last += 1;
        wire::encode(&Request {
            id: self.last,
            body: Some(ask),
        })
        .unwrap()
    }

    pub(crate) fn say(&mut self, ask: Ask, descriptors: &[BorrowedFd<'_>]) {
        let frame = self.encode(ask);
        wire::send(self.stream.as_fd(), &frame, descriptors).unwrap();
    }

    pub(crate) fn ask(&mut self, ask: Ask, descriptors: &[BorrowedFd<'_>]) -> Reply {
        self.say(ask, descriptors);
        let reply = self.reply().expect("no reply");
        assert_eq!(reply.id, self.last);
        reply.body.expect("a reply without content")
    }

    pub(crate) fn reply(&mut self) -> io::Result<payer::Reply> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.stream.read_exact(&mut body)?;
        payer::Reply::decode(body.as_slice()).map_err(io::Error::other)
    }

    /// Whether there is something to read.
    pub(crate) fn has_reply(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.stream.as_raw_fd(), &mut [0], flags).is_ok()
    }

    pub(crate) fn reserve(&mut self, files: &[&File], bytes: u64) -> Reply {
        let ranges = files
            .iter()
            .map(|_| Range {
                offset: 0,
                length: bytes,
            })
            .collect();
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.ask(Ask::Reserve(Reserve { ranges }), &descriptors)
    }

    pub(crate) fn give_back(&mut self, bytes: u64) -> payer::Usage {
        match self.ask(Ask::GiveBack(GiveBack { bytes }), &[]) {
            Reply::Usage(usage) => usage,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn usage(&mut self) -> payer::Usage {
        match self.ask(Ask::GetUsage(GetUsage {}), &[]) {
            Reply::Usage(usage) => usage,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn spent(&mut self) -> u64 {
        self.usage().spent_bytes
    }

    /// Waits until the sidecar says that so much is spent.
    pub(crate) fn eventually_spent(&mut self, range: std::ops::RangeInclusive<u64>) {
        let begun = Instant::now();
        loop {
            let spent = self.spent();
            if range.contains(&spent) {
                return;
            }
            assert!(
                begun.elapsed() < HANG,
                "{spent} bytes are spent, not {range:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the sidecar to close the connection, after at most a few last replies.
    pub(crate) fn is_dropped(&mut self) {
        loop {
            match self.reply() {
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => return,
                    _ => panic!("still connected: {error}"),
                },
            }
        }
    }
}
