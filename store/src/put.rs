//! `put`: content in memory becomes a sealed object.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::uio::pwritev;

use crate::error::Error;
use crate::fresh::Fresh;
use crate::kind::Kind;
use crate::mapping::{HUGE, PAGE};
use crate::object::{PutOptions, Ref};
use crate::recycle::SMALLEST;
use crate::stock::MAX_PAGES;
use crate::volume::Volume;

/// Most slices of one `pwritev`.
const MAX_SLICES: usize = 1024;

impl Volume {
    /// Puts an object: the slices, one after the other.
    ///
    /// # Errors
    /// [`Error::Full`] when it does not fit, [`Error::Exists`] when the name is taken and must not be overwritten.
    /// Nothing remains of a failed put.
    pub fn put(
        &self,
        kind: Kind,
        content: &[IoSlice<'_>],
        options: &PutOptions,
    ) -> Result<Ref, Error> {
        let len = content.iter().map(|s| s.len() as u64).sum();
        let mut file = self.filled(content, len, options)?;
        if !file.is_exclusive() {
            file = self.copy_of(&file, len)?;
        }
        self.seal_file(&file, kind, len, options)
    }

    /// A file that holds `content` and that nobody sees yet.
    fn filled(
        &self,
        content: &[IoSlice<'_>],
        len: u64,
        options: &PutOptions,
    ) -> Result<Fresh, Error> {
        let pages = usize::try_from(len.div_ceil(PAGE)).unwrap_or(usize::MAX);
        if (1..=MAX_PAGES).contains(&pages) {
            let file = Fresh::reserved(self.stocked(pages)?, self, pages as u64 * PAGE);
            self.write_all(file.as_fd(), content, 0)?;
            return Ok(file);
        }
        if len >= HUGE as u64 {
            self.refuse_taken(options)?;
            let file = Fresh::sized(self, len)?;
            self.fill(&file, content, len)?;
            return Ok(file);
        }
        let file = if len < SMALLEST {
            Fresh::new(self)?
        } else {
            Fresh::sized(self, len)?
        };
        if self.is_billed() {
            file.reserve(self, 0, len)?;
        }
        self.write_all(file.as_fd(), content, 0)?;
        Ok(file)
    }

    /// Writes all slices to `file`, from `offset` on.
    pub(crate) fn write_all(
        &self,
        file: BorrowedFd<'_>,
        content: &[IoSlice<'_>],
        offset: u64,
    ) -> Result<(), Error> {
        let mut offset = i64::try_from(offset).map_err(|_| Error::io("write", Errno::EFBIG))?;
        for some in content.chunks(MAX_SLICES) {
            // The usual case needs no copy of the slices.
            let total: usize = some.iter().map(|s| s.len()).sum();
            let mut done = self.write_some(file, some, offset, total)?;
            offset += i64::try_from(done).unwrap_or(i64::MAX);
            if done == total {
                continue;
            }
            let mut rest = some.to_vec();
            let mut rest = rest.as_mut_slice();
            loop {
                IoSlice::advance_slices(&mut rest, done);
                if rest.is_empty() {
                    break;
                }
                done = self.write_some(file, rest, offset, total)?;
                offset += i64::try_from(done).unwrap_or(i64::MAX);
            }
        }
        Ok(())
    }

    fn write_some(
        &self,
        file: BorrowedFd<'_>,
        some: &[IoSlice<'_>],
        offset: i64,
        asked: usize,
    ) -> Result<usize, Error> {
        if asked == 0 {
            return Ok(0);
        }
        loop {
            match pwritev(file, some, offset) {
                Err(Errno::EINTR) => {}
                Ok(0) => return Err(Error::io("write", Errno::EIO)),
                other => return other.map_err(|errno| self.failed("write", errno, asked as u64)),
            }
        }
    }
}
