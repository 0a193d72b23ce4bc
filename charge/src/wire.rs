//! Frames of `payer.proto` and descriptors over a Unix stream socket: the one file of fd passing.
//!
//! A frame is a little-endian `u32` with the length of the message, then the message. Descriptors travel with the
//! frame's first byte. [`Frames`] never blocks by itself and holds a bounded number of bytes and descriptors, whatever
//! the peer sends.

pub mod peek;

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use prost::Message;

/// The most bytes that a frame may have, its length field included.
pub const MAX_FRAME: usize = 64 * 1024;

/// The most descriptors that one frame may carry.
pub const MAX_DESCRIPTORS: usize = 200;

/// The kernel never passes more at once (`SCM_MAX_FD`), so a buffer for these is never too short.
const KERNEL_MAX_DESCRIPTORS: usize = 253;

const PREFIX: usize = 4;

/// What a peer did wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The frame is larger than [`MAX_FRAME`].
    #[error("a frame of {bytes} bytes, at most {MAX_FRAME} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// More than [`MAX_DESCRIPTORS`] descriptors for one frame.
    #[error("a frame with {0} descriptors, at most {MAX_DESCRIPTORS} are allowed")]
    TooManyDescriptors(usize),
    /// The message is not of the expected type.
    #[error("malformed message: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// The frame of a message.
///
/// # Errors
/// [`WireError::TooLarge`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let length = message.encoded_len();
    let too_large = |_| WireError::TooLarge { bytes: length };
    let prefix = u32::try_from(length).map_err(too_large)?.to_le_bytes();
    if PREFIX + length > MAX_FRAME {
        return Err(WireError::TooLarge {
            bytes: PREFIX + length,
        });
    }
    let mut frame = Vec::with_capacity(PREFIX + length);
    frame.extend_from_slice(&prefix);
    frame.extend_from_slice(&message.encode_to_vec());
    Ok(frame)
}

/// One `sendmsg`: writes some of `bytes`, and with the first of them all of `descriptors`. Returns the bytes written.
///
/// # Errors
/// As `sendmsg`, `WouldBlock` included; then nothing was sent. A closed peer is `EPIPE`, never a signal.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control;
    let messages: &[nix::sys::socket::ControlMessage<'_>] = if raw.is_empty() {
        &[]
    } else {
        control = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
        &control
    };
    let sent = nix::sys::socket::sendmsg::<()>(
        socket.as_raw_fd(),
        &[io::IoSlice::new(bytes)],
        messages,
        nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(sent)
}

/// Sends a whole frame over a blocking socket.
///
/// # Errors
/// As `sendmsg`.
pub fn send(
    socket: BorrowedFd<'_>,
    frame: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut rest = frame;
    let mut descriptors = descriptors;
    while !rest.is_empty() {
        match send_with_fds(socket, rest, descriptors) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                descriptors = &[];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One `recvmsg`: reads into `buffer` and appends the descriptors that came along, close-on-exec, to `descriptors`.
/// Returns the bytes read, 0 at the end of the stream.
///
/// # Errors
/// As `recvmsg`, `WouldBlock` included. `InvalidData` when descriptors were lost because this process may have no
/// more of them; those that did arrive are closed.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = ControlBuffer::new();
    // SAFETY: all-zero is a valid msghdr; its pointers are set below.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = size_of::<ControlBuffer>();
    // SAFETY: the header points to one writable buffer and one aligned control buffer, both alive.
    let read =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let Ok(read) = usize::try_from(read) else {
        return Err(io::Error::last_os_error());
    };
    let received = take_descriptors(&header);
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors were lost: too many open files",
        ));
    }
    descriptors.extend(received);
    Ok(read)
}

/// Control messages are aligned like their header.
#[repr(C, align(8))]
struct ControlBuffer([u8; 16 + KERNEL_MAX_DESCRIPTORS * 4 + 4]);

impl ControlBuffer {
    fn new() -> Self {
        Self([0; _])
    }
}

fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut taken = Vec::new();
    // SAFETY: recvmsg has filled the header and its control buffer, which the caller keeps alive.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: a non-null result of CMSG_FIRSTHDR or CMSG_NXTHDR points to a whole header.
        let current = unsafe { &*message };
        if current.cmsg_level == libc::SOL_SOCKET && current.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_DATA and CMSG_LEN only compute; the payload is an array of descriptors.
            let (payload, overhead) = unsafe { (libc::CMSG_DATA(message), libc::CMSG_LEN(0)) };
            let bytes = current.cmsg_len.saturating_sub(overhead as usize);
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: `index` is inside the payload; the kernel just made this descriptor for us alone.
                taken.push(unsafe {
                    OwnedFd::from_raw_fd(payload.cast::<RawFd>().add(index).read_unaligned())
                });
            }
        }
        // SAFETY: as above.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    taken
}

/// Puts a stream back together: bytes into frames, each with the descriptors that came with it.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: VecDeque<u8>,
    consumed: u64,
    /// Descriptors with the position in the stream of the last byte that they came with.
    arrived: VecDeque<(u64, Vec<OwnedFd>)>,
}

impl Frames {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// One `recvmsg`. Returns the bytes read, 0 at the end of the stream. Call it only when [`next`](Self::next) has
    /// nothing more: that bounds what is held.
    ///
    /// # Errors
    /// As [`receive_with_fds`]; `InvalidData` when the peer sent more descriptors than a frame may have.
    pub fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut chunk = [0u8; 16 * 1024];
        let mut descriptors = Vec::new();
        let read = receive_with_fds(socket, &mut chunk, &mut descriptors)?;
        self.bytes.extend(&chunk[..read]);
        if !descriptors.is_empty() {
            let held: usize = self.arrived.iter().map(|(_, fds)| fds.len()).sum();
            let held = held + descriptors.len();
            if held > MAX_DESCRIPTORS {
                let error = WireError::TooManyDescriptors(held);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            let last = self.consumed + self.bytes.len() as u64 - 1;
            self.arrived.push_back((last, descriptors));
        }
        Ok(read)
    }

    /// The next complete frame, decoded, with its descriptors.
    ///
    /// # Errors
    /// When the peer broke the protocol: close the connection.
    #[expect(
        clippy::should_implement_trait,
        reason = "the type of the message is the caller's choice, call by call"
    )]
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<(M, Vec<OwnedFd>)>, WireError> {
        if self.bytes.len() < PREFIX {
            return Ok(None);
        }
        let mut prefix = [0u8; PREFIX];
        for (byte, stored) in prefix.iter_mut().zip(&self.bytes) {
            *byte = *stored;
        }
        let length = u32::from_le_bytes(prefix) as usize;
        if length > MAX_FRAME - PREFIX {
            return Err(WireError::TooLarge {
                bytes: length.saturating_add(PREFIX),
            });
        }
        if self.bytes.len() < PREFIX + length {
            return Ok(None);
        }
        self.bytes.drain(..PREFIX);
        let body: Vec<u8> = self.bytes.drain(..length).collect();
        self.consumed += (PREFIX + length) as u64;
        let mut descriptors = Vec::new();
        while let Some((position, _)) = self.arrived.front()
            && *position < self.consumed
        {
            // Descriptors come with their frame's first bytes; the kernel ends a read after them.
            descriptors.extend(
                self.arrived
                    .pop_front()
                    .into_iter()
                    .flat_map(|(_, fds)| fds),
            );
        }
        Ok(Some((M::decode(body.as_slice())?, descriptors)))
    }

    /// Whether a frame has begun but not ended: a peer that stops here is half-sent.
    pub fn is_partial(&self) -> bool {
        !self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests;
