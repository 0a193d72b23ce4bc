//! Many small files at one look: a survey of each by itself spends its time on mapping and unmapping.

use std::io;
use std::os::fd::BorrowedFd;

use super::resident::{Counted, Residency};
use super::{ATTEMPTS, SurveyError, Surveyor, WINDOW, touch};
use crate::cgroup::CgroupId;
use crate::mapping::{Mapping, resident_pages};
use crate::{PAGE, REGION};

/// A file of at most 2 MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small<'a> {
    /// Open for reading.
    pub(crate) file: BorrowedFd<'a>,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Bytes that are allocated for it.
    pub(crate) allocated: u64,
    /// All of its pages are there and stay: nobody else knows the file.
    pub(crate) is_whole: bool,
}

impl Small<'_> {
    fn length(&self) -> u64 {
        self.size.next_multiple_of(PAGE)
    }
}

/// Who is charged for a small file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Whose {
    /// Bytes that are resident.
    pub(crate) present: u64,
    /// Bytes by owner.
    pub(crate) owners: Vec<(CgroupId, u64)>,
}

impl Whose {
    /// Who is charged for bytes although `stays` is false for him, and how many.
    pub(crate) fn foreign(&self, stays: &dyn Fn(CgroupId) -> bool) -> Option<(CgroupId, u64)> {
        let foreign = self.owners.iter().filter(|(owner, _)| !stays(*owner));
        let most = foreign.clone().max_by_key(|(_, bytes)| *bytes)?;
        Some((most.0, foreign.map(|(_, bytes)| bytes).sum()))
    }
}

impl Surveyor {
    /// Surveys small files, together at most 64 MiB. The answers are in their order.
    ///
    /// # Errors
    /// When one cannot be mapped for reading, they are too large, or owners cannot be read.
    pub(crate) fn row(&mut self, files: &[Small<'_>]) -> Result<Vec<Whose>, SurveyError> {
        let total: u64 = files.iter().map(Small::length).sum();
        if total > WINDOW || files.iter().any(|it| it.length() > REGION) {
            return Err(SurveyError::Io(io::ErrorKind::InvalidInput.into()));
        }
        let mut found = vec![Whose::default(); files.len()];
        if total == 0 {
            return Ok(found);
        }
        let tiles = files.iter().filter(|it| it.size > 0);
        let mapping = self.place.row(tiles.map(|it| (it.file, it.length())))?;
        let (address, _) = mapping.part(0, total)?;
        let mut touched = vec![0; files.len()];
        for _ in 0..ATTEMPTS {
            self.touch_row(&mapping, files, &mut touched)?;
            self.frames.load(address, total / PAGE)?;
            let ends = files.iter().scan(0, |at, file| {
                *at += file.length() / PAGE;
                Some(*at)
            });
            let seen = self.frames.owners_in_row(ends)?;
            for (whose, seen) in found.iter_mut().zip(seen) {
                *whose = Whose {
                    present: seen.pages * PAGE,
                    owners: seen.owners,
                };
            }
            let is_whole = found.iter().zip(&touched).all(|(w, t)| w.present == *t);
            // As for one file: a page that is being moved in memory is missing for a moment.
            if is_whole && self.frames.are_same(address)? {
                break;
            }
        }
        Ok(found)
    }

    /// Touches what is resident, neighbours by one call, and counts it.
    fn touch_row(
        &self,
        mapping: &Mapping,
        files: &[Small<'_>],
        touched: &mut [u64],
    ) -> io::Result<()> {
        let mut at = 0;
        let mut full = 0..0;
        for (file, touched) in files.iter().zip(touched) {
            let length = file.length();
            let present = match self.counted {
                _ if file.is_whole => length,
                Counted::Yes => resident_pages(file.file, 0, length.max(PAGE))? * PAGE,
                Counted::No => file.allocated,
            };
            *touched = 0;
            if length > 0 && present == length {
                *touched = length;
                full.end = at + length;
            } else {
                touch(mapping, full.start, full.end - full.start)?;
                if length > 0 {
                    let residency = Residency::partly(file.file, self.counted);
                    residency.runs(mapping, at, 0, length, &mut |offset, length| {
                        *touched += length;
                        touch(mapping, at + offset, length)
                    })?;
                }
                full = at + length..at + length;
            }
            at += length;
        }
        touch(mapping, full.start, full.end - full.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn small(file: &File) -> Small<'_> {
        let metadata = file.metadata().unwrap();
        Small {
            file: file.as_fd(),
            size: metadata.len(),
            allocated: metadata.blocks() * 512,
            is_whole: false,
        }
    }

    #[test]
    fn a_row_of_files_says_the_same_as_one_after_the_other_and_fills_no_hole() {
        let Ok(mut surveyor) = Surveyor::open() else {
            return eprintln!("skipped: owners are not shown");
        };
        let mut files = Vec::new();
        for size in [0u64, 1, 4096, 4097, 0, 40_000, 256 << 10, 5, 0] {
            let file = tempfile::tempfile_in("/dev/shm").unwrap();
            file.write_all_at(&vec![7; usize::try_from(size).unwrap()], 0)
                .unwrap();
            files.push(file);
        }
        files[5].set_len(100_000).unwrap();
        files[5].write_all_at(b"x", 90_000).unwrap();
        let hole = tempfile::tempfile_in("/dev/shm").unwrap();
        hole.set_len(50_000).unwrap();
        files.push(hole);
        let row: Vec<_> = files.iter().map(small).collect();
        let found = surveyor.row(&row).unwrap();
        for (file, whose) in files.iter().zip(&found) {
            let summary = surveyor.summary(file.as_fd()).unwrap();
            assert_eq!(whose.present, summary.present);
            assert_eq!(whose.owners, summary.owners.into_iter().collect::<Vec<_>>());
        }
        assert_eq!(found[5].present, 11 * PAGE);
        for (file, before) in files.iter().zip(&row) {
            assert_eq!(file.metadata().unwrap().blocks() * 512, before.allocated);
        }
        let large = tempfile::tempfile_in("/dev/shm").unwrap();
        large.set_len(REGION + 1).unwrap();
        assert!(surveyor.row(&[small(&large)]).is_err());
    }
}
