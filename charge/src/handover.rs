//! Hands the bill of a whole volume over to another payer: whatever is charged to somebody who does not rightly pay.
//!
//! One pass over the tree surveys every file and moves what must be moved, small files by copies, on several threads where there are
//! cores for them, large ones in place; then what no path reaches is looked for among the files that processes have open or mapped. A pass may be interrupted, or fail
//! half-way, and be run again: it goes by what is charged now, and nothing else.

mod batch;
mod crew;
mod nameless;
mod pass;
mod symlinks;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use crate::PAGE;
use crate::cgroup::CgroupId;
use crate::payer::{Payer, ReserveError};
use crate::recharge::Slack;
use crate::survey::SurveyError;
use crate::tree::{self, Ended};
use pass::Pass;

/// A volume whose bill is handed over.
pub struct HandOver<'a> {
    /// Root of the volume's tmpfs, mounted writable.
    pub layer: &'a Path,
    /// Who rightly pays and keeps what is charged to him: the subtrees of live pods that are not leaving. The payer's own
    /// need not be among them. Asked by several threads.
    pub stays: &'a (dyn Fn(CgroupId) -> bool + Sync),
    /// Who is billed from now on.
    pub payer: &'a dyn Payer,
    /// The cgroup subtree of the payer's pod.
    pub payer_owners: &'a [CgroupId],
    /// Nobody can write to any file of the volume: no pod mounts it writable. Without it plain files are moved as far as that
    /// is safe; sealed objects are always moved whole.
    pub exclusive: bool,
    /// Where room comes from when the volume is full.
    pub slack: &'a dyn Slack,
    /// Filled while it runs.
    pub progress: &'a Progress,
    /// When to stop, between two steps. `None`: when all is done.
    pub until: Option<Instant>,
}

/// How far a hand-over is. Any thread may look.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    seen: AtomicU64,
    moved: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Has the pass end soon, between two steps, as if its time were up.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Bytes that the volume held at the beginning.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes of these that were looked at, and moved if need be.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Bytes that are charged to the payer now and were not before.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

/// What one pass came to, by survey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes that changed their owner.
    pub moved: u64,
    /// Bytes by owner, as the pass left each file.
    pub billed: BTreeMap<CgroupId, u64>,
    /// What is still charged to somebody who should not pay; the first hundred.
    pub left: Vec<Left>,
    /// Bytes of all that is left.
    pub left_bytes: u64,
    /// Bytes that were reached, but whose owner nobody can tell: beyond the end of a file that others may write to, and symlinks
    /// that are too long for their inode, a page each.
    pub unseen: u64,
    /// Of these, bytes beyond the end of files that nobody writes to: somebody looked at them when they were to be freed. The next pass
    /// frees them.
    pub unfreed: u64,
    /// Bytes that the volume held all the time, and that neither a path nor a process that is visible from here reaches.
    pub unreached: u64,
    /// The time was up before the pass was through.
    pub interrupted: bool,
}

impl Outcome {
    /// Whether every byte is charged to somebody who rightly pays, as far as that can be told.
    pub fn is_complete(&self) -> bool {
        self.left_bytes == 0 && self.unfreed == 0 && self.unreached == 0 && !self.interrupted
    }
}

/// Bytes that could not be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Of which file, below the layer; `None` when no path reaches them.
    pub path: Option<PathBuf>,
    /// How many.
    pub bytes: u64,
    /// Who is charged; `None` when nobody can tell.
    pub owner: Option<CgroupId>,
    /// Why they are not moved.
    pub reason: String,
}

/// Why a hand-over ended early. What was moved stays moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// The payer is away or refuses.
    #[error(transparent)]
    Payer(#[from] ReserveError),
    /// Nobody can say who is charged.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// The volume cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// What of it.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl HandOver<'_> {
    /// One pass.
    ///
    /// # Errors
    /// When the payer goes away, owners cannot be read, or the volume cannot be opened. Single files are never an error: they
    /// are listed in [`Outcome::left`].
    pub fn run(&self) -> Result<Outcome, HandOverError> {
        let failed = |source| HandOverError::Io {
            path: self.layer.to_owned(),
            source,
        };
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(self.layer)
            .map_err(failed)?;
        let device = fstat(&root).map_err(|e| failed(e.into()))?.st_dev;
        let before = used(&root).map_err(failed)?;
        self.progress.total.store(before, Ordering::Relaxed);
        self.progress.seen.store(0, Ordering::Relaxed);
        self.progress.moved.store(0, Ordering::Relaxed);
        let (mut outcome, found, ended) = thread::scope(|scope| {
            let mut pass = Pass::new(self, root.as_fd(), scope)?;
            let ended = match tree::walk(root.as_fd(), &mut pass) {
                Ok(()) => pass
                    .finish()
                    .and_then(|()| self.nameless(device, &root, &mut pass)),
                Err(ended) => {
                    // What was begun ends, and counts.
                    let finished = pass.finish();
                    match ended {
                        Ended::Stopped(Stop::TimeUp) => finished.and(Err(Stop::TimeUp)),
                        Ended::Stopped(stop) => Err(stop),
                        Ended::Unreadable(errno) => return Err(failed(errno.into())),
                    }
                }
            };
            Ok((pass.outcome, pass.found, ended))
        })?;
        match ended {
            Ok(()) => {}
            Err(Stop::TimeUp) => outcome.interrupted = true,
            Err(Stop::Failed(error)) => return Err(error),
        }
        if !outcome.interrupted {
            // What came or went meanwhile was not there all the time.
            let held = before.min(used(&root).map_err(failed)?);
            outcome.unreached = held.saturating_sub(found);
        }
        Ok(outcome)
    }

    /// Moves what no path reaches, if there is any.
    fn nameless<'scope, 'a: 'scope>(
        &self,
        device: libc::dev_t,
        root: &File,
        pass: &mut Pass<'scope, 'a>,
    ) -> Result<(), Stop> {
        if used(root).is_ok_and(|used| used <= pass.found) {
            return Ok(());
        }
        let symlinks = symlinks::bytes(root.as_fd());
        pass.found += symlinks;
        pass.outcome.unseen += symlinks;
        if used(root).is_ok_and(|used| used <= pass.found) {
            return Ok(());
        }
        let mut stopped = Ok(());
        nameless::each(device, &mut |file, stat| {
            let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            pass.found += bytes;
            // Nobody can open it any more, so that who does not write to it now never will.
            stopped = pass
                .in_time()
                .and_then(|()| pass.pull(&file, Path::new(""), true, bytes));
            match &stopped {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        stopped
    }
}

/// Why a pass ends before it is through.
enum Stop {
    TimeUp,
    Failed(HandOverError),
}

impl Stop {
    fn survey(error: SurveyError) -> Self {
        Self::Failed(HandOverError::Survey(error))
    }
}

/// Bytes that the file system has handed out.
fn used(volume: &File) -> io::Result<u64> {
    let statfs = fstatfs(volume)?;
    let block = u64::try_from(statfs.block_size()).unwrap_or(PAGE);
    Ok(statfs.blocks().saturating_sub(statfs.blocks_free()) * block)
}

impl fmt::Debug for HandOver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandOver")
            .field("layer", &self.layer)
            .field("payer_owners", &self.payer_owners)
            .field("exclusive", &self.exclusive)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}
