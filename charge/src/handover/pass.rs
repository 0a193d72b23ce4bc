//! One pass over the files of a volume.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Scope;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, mkdirat};
use nix::sys::statfs::fstatfs;

use super::batch::{BATCH_BYTES, Done, Item, Judged, Terms, foreign};
use super::crew::{Batch, Crew};
use super::{HandOver, HandOverError, Left, Outcome, Stop};
use crate::PAGE;
use crate::cgroup::CgroupId;
use crate::mapping::resident_pages;
use crate::payer::{Extent, Limit, ReserveError};
use crate::recharge::{
    BATCH, Copied, Large, Moved, RechargeError, Replace, SMALL, Scratch, Slack, allocated,
    nobody_writes, punch, restore_times,
};
use crate::survey::{SurveyError, Surveyor};
use crate::tree::{self, Visit};

/// Of how many leftovers the details are kept.
const NAMED: usize = 100;

/// No file is longer: the last whole page of what the kernel can count.
const LONGEST: u64 = i64::MAX as u64 & !(PAGE - 1);

const OWN: &str = ".vineyard";
const OBJECTS: &str = ".vineyard/objects";
const TRASH: &str = ".vineyard/trash";
const SCRATCH: &str = ".vineyard/tmp";

pub(super) struct Pass<'scope, 'a> {
    order: &'a HandOver<'a>,
    terms: Terms<'a>,
    root: BorrowedFd<'a>,
    crew: Crew<'scope, 'a>,
    surveyor: Surveyor,
    scratch: Option<Arc<OwnedFd>>,
    linked: HashSet<u64>,
    batch: Vec<Item>,
    batch_bytes: u64,
    /// Bytes of everything that was looked at.
    pub(super) found: u64,
    pub(super) outcome: Outcome,
}

/// Room that a full volume lends.
struct Loan<'a> {
    slack: &'a dyn Slack,
    bytes: u64,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.slack.take_back(self.bytes);
    }
}

impl<'scope, 'a: 'scope> Pass<'scope, 'a> {
    pub(super) fn new(
        order: &'a HandOver<'a>,
        root: BorrowedFd<'a>,
        scope: &'scope Scope<'scope, 'a>,
    ) -> Result<Self, SurveyError> {
        // What a driver that was killed has left is not worth moving.
        let scratch = tree::open(root, OsStr::new(SCRATCH), OFlag::O_DIRECTORY).ok();
        if let Some(scratch) = &scratch {
            Scratch::sweep(scratch.as_fd());
        }
        let terms = Terms::of(order);
        Ok(Self {
            order,
            terms,
            root,
            crew: Crew::new(scope, terms),
            surveyor: Surveyor::open()?,
            scratch: scratch.map(Arc::new),
            linked: HashSet::new(),
            batch: Vec::with_capacity(BATCH),
            batch_bytes: 0,
            found: 0,
            outcome: Outcome::default(),
        })
    }

    fn look(&mut self, file: OwnedFd, name: &OsStr, path: &Path) -> Result<(), Stop> {
        let stat = fstat(&file).map_err(io::Error::from).map_err(at(path))?;
        let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        if !is_file || stat.st_blocks == 0 {
            return Ok(());
        }
        if stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return Ok(());
        }
        let allocated = allocated(&stat);
        self.found += allocated;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let still = self.order.exclusive || is_sealed(path, &stat);
        if size > SMALL || stat.st_nlink != 1 {
            self.pull(&file, path, still, allocated)?;
            return Ok(());
        }
        let item = Item {
            name: name.to_owned(),
            path: path.to_owned(),
            file,
            size,
            allocated,
            still,
        };
        self.batch_bytes += item.bytes();
        self.batch.push(item);
        Ok(())
    }

    /// Has the small files that have come together surveyed, and those copied that others pay for: by another thread if it is a whole
    /// batch and the volume has room for several.
    fn flush(&mut self, directory: BorrowedFd<'_>, whole: bool) -> Result<(), Stop> {
        let items = std::mem::take(&mut self.batch);
        let bytes = std::mem::take(&mut self.batch_bytes);
        if items.is_empty() {
            return Ok(());
        }
        if self.crew.at_work() > 0 || whole && self.crew.is_there() {
            let at_work = self.crew.at_work() as u64 * BATCH_BYTES;
            let has_room = free(self.root).is_none_or(|free| free >= bytes + at_work);
            if has_room && whole {
                let Some(batch) = self.hand_out(directory, items)? else {
                    return Ok(());
                };
                return self.work(directory, batch);
            }
            if !has_room {
                // What they take shows only when they are done.
                self.finish()?;
            }
        }
        self.work(directory, items)
    }

    /// Hands a batch out. Returns it when nobody takes it.
    fn hand_out(
        &mut self,
        directory: BorrowedFd<'_>,
        items: Vec<Item>,
    ) -> Result<Option<Vec<Item>>, Stop> {
        let (Some(scratch), Ok(directory)) = (&self.scratch, directory.try_clone_to_owned()) else {
            return Ok(Some(items));
        };
        let batch = Batch {
            directory,
            scratch: Arc::clone(scratch),
            items,
        };
        if self.crew.is_busy()
            && let Some(done) = self.crew.wait()
        {
            self.settle(done?)?;
        }
        let returned = self.crew.hand_out(batch).err();
        Ok(returned.map(|batch| batch.items))
    }

    pub(super) fn in_time(&self) -> Result<(), Stop> {
        self.terms.in_time()
    }

    /// Waits for all batches that were handed out.
    ///
    /// # Errors
    /// The first one of theirs; what became of the others is in the account all the same.
    pub(super) fn finish(&mut self) -> Result<(), Stop> {
        let mut result = Ok(());
        while let Some(done) = self.crew.wait() {
            let settled = done.and_then(|done| self.settle(done));
            result = result.and(settled);
        }
        result
    }

    /// Surveys and copies here and now.
    fn work(&mut self, directory: BorrowedFd<'_>, items: Vec<Item>) -> Result<(), Stop> {
        // Ends after the originals are closed: until then they still hold their bytes.
        let mut loan = None;
        let judged = self.terms.judge(&mut self.surveyor, &items)?;
        self.terms.in_time()?;
        let copied = self.copy(directory, &items, &judged, &mut loan);
        self.settle(Done {
            items,
            judged,
            copied,
        })
    }

    /// Copies small files. A full volume lends the room for those that take none of it for good.
    fn copy(
        &mut self,
        directory: BorrowedFd<'_>,
        items: &[Item],
        judged: &[Judged],
        loan: &mut Option<Loan<'a>>,
    ) -> Vec<Result<Copied, RechargeError>> {
        let total: u64 = foreign(items, judged).map(Item::bytes).sum();
        let count = foreign(items, judged).count();
        if count == 0 {
            return Vec::new();
        }
        let Some(scratch) = self.scratch() else {
            let none = || RechargeError::Unsuitable("there is no directory for copies");
            return (0..count).map(|_| Err(none())).collect();
        };
        let is_short = free(scratch.as_fd()).is_some_and(|free| free < total);
        if is_short && self.order.slack.lend(total).is_ok() {
            let slack = self.order.slack;
            *loan = Some(Loan {
                slack,
                bytes: total,
            });
        }
        let place = Replace {
            directory,
            scratch: scratch.as_fd(),
        };
        self.terms
            .copy(&mut self.surveyor, &place, items, judged, is_short)
    }

    /// Takes what became of a batch into the account, and moves in place what could not be copied.
    fn settle(&mut self, done: Done) -> Result<(), Stop> {
        let mut copied = done.copied.into_iter();
        for (item, judged) in done.items.iter().zip(done.judged) {
            let whose = judged.whose;
            let Some((owner, bytes)) = judged.foreign else {
                self.billed(&whose.owners);
                self.seen(item.allocated);
                if item.allocated > whose.present {
                    let writable = writable(item.file.as_fd(), item.still);
                    self.beyond(&item.file, item.allocated, whose.present, writable);
                }
                continue;
            };
            let error = match copied.next() {
                Some(Ok(copied)) => {
                    self.copied(item, owner, bytes, copied);
                    continue;
                }
                Some(Err(error)) => error,
                None => RechargeError::Unsuitable("it was not tried"),
            };
            if item.still && in_place_instead(&error) {
                self.terms.in_time()?;
                self.pull(&item.file, &item.path, true, item.allocated)?;
                continue;
            }
            let error = fatal(error)?;
            // Whatever the reason, nothing is charged for a file that is gone.
            if fstat(&item.file).is_ok_and(|stat| stat.st_nlink > 0) {
                self.billed(&whose.owners);
                self.left(Some(&item.path), bytes, Some(owner), &error.to_string());
            }
            self.seen(item.allocated);
        }
        Ok(())
    }

    fn copied(&mut self, item: &Item, owner: CgroupId, bytes: u64, copied: Copied) {
        self.moved(bytes);
        self.seen(item.allocated);
        // What was allocated beyond the end is not in the copy.
        self.found = self.found.saturating_sub(item.allocated) + copied.bytes;
        if let Some(payer) = copied.owner {
            self.billed(&[(payer, copied.bytes)]);
        }
        if copied.still_viewed {
            self.found += item.allocated;
            self.billed(&[(owner, bytes)]);
            let why = "somebody views the file that was replaced; its bytes go with his view";
            self.left(None, bytes, Some(owner), why);
        }
    }

    /// Moves a file in place, as far as it is charged to the wrong ones.
    pub(super) fn pull(
        &mut self,
        file: &impl AsFd,
        path: &Path,
        still: bool,
        allocated: u64,
    ) -> Result<(), Stop> {
        let name = (!path.as_os_str().is_empty()).then_some(path);
        let writable = writable(file.as_fd(), still);
        let (terms, progress) = (self.terms, &self.order.progress.moved);
        let stays = |owner| terms.rightly(owner);
        let large = Large {
            file: file.as_fd(),
            exclusive: writable.as_ref().map(File::as_fd),
            stays: &stays,
            slack: Some(self.order.slack),
        };
        let mut before = 0;
        let mut complete = true;
        let result = large.recharge_while(&mut self.surveyor, terms.payer, &mut |moved| {
            progress.fetch_add(moved.bytes - before, Ordering::Relaxed);
            before = moved.bytes;
            complete = terms.in_time().is_ok();
            complete
        });
        let moved = match result {
            Ok(moved) => moved,
            Err(error) => {
                let error = fatal(error)?;
                self.left(name, allocated, None, &error.to_string());
                self.seen(allocated);
                return Ok(());
            }
        };
        self.pulled(name, &moved, writable.is_some());
        if !complete {
            return Err(Stop::TimeUp);
        }
        self.seen(allocated);
        self.beyond(file, allocated, moved.owners.values().sum(), writable);
        Ok(())
    }

    fn pulled(&mut self, name: Option<&Path>, moved: &Moved, is_exclusive: bool) {
        self.outcome.moved += moved.bytes;
        for (owner, bytes) in &moved.owners {
            *self.outcome.billed.entry(*owner).or_default() += bytes;
        }
        if moved.left == 0 {
            return;
        }
        let why = if is_exclusive {
            "the payer or the machine has no room for whole regions, or its pages are in use"
        } else {
            "its end, its holes and its huge pages move only when nobody can write to it"
        };
        let owner = moved
            .leftovers
            .iter()
            .flat_map(|it| &it.owners)
            .find(|(owner, _)| !self.terms.rightly(*owner))
            .map(|(owner, _)| *owner);
        self.left(name, moved.left, owner, why);
    }

    /// Bytes beyond the end of a file, whose owner nobody can tell: they are freed where nobody can be about to fill them.
    fn beyond(&mut self, file: &impl AsFd, before: u64, present: u64, writable: Option<File>) {
        let Ok(stat) = fstat(file) else {
            return;
        };
        // A pull that somebody looked at may have added some.
        let mut now = allocated(&stat);
        if before.max(now) <= present {
            return;
        }
        let end = u64::try_from(stat.st_size)
            .unwrap_or(0)
            .next_multiple_of(PAGE);
        let mut is_free = true;
        if let Some(writable) = writable
            && has_pages_beyond(file.as_fd(), end)
        {
            let beyond = Extent {
                offset: end,
                length: LONGEST.saturating_sub(end),
            };
            is_free = punch(writable.as_fd(), &[beyond], || {
                !has_pages_beyond(file.as_fd(), end)
            });
            restore_times(&writable, &stat);
            now = fstat(file).map_or(now, |stat| allocated(&stat));
        }
        self.found = (self.found + now).saturating_sub(before);
        let unseen = now.saturating_sub(present);
        self.outcome.unseen += unseen;
        self.outcome.unfreed += if is_free { 0 } else { unseen };
    }

    /// Where copies get their first name.
    fn scratch(&mut self) -> Option<Arc<OwnedFd>> {
        if self.scratch.is_none() {
            make(self.root, OWN);
            make(self.root, SCRATCH);
            let made = tree::open(self.root, OsStr::new(SCRATCH), OFlag::O_DIRECTORY);
            self.scratch = made.ok().map(Arc::new);
        }
        self.scratch.clone()
    }

    fn billed(&mut self, owners: &[(CgroupId, u64)]) {
        for (owner, bytes) in owners {
            *self.outcome.billed.entry(*owner).or_default() += bytes;
        }
    }

    fn moved(&mut self, bytes: u64) {
        self.outcome.moved += bytes;
        self.order
            .progress
            .moved
            .fetch_add(bytes, Ordering::Relaxed);
    }

    fn seen(&mut self, bytes: u64) {
        self.order.progress.seen.fetch_add(bytes, Ordering::Relaxed);
    }

    fn left(&mut self, path: Option<&Path>, bytes: u64, owner: Option<CgroupId>, reason: &str) {
        self.outcome.left_bytes += bytes;
        if self.outcome.left.len() < NAMED {
            self.outcome.left.push(Left {
                path: path.map(Path::to_owned),
                bytes,
                owner,
                reason: reason.to_owned(),
            });
        }
    }
}

impl<'scope, 'a: 'scope> Visit for Pass<'scope, 'a> {
    type Stop = Stop;

    fn file(&mut self, directory: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), Stop> {
        self.terms.in_time()?;
        match tree::open_file(directory, name) {
            Ok(file) => self.look(file, name, path)?,
            Err(Errno::ENOENT) => {}
            Err(Errno::EAGAIN) => self.left(Some(path), 0, None, "somebody holds a lease on it"),
            Err(errno) => self.left(Some(path), 0, None, errno.desc()),
        }
        if self.batch.len() == BATCH || self.batch_bytes > BATCH_BYTES - SMALL {
            self.flush(directory, true)?;
        }
        Ok(())
    }

    fn left(&mut self, directory: BorrowedFd<'_>, _path: &Path) -> Result<(), Stop> {
        self.flush(directory, false)
    }

    fn odd(&mut self, _path: &Path, _kind: &'static str) {}

    fn skipped(&mut self, path: &Path, reason: &str) {
        self.left(Some(path), 0, None, reason);
    }
}

/// Sealed objects never change, so that they are moved whole whoever mounts the volume.
fn is_sealed(path: &Path, stat: &FileStat) -> bool {
    let folder = path.parent();
    let is_object = folder == Some(Path::new(OBJECTS)) || folder == Some(Path::new(TRASH));
    is_object && stat.st_mode & 0o222 == 0
}

/// Whether anything is allocated beyond `end`, where the file ends.
fn has_pages_beyond(file: BorrowedFd<'_>, end: u64) -> bool {
    match resident_pages(file, end, 0) {
        Ok(pages) => pages > 0,
        // Before Linux 6.5: holes of the file may hide some.
        Err(_) => fstat(file).is_ok_and(|stat| allocated(&stat) > end),
    }
}

fn free(volume: BorrowedFd<'_>) -> Option<u64> {
    let statfs = fstatfs(volume).ok()?;
    let block = u64::try_from(statfs.block_size()).ok()?;
    (statfs.blocks() > 0).then(|| statfs.blocks_available() * block)
}

/// The same file for writing, never another one that has its name now, if nobody writes to it.
///
/// A lease tells, also of a file that should have no writer: one in the trash may be filled anew by whoever removed it. He asks
/// for it by a lease that he does not get while it is open here.
fn writable(file: BorrowedFd<'_>, still: bool) -> Option<File> {
    if !still || !nobody_writes(file) {
        return None;
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    opened.ok()
}

/// Makes a directory for everybody, whatever the umask. Failing that there will be none.
fn make(root: BorrowedFd<'_>, path: &str) {
    let everybody = Mode::from_bits_truncate(0o777);
    if mkdirat(root, path, everybody).is_ok()
        && let Ok(made) = tree::open(root, OsStr::new(path), OFlag::O_DIRECTORY)
    {
        let _ = fchmod(&made, everybody);
    }
}

/// Whether moving the file in place may work where copying it did not.
fn in_place_instead(error: &RechargeError) -> bool {
    match error {
        RechargeError::Viewed | RechargeError::Unsuitable(_) | RechargeError::Io(_) => true,
        RechargeError::Payer(ReserveError::Full(full)) => full.limit == Limit::Volume,
        _ => false,
    }
}

/// Errors that will be the same for every other file end the pass.
fn fatal(error: RechargeError) -> Result<RechargeError, Stop> {
    match error {
        RechargeError::Payer(error @ ReserveError::Unreachable(_)) => {
            Err(Stop::Failed(HandOverError::Payer(error)))
        }
        RechargeError::Survey(error @ SurveyError::Privilege { .. }) => Err(Stop::survey(error)),
        other => Ok(other),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Stop {
    let path = path.to_owned();
    move |source| Stop::Failed(HandOverError::Io { path, source })
}
