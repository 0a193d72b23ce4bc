//! A directory on a tmpfs: part of /dev/shm for everybody, a file system of its own for root.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use super::HANG;

pub(crate) struct Volume {
    volume: PathBuf,
    mounted: bool,
    folder: tempfile::TempDir,
}

impl Volume {
    pub(crate) fn shared() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("vineyard-test-")
            .tempdir_in("/dev/shm")
            .unwrap();
        let volume = folder.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        Self {
            volume,
            mounted: false,
            folder,
        }
    }

    /// A tmpfs of its own; `None`, with a line that says so, where mounting is not allowed.
    pub(crate) fn own(size: &str) -> Option<Self> {
        let mut volume = Self::shared();
        let options = format!("size={size},mode=0777");
        let mounted = mount(
            Some("vineyard-test"),
            &volume.volume,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(options.as_str()),
        );
        match mounted {
            Ok(()) => {
                volume.mounted = true;
                Some(volume)
            }
            Err(error) => {
                eprintln!("skipped: cannot mount a tmpfs: {error}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.volume
    }

    /// A folder beside the volume, for sockets and state.
    pub(crate) fn side(&self) -> &Path {
        self.folder.path()
    }

    /// An unnamed file on the volume, as clients open it.
    pub(crate) fn file(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o444)
            .open(&self.volume)
            .unwrap()
    }

    /// Waits until the volume, which is a file system of its own, holds no more than this. What a test closed lives on for a
    /// moment, while another one starts a process.
    pub(crate) fn holds_at_most(&self, bytes: u64) {
        let begun = Instant::now();
        loop {
            let stat = statvfs(&self.volume).unwrap();
            let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
            if used <= bytes {
                return;
            }
            assert!(begun.elapsed() < HANG, "{used} bytes are in use");
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn files(&self, count: usize) -> Vec<File> {
        (0..count).map(|_| self.file()).collect()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            let _ = umount2(&self.volume, MntFlags::MNT_DETACH);
        }
    }
}

/// Bytes that are allocated for a file.
pub(crate) fn allocated(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}
