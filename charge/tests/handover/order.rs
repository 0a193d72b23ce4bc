//! What a test hands over, and who is at work meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use memmap2::Mmap;
use nix::mount::{MsFlags, mount};
use vineyard_charge::handover::{HandOver, HandOverError, Outcome, Progress};
use vineyard_charge::recharge::Slack;
use vineyard_charge::{CgroupId, Extent, PAGE, Payer, ReserveError};

use crate::support::ground::{Ground, pattern};
use crate::support::roles::Stingy;

pub const SEALED: u32 = 0o444;

pub fn pages(size: u64) -> u64 {
    size.next_multiple_of(PAGE)
}

/// Lends by a remount, as a driver does.
pub struct Remount {
    volume: PathBuf,
    name: String,
    size: AtomicU64,
}

impl Remount {
    pub fn of(ground: &Ground) -> Self {
        Self {
            volume: ground.volume(),
            name: ground.mount_name(),
            size: AtomicU64::new(ground.ledger().capacity),
        }
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let options = format!("size={size}");
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let name = Some(self.name.as_str());
        Ok(mount(
            name,
            &self.volume,
            None::<&str>,
            flags,
            Some(options.as_str()),
        )?)
    }
}

impl Slack for Remount {
    fn lend(&self, bytes: u64) -> io::Result<()> {
        self.resize(self.size.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    fn take_back(&self, bytes: u64) {
        self.resize(self.size.fetch_sub(bytes, Ordering::Relaxed) - bytes)
            .unwrap();
    }
}

/// What a test hands over, with what is usual.
pub struct Order<'a> {
    pub layer: PathBuf,
    pub stays: Vec<CgroupId>,
    pub payer: &'a dyn Payer,
    pub owners: Vec<CgroupId>,
    pub exclusive: bool,
    pub slack: &'a dyn Slack,
    pub until: Option<Instant>,
}

impl<'a> Order<'a> {
    pub fn new(ground: &Ground, payer: &'a dyn Payer, owner: CgroupId) -> Self {
        Self {
            layer: ground.volume(),
            stays: Vec::new(),
            payer,
            owners: vec![owner],
            exclusive: true,
            slack: &Stingy,
            until: None,
        }
    }

    pub fn run(&self) -> Result<Outcome, HandOverError> {
        let progress = Progress::default();
        let stays = &self.stays;
        let order = HandOver {
            layer: &self.layer,
            stays: &|owner| stays.contains(&owner),
            payer: self.payer,
            payer_owners: &self.owners,
            exclusive: self.exclusive,
            slack: self.slack,
            progress: &progress,
            until: self.until,
        };
        let outcome = order.run();
        if let Ok(outcome) = &outcome {
            assert_eq!(progress.moved(), outcome.moved);
        }
        outcome
    }
}

/// The directories that a volume has.
pub fn furnish(ground: &Ground) {
    for name in ["objects", "trash", "tmp"] {
        fs::create_dir_all(ground.at(".vineyard").join(name)).unwrap();
    }
}

pub fn object(ground: &Ground, name: &str) -> PathBuf {
    ground.at(".vineyard/objects").join(name)
}

pub fn write(path: &Path, size: u64, mode: u32) {
    fs::write(path, pattern(0, size)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn shared(path: &Path) -> Mmap {
    // SAFETY: the tests change a mapped file only by having the kernel move its pages.
    unsafe { Mmap::map(&File::open(path).unwrap()).unwrap() }
}

pub fn billed(outcome: &Outcome) -> Vec<(CgroupId, u64)> {
    let bills: BTreeMap<_, _> = outcome.billed.clone();
    bills.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

pub fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().count() == 0
}

/// A payer during whose work others are at work, too.
pub struct During<'a>(pub &'a dyn Payer, pub &'a (dyn Fn() + Sync));

impl std::fmt::Debug for During<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("During")
    }
}

impl Payer for During<'_> {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        self.1();
        self.0.reserve(extents)
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        self.1();
        self.0.pull(file, regions)
    }

    fn give_back(&self, bytes: u64) {
        self.0.give_back(bytes);
    }
}
