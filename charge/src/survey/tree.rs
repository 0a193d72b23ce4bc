//! The bill of a whole directory. The tree is hostile: whoever may write it may place anything in it, at any moment.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::{SurveyError, Surveyor};
use crate::cgroup::CgroupId;

/// Of how many skipped entries the names are kept.
const NAMED: usize = 100;

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
    let mut walk = Walk {
        surveyor,
        root: directory,
        linked: HashSet::new(),
        result: TreeSurvey::default(),
    };
    let mut pending = vec![PathBuf::from(".")];
    while let Some(path) = pending.pop() {
        let below = walk.directory(&path);
        match below {
            Ok(below) => pending.extend(below),
            Err(Step::Fatal(error)) => return Err(error),
            Err(Step::Skip(errno)) if pending.is_empty() && path == Path::new(".") => {
                return Err(SurveyError::Io(errno.into()));
            }
            Err(Step::Skip(errno)) => walk.skip(&path, errno.desc()),
        }
    }
    Ok(walk.result)
}

struct Walk<'a> {
    surveyor: &'a mut Surveyor,
    root: BorrowedFd<'a>,
    linked: HashSet<(u64, u64)>,
    result: TreeSurvey,
}

/// What ends a step: a broken survey, or an entry that is as it is.
enum Step {
    Fatal(SurveyError),
    Skip(Errno),
}

impl From<Errno> for Step {
    fn from(errno: Errno) -> Self {
        Step::Skip(errno)
    }
}

impl Walk<'_> {
    /// Surveys the files of one directory and returns the directories in it.
    fn directory(&mut self, path: &Path) -> Result<Vec<PathBuf>, Step> {
        let opened = self.open(path, OFlag::O_DIRECTORY)?;
        let mut below = Vec::new();
        let mut entries = Dir::from_fd(opened)?;
        let handle = entries.as_fd().try_clone_to_owned().map_err(errno)?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let path = path.join(name);
            // Not the type that the directory states: some file systems state none.
            let stat = match fstatat(&handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => continue,
                Err(error) => {
                    self.skip(&path, error.desc());
                    continue;
                }
            };
            match stat.st_mode & libc::S_IFMT {
                libc::S_IFDIR => below.push(path),
                libc::S_IFLNK => {}
                libc::S_IFREG => self.file(&path)?,
                kind => self.skip(&path, describe(kind)),
            }
        }
        Ok(below)
    }

    fn file(&mut self, path: &Path) -> Result<(), Step> {
        match self.survey(path) {
            Err(Step::Skip(Errno::ENOENT)) => Ok(()),
            Err(Step::Skip(Errno::EAGAIN)) => {
                self.skip(path, "somebody holds a lease on it");
                Ok(())
            }
            Err(Step::Skip(error)) => {
                self.skip(path, error.desc());
                Ok(())
            }
            other => other,
        }
    }

    fn survey(&mut self, path: &Path) -> Result<(), Step> {
        let file = match self.open(path, OFlag::O_NOATIME) {
            // Only the owner may ask not to leave a trace.
            Err(Errno::EPERM) => self.open(path, OFlag::empty())?,
            other => other?,
        };
        let stat: FileStat = fstat(&file)?;
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
        let summary = self.surveyor.summary(file.as_fd()).map_err(Step::Fatal)?;
        self.result.present += summary.present;
        self.result.unseen += summary.unseen;
        for (owner, bytes) in summary.owners {
            *self.result.owners.entry(owner).or_default() += bytes;
        }
        Ok(())
    }

    /// Opens below the root only, through no symlink and no other mount, and never waits for anybody.
    fn open(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
            .resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        openat2(self.root, path, how)
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        self.result.skipped_count += 1;
        if self.result.skipped.len() < NAMED {
            self.result.skipped.push(Skipped {
                path: path.strip_prefix(".").unwrap_or(path).to_owned(),
                reason: reason.to_owned(),
            });
        }
    }
}

fn describe(kind: libc::mode_t) -> &'static str {
    match kind {
        libc::S_IFIFO => "a FIFO",
        libc::S_IFSOCK => "a socket",
        libc::S_IFCHR | libc::S_IFBLK => "a device",
        _ => "of unknown type",
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
