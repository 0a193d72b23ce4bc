//! From pages of this process to their owners: `/proc/self/pagemap`, `/proc/kpagecgroup`, `/proc/kpageflags`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::SurveyError;
use crate::cgroup::CgroupId;
use crate::{PAGE, REGION};

/// Bytes of one entry of each of the three files.
const ENTRY: u64 = 8;
const ENTRY_BYTES: usize = 8;

const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// kpageflags: part of a compound page but not its first; part of a transparent huge page.
const TAIL: u64 = 1 << 16;
const HUGE: u64 = 1 << 22;

const REGION_PAGES: u64 = REGION / PAGE;

/// Entries that are read for nothing rather than by another call.
const GAP: u64 = 16;

/// A run of frames is at most a region long.
const RUN_BYTES: usize = 4096;
const _: () = assert!(RUN_BYTES as u64 == REGION_PAGES * ENTRY);

#[derive(Debug)]
pub(super) struct Frames {
    pagemap: File,
    owners: File,
    flags: File,
    /// Entries of the window that was loaded last.
    window: Vec<u8>,
    /// The same, a moment later.
    again: Vec<u8>,
}

/// The owners of some pages.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) pages: u64,
    pub(super) owners: Vec<(CgroupId, u64)>,
    pub(super) is_huge: bool,
}

impl Seen {
    fn add(&mut self, owner: u64, pages: u64) {
        let owner = CgroupId(owner);
        let bytes = pages * PAGE;
        self.pages += pages;
        match self.owners.iter_mut().find(|(id, _)| *id == owner) {
            Some((_, sum)) => *sum += bytes,
            None => self.owners.push((owner, bytes)),
        }
    }
}

impl Frames {
    pub(super) fn open(window_pages: u64) -> Result<Self, SurveyError> {
        let open = |what: &'static str| {
            File::open(what).map_err(|source| SurveyError::Privilege { what, source })
        };
        let bytes = |pages: u64| usize::try_from(pages * ENTRY).map_err(io::Error::other);
        Ok(Self {
            pagemap: open("/proc/self/pagemap")?,
            owners: open("/proc/kpagecgroup")?,
            flags: open("/proc/kpageflags")?,
            window: Vec::with_capacity(bytes(window_pages)?),
            again: Vec::with_capacity(bytes(window_pages)?),
        })
    }

    pub(super) fn buffer_bytes(&self) -> usize {
        self.window.capacity() + self.again.capacity()
    }

    /// Reads the page table entries of `pages` pages from `address`.
    pub(super) fn load(&mut self, address: usize, pages: u64) -> Result<(), SurveyError> {
        let bytes = usize::try_from(pages * ENTRY).map_err(io::Error::other)?;
        self.window.resize(bytes, 0);
        let position = address as u64 / PAGE * ENTRY;
        self.pagemap.read_exact_at(&mut self.window, position)?;
        Ok(())
    }

    /// Whether the entries are still those that were loaded.
    pub(super) fn are_same(&mut self, address: usize) -> Result<bool, SurveyError> {
        self.again.resize(self.window.len(), 0);
        let position = address as u64 / PAGE * ENTRY;
        self.pagemap.read_exact_at(&mut self.again, position)?;
        Ok(self.window == self.again)
    }

    /// The owners of the loaded pages `first .. last`, at most one region.
    pub(super) fn owners(&self, first: u64, last: u64) -> Result<Seen, SurveyError> {
        let mut seen = Seen::default();
        let mut page = first;
        while page < last {
            let Some(frame) = self.frame(page)? else {
                page += 1;
                continue;
            };
            let mut length = 1;
            while page + length < last && self.frame(page + length)? == Some(frame + length) {
                length += 1;
            }
            if length == REGION_PAGES
                && frame.is_multiple_of(REGION_PAGES)
                && self.is_huge(frame)?
            {
                seen.is_huge = true;
                seen.add(self.owner(frame)?, length);
            } else {
                self.run(frame, length, &mut seen)?;
            }
            page += length;
        }
        Ok(seen)
    }

    /// The owners of the loaded pages of several files, each given by the page after its last one. Their frames are close to each other
    /// more often than not: what lies between two is read along with them.
    pub(super) fn owners_in_row(
        &self,
        ends: impl Iterator<Item = u64>,
    ) -> Result<Vec<Seen>, SurveyError> {
        let mut frames = Vec::new();
        let mut seen = Vec::new();
        let mut page = 0;
        for end in ends {
            while page < end {
                frames.extend(self.frame(page)?.map(|frame| (frame, seen.len())));
                page += 1;
            }
            seen.push(Seen::default());
        }
        frames.sort_unstable();
        let mut rest = frames.as_slice();
        while let Some((first, _)) = rest.first() {
            let mut last = *first;
            let near = |(frame, _): &&(u64, usize)| {
                let is_near = frame - last <= GAP && frame - first < REGION_PAGES;
                last = *frame;
                is_near
            };
            let count = rest.iter().take_while(near).count();
            let (run, others) = rest.split_at(count);
            self.cluster(run, &mut seen)?;
            rest = others;
        }
        Ok(seen)
    }

    /// Adds each frame of a part of one region's length to what is seen of its file.
    fn cluster(&self, run: &[(u64, usize)], seen: &mut [Seen]) -> Result<(), SurveyError> {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else {
            return Ok(());
        };
        let mut buffer = [0; RUN_BYTES];
        let bytes = usize::try_from((last - first + 1) * ENTRY).map_err(io::Error::other)?;
        let entries = buffer
            .get_mut(..bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        read(&self.owners, entries, *first)?;
        for (frame, file) in run {
            let owner = match number(entries, frame - first)? {
                0 => self.owner_of_compound(*frame)?,
                owner => owner,
            };
            if let Some(seen) = seen.get_mut(*file) {
                seen.add(owner, 1);
            }
        }
        Ok(())
    }

    /// The frame of a loaded page, `None` when it is not resident.
    fn frame(&self, page: u64) -> Result<Option<u64>, SurveyError> {
        let entry = number(&self.window, page)?;
        if entry & PRESENT == 0 {
            return Ok(None);
        }
        match entry & FRAME {
            // Without the privilege the kernel hides frames: never take that for "uncharged".
            0 => Err(SurveyError::Privilege {
                what: "/proc/self/pagemap",
                source: io::ErrorKind::PermissionDenied.into(),
            }),
            frame => Ok(Some(frame)),
        }
    }

    fn run(&self, frame: u64, length: u64, seen: &mut Seen) -> Result<(), SurveyError> {
        let mut buffer = [0; RUN_BYTES];
        let bytes = usize::try_from(length * ENTRY).map_err(io::Error::other)?;
        let run = buffer
            .get_mut(..bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        read(&self.owners, run, frame)?;
        for index in 0..length {
            let owner = match number(run, index)? {
                0 => self.owner_of_compound(frame + index)?,
                owner => owner,
            };
            seen.add(owner, 1);
        }
        Ok(())
    }

    /// Linux 6.1 reports owners only for the first page of a compound one.
    fn owner_of_compound(&self, frame: u64) -> Result<u64, SurveyError> {
        if self.flags_of(frame)? & TAIL == 0 {
            return Ok(0);
        }
        self.owner(frame - frame % REGION_PAGES)
    }

    /// Whether one page of 2 MiB begins at this frame. Smaller compound pages carry the same flag.
    fn is_huge(&self, frame: u64) -> Result<bool, SurveyError> {
        Ok(self.flags_of(frame)? & HUGE != 0
            && self.flags_of(frame + REGION_PAGES / 2)? & TAIL != 0)
    }

    fn flags_of(&self, frame: u64) -> Result<u64, SurveyError> {
        one(&self.flags, frame)
    }

    fn owner(&self, frame: u64) -> Result<u64, SurveyError> {
        one(&self.owners, frame)
    }
}

fn one(file: &File, frame: u64) -> Result<u64, SurveyError> {
    let mut entry = [0; ENTRY_BYTES];
    read(file, &mut entry, frame)?;
    Ok(u64::from_ne_bytes(entry))
}

fn read(file: &File, into: &mut [u8], frame: u64) -> Result<(), SurveyError> {
    file.read_exact_at(into, frame * ENTRY)?;
    Ok(())
}

fn number(entries: &[u8], index: u64) -> Result<u64, SurveyError> {
    let outside = || SurveyError::Io(io::ErrorKind::InvalidInput.into());
    let index = usize::try_from(index).map_err(|_| outside())?;
    let entry = entries
        .chunks_exact(ENTRY_BYTES)
        .nth(index)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(outside)?;
    Ok(u64::from_ne_bytes(entry))
}
