//! Frames on a socket: looked at first, taken off only when they are whole.
//!
//! Looking installs no descriptor and copies nothing for good, so a slow or half-sent frame occupies its *sender's*
//! socket buffer and nothing here. The caller decides on a whole frame's content when to take it; taking never waits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{MAX_DESCRIPTORS, MAX_FRAME, receive_with_fds};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Bytes of a frame's length.
const HEADER: usize = 4;

/// Most requests are smaller, and are then seen by one system call.
const NEAR: usize = 4096;

/// What a peer did that no frame allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A frame without content or with too much.
    #[error("a frame of {0} bytes")]
    Length(u32),
    /// Descriptors that do not come with a whole header.
    #[error("a header in pieces")]
    Header,
    /// More descriptors than a frame may carry.
    #[error("more than {MAX_DESCRIPTORS} descriptors")]
    Descriptors,
    /// The peer closed its side in the middle of a frame.
    #[error("half a frame")]
    Half,
}

/// What lies at the head of a socket's queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// No byte yet.
    Empty,
    /// The beginning of a frame.
    Begun,
    /// A whole frame.
    Whole(Whole),
    /// The peer has closed its side.
    End,
    /// No frame.
    Malformed(Malformed),
}

/// A whole frame that still lies in the socket's queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    /// Bytes after the header.
    length: usize,
    /// Its content, unless the sender cut the frame into several messages: then it is only known once taken.
    pub body: Option<Vec<u8>>,
}

/// A frame that was taken off the queue.
#[derive(Debug)]
pub struct Taken {
    /// Its content.
    pub body: Vec<u8>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
    /// Why it is none after all.
    pub fault: Option<Malformed>,
}

mod ioctl {
    nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);
}

/// Looks at the head of the queue without taking anything.
///
/// # Errors
/// When the socket is broken. `WouldBlock` never: that is [`Head::Empty`].
pub fn look(socket: BorrowedFd<'_>) -> io::Result<Head> {
    // Asked first: what is seen below can only be more, unless it stops at a message that carries descriptors.
    let queued = queued(socket)?;
    let mut near = [0; NEAR];
    let Some(seen) = peek(socket, &mut near)? else {
        return Ok(Head::Empty);
    };
    if seen == 0 {
        return Ok(Head::End);
    }
    let Some(header) = near[..seen].first_chunk::<HEADER>() else {
        return Ok(if queued > seen {
            Head::Malformed(Malformed::Header)
        } else {
            Head::Begun
        });
    };
    let announced = u32::from_le_bytes(*header);
    let length = announced as usize;
    if length == 0 || length > MAX_FRAME - HEADER {
        return Ok(Head::Malformed(Malformed::Length(announced)));
    }
    let whole = HEADER + length;
    if seen >= whole {
        let body = Some(near[HEADER..whole].to_vec());
        return Ok(Head::Whole(Whole { length, body }));
    }
    if queued < whole {
        return Ok(Head::Begun);
    }
    let mut far = vec![0; whole];
    let seen = peek(socket, &mut far)?.unwrap_or(0);
    let body = (seen >= whole).then(|| far.split_off(HEADER));
    Ok(Head::Whole(Whole { length, body }))
}

impl Whole {
    /// Takes the frame off the queue, with its descriptors.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn take(self, socket: BorrowedFd<'_>) -> io::Result<Taken> {
        let mut frame = vec![0; HEADER + self.length];
        let mut descriptors = Vec::new();
        let mut filled = 0;
        let mut fault = None;
        while filled < frame.len() && fault.is_none() {
            match receive_with_fds(socket, &mut frame[filled..], &mut descriptors) {
                Ok(0) => fault = Some(Malformed::Half),
                Ok(taken) => filled += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    fault = Some(Malformed::Descriptors);
                }
                Err(error) => return Err(error),
            }
            if descriptors.len() > MAX_DESCRIPTORS {
                fault = Some(Malformed::Descriptors);
            }
        }
        Ok(Taken {
            body: frame.split_off(HEADER),
            descriptors,
            fault,
        })
    }
}

fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    loop {
        match recv(socket.as_raw_fd(), buffer, flags) {
            Ok(seen) => return Ok(Some(seen)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Bytes that nobody has taken yet; descriptors lie only among them.
///
/// # Errors
/// When it is no socket.
pub fn queued(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a live local of that type.
    unsafe { ioctl::fionread(socket.as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}
