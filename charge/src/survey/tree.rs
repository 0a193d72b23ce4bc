//! The bill of a whole directory.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::{Small, SurveyError, Surveyor};
use crate::cgroup::CgroupId;
use crate::tree::{self, Ended, Visit};

/// Of how many skipped entries the names are kept.
const NAMED: usize = 100;

/// Files up to this size are surveyed together, so many at once.
const SMALL: u64 = 256 << 10;
const ROW: usize = 200;

/// An entry that is not part of the bill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where, below the directory.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// What is charged for the regular files below a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeSurvey {
    /// Bytes by owner.
    pub owners: BTreeMap<CgroupId, u64>,
    /// Bytes that are resident.
    pub present: u64,
    /// Bytes that are allocated, but whose owner the kernel does not show.
    pub unseen: u64,
    /// Files surveyed; one with several names counts once.
    pub files: u64,
    /// The first hundred entries that were neither directory, symlink nor readable regular file.
    pub skipped: Vec<Skipped>,
    /// How many there were.
    pub skipped_count: u64,
}

/// Surveys every regular file below `directory`, on the same mount, following no symlink.
///
/// # Errors
/// When the directory itself cannot be read, or page owners cannot.
pub fn survey_tree(
    surveyor: &mut Surveyor,
    directory: BorrowedFd<'_>,
) -> Result<TreeSurvey, SurveyError> {
    let mut survey = Survey {
        surveyor,
        linked: HashSet::new(),
        row: Vec::with_capacity(ROW),
        result: TreeSurvey::default(),
    };
    match tree::walk(directory, &mut survey) {
        Ok(()) => Ok(survey.result),
        Err(Ended::Stopped(error)) => Err(error),
        Err(Ended::Unreadable(errno)) => Err(SurveyError::Io(errno.into())),
    }
}

struct Survey<'a> {
    surveyor: &'a mut Surveyor,
    linked: HashSet<(u64, u64)>,
    /// Small files with their sizes and allocated bytes.
    row: Vec<(OwnedFd, u64, u64)>,
    result: TreeSurvey,
}

impl Survey<'_> {
    fn flush(&mut self) -> Result<(), SurveyError> {
        let row: Vec<Small<'_>> = self
            .row
            .iter()
            .map(|(file, size, allocated)| Small {
                file: file.as_fd(),
                size: *size,
                allocated: *allocated,
                is_whole: false,
            })
            .collect();
        let found = self.surveyor.row(&row)?;
        for (whose, small) in found.iter().zip(&row) {
            self.result.present += whose.present;
            self.result.unseen += small.allocated.saturating_sub(whose.present);
            for (owner, bytes) in &whose.owners {
                *self.result.owners.entry(*owner).or_default() += bytes;
            }
        }
        self.row.clear();
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        self.result.skipped_count += 1;
        if self.result.skipped.len() < NAMED {
            self.result.skipped.push(Skipped {
                path: path.to_owned(),
                reason: reason.to_owned(),
            });
        }
    }

    fn look(&mut self, file: OwnedFd, path: &Path) -> Result<(), SurveyError> {
        let stat = fstat(&file).map_err(io::Error::from)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            self.skip(path, "replaced while it was opened");
            return Ok(());
        }
        if stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        self.result.files += 1;
        if stat.st_blocks == 0 {
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size <= SMALL {
            let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            self.row.push((file, size, allocated));
            if self.row.len() == ROW {
                self.flush()?;
            }
            return Ok(());
        }
        let summary = self.surveyor.summary(file.as_fd())?;
        self.result.present += summary.present;
        self.result.unseen += summary.unseen;
        for (owner, bytes) in summary.owners {
            *self.result.owners.entry(owner).or_default() += bytes;
        }
        Ok(())
    }
}

impl Visit for Survey<'_> {
    type Stop = SurveyError;

    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), SurveyError> {
        match tree::open_file(directory, name) {
            Ok(file) => self.look(file, path)?,
            Err(Errno::ENOENT) => {}
            Err(Errno::EAGAIN) => self.skip(path, "somebody holds a lease on it"),
            Err(error) => self.skip(path, error.desc()),
        }
        Ok(())
    }

    fn left(&mut self, _directory: BorrowedFd<'_>, _path: &Path) -> Result<(), SurveyError> {
        self.flush()
    }

    fn odd(&mut self, path: &Path, kind: &'static str) {
        self.skip(path, kind);
    }

    fn skipped(&mut self, path: &Path, reason: &str) {
        self.skip(path, reason);
    }
}
