//! One connection to a payer: hello, then requests and replies in order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vineyard_proto::payer::{Hello, Reply, Request, Welcome, refused, reply, request};

use super::ReserveError;
use crate::wire::{self, Frames, WireError};

/// The version of `payer.proto` spoken here.
const VERSION: u32 = 1;

/// How long a payer that restarts is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a payer may take for anything, and the slowest rate at which it allocates: a cold virtual machine.
const REPLY_TIME: Duration = Duration::from_secs(30);
const SLOWEST: u64 = 64 << 20;

/// Ids begin at 1: a reply to this one says why the connection is not served at all.
const NOBODY: u64 = 0;

/// Why an exchange ended without a reply.
pub(super) enum Lost {
    /// The payer closed the connection: a restart, or a refusal of what we sent.
    Gone(io::Error),
    /// It did not answer in time.
    Silent(io::Error),
    /// It answered nonsense, or our request cannot be sent.
    Invalid(io::Error),
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    frames: Frames,
    next: u64,
    welcome: Welcome,
}

impl Connection {
    /// Connects, with growing pauses until the payer is there, and says hello.
    pub(super) fn open(path: &Path, client: &str, held: u64) -> Result<Self, ReserveError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(5);
        loop {
            let error = match Self::attempt(path, client, held) {
                Ok(connection) => return Ok(connection),
                Err(ReserveError::Unreachable(error)) => error,
                Err(other) => return Err(other),
            };
            if Instant::now() + pause > deadline {
                return Err(ReserveError::Unreachable(error));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    fn attempt(path: &Path, client: &str, held: u64) -> Result<Self, ReserveError> {
        let stream = UnixStream::connect(path).map_err(ReserveError::Unreachable)?;
        let mut connection = Self {
            stream,
            frames: Frames::new(),
            next: 0,
            welcome: Welcome::default(),
        };
        let hello = Hello {
            version: VERSION,
            client: client.to_owned(),
            held_bytes: held,
        };
        match connection.exchange(request::Body::Hello(hello), &[], 0) {
            Ok(reply::Body::Welcome(welcome)) => {
                connection.welcome = welcome;
                Ok(connection)
            }
            // Others may hang up in a moment.
            Ok(reply::Body::Refused(refused)) if refused.reason() == refused::Reason::Busy => {
                let busy = io::Error::new(io::ErrorKind::ResourceBusy, refused.message);
                Err(ReserveError::Unreachable(busy))
            }
            Ok(reply::Body::Refused(refused)) => Err(ReserveError::Refused {
                message: refused.message,
            }),
            Ok(other) => Err(ReserveError::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the payer answered hello with {other:?}"),
            ))),
            Err(Lost::Gone(error) | Lost::Silent(error)) => Err(ReserveError::Unreachable(error)),
            Err(Lost::Invalid(error)) => Err(ReserveError::Io(error)),
        }
    }

    pub(super) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Sends a request and waits for its reply. `bytes` is what the payer has to touch for it.
    pub(super) fn exchange(
        &mut self,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
        bytes: u64,
    ) -> Result<reply::Body, Lost> {
        let id = self.send(body, descriptors)?;
        let deadline = Instant::now() + REPLY_TIME + Duration::from_secs(bytes / SLOWEST);
        loop {
            // Replies to what nobody waited for come first.
            while let Some(reply) = self.decoded()? {
                if reply.id == id || reply.id == NOBODY {
                    return reply
                        .body
                        .ok_or_else(|| Lost::Invalid(io::ErrorKind::InvalidData.into()));
                }
            }
            self.wait(deadline)?;
            if self.frames.fill(self.stream.as_fd()).map_err(Lost::Gone)? == 0 {
                return Err(Lost::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Sends a request whose reply does not matter.
    pub(super) fn tell(&mut self, body: request::Body) -> Result<(), Lost> {
        // Read what has come in, so that neither side ever waits for the other to read.
        while self.readable(Duration::ZERO)? {
            if self.frames.fill(self.stream.as_fd()).map_err(Lost::Gone)? == 0 {
                return Err(Lost::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
            while self.decoded()?.is_some() {}
        }
        self.send(body, &[]).map(|_| ())
    }

    fn send(&mut self, body: request::Body, descriptors: &[BorrowedFd<'_>]) -> Result<u64, Lost> {
        self.next += 1;
        let request = Request {
            id: self.next,
            body: Some(body),
        };
        let frame = wire::encode(&request).map_err(invalid)?;
        wire::send(self.stream.as_fd(), &frame, descriptors).map_err(Lost::Gone)?;
        Ok(self.next)
    }

    fn decoded(&mut self) -> Result<Option<Reply>, Lost> {
        let frame = self.frames.next::<Reply>().map_err(invalid)?;
        Ok(frame.map(|(reply, _)| reply))
    }

    fn wait(&self, deadline: Instant) -> Result<(), Lost> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Lost::Silent(io::ErrorKind::TimedOut.into()));
            }
            if self.readable(left.min(Duration::from_secs(1)))? {
                return Ok(());
            }
        }
    }

    fn readable(&self, wait: Duration) -> Result<bool, Lost> {
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(Lost::Gone(error.into())),
        }
    }
}

fn invalid(error: WireError) -> Lost {
    Lost::Invalid(io::Error::new(io::ErrorKind::InvalidData, error))
}
