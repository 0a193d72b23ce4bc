//! A tmpfs of its own, mounted where only this test sees it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use vineyard_charge::recharge::Slack;

/// A mounted tmpfs. It is unmounted with this guard; and it lives in a mount namespace of the calling thread and of the
/// processes that it starts, so that it goes with them even when the test is killed.
#[derive(Debug)]
pub struct VolumeMount {
    path: PathBuf,
    size: u64,
}

impl VolumeMount {
    /// Mounts a tmpfs of `size` bytes and `inodes` files at `path`, which is made.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(path: &Path, size: u64, inodes: u64) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).context("private mounts")?;
        fs::create_dir(path).with_context(|| path.display().to_string())?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = format!("size={size},nr_inodes={inodes},mode=0777,huge=never");
        // `noswap` exists since Linux 6.4.
        let swapless = format!("{options},noswap");
        mount(
            Some("vineyard-test"),
            path,
            Some("tmpfs"),
            flags,
            Some(swapless.as_str()),
        )
        .or_else(|_| {
            mount(
                Some("vineyard-test"),
                path,
                Some("tmpfs"),
                flags,
                Some(options.as_str()),
            )
        })
        .context("mount of a tmpfs")?;
        let mounted = Self {
            path: path.into(),
            size,
        };
        // The mode of the mount is not subject to the umask, but say so.
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        Ok(mounted)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in use, as statfs counts them.
    ///
    /// # Errors
    /// When the mount is gone.
    pub fn used(&self) -> Result<u64> {
        let fs = statvfs(&self.path)?;
        Ok((fs.blocks() - fs.blocks_free()) * fs.fragment_size())
    }

    /// Its capacity in bytes.
    ///
    /// # Errors
    /// When the mount is gone.
    pub fn capacity(&self) -> Result<u64> {
        let fs = statvfs(&self.path)?;
        Ok(fs.blocks() * fs.fragment_size())
    }
}

impl VolumeMount {
    fn resize(&self, size: u64) -> io::Result<()> {
        let none: Option<&str> = None;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        Ok(mount(
            none,
            &self.path,
            none,
            flags,
            Some(format!("size={size}").as_str()),
        )?)
    }
}

impl Slack for VolumeMount {
    fn lend(&self, bytes: u64) -> io::Result<()> {
        self.resize(self.size + bytes)
    }

    fn take_back(&self, _: u64) {
        if let Err(error) = self.resize(self.size) {
            eprintln!("{} keeps what it was lent: {error}", self.path.display());
        }
    }
}

impl Drop for VolumeMount {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.path.display());
        }
        let _ = fs::remove_dir(&self.path);
    }
}
