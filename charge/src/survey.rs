//! Who is charged for a file, read page by page from the kernel.
//!
//! A survey maps the file window by window, touches what is resident (touching a hole would allocate it on our bill),
//! learns the frame of each page from `/proc/self/pagemap` and its owner from `/proc/kpagecgroup`. Its buffers are of one
//! fixed size, whatever the size of the file. It needs `CAP_SYS_ADMIN` and read access to `/proc/kpage*`.

mod frames;
mod ledger;
mod resident;
mod row;
mod tree;

pub use ledger::{Bill, Ledger};
pub(crate) use row::{Small, Whose};
pub use tree::{Skipped, TreeSurvey, survey_tree};

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::stat::fstat;

use crate::cgroup::CgroupId;
use crate::mapping::{MADV_POPULATE_READ, Mapping, Place, regions};
use crate::{Extent, PAGE, REGION};
use frames::Frames;
use resident::{Counted, Residency};

/// What is mapped at once.
const WINDOW: u64 = 32 * REGION;

/// How often a window is looked at whose pages are being moved in memory or allocated. Then it is taken as it is.
const ATTEMPTS: usize = 10;

/// Why nothing can be said about a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurveyError {
    /// The kernel does not show page owners to this process.
    #[error(
        "who is charged cannot be read: {what} needs CAP_SYS_ADMIN and the host's /proc ({source})"
    )]
    Privilege {
        /// The file of `/proc`.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call failed.
    #[error("survey: {0}")]
    Io(#[from] io::Error),
}

/// 2 MiB of a file, or what there is of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins.
    pub offset: u64,
    /// Bytes that are resident.
    pub present: u64,
    /// Bytes by owner. [`CgroupId`] 0 is nobody.
    pub owners: Vec<(CgroupId, u64)>,
    /// It is one huge page, which the kernel does not re-charge before it is split.
    pub is_huge: bool,
}

impl Region {
    /// Bytes that are charged to somebody for whom `stays` is false.
    pub fn foreign(&self, stays: &dyn Fn(CgroupId) -> bool) -> u64 {
        self.owners
            .iter()
            .filter(|(owner, _)| !stays(*owner))
            .map(|(_, bytes)| bytes)
            .sum()
    }

    /// The region as a range of the file.
    pub fn extent(&self) -> Extent {
        Extent {
            offset: self.offset,
            length: REGION,
        }
    }
}

/// What is charged for one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes by owner.
    pub owners: BTreeMap<CgroupId, u64>,
    /// Bytes that are resident.
    pub present: u64,
    /// Bytes that are allocated, but whose owner the kernel does not show: beyond the end of the file, swapped out, or,
    /// before Linux 6.5, never written.
    pub unseen: u64,
}

/// Reads owners. Belongs to the process that opened it: a forked child opens its own.
#[derive(Debug)]
pub struct Surveyor {
    frames: Frames,
    counted: Counted,
    place: Place,
}

impl Surveyor {
    /// Opens what it needs of `/proc`.
    ///
    /// # Errors
    /// [`SurveyError::Privilege`].
    pub fn open() -> Result<Self, SurveyError> {
        Ok(Self {
            frames: Frames::open(WINDOW / PAGE)?,
            counted: Counted::probe(),
            place: Place::take(WINDOW),
        })
    }

    /// Surveys one file and shows each region that holds anything to `visit`, in order.
    ///
    /// # Errors
    /// When the file cannot be mapped for reading, or owners cannot be read.
    pub fn regions(
        &mut self,
        file: BorrowedFd<'_>,
        mut visit: impl FnMut(&Region),
    ) -> Result<Summary, SurveyError> {
        let mut summary = self.part(file, 0, u64::MAX, &mut visit)?;
        // Blocks are counted by the file system, whatever the kernel shows of the pages.
        let allocated =
            u64::try_from(fstat(file).map_err(io::Error::from)?.st_blocks).unwrap_or(0) * 512;
        summary.unseen = allocated.saturating_sub(summary.present);
        Ok(summary)
    }

    /// Surveys the part `begin .. end` of a file, `begin` a multiple of 2 MiB. Says nothing of what is unseen.
    pub(crate) fn part(
        &mut self,
        file: BorrowedFd<'_>,
        begin: u64,
        end: u64,
        visit: &mut dyn FnMut(&Region),
    ) -> Result<Summary, SurveyError> {
        let stat = fstat(file).map_err(io::Error::from)?;
        let size = u64::try_from(stat.st_size)
            .unwrap_or(0)
            .next_multiple_of(PAGE);
        let end = end.min(size);
        let residency = Residency::of(file, &stat, self.counted);
        let mut summary = Summary::default();
        let mut begin = begin;
        while begin < end {
            let until = end.min(begin + WINDOW);
            // A file of one window holds something, or it has no blocks.
            if stat.st_blocks > 0 && (size <= WINDOW || residency.may_hold(begin, until)) {
                self.window(file, &residency, begin, until, |region| {
                    summary.present += region.present;
                    for (owner, bytes) in &region.owners {
                        *summary.owners.entry(*owner).or_default() += bytes;
                    }
                    visit(region);
                })?;
            }
            begin = until;
        }
        Ok(summary)
    }

    /// The same without the regions.
    ///
    /// # Errors
    /// As [`regions`](Self::regions).
    pub fn summary(&mut self, file: BorrowedFd<'_>) -> Result<Summary, SurveyError> {
        self.regions(file, |_| {})
    }

    /// Bytes of the buffers that it keeps, the same for every file.
    pub fn buffer_bytes(&self) -> usize {
        self.frames.buffer_bytes()
    }

    fn window(
        &mut self,
        file: BorrowedFd<'_>,
        residency: &Residency<'_>,
        begin: u64,
        end: u64,
        mut visit: impl FnMut(&Region),
    ) -> Result<(), SurveyError> {
        let mapping = Mapping::new(file, begin, end - begin)?;
        if end - begin >= REGION {
            // Else the kernel's own collapsing could make this process the owner of what it looks at.
            // A kernel without huge pages knows no such advice and needs none.
            let length = (end - begin).next_multiple_of(REGION);
            let _ = mapping.advise(0, length, libc::MADV_NOHUGEPAGE);
        }
        let (address, _) = mapping.part(0, end - begin)?;
        let mut found = Vec::new();
        for _ in 0..ATTEMPTS {
            let mut touched = 0;
            residency.runs(&mapping, 0, begin, end, &mut |offset, length| {
                touched += length;
                touch(&mapping, offset - begin, length)
            })?;
            self.frames.load(address, (end - begin) / PAGE)?;
            found = self.loaded(begin, end)?;
            let present: u64 = found.iter().map(|region| region.present).sum();
            // A page that the kernel moves elsewhere in memory is missing for a moment, or has its frame used by another.
            if present == touched && self.frames.are_same(address)? {
                break;
            }
        }
        found.iter().for_each(&mut visit);
        Ok(())
    }

    /// The regions of the window that is loaded.
    fn loaded(&self, begin: u64, end: u64) -> Result<Vec<Region>, SurveyError> {
        let mut found = Vec::new();
        for offset in regions(begin, end) {
            let first = (offset - begin) / PAGE;
            let last = (end.min(offset + REGION) - begin) / PAGE;
            let seen = self.frames.owners(first, last)?;
            if seen.pages > 0 {
                found.push(Region {
                    offset,
                    present: seen.pages * PAGE,
                    owners: seen.owners,
                    is_huge: seen.is_huge,
                });
            }
        }
        Ok(found)
    }
}

/// Fills the page table. A part that was freed meanwhile is no error: it is not resident then.
fn touch(mapping: &Mapping, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match mapping.advise(offset, length, MADV_POPULATE_READ) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EAGAIN)) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
