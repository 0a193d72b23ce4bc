//! What a volume holds and what is free.

use std::fmt;
use std::os::fd::AsFd;

use nix::sys::statfs::fstatfs;

use crate::error::Error;
use crate::list::{ListOptions, Walk};
use crate::name::Name;
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
    /// Files that can still be made.
    pub free_files: u64,
    /// The largest names and their bytes, among the first few thousand.
    pub largest: Vec<(Name, u64)>,
}

/// So many names are looked at for an error message.
const LOOKED_AT: usize = 5000;
/// So many are named in it.
const NAMED: usize = 3;

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes are in use", self.used, self.capacity)?;
        if self.trash > 0 {
            write!(
                f,
                ", {} of them by removed objects that are still mapped",
                self.trash
            )?;
        }
        if self.free_files == 0 {
            f.write_str(", and no more files can be made")?;
        }
        for (at, (name, bytes)) in self.largest.iter().enumerate() {
            write!(
                f,
                "{} {name} ({bytes})",
                if at == 0 { "; largest:" } else { "," }
            )?;
        }
        Ok(())
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
        // What this process keeps for its next objects is free for whoever asks.
        let (kept, kept_objects) = self.recycling().held();
        let used = fs.blocks().saturating_sub(fs.blocks_free()) * block;
        Ok(Usage {
            capacity: fs.blocks() * block,
            used: used.saturating_sub(kept),
            free: fs.blocks_available() * block + kept,
            trash: trash.saturating_sub(kept),
            trash_objects: trash_objects.saturating_sub(kept_objects),
            free_files: fs.files_free(),
        })
    }

    /// What holds the space, for an error message; zeros where it cannot be known.
    pub(crate) fn space(&self) -> Box<Space> {
        let Ok(usage) = self.usage() else {
            return Box::default();
        };
        Box::new(Space {
            capacity: usage.capacity,
            used: usage.used,
            trash: usage.trash,
            free_files: usage.free_files,
            largest: self.largest(),
        })
    }

    fn largest(&self) -> Vec<(Name, u64)> {
        let options = ListOptions {
            stat: true,
            ..ListOptions::default()
        };
        let Ok(names) = Walk::new(self, &options) else {
            return Vec::new();
        };
        let mut largest = Vec::new();
        for listed in names.take(LOOKED_AT).flatten() {
            if let Some(stat) = listed.stat {
                largest.push((listed.name, stat.allocated));
            }
            if largest.len() > 100 {
                keep_largest(&mut largest);
            }
        }
        keep_largest(&mut largest);
        largest
    }
}

fn keep_largest(names: &mut Vec<(Name, u64)>) {
    names.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    names.truncate(NAMED);
}
