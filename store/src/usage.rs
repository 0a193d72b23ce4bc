//! What a volume holds and what is free.

use std::fmt;
use std::os::fd::AsFd;

use nix::sys::statfs::fstatfs;

use crate::error::Error;
use crate::volume::Volume;

/// Bytes and files of a volume, as its file system counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The size of the file system in bytes; 0 when it has no limit.
    pub capacity: u64,
    /// Bytes in use, also by what is no longer listed.
    pub used: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes of removed objects that somebody still maps (`.vineyard/trash`).
    pub trash: u64,
    /// Removed objects in the trash.
    pub trash_objects: u64,
    /// Files that can still be made.
    pub free_files: u64,
}

/// What holds the space of a full volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The size of the file system in bytes.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes of removed objects that somebody still maps.
    pub trash: u64,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} bytes are in use, {} of them by removed objects that are still mapped",
            self.used, self.capacity, self.trash
        )
    }
}

impl Volume {
    /// What the volume holds.
    ///
    /// # Errors
    /// When the file system or the trash cannot be read.
    pub fn usage(&self) -> Result<Usage, Error> {
        let tree = self.tree();
        let fs = fstatfs(tree.root.as_fd()).map_err(|errno| Error::io("statfs", errno))?;
        let block = u64::try_from(fs.block_size()).unwrap_or(4096);
        let (trash, trash_objects) = self.trash_bytes()?;
        Ok(Usage {
            capacity: fs.blocks() * block,
            used: fs.blocks().saturating_sub(fs.blocks_free()) * block,
            free: fs.blocks_available() * block,
            trash,
            trash_objects,
            free_files: fs.files_free(),
        })
    }

    /// What holds the space, for an error message; zeros where it cannot be known.
    pub(crate) fn space(&self) -> Box<Space> {
        Box::new(self.usage().map_or_else(
            |_| Space::default(),
            |u| Space {
                capacity: u.capacity,
                used: u.used,
                trash: u.trash,
            },
        ))
    }
}
