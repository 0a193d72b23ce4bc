//! The payer in process: the kernel bills the cgroup of whoever calls it.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::fill::{self, Fill, Regions};
use super::room::{NoBallast, Room};
use super::{Extent, Full, Payer, ReserveError};
use crate::mapping::{Mapping, regions};
use crate::{PAGE, REGION};

/// Regions that are pulled by one call if none of them objects.
const PULL_WINDOW: u64 = 32 * REGION;

/// How often a region is tried whose pages others are using.
const PULL_ATTEMPTS: u32 = 20;

/// The largest offset of a file.
const FILE_END: u64 = i64::MAX as u64;

/// Bills this process' own cgroup.
#[derive(Debug)]
pub struct OwnPayer {
    room: Room,
    no_regions: AtomicBool,
}

impl OwnPayer {
    /// A payer for the cgroup that this process is in when it is asked.
    pub fn new() -> Self {
        Self {
            room: Room::new(),
            no_regions: AtomicBool::new(false),
        }
    }

    /// Bytes that fit below every limit that this process sees, if page cache goes where it is in the way.
    pub fn free(&self) -> u64 {
        self.room.full(0).free
    }

    fn allocate(&self, parts: &[Part<'_>]) -> Result<(), Failed> {
        let total: u64 = parts.iter().map(|part| part.extent.length).sum();
        let regions = if self.no_regions.load(Ordering::Relaxed) {
            Regions::Never
        } else {
            Regions::Try
        };
        let mut fill = Fill::new(&self.room, total, regions);
        let result = parts.iter().enumerate().try_for_each(|(index, part)| {
            let filled = fill.extent(part.file, part.extent, part.fresh);
            filled.map_err(|error| Failed {
                index,
                error,
                granted: total.saturating_sub(fill.rest()),
            })
        });
        if fill.regions == Regions::Never {
            self.no_regions.store(true, Ordering::Relaxed);
        }
        result
    }

    /// What to say after an undo.
    fn full(&self, asked: u64, granted: u64) -> Full {
        let full = self.room.full(asked);
        if full.free < asked {
            return full;
        }
        // Nothing that can be seen ran out: it was a limit further up, of which only this is known.
        Full {
            free: granted,
            limit_bytes: 0,
            ..full
        }
    }

    /// Collapses some regions, all at once if the kernel objects to none of them.
    fn pull_window(
        &self,
        file: BorrowedFd<'_>,
        begin: u64,
        length: u64,
        full: &mut bool,
        refused: &mut Vec<u64>,
    ) -> Result<(), ReserveError> {
        let offsets = regions(begin, begin + length);
        if *full {
            refused.extend(offsets);
            return Ok(());
        }
        let mapping = Mapping::new(file, begin, length)?;
        if self.room.own_has(length) {
            let approach = self.room.approach(length);
            let pull = || mapping.collapse(0, length);
            if matches!(self.room.with_ballast(&approach, pull), Ok(Ok(()))) {
                return Ok(());
            }
        }
        for offset in offsets {
            *full = *full || !self.room.own_has(REGION);
            if !*full {
                let pull = || Self::pull_region(&mapping, offset - begin);
                let approach = self.room.approach(REGION);
                match self.room.with_ballast(&approach, pull) {
                    Ok(Pulled::Moved) => continue,
                    Ok(Pulled::Refused) => {}
                    Ok(Pulled::Full) | Err(NoBallast) => *full = true,
                }
            }
            refused.push(offset);
        }
        Ok(())
    }

    /// Collapses one region, as often as it takes.
    fn pull_region(mapping: &Mapping, offset: u64) -> Pulled {
        for attempt in 0..PULL_ATTEMPTS {
            match mapping
                .collapse(offset, REGION)
                .map_err(|e| e.raw_os_error())
            {
                Ok(()) => return Pulled::Moved,
                Err(Some(libc::EAGAIN)) => {
                    if attempt >= 4 {
                        thread::sleep(Duration::from_micros(200));
                    }
                }
                Err(Some(libc::EBUSY)) => return Pulled::Full,
                Err(_) => return Pulled::Refused,
            }
        }
        Pulled::Refused
    }
}

impl Default for OwnPayer {
    fn default() -> Self {
        Self::new()
    }
}

impl Payer for OwnPayer {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        let parts = extents
            .iter()
            .filter(|(_, extent)| extent.length > 0)
            .map(|(file, extent)| Part::new(*file, *extent))
            .filter(|part| part.as_ref().map_or(true, |part| part.missing > 0))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(first) = parts.first() else {
            return Ok(());
        };
        let total = parts
            .iter()
            .fold(0u64, |sum, part| sum.saturating_add(part.missing));
        self.room.check(total).map_err(ReserveError::Full)?;
        // A large reserve that cannot fit would fill the volume first and be undone then; a small one costs nothing.
        if total >= REGION && fill::free_in_volume(first.file)? < total {
            return Err(ReserveError::Full(fill::volume_full(first.file, total)));
        }
        let Err(failed) = self.allocate(&parts) else {
            return Ok(());
        };
        for part in parts.iter().take(failed.index + 1) {
            part.undo();
        }
        Err(match failed.error {
            ReserveError::Full(_) => ReserveError::Full(self.full(total, failed.granted)),
            ReserveError::Io(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                let file = parts.get(failed.index).map_or(first.file, |p| p.file);
                ReserveError::Full(fill::volume_full(file, total))
            }
            other => other,
        })
    }

    fn pull(&self, file: BorrowedFd<'_>, extents: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        let mut refused = Vec::new();
        let mut full = false;
        for extent in extents {
            let end = extent.offset.saturating_add(extent.length);
            if !extent.offset.is_multiple_of(REGION) || end > FILE_END - REGION {
                return Err(refuse("a region starts at a multiple of 2 MiB"));
            }
            let mut begin = extent.offset;
            while begin < end {
                let length = PULL_WINDOW.min(end - begin).next_multiple_of(REGION);
                self.pull_window(file, begin, length, &mut full, &mut refused)?;
                begin += length;
            }
        }
        Ok(refused)
    }

    fn give_back(&self, _bytes: u64) {}
}

enum Pulled {
    Moved,
    Refused,
    Full,
}

struct Failed {
    /// The extent at which it failed.
    index: usize,
    /// Bytes that had been allocated until then.
    granted: u64,
    error: ReserveError,
}

/// An extent in whole pages.
struct Part<'a> {
    file: BorrowedFd<'a>,
    extent: Extent,
    fresh: bool,
    /// Bytes that are not allocated yet.
    missing: u64,
}

impl<'a> Part<'a> {
    fn new(file: BorrowedFd<'a>, extent: Extent) -> Result<Self, ReserveError> {
        if !extent.offset.is_multiple_of(PAGE) {
            return Err(refuse("an extent starts at a multiple of the page size"));
        }
        let end = extent
            .offset
            .checked_add(extent.length)
            .filter(|end| *end <= FILE_END - PAGE)
            .ok_or_else(|| refuse("the extent ends beyond what a file can have"))?;
        let extent = Extent {
            offset: extent.offset,
            length: end.next_multiple_of(PAGE) - extent.offset,
        };
        let resident = fill::resident_bytes(file, extent)?;
        Ok(Self {
            file,
            extent,
            fresh: resident == Some(0),
            missing: extent.length - resident.unwrap_or(0).min(extent.length),
        })
    }

    fn undo(&self) {
        if self.fresh {
            fill::free(self.file, self.extent);
        } else {
            fill::free_unwritten(self.file, self.extent);
        }
    }
}

fn refuse(message: &str) -> ReserveError {
    ReserveError::Refused {
        message: message.to_owned(),
    }
}
