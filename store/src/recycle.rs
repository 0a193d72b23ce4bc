//! Recycled files: the pages of a large object that this process made and removed serve its next one. They are on the
//! right bill already, and nobody has to find, clear and free them again, which is most of the work of a large put.
//!
//! While such a file waits, it lies in the trash, so that it is found when this process is killed, and this process holds
//! a write lease on it: the kernel grants that only while nobody else has the file open or mapped, and whoever tries to
//! open it breaks the lease, upon which the file is freed at once. So a sweep, and anybody who needs the room, gets it.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;

use vineyard_charge::Payer;

use crate::at_fork::Kept;
use crate::id::ObjectId;
use crate::keeper::Keeper;
use crate::lease;
use crate::mapping::{HUGE, PAGE};
use crate::name::ObjectFile;
use crate::per_process::{Abandon, PerProcess};
use crate::tree::{READ, SEALED_MODE, Tree};

/// Objects of fewer bytes are freed as ever.
pub(crate) const SMALLEST: u64 = 1 << 20;
/// Recycled files are at most this part of what would be free without them.
const SHARE: u64 = 4;
/// What is no more than this part of it stays longer.
const SMALL_SHARE: u64 = 64;
const IDLE: Duration = Duration::from_secs(2);
const SMALL_IDLE: Duration = Duration::from_secs(30);
/// How long an answer to how much room there is may be reused.
const ROOM_FRESH: Duration = Duration::from_millis(100);
/// Each holds a descriptor.
const MOST_FILES: usize = 16;
/// Objects that this process made and may recycle, the last ones.
const REMEMBERED: usize = 4096;

/// The recycled files of a volume.
#[derive(Debug)]
pub(crate) struct Recycling {
    tree: Arc<Tree>,
    payer: Option<Arc<dyn Payer>>,
    bin: PerProcess<Arc<Bin>>,
}

#[derive(Debug)]
pub(crate) struct Bin {
    device: u64,
    payer: Option<Arc<dyn Payer>>,
    made: Mutex<HashMap<ObjectId, Mark>>,
    files: Mutex<Vec<Recycled>>,
    room: Mutex<Option<(Instant, u64)>>,
    pub(crate) keeper: Keeper,
}

/// What a file was like when it was sealed. A recharge, which leaves the bytes as they are but has others pay for them,
/// changes the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    changed: (i64, i64),
}

impl Mark {
    fn of(stat: &FileStat) -> Self {
        Self {
            inode: stat.st_ino,
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// A file of the trash that only this process has open, and its pages.
#[derive(Debug)]
pub(crate) struct Recycled {
    pub(crate) place: InTrash,
    pub(crate) file: OwnedFd,
    /// Bytes that are allocated, from the start.
    pub(crate) bytes: u64,
    until: Instant,
    _kept: Kept,
}

/// The name of a file in the trash. Dropped, it goes.
#[derive(Debug)]
pub(crate) struct InTrash {
    tree: Arc<Tree>,
    name: ObjectFile,
    inode: u64,
    process: u32,
    left: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is kept of a file of so many bytes when it is extended: its end, which has no huge page, would be amidst the new
/// ones.
pub(crate) fn extensible(bytes: u64) -> u64 {
    bytes - bytes % HUGE as u64
}

impl Recycling {
    pub(crate) fn new(tree: Arc<Tree>, payer: Option<Arc<dyn Payer>>) -> Self {
        Self {
            tree,
            payer,
            bin: PerProcess::new(),
        }
    }

    fn bin(&self) -> &Arc<Bin> {
        self.bin
            .get(|| Arc::new(Bin::new(&self.tree, self.payer.clone())))
    }

    /// Remembers an object that was just sealed, and that this process' bill paid for.
    pub(crate) fn made(&self, id: ObjectId, file: BorrowedFd<'_>) {
        let Ok(stat) = fstat(file) else { return };
        let mut made = locked(&self.bin().made);
        if made.len() >= REMEMBERED {
            made.clear();
        }
        made.insert(id, Mark::of(&stat));
    }

    /// Whether this process made the object, and nobody has touched its file since.
    pub(crate) fn knows(&self, id: ObjectId, stat: &FileStat) -> bool {
        let Some(bin) = self.bin.existing() else {
            return false;
        };
        let mark = locked(&bin.made).remove(&id);
        mark == Some(Mark::of(stat)) && stat.st_nlink == 1
    }

    /// Keeps a removed object that is in the trash now, if nobody uses it and it is not too much for the room there is:
    /// `room` bytes besides what the volume has. Returns whether it did; then the file is not there for anybody else.
    pub(crate) fn keep(&self, object: &ObjectFile, room: impl FnOnce() -> u64) -> bool {
        let bin = self.bin();
        let Ok(stat) = fstatfs(self.tree.trash.as_fd()) else {
            return false;
        };
        if stat.filesystem_type() != TMPFS_MAGIC || stat.blocks() == 0 {
            return false;
        }
        let free = stat.blocks_available() * u64::try_from(stat.block_size()).unwrap_or(PAGE);
        let Some(watch) = bin.keeper.watch(bin) else {
            return false;
        };
        let Some(mut file) = Recycled::new(&self.tree, object, watch.thread) else {
            return false;
        };
        let mut files = locked(&bin.files);
        let held = files.iter().map(|f| f.bytes).sum::<u64>() + file.bytes;
        let would_be_free = free.min(bin.room(room)).saturating_add(held);
        if files.len() >= MOST_FILES || held > would_be_free / SHARE {
            drop(files);
            bin.let_go(vec![file]);
            return true;
        }
        let idle = if held <= would_be_free / SMALL_SHARE {
            SMALL_IDLE
        } else {
            IDLE
        };
        file.until += idle;
        files.push(file);
        true
    }

    /// A file for an object of `len` bytes: the smallest that has as many, and not far more, else the largest that has at
    /// least half of them in huge pages, as far as they can be extended.
    pub(crate) fn take(&self, len: u64) -> Option<Recycled> {
        if len < SMALLEST {
            return None;
        }
        let bin = self.bin.existing()?;
        let mut files = locked(&bin.files);
        loop {
            let enough = |f: &&(usize, u64)| f.1 >= len && f.1 / 2 <= len;
            let sizes: Vec<(usize, u64)> = files.iter().map(|f| f.bytes).enumerate().collect();
            let best = sizes.iter().filter(enough).min_by_key(|f| f.1);
            let half = |f: &&(usize, u64)| f.1 < len && extensible(f.1) >= len / 2;
            let smaller = || sizes.iter().filter(half).max_by_key(|f| f.1);
            let (index, _) = *best.or_else(smaller)?;
            let file = files.swap_remove(index);
            if file.is_ours() {
                return Some(file);
            }
        }
    }

    /// Bytes and number of the files that are held.
    pub(crate) fn held(&self) -> (u64, u64) {
        let files = self.bin.existing().map(|bin| locked(&bin.files));
        files.map_or((0, 0), |files| {
            (files.iter().map(|f| f.bytes).sum(), files.len() as u64)
        })
    }

    /// Frees everything.
    pub(crate) fn free(&self) {
        if let Some(bin) = self.bin.existing() {
            bin.free();
        }
    }

    /// In a forked child: closes the copies of the parent's files.
    pub(crate) fn after_fork_in_child(&self) {
        self.bin();
    }
}

impl Drop for Recycling {
    fn drop(&mut self) {
        self.free();
    }
}

impl Bin {
    fn new(tree: &Tree, payer: Option<Arc<dyn Payer>>) -> Self {
        Self {
            payer,
            device: fstat(tree.objects.as_fd()).map_or(0, |s| s.st_dev),
            made: Mutex::default(),
            files: Mutex::default(),
            room: Mutex::default(),
            keeper: Keeper::default(),
        }
    }

    /// What `ask` says, or said a moment ago: it reads many small files.
    fn room(&self, ask: impl FnOnce() -> u64) -> u64 {
        let mut known = locked(&self.room);
        match *known {
            Some((at, room)) if at.elapsed() < ROOM_FRESH => room,
            _ => known.insert((Instant::now(), ask())).1,
        }
    }

    pub(crate) fn free(&self) {
        let files = std::mem::take(&mut *locked(&self.files));
        self.let_go(files);
    }

    fn let_go(&self, files: Vec<Recycled>) {
        let mut bytes = 0;
        for recycled in files {
            bytes += recycled.bytes;
            // A forked child may have a copy of the descriptor. Nobody else has, if the lease holds.
            if lease::is_held(recycled.file.as_fd()) {
                let _ = ftruncate(recycled.file.as_fd(), 0);
            }
        }
        if let (Some(payer), 1..) = (&self.payer, bytes) {
            payer.give_back(bytes);
        }
    }

    /// Frees what nobody took in time, and what somebody else wants to open. Returns whether anything is left.
    pub(crate) fn tend(&self) -> bool {
        let now = Instant::now();
        let mut gone = Vec::new();
        let mut files = locked(&self.files);
        for index in (0..files.len()).rev() {
            if files[index].until <= now || !files[index].is_ours() {
                gone.push(files.swap_remove(index));
            }
        }
        let left = !files.is_empty();
        drop(files);
        self.let_go(gone);
        left
    }
}

impl Abandon for Arc<Bin> {
    fn abandon(&self) {
        // A thread that this child does not have may hold it for ever.
        let Ok(mut files) = self.files.try_lock() else {
            return;
        };
        for recycled in files.drain(..) {
            // They are closed already, and their numbers may be others' now. The names are the parent's.
            let ours = fstat(recycled.file.as_fd())
                .is_ok_and(|s| s.st_dev == self.device && s.st_ino == recycled.place.inode);
            if !ours {
                let _ = recycled.file.into_raw_fd();
            }
        }
    }
}

impl Recycled {
    /// Opens a file of the trash for writing if nobody else has it open or mapped.
    fn new(tree: &Arc<Tree>, object: &ObjectFile, keeper: libc::pid_t) -> Option<Self> {
        let trash = tree.trash.as_fd();
        let name = object.as_str();
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(trash, name, flags, Mode::empty()) {
            Err(Errno::EACCES) => {
                // Its owner makes it writable for a moment, but not what somebody views: this process may die meanwhile.
                let seen = openat(trash, name, READ, Mode::empty()).ok()?;
                if !lease::nobody_uses(seen.as_fd()).ok()? {
                    return None;
                }
                fchmod(seen.as_fd(), Mode::from_bits_truncate(0o644)).ok()?;
                let file = openat(trash, name, flags, Mode::empty());
                let _ = fchmod(seen.as_fd(), SEALED_MODE);
                file.ok()?
            }
            other => other.ok()?,
        };
        lease::take_for(file.as_fd(), keeper).ok()?;
        let stat = fstat(file.as_fd()).ok()?;
        // Opened by root, who needs no permission, it may have another mode.
        fchmod(file.as_fd(), SEALED_MODE).ok()?;
        let kept = Kept::new(file.as_fd())?;
        Some(Self {
            _kept: kept,
            place: InTrash {
                tree: Arc::clone(tree),
                name: *object,
                inode: stat.st_ino,
                process: std::process::id(),
                left: AtomicBool::new(false),
            },
            file,
            bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            until: Instant::now(),
        })
    }

    /// Whether still nobody has tried to open it, or to remove it.
    fn is_ours(&self) -> bool {
        lease::is_held(self.file.as_fd()) && fstat(self.file.as_fd()).is_ok_and(|s| s.st_nlink == 1)
    }
}

impl InTrash {
    /// Opens the file once more, for reading, if it is still there.
    pub(crate) fn reopen(&self) -> Option<OwnedFd> {
        let trash = self.tree.trash.as_fd();
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(trash, self.name.as_str(), flags, Mode::empty()).ok()?;
        fstat(file.as_fd())
            .is_ok_and(|s| s.st_ino == self.inode)
            .then_some(file)
    }

    /// Moves the file to `objects/`, if it is still there.
    pub(crate) fn move_to(&self, object: &str) -> Result<(), Errno> {
        renameat2(
            self.tree.trash.as_fd(),
            self.name.as_str(),
            self.tree.objects.as_fd(),
            object,
            RenameFlags::RENAME_NOREPLACE,
        )?;
        self.left.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for InTrash {
    fn drop(&mut self) {
        if !*self.left.get_mut() && self.process == std::process::id() {
            let _ = Tree::unlink(self.tree.trash.as_fd(), self.name.as_str());
        }
    }
}
