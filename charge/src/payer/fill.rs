//! Allocates the pages of one extent, and frees them again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use super::probe::LEAF;
use super::room::{NoBallast, Pledge, Room};
use super::{Extent, Full, Limit, ReserveError};
use crate::mapping::{Mapping, regions};
use crate::{PAGE, REGION};

/// Regions that one call collapses: each call costs a round over all CPUs.
const WINDOW: u64 = 32 * REGION;

/// How often a region that the kernel found busy is tried again.
const ATTEMPTS: usize = 5;

/// Whether collapsing is worth a try on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Regions {
    /// As far as is known it works.
    Try,
    /// The kernel refuses it for every file.
    Never,
}

/// What is allocated for one reserve so far.
#[derive(Debug)]
pub(super) struct Fill<'a> {
    room: &'a Room,
    /// Bytes of the whole reserve that are not allocated yet.
    rest: u64,
    pledge: Option<Pledge<'a>>,
    /// Bytes of the pledge that are used.
    used: u64,
    pub(super) regions: Regions,
}

impl<'a> Fill<'a> {
    pub(super) fn new(room: &'a Room, total: u64, regions: Regions) -> Self {
        Self {
            room,
            rest: total,
            pledge: None,
            used: 0,
            regions,
        }
    }

    /// Bytes that are not allocated yet.
    pub(super) fn rest(&self) -> u64 {
        self.rest
    }

    /// Allocates all of `extent`, which begins and ends with a page.
    pub(super) fn extent(
        &mut self,
        file: BorrowedFd<'_>,
        extent: Extent,
        fresh: bool,
    ) -> Result<(), ReserveError> {
        let end = extent.offset + extent.length;
        let mut first = extent.offset.next_multiple_of(REGION);
        let mut last = end - end % REGION;
        if fresh && self.regions == Regions::Try && first < last {
            let size = fstat(file).map_err(io::Error::from)?.st_size;
            // The kernel collapses only regions of which it finds a page below the end of the file.
            last = last.min(u64::try_from(size).unwrap_or(0).next_multiple_of(REGION));
        } else {
            last = first;
        }
        if first >= last {
            return self.pages(file, extent.offset, end);
        }
        self.pages(file, extent.offset, first)?;
        while first < last && self.regions == Regions::Try {
            let until = last.min(first + WINDOW);
            self.window(file, first, until)?;
            first = until;
        }
        self.pages(file, first, end)
    }

    /// Allocates whole regions as huge pages, those that cannot be page by page.
    fn window(&mut self, file: BorrowedFd<'_>, begin: u64, end: u64) -> Result<(), ReserveError> {
        let room = self.room;
        let approach = room.approach(end - begin);
        for region in regions(begin, end) {
            self.pages(file, region, region + PAGE)?;
            if approach.near {
                // So that the collapse has nothing left to allocate but the region itself.
                for leaf in 1..REGION / LEAF {
                    let page = region + leaf * LEAF;
                    self.pages(file, page, page + PAGE)?;
                }
            }
        }
        let mapping = Mapping::new(file, begin, end - begin)?;
        // A collapse uses room that the pledge vouched for, too.
        self.settle();
        let collapsed =
            room.with_ballast(&approach, || mapping.collapse(0, end - begin).map_err(code));
        match collapsed {
            Ok(Ok(())) => {
                self.rest = self.rest.saturating_sub(end - begin);
                return Ok(());
            }
            Ok(Err(Errno::EBUSY)) | Err(NoBallast) => return Err(limit_hit()),
            Ok(Err(_)) => {}
        }
        for region in regions(begin, end) {
            let at = region - begin;
            let collapsed = room
                .with_ballast(&approach, || self.region(&mapping, at))
                .unwrap_or(Err(Errno::EBUSY));
            match collapsed {
                Ok(()) => self.rest = self.rest.saturating_sub(REGION - PAGE),
                Err(Errno::EBUSY) => return Err(limit_hit()),
                // Up to Linux 6.12 the call fails although the pages are there.
                Err(Errno::EINVAL) if is_whole(file, &mapping, region, at) => {
                    self.rest = self.rest.saturating_sub(REGION - PAGE);
                }
                Err(error) => {
                    if error == Errno::EINVAL && free_in_volume(file)? >= REGION {
                        self.regions = Regions::Never;
                    }
                    self.pages(file, region, region + REGION)?;
                    self.settle();
                }
            }
        }
        Ok(())
    }

    fn region(&self, mapping: &Mapping, offset: u64) -> Result<(), Errno> {
        if self.regions == Regions::Never {
            return Err(Errno::EINVAL);
        }
        let mut last = Errno::EAGAIN;
        for _ in 0..ATTEMPTS {
            match mapping.collapse(offset, REGION) {
                Ok(()) => return Ok(()),
                Err(error) => last = code(error),
            }
            if last != Errno::EAGAIN {
                break;
            }
        }
        Err(last)
    }

    /// Allocates page by page what the room vouches for, step by step.
    fn pages(&mut self, file: BorrowedFd<'_>, begin: u64, end: u64) -> Result<(), ReserveError> {
        let mut offset = begin;
        while offset < end {
            let step = self.vouched()?.min(end - offset);
            allocate(file, offset, step)?;
            self.used += step;
            self.rest = self.rest.saturating_sub(step);
            offset += step;
        }
        Ok(())
    }

    fn vouched(&mut self) -> Result<u64, ReserveError> {
        let left = |pledge: &Pledge<'_>, used: u64| pledge.bytes.saturating_sub(used) & !(PAGE - 1);
        if let Some(pledge) = &self.pledge {
            let left = left(pledge, self.used);
            if left > 0 {
                return Ok(left);
            }
        }
        self.settle();
        let pledge = self
            .room
            .pledge(self.rest.max(PAGE))
            .map_err(ReserveError::Full)?;
        let left = left(&pledge, 0);
        self.pledge = Some(pledge);
        Ok(left)
    }

    /// Ends a pledge: what was used of it is in the cgroup's usage now.
    fn settle(&mut self) {
        self.pledge = None;
        self.used = 0;
    }
}

/// The numbers follow when everything is undone: there may be no page free to find them out.
fn limit_hit() -> ReserveError {
    ReserveError::Full(Full {
        asked: 0,
        free: 0,
        limit: Limit::Cgroup,
        limit_bytes: 0,
    })
}

fn code(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Whether every page of a region is allocated.
fn is_whole(file: BorrowedFd<'_>, mapping: &Mapping, region: u64, mapped_at: u64) -> bool {
    match crate::mapping::resident_pages(file, region, REGION) {
        Ok(pages) => pages * PAGE == REGION,
        Err(_) => mapping
            .in_core(mapped_at, REGION)
            .is_ok_and(|pages| pages.iter().all(|page| page & 1 == 1)),
    }
}

fn allocate(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<(), ReserveError> {
    let (offset, length) = (signed(offset)?, signed(length)?);
    loop {
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(ReserveError::Io(error.into())),
        }
    }
}

/// Frees the pages of a whole extent.
pub(crate) fn free(file: BorrowedFd<'_>, extent: Extent) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let end = (extent.offset + extent.length).next_multiple_of(PAGE);
    let (Ok(offset), Ok(length)) = (signed(extent.offset), signed(end - extent.offset)) else {
        return;
    };
    // Nothing is left to do about a failure: the pages go with the file.
    while fallocate(file, flags, offset, length) == Err(Errno::EINTR) {}
}

/// Frees the pages of an extent that hold nothing: what was written there before stays.
pub(super) fn free_unwritten(file: BorrowedFd<'_>, extent: Extent) {
    let end = (extent.offset + extent.length).next_multiple_of(PAGE);
    let mut offset = extent.offset;
    while offset < end {
        // No answer: beyond the end of the file, where nothing is written.
        let hole = seek(file, offset, libc::SEEK_HOLE)
            .unwrap_or(offset)
            .min(end);
        let data = seek(file, hole, libc::SEEK_DATA)
            .unwrap_or(end)
            .clamp(hole, end);
        let (hole, until) = (hole.next_multiple_of(PAGE), data - data % PAGE);
        if hole < until {
            free(
                file,
                Extent {
                    offset: hole,
                    length: until - hole,
                },
            );
        }
        if data <= offset {
            break;
        }
        offset = data;
    }
}

/// The descriptor's position is shared with whoever passed it, but only plain `read` and `write` use it.
fn seek(file: BorrowedFd<'_>, offset: u64, whence: libc::c_int) -> Option<u64> {
    let offset = libc::off_t::try_from(offset).ok()?;
    // SAFETY: a plain system call on a live descriptor.
    let position = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(position).ok()
}

/// Bytes of the extent that are allocated already, `None` where this kernel cannot tell.
pub(super) fn resident_bytes(file: BorrowedFd<'_>, extent: Extent) -> io::Result<Option<u64>> {
    if fstat(file)?.st_blocks == 0 {
        return Ok(Some(0));
    }
    let pages = crate::mapping::resident_pages(file, extent.offset, extent.length);
    Ok(pages.ok().map(|pages| pages * PAGE))
}

pub(super) fn volume_full(file: BorrowedFd<'_>, asked: u64) -> Full {
    let (free, limit_bytes) = fstatfs(file).map_or((0, 0), |s| {
        let block = u64::try_from(s.block_size()).unwrap_or(PAGE);
        (s.blocks_available() * block, s.blocks() * block)
    });
    Full {
        asked,
        free,
        limit: Limit::Volume,
        limit_bytes,
    }
}

/// `u64::MAX` for a volume without a size.
pub(super) fn free_in_volume(file: BorrowedFd<'_>) -> io::Result<u64> {
    let statfs = fstatfs(file)?;
    if statfs.blocks() == 0 {
        return Ok(u64::MAX);
    }
    let block = u64::try_from(statfs.block_size()).unwrap_or(PAGE);
    Ok(statfs.blocks_available() * block)
}

fn signed(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
