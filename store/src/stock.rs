//! The stock: unnamed files whose pages are reserved ahead of need, so that a small `put` is a write and a link, without
//! asking the payer. It belongs to one process, is a small share of what is free, and goes back when it is idle and
//! before anybody hears that the volume is full.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;
use vineyard_charge::{Extent, Payer, ReserveError};

use crate::error::Error;
use crate::mapping::PAGE;
use crate::per_process::{Abandon, PerProcess};
use crate::tree::Tree;

/// Contents of up to this many pages come from the stock.
pub(crate) const MAX_PAGES: usize = 16;
/// How many files are reserved by one message, in steps: whoever puts a lot gets more at a time.
const BATCHES: [usize; 4] = [1, 8, 64, 200];
/// A batch that is used up within this time is followed by a larger one.
const BUSY: Duration = Duration::from_millis(500);
/// Files that nobody took for this long are given back.
const IDLE: Duration = Duration::from_secs(2);
/// The stock holds at most this part of the free space.
const SHARE: u64 = 64;

/// Files by their number of pages.
#[derive(Debug)]
pub(crate) struct Stock {
    tree: Arc<Tree>,
    payer: Arc<dyn Payer>,
    shelf: PerProcess<Arc<Shelf>>,
}

#[derive(Debug)]
struct Shelf {
    /// The device of the volume, to recognise its files in a forked child.
    device: u64,
    classes: [Mutex<Class>; MAX_PAGES],
    /// Files on the shelf, of all classes.
    files: AtomicUsize,
    most_files: usize,
    keeper: Mutex<bool>,
}

#[derive(Debug, Default)]
struct Class {
    files: Vec<OwnedFd>,
    /// Index of the next batch's size in [`BATCHES`].
    step: usize,
    refilled: Option<Instant>,
    taken: Option<Instant>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stock {
    pub(crate) fn new(tree: Arc<Tree>, payer: Arc<dyn Payer>) -> Self {
        Self {
            tree,
            payer,
            shelf: PerProcess::new(),
        }
    }

    fn shelf(&self) -> &Arc<Shelf> {
        self.shelf.get(|| {
            let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
            Arc::new(Shelf {
                device: fstat(self.tree.objects.as_fd()).map_or(0, |s| s.st_dev),
                classes: Default::default(),
                files: AtomicUsize::new(0),
                most_files: usize::try_from(open_files / 4)
                    .unwrap_or(256)
                    .clamp(1, 4096),
                keeper: Mutex::new(false),
            })
        })
    }

    /// A file with `pages` pages, reserved on the bill.
    pub(crate) fn take(&self, pages: usize) -> Result<OwnedFd, TakeError> {
        let shelf = self.shelf();
        let mut class = locked(&shelf.classes[pages - 1]);
        class.taken = Some(Instant::now());
        if let Some(file) = class.files.pop() {
            shelf.files.fetch_sub(1, Ordering::Relaxed);
            return Ok(file);
        }
        self.refill(shelf, &mut class, pages)
    }

    /// Reserves a batch, keeps all of it but one file.
    fn refill(
        &self,
        shelf: &Arc<Shelf>,
        class: &mut Class,
        pages: usize,
    ) -> Result<OwnedFd, TakeError> {
        let busy = class.refilled.is_some_and(|at| at.elapsed() < BUSY);
        class.step = if busy {
            (class.step + 1).min(BATCHES.len() - 1)
        } else {
            0
        };
        let bytes = pages as u64 * PAGE;
        let mut count = BATCHES[class.step];
        if count > 1 {
            count = count.min(self.room(bytes)).min(
                shelf
                    .most_files
                    .saturating_sub(shelf.files.load(Ordering::Relaxed)),
            );
        }
        let mut files = self.reserve(count.max(1), bytes)?;
        class.refilled = Some(Instant::now());
        let Some(file) = files.pop() else {
            return Err(TakeError::Reserve(ReserveError::Io(
                std::io::ErrorKind::Other.into(),
            )));
        };
        if !files.is_empty() {
            shelf.files.fetch_add(files.len(), Ordering::Relaxed);
            class.files = files;
            self.keep(shelf);
        }
        Ok(file)
    }

    /// How many files of `bytes` the share of the free space holds.
    fn room(&self, bytes: u64) -> usize {
        let free = fstatfs(self.tree.objects.as_fd()).map_or(0, |fs| {
            fs.blocks_available() * u64::try_from(fs.block_size()).unwrap_or(PAGE)
        });
        usize::try_from(free / SHARE / bytes).unwrap_or(usize::MAX)
    }

    fn reserve(&self, count: usize, bytes: u64) -> Result<Vec<OwnedFd>, TakeError> {
        let mut files = Vec::with_capacity(count);
        for _ in 0..count {
            match self.tree.unnamed() {
                Ok(file) => files.push(file),
                // Out of descriptors: what there is has to do.
                Err(_) if !files.is_empty() => break,
                Err(error) => return Err(TakeError::Open(error)),
            }
        }
        let extent = Extent {
            offset: 0,
            length: bytes,
        };
        let extents: Vec<_> = files.iter().map(|file| (file.as_fd(), extent)).collect();
        match self.payer.reserve(&extents) {
            Ok(()) => Ok(files),
            Err(ReserveError::Full(_)) if extents.len() > 1 => {
                self.payer.reserve(&extents[..1])?;
                files.truncate(1);
                Ok(files)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives everything back, for whoever needs the room now.
    pub(crate) fn give_back(&self) {
        if let Some(shelf) = self.shelf.existing() {
            shelf.give_back(self.payer.as_ref(), |_| true);
        }
    }

    /// In a forked child: closes the copies of the parent's files.
    pub(crate) fn after_fork_in_child(&self) {
        self.shelf();
    }

    /// Starts the thread that gives idle files back, unless it runs.
    fn keep(&self, shelf: &Arc<Shelf>) {
        let mut running = locked(&shelf.keeper);
        if *running {
            return;
        }
        let (shelf, payer) = (Arc::downgrade(shelf), Arc::clone(&self.payer));
        *running = std::thread::Builder::new()
            .name("vineyard-stock".into())
            .stack_size(64 << 10)
            .spawn(move || keep(&shelf, payer.as_ref()))
            .is_ok();
    }
}

/// Looks for idle files until there are none.
fn keep(shelf: &Weak<Shelf>, payer: &dyn Payer) {
    loop {
        std::thread::sleep(IDLE / 2);
        let Some(shelf) = shelf.upgrade() else { return };
        shelf.give_back(payer, |class| {
            class.taken.is_none_or(|at| at.elapsed() >= IDLE)
        });
        let mut running = locked(&shelf.keeper);
        if shelf.files.load(Ordering::Relaxed) == 0 {
            *running = false;
            return;
        }
    }
}

impl Shelf {
    fn give_back(&self, payer: &dyn Payer, which: impl Fn(&Class) -> bool) {
        let mut bytes = 0;
        for (index, class) in self.classes.iter().enumerate() {
            let mut class = locked(class);
            if class.files.is_empty() || !which(&class) {
                continue;
            }
            let files = std::mem::take(&mut class.files);
            class.step = 0;
            self.files.fetch_sub(files.len(), Ordering::Relaxed);
            bytes += files.len() as u64 * (index as u64 + 1) * PAGE;
        }
        if bytes > 0 {
            payer.give_back(bytes);
        }
    }
}

impl Abandon for Arc<Shelf> {
    fn abandon(&self) {
        for class in &self.classes {
            // A thread that this child does not have may hold it for ever.
            let Ok(mut class) = class.try_lock() else {
                continue;
            };
            for file in class.files.drain(..) {
                // A child that closed all descriptors and opened others must not lose those.
                let ours = fstat(file.as_fd()).is_ok_and(|s| {
                    s.st_dev == self.device && s.st_nlink == 0 && s.st_mode == libc::S_IFREG | 0o444
                });
                if !ours {
                    let _ = file.into_raw_fd();
                }
            }
        }
    }
}

/// Why no file was to be had.
#[derive(Debug)]
pub(crate) enum TakeError {
    Open(Error),
    Reserve(ReserveError),
}

impl From<ReserveError> for TakeError {
    fn from(error: ReserveError) -> Self {
        Self::Reserve(error)
    }
}
