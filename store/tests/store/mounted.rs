//! A tmpfs of our own, removed with its test. Needs root; without it the tests that use it say that they skip.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::statfs;

pub(crate) struct Mounted {
    path: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Mounted {
    /// Mounts a tmpfs of `size` bytes, or says why not.
    pub(crate) fn new(size: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: mounting a tmpfs needs root");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vineyard-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        std::fs::create_dir(&path).unwrap();
        let options = format!("size={size},huge=never,mode=0777");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if let Err(errno) = mount(
            Some(name.as_str()),
            &path,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        ) {
            std::fs::remove_dir(&path).unwrap();
            eprintln!("skipped: mounting a tmpfs failed: {errno}");
            return None;
        }
        Some(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// From now on nothing can be changed.
    pub(crate) fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &self.path, None::<&str>, flags, None::<&str>).unwrap();
    }

    /// Bytes in use, as the file system counts them.
    pub(crate) fn used(&self) -> u64 {
        let fs = statfs(&self.path).unwrap();
        (fs.blocks() - fs.blocks_free()) * u64::try_from(fs.block_size()).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_dir(&self.path).unwrap();
    }
}
