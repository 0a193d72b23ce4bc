//! A directory on a tmpfs: part of /dev/shm for everybody, a file system of its own for root.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

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
