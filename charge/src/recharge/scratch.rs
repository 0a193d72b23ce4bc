//! The names that copies have for a moment. Whoever is killed then leaves one behind, and the next one sweeps it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::tree;

const PREFIX: &str = "recharge.";

pub(crate) struct Scratch;

impl Scratch {
    /// A name that says what it may hold: the original or its copy. Inodes of a tmpfs are never used again.
    pub(super) fn name(original: u64, copy: u64) -> OsString {
        format!("{PREFIX}{original}.{copy}").into()
    }

    /// Removes what a process that was killed has left in `directory`. A file of somebody else is left alone.
    pub(crate) fn sweep(directory: BorrowedFd<'_>) {
        // Opened anew: reading it moves its position, and the caller's is not ours to move.
        let Ok(opened) = tree::open(directory, OsStr::new("."), OFlag::O_DIRECTORY) else {
            return;
        };
        let Ok(mut entries) = Dir::from_fd(opened) else {
            return;
        };
        let Ok(handle) = entries.as_fd().try_clone_to_owned() else {
            return;
        };
        for entry in entries.iter().flatten() {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let Some(inodes) = inodes(name) else {
                continue;
            };
            let Ok(stat) = fstatat(&handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
                continue;
            };
            if inodes.contains(&stat.st_ino) {
                let _ = unlinkat(&handle, name, UnlinkatFlags::NoRemoveDir);
            }
        }
    }
}

fn inodes(name: &OsStr) -> Option<[u64; 2]> {
    let (original, copy) = name.to_str()?.strip_prefix(PREFIX)?.split_once('.')?;
    Some([original.parse().ok()?, copy.parse().ok()?])
}
