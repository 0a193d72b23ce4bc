//! Room beyond a volume's capacity for a moment, by remounting it larger.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use vineyard_charge::recharge::Slack;

/// The tmpfs that a volume is mounted on.
#[derive(Debug)]
pub(crate) struct Remount {
    path: PathBuf,
    flags: MsFlags,
    /// Its size as long as nothing is lent.
    capacity: u64,
    lent: Mutex<u64>,
}

impl Remount {
    /// The mount whose root is `directory`; `None` when that is no tmpfs mount with a size.
    pub(crate) fn of(directory: &Path) -> Option<Self> {
        let path = directory.canonicalize().ok()?;
        let is_root = path.metadata().ok()?.dev() != path.parent()?.metadata().ok()?.dev();
        let fs = statfs(&path).ok()?;
        let capacity = fs.blocks() * u64::try_from(fs.block_size()).ok()?;
        if !is_root || fs.filesystem_type() != TMPFS_MAGIC || capacity == 0 {
            return None;
        }
        let flags = flags(statvfs(&path).ok()?.flags());
        Some(Self {
            path,
            flags,
            capacity,
            lent: Mutex::new(0),
        })
    }

    fn resize(&self, change: impl FnOnce(u64) -> u64) -> io::Result<()> {
        let mut lent = self
            .lent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let wanted = change(*lent);
        let size = format!("size={}", self.capacity + wanted);
        let none = None::<&str>;
        mount(
            none,
            &self.path,
            none,
            self.flags | MsFlags::MS_REMOUNT,
            Some(size.as_str()),
        )?;
        *lent = wanted;
        Ok(())
    }
}

impl Slack for Remount {
    fn lend(&self, bytes: u64) -> io::Result<()> {
        self.resize(|lent| lent + bytes)
    }

    fn take_back(&self, bytes: u64) {
        // Writers may have used it up already; then the volume stays larger until the end.
        let _ = self.resize(|lent| lent.saturating_sub(bytes));
    }
}

impl Drop for Remount {
    fn drop(&mut self) {
        let lent = *self
            .lent
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if lent > 0 && self.resize(|_| 0).is_err() {
            eprintln!(
                "vineyard: {} is {lent} bytes larger than before, and they are in use",
                self.path.display()
            );
        }
    }
}

/// A remount sets all flags anew: these are the ones that it has.
fn flags(now: FsFlags) -> MsFlags {
    [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_SYNCHRONOUS, MsFlags::MS_SYNCHRONOUS),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ]
    .into_iter()
    .filter(|(flag, _)| now.contains(*flag))
    .fold(MsFlags::empty(), |flags, (_, flag)| flags | flag)
}
