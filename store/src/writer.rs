//! `writer`: an object whose size is not known yet. Pages are reserved ahead of the writes, in growing steps.

use std::fmt;
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::uio::pread;
use nix::unistd::ftruncate;

use crate::error::Error;
use crate::fresh::Fresh;
use crate::kind::Kind;
use crate::mapping::{HUGE, PAGE};
use crate::object::{PutOptions, Ref};
use crate::seal::refuse_holes;
use crate::volume::Volume;

const FIRST_STEP: u64 = 64 << 10;
const LAST_STEP: u64 = 64 << 20;

/// An object that grows. Dropping it leaves nothing.
pub struct Writer {
    volume: Arc<Volume>,
    kind: Kind,
    file: Fresh,
    position: u64,
    len: u64,
    /// Pages up to here are reserved.
    reserved: u64,
    step: u64,
}

impl Volume {
    /// Starts an object of unknown length. Nobody sees it before it is sealed.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn writer(self: &Arc<Self>, kind: Kind) -> Result<Writer, Error> {
        Ok(Writer {
            volume: Arc::clone(self),
            kind,
            file: Fresh::new(self)?,
            position: 0,
            len: 0,
            reserved: 0,
            step: FIRST_STEP,
        })
    }
}

impl Writer {
    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the next write goes.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes all of `bytes` at the position.
    ///
    /// # Errors
    /// [`Error::Full`] when it does not fit; what was written before is still there.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let end = self
            .position
            .checked_add(bytes.len() as u64)
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or_else(|| Error::io("write", Errno::EFBIG))?;
        self.reserve_up_to(end)?;
        self.volume
            .write_all(self.file.as_fd(), &[IoSlice::new(bytes)], self.position)?;
        self.position = end;
        self.len = self.len.max(end);
        Ok(())
    }

    /// Reads what was written, from `offset` on. Returns how many bytes there were.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize, Error> {
        let at = i64::try_from(offset).map_err(|_| Error::io("read", Errno::EINVAL))?;
        // The file may be longer than the object.
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let part = bytes.len().min(left);
        pread(self.file.as_fd(), &mut bytes[..part], at).map_err(|errno| Error::io("read", errno))
    }

    /// Makes the object exactly `len` bytes long: cuts it off, or adds zeros. The position stays.
    ///
    /// # Errors
    /// [`Error::Full`] when it does not fit.
    pub fn set_len(&mut self, len: u64) -> Result<(), Error> {
        let end = i64::try_from(len).map_err(|_| Error::io("truncate", Errno::EFBIG))?;
        let at = |errno| Error::io("truncate", errno);
        if len >= self.len {
            self.reserve_up_to(len)?;
            ftruncate(self.file.as_fd(), end).map_err(at)?;
        } else {
            self.file.end_at(end).map_err(at)?;
            let kept = len.next_multiple_of(PAGE).min(self.reserved);
            self.file.trimmed(self.reserved - kept);
            self.reserved = kept;
        }
        self.len = len;
        Ok(())
    }

    /// Frees what was reserved beyond the end, and seals.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken, [`Error::Full`] when the parts that were skipped by seeking do not
    /// fit; nothing remains.
    pub fn seal(self, options: &PutOptions) -> Result<Ref, Error> {
        let at = |errno| Error::io("seal", errno);
        let end = i64::try_from(self.len).map_err(|_| Error::io("seal", Errno::EFBIG))?;
        let mut allocated = self.file.end_at(end).map_err(at)?;
        if matches!(
            refuse_holes(self.file.as_fd(), self.len),
            Err(Error::Holes { .. })
        ) {
            self.file.reserve(&self.volume, 0, self.len)?;
            refuse_holes(self.file.as_fd(), self.len)?;
            allocated = self.file.allocated().map_err(at)?;
        }
        self.file.trimmed(self.reserved.saturating_sub(allocated));
        self.volume
            .seal_file(&self.file, self.kind, self.len, options)
    }

    /// Reserves at least up to `end`, better a step further. Without a bill the first 2 MiB need no reserve: it is
    /// there for the huge pages.
    fn reserve_up_to(&mut self, end: u64) -> Result<(), Error> {
        if end <= self.reserved || !self.volume.is_billed() && end < HUGE as u64 {
            return Ok(());
        }
        // Without a bill, what was written so far has its pages already.
        let from = self.reserved.max(self.len.next_multiple_of(PAGE));
        let unit = if end < HUGE as u64 { PAGE } else { HUGE as u64 };
        let ahead = end.max(from + self.step).next_multiple_of(unit);
        match self.reserve(from, ahead) {
            // Not as much as would be good, but maybe what is needed.
            Err(Error::Full { .. }) => self.reserve(from, end.next_multiple_of(PAGE))?,
            other => other?,
        }
        self.step = (self.step * 2).min(LAST_STEP);
        Ok(())
    }

    fn reserve(&mut self, from: u64, end: u64) -> Result<(), Error> {
        if end >= HUGE as u64 {
            // Huge pages are only made below the end of the file.
            let size = i64::try_from(end).map_err(|_| Error::io("write", Errno::EFBIG))?;
            ftruncate(self.file.as_fd(), size)
                .map_err(|errno| self.volume.failed("write", errno, end))?;
        }
        self.file
            .reserve(&self.volume, from, end.saturating_sub(from))?;
        self.reserved = end;
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map_err(io::Error::from)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Writer {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(offset) => (offset, 0),
            SeekFrom::Current(by) => (self.position, by),
            SeekFrom::End(by) => (self.len, by),
        };
        self.position = from
            .checked_add_signed(by)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("kind", &self.kind)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
