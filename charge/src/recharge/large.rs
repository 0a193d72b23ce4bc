//! Pulls the regions of a file, in place.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use super::RechargeError;
use super::punch::{allocated, punch, restore_times};
use crate::cgroup::CgroupId;
use crate::mapping::{MADV_POPULATE_READ, Mapping};
use crate::payer::{Extent, Payer};
use crate::survey::{Region, Surveyor};
use crate::{PAGE, REGION};

/// Readers that use a page keep it for a moment; each round moves what they let go.
const ROUNDS: u32 = 6;

/// After so many rounds that moved nothing no other is tried: the payer is full, or others write to the file.
const STALLED: u32 = 2;

/// Room that a volume's `size=` lends while a region is pulled that the file fills only in part: the kernel counts the
/// whole 2 MiB for a moment, and refuses the region if they are not free.
pub trait Slack {
    /// Makes `bytes` more available.
    ///
    /// # Errors
    /// When that is not possible: such regions then stay where they are.
    fn lend(&self, bytes: u64) -> io::Result<()>;

    /// Takes them back. All of them are free again.
    fn take_back(&self, bytes: u64);
}

/// A region that is still charged to somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Where.
    pub extent: Extent,
    /// Who is charged, by owner.
    pub owners: Vec<(CgroupId, u64)>,
}

/// What a recharge came to, by a survey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that changed their owner.
    pub bytes: u64,
    /// Bytes that stayed with another.
    pub left: u64,
    /// The regions of these, the first hundred of them.
    pub leftovers: Vec<Leftover>,
    /// The most rounds that a part of the file took.
    pub rounds: u32,
    /// Bytes by owner, afterwards.
    pub owners: BTreeMap<CgroupId, u64>,
}

/// What is surveyed, moved and surveyed again before the next part: a multiple of what a survey looks at at once.
const PART: u64 = 512 << 20;

/// Of how many leftovers the details are kept.
const NAMED: usize = 100;

/// A large file to be pulled.
pub struct Large<'a> {
    /// The file, open for reading.
    pub file: BorrowedFd<'a>,
    /// The same file open for writing, *only* if nobody else writes to it: it is sealed, or no pod mounts its volume
    /// writable. Without it huge pages that others map, and regions that the file fills only in part, stay where they are.
    pub exclusive: Option<BorrowedFd<'a>>,
    /// Who may be charged afterwards: the cgroup subtree of the payer's pod, and whoever else rightly pays.
    pub stays: &'a dyn Fn(CgroupId) -> bool,
    /// Where room comes from when the volume is full.
    pub slack: Option<&'a dyn Slack>,
}

impl std::fmt::Debug for Large<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Large")
            .field("file", &self.file)
            .field("exclusive", &self.exclusive)
            .finish_non_exhaustive()
    }
}

impl Large<'_> {
    /// Has `payer` pull every region that is charged to another. The bytes and all mappings stay as they are.
    ///
    /// # Errors
    /// When nothing can be said about the bill, or the payer cannot be asked. What was moved until then stays moved.
    pub fn recharge(
        &self,
        surveyor: &mut Surveyor,
        payer: &dyn Payer,
    ) -> Result<Moved, RechargeError> {
        self.recharge_while(surveyor, payer, &mut |_| true)
    }

    /// The same, part by part, as long as `go_on` says so. It is shown what has moved until then.
    ///
    /// # Errors
    /// As [`recharge`](Self::recharge).
    pub(crate) fn recharge_while(
        &self,
        surveyor: &mut Surveyor,
        payer: &dyn Payer,
        go_on: &mut dyn FnMut(&Moved) -> bool,
    ) -> Result<Moved, RechargeError> {
        let before = fstat(self.file).map_err(io::Error::from)?;
        // A split counts as a change of the file, which it is not.
        let restore = || restore_times(self.file, &before);
        // Not of a file that is on the right bill.
        let mut is_touched = false;
        let mut touch = || {
            if !is_touched {
                restore();
            }
            is_touched = true;
        };
        let size = u64::try_from(before.st_size).unwrap_or(0);
        let mut moved = Moved::default();
        let mut begin = 0;
        let result = loop {
            if begin >= size {
                break Ok(());
            }
            if let Err(error) = self.part(begin, surveyor, payer, &mut moved, &mut touch) {
                break Err(error);
            }
            begin += PART;
            if !go_on(&moved) {
                break Ok(());
            }
        };
        if is_touched {
            restore();
        }
        result.map(|()| moved)
    }

    /// Pulls what is foreign of the part that begins at `begin`, and adds what became of it to `moved`.
    fn part(
        &self,
        begin: u64,
        surveyor: &mut Surveyor,
        payer: &dyn Payer,
        moved: &mut Moved,
        touch: &mut dyn FnMut(),
    ) -> Result<(), RechargeError> {
        let mut first = None;
        let mut last = 0;
        let mut stalled = 0;
        let mut rounds = 0;
        loop {
            let mut foreign = Vec::new();
            let summary = surveyor.part(self.file, begin, begin + PART, &mut |region| {
                if region.foreign(self.stays) > 0 {
                    foreign.push(region.clone());
                }
            })?;
            let left: u64 = foreign.iter().map(|r| r.foreign(self.stays)).sum();
            let before = *first.get_or_insert(left);
            stalled = if rounds > 0 && left == last {
                stalled + 1
            } else {
                0
            };
            last = left;
            if foreign.is_empty() || rounds == ROUNDS || stalled == STALLED {
                moved.bytes += before.saturating_sub(left);
                moved.left += left;
                moved.rounds = moved.rounds.max(rounds);
                for (owner, bytes) in summary.owners {
                    *moved.owners.entry(owner).or_default() += bytes;
                }
                let room = NAMED.saturating_sub(moved.leftovers.len());
                moved
                    .leftovers
                    .extend(foreign.iter().take(room).map(leftover));
                return Ok(());
            }
            if rounds > 0 {
                thread::sleep(Duration::from_millis(1 << rounds));
            }
            rounds += 1;
            touch();
            self.round(&foreign, payer)?;
        }
    }

    fn round(&self, foreign: &[Region], payer: &dyn Payer) -> Result<(), RechargeError> {
        for region in foreign.iter().filter(|r| r.is_huge) {
            // A region that could not be split stays; the survey will say so.
            let _ = self.split(region);
        }
        let (whole, partial): (Vec<&Region>, Vec<&Region>) =
            foreign.iter().partition(|r| r.present == REGION);
        let extents = merge(&whole);
        if !extents.is_empty() {
            payer.pull(self.file, &extents)?;
        }
        for region in partial {
            self.pull_partial(region, payer)?;
        }
        Ok(())
    }

    /// Breaks a huge page up: the kernel does not move one as a whole.
    fn split(&self, region: &Region) -> io::Result<()> {
        if let Some(file) = self.exclusive
            && let Some(zero) = self.zero_byte(region.offset)?
        {
            // Freeing a part of a page zeroes it, and this byte is zero already: nothing changes but the size of the page.
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            return Ok(fallocate(file, flags, signed(zero)?, 1)?);
        }
        // The kernel splits a page of which only a part is cold, if it is mapped here only.
        let mapping = Mapping::new(self.file, region.offset, REGION)?;
        mapping.advise(0, PAGE, MADV_POPULATE_READ)?;
        mapping.advise(0, PAGE, libc::MADV_COLD)
    }

    /// Where the first zero byte of a region is.
    fn zero_byte(&self, offset: u64) -> io::Result<Option<u64>> {
        let file = std::fs::File::from(self.file.try_clone_to_owned()?);
        let mut part = vec![0u8; 64 << 10];
        let mut at = offset;
        while at < offset + REGION {
            let read = file.read_at(&mut part, at)?;
            if read == 0 {
                return Ok(None);
            }
            let found = part.get(..read).unwrap_or_default();
            // By itself, `contains` looks at many bytes at once.
            if found.contains(&0)
                && let Some(index) = found.iter().position(|byte| *byte == 0)
            {
                return Ok(Some(at + index as u64));
            }
            at += read as u64;
        }
        Ok(None)
    }

    /// Pulls a region with holes, such as the last one of a file, and makes the holes again that the kernel filled.
    fn pull_partial(&self, region: &Region, payer: &dyn Payer) -> Result<(), RechargeError> {
        let Some(writable) = self.exclusive else {
            return Ok(());
        };
        let holes = self.holes(region)?;
        let lent = match self.slack {
            Some(slack) if self.free_in_volume()? < REGION => slack.lend(REGION).is_ok(),
            _ => false,
        };
        let before = self.allocated()?;
        let pulled = payer.pull(self.file, &[region.extent()]);
        punch(writable, &holes, || {
            self.allocated().is_ok_and(|now| now <= before)
        });
        if let Some(slack) = self.slack.filter(|_| lent) {
            slack.take_back(REGION);
        }
        pulled?;
        Ok(())
    }

    /// The parts of a region that hold nothing, in whole pages. What was allocated and never written may count as nothing:
    /// it reads as zero either way.
    fn holes(&self, region: &Region) -> io::Result<Vec<Extent>> {
        let mapping = Mapping::new(self.file, region.offset, REGION)?;
        let written = mapping.in_core(0, REGION)?;
        let mut holes: Vec<Extent> = Vec::new();
        for (index, page) in written.iter().enumerate() {
            let at = region.offset + index as u64 * PAGE;
            let present = page & 1 == 1
                || crate::mapping::resident_pages(self.file, at, PAGE).is_ok_and(|n| n > 0);
            if present {
                continue;
            }
            match holes.last_mut() {
                Some(hole) if hole.offset + hole.length == at => hole.length += PAGE,
                _ => holes.push(Extent {
                    offset: at,
                    length: PAGE,
                }),
            }
        }
        Ok(holes)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(allocated(&fstat(self.file)?))
    }

    fn free_in_volume(&self) -> io::Result<u64> {
        let statfs = fstatfs(self.file.as_fd())?;
        if statfs.blocks() == 0 {
            return Ok(u64::MAX);
        }
        Ok(statfs.blocks_available() * u64::try_from(statfs.block_size()).unwrap_or(PAGE))
    }
}

fn leftover(region: &Region) -> Leftover {
    Leftover {
        extent: region.extent(),
        owners: region.owners.clone(),
    }
}

/// Neighbours become one extent.
fn merge(regions: &[&Region]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for region in regions {
        match extents.last_mut() {
            Some(last) if last.offset + last.length == region.offset => last.length += REGION,
            _ => extents.push(region.extent()),
        }
    }
    extents
}

fn signed(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
