//! The stock: unnamed files that are opened, and reserved on the bill, ahead of need, so that a small `put` is a write and
//! a link, without asking the payer. It belongs to one process, is a small share of what is free, is refilled in the
//! background while it is used a lot, and goes back when it is idle and before anybody hears that the volume is full.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
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
/// From this step on the next batch is fetched in the background, when half of the last one is left.
const AHEAD: usize = 2;
/// The background puts so many on the shelf at a time, and whoever finds it empty meanwhile gets a few himself, each time
/// twice as many.
const PORTION: usize = 50;
const BILLED_PORTION: usize = 100;
const FEW: usize = 4;
/// A batch that is used up within this time is followed by a larger one.
const BUSY: Duration = Duration::from_millis(500);
/// Files that nobody took for this long are given back.
const IDLE: Duration = Duration::from_secs(2);
/// The stock holds at most this part of the free space.
const SHARE: u64 = 64;

/// Files by their number of pages.
#[derive(Debug)]
pub(crate) struct Stock {
    source: Arc<Source>,
    shelf: PerProcess<Arc<Shelf>>,
}

/// Where files come from.
#[derive(Debug)]
struct Source {
    tree: Arc<Tree>,
    /// `None`: the files have no pages yet; whoever writes them pays.
    payer: Option<Arc<dyn Payer>>,
}

#[derive(Debug)]
struct Shelf {
    /// The device of the volume, to recognise its files in a forked child.
    device: u64,
    classes: [Mutex<Class>; MAX_PAGES],
    /// Files on the shelf, of all classes.
    files: AtomicUsize,
    most_files: usize,
    /// The classes for which the background was asked and is not done, one bit each.
    asked: AtomicU32,
    /// Held while the background has files on their way to the shelf.
    fetching: Mutex<()>,
    /// How often somebody needed all the room: what the background was asked for before is not fetched any more.
    given_back: AtomicUsize,
    keeper: Mutex<Keeper>,
    wanted: Condvar,
}

#[derive(Debug, Default)]
struct Class {
    files: Vec<OwnedFd>,
    /// Index of the last batch's size in [`BATCHES`].
    step: usize,
    refilled: Option<Instant>,
    /// How many whoever finds it empty got for himself since the background was asked.
    few: usize,
    taken: Option<Instant>,
}

/// What the background thread is to do.
#[derive(Debug, Default)]
struct Keeper {
    running: bool,
    /// The classes that want another batch, one bit each.
    wanted: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stock {
    pub(crate) fn new(tree: Arc<Tree>, payer: Option<Arc<dyn Payer>>) -> Self {
        Self {
            source: Arc::new(Source { tree, payer }),
            shelf: PerProcess::new(),
        }
    }

    fn shelf(&self) -> &Arc<Shelf> {
        self.shelf.get(|| Arc::new(Shelf::new(&self.source.tree)))
    }

    /// A file with `pages` pages, reserved on the bill if there is one.
    pub(crate) fn take(&self, pages: usize) -> Result<OwnedFd, TakeError> {
        let shelf = self.shelf();
        // Files without pages are all alike.
        let index = if self.source.payer.is_some() {
            pages - 1
        } else {
            0
        };
        let mut class = locked(&shelf.classes[index]);
        class.taken = Some(Instant::now());
        if let Some(file) = class.files.pop() {
            shelf.files.fetch_sub(1, Ordering::Relaxed);
            if class.step >= AHEAD && class.files.len() <= BATCHES[class.step] / 2 {
                drop(class);
                shelf.want(index);
            }
            return Ok(file);
        }
        let count = if shelf.is_asked(index) {
            class.few = (class.few * 2).clamp(FEW, BATCHES[AHEAD]);
            class.few
        } else {
            class.next_batch()
        };
        let count = count.min(self.source.room(shelf, index)).max(1);
        let mut files = self.source.files(count, index)?;
        class.refilled = Some(Instant::now());
        let Some(file) = files.pop() else {
            return Err(TakeError::Reserve(ReserveError::Io(
                std::io::ErrorKind::Other.into(),
            )));
        };
        if !files.is_empty() {
            shelf.files.fetch_add(files.len(), Ordering::Relaxed);
            class.files.extend(files);
            drop(class);
            self.keep(shelf);
        }
        Ok(file)
    }

    /// Gives everything back, for whoever needs the room now.
    pub(crate) fn give_back(&self) {
        if let Some(shelf) = self.shelf.existing() {
            let mut keeper = locked(&shelf.keeper);
            shelf.given_back.fetch_add(1, Ordering::SeqCst);
            let not_wanted = std::mem::take(&mut keeper.wanted);
            drop(keeper);
            shelf.asked.fetch_and(!not_wanted, Ordering::Relaxed);
            // What is on its way arrives first, and goes back with the rest.
            let _fetching = locked(&shelf.fetching);
            shelf.give_back(&self.source, |_| true);
        }
    }

    /// In a forked child: closes the copies of the parent's files.
    pub(crate) fn after_fork_in_child(&self) {
        self.shelf();
    }

    /// Starts the background thread, unless it runs.
    fn keep(&self, shelf: &Arc<Shelf>) {
        let mut keeper = locked(&shelf.keeper);
        if keeper.running {
            return;
        }
        let (shelf, source) = (Arc::downgrade(shelf), Arc::clone(&self.source));
        keeper.running = std::thread::Builder::new()
            .name("vineyard-stock".into())
            .stack_size(128 << 10)
            .spawn(move || keep(&shelf, &source))
            .is_ok();
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Fetches what is wanted and gives back what is idle, until the shelf is empty.
fn keep(shelf: &Weak<Shelf>, source: &Source) {
    loop {
        let Some(shelf) = shelf.upgrade() else { return };
        let keeper = locked(&shelf.keeper);
        let wait = shelf
            .wanted
            .wait_timeout_while(keeper, IDLE / 2, |k| k.wanted == 0);
        let (mut keeper, _) = wait.unwrap_or_else(PoisonError::into_inner);
        let wanted = std::mem::take(&mut keeper.wanted);
        let given_back = shelf.given_back.load(Ordering::SeqCst);
        drop(keeper);
        for index in (0..MAX_PAGES).filter(|i| wanted & 1 << i != 0) {
            shelf.refill(source, index, given_back);
        }
        shelf.give_back(source, |class| {
            class.taken.is_none_or(|at| at.elapsed() >= IDLE)
        });
        let mut keeper = locked(&shelf.keeper);
        if shelf.files.load(Ordering::Relaxed) == 0 && keeper.wanted == 0 {
            keeper.running = false;
            return;
        }
    }
}

impl Class {
    /// The size of the batch that is due now.
    fn next_batch(&mut self) -> usize {
        let busy = self.refilled.is_some_and(|at| at.elapsed() < BUSY);
        self.step = if busy {
            (self.step + 1).min(BATCHES.len() - 1)
        } else {
            0
        };
        BATCHES[self.step]
    }
}

impl Shelf {
    fn new(tree: &Tree) -> Self {
        let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Self {
            device: fstat(tree.objects.as_fd()).map_or(0, |s| s.st_dev),
            classes: Default::default(),
            files: AtomicUsize::new(0),
            most_files: usize::try_from(open_files / 4)
                .unwrap_or(256)
                .clamp(1, 4096),
            asked: AtomicU32::new(0),
            fetching: Mutex::default(),
            given_back: AtomicUsize::new(0),
            keeper: Mutex::default(),
            wanted: Condvar::new(),
        }
    }

    /// Asks the background thread for another batch, once.
    fn want(&self, index: usize) {
        if self.asked.fetch_or(1 << index, Ordering::Relaxed) & 1 << index != 0 {
            return;
        }
        let mut keeper = locked(&self.keeper);
        if !keeper.running {
            self.asked.fetch_and(!(1 << index), Ordering::Relaxed);
            return;
        }
        keeper.wanted |= 1 << index;
        drop(keeper);
        self.wanted.notify_one();
    }

    fn is_asked(&self, index: usize) -> bool {
        self.asked.load(Ordering::Relaxed) & 1 << index != 0
    }

    /// Adds a batch, unless somebody needs the room since `given_back` was read; without success whoever finds the shelf empty
    /// will hear why.
    fn refill(&self, source: &Source, index: usize, given_back: usize) {
        let mut left = locked(&self.classes[index])
            .next_batch()
            .min(source.room(self, index));
        let most = if source.payer.is_some() {
            BILLED_PORTION
        } else {
            PORTION
        };
        while left > 0 {
            let portion = left.min(most);
            let _fetching = locked(&self.fetching);
            if self.given_back.load(Ordering::SeqCst) != given_back {
                break;
            }
            let Ok(files) = source.files(portion, index) else {
                break;
            };
            left = if files.len() < portion {
                0
            } else {
                left - portion
            };
            let mut class = locked(&self.classes[index]);
            self.files.fetch_add(files.len(), Ordering::Relaxed);
            class.files.extend(files);
            class.few = 0;
            class.refilled = Some(Instant::now());
        }
        self.asked.fetch_and(!(1 << index), Ordering::Relaxed);
    }

    fn give_back(&self, source: &Source, which: impl Fn(&Class) -> bool) {
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
        if let (Some(payer), 1..) = (&source.payer, bytes) {
            payer.give_back(bytes);
        }
    }
}

impl Source {
    /// How many files more the stock may hold.
    fn room(&self, shelf: &Shelf, index: usize) -> usize {
        let places = shelf
            .most_files
            .saturating_sub(shelf.files.load(Ordering::Relaxed));
        if self.payer.is_none() {
            return places;
        }
        let free = fstatfs(self.tree.objects.as_fd()).map_or(0, |fs| {
            fs.blocks_available() * u64::try_from(fs.block_size()).unwrap_or(PAGE)
        });
        let share = free / SHARE / ((index as u64 + 1) * PAGE);
        places.min(usize::try_from(share).unwrap_or(usize::MAX))
    }

    /// Files with their pages reserved, `count` of them if there is room, else one.
    fn files(&self, count: usize, index: usize) -> Result<Vec<OwnedFd>, TakeError> {
        let mut files = Vec::with_capacity(count);
        for _ in 0..count {
            match self.tree.unnamed() {
                Ok(file) => files.push(file),
                // Out of descriptors: what there is has to do.
                Err(_) if !files.is_empty() => break,
                Err(error) => return Err(TakeError::Open(error)),
            }
        }
        let Some(payer) = &self.payer else {
            return Ok(files);
        };
        let extent = Extent {
            offset: 0,
            length: (index as u64 + 1) * PAGE,
        };
        let extents: Vec<_> = files.iter().map(|file| (file.as_fd(), extent)).collect();
        match payer.reserve(&extents) {
            Ok(()) => {}
            Err(ReserveError::Full(_)) if extents.len() > 1 => {
                payer.reserve(&extents[..1])?;
                files.truncate(1);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(files)
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
