//! Opens below a volume's root and nowhere else: whoever may write to the volume chooses what lies there.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Opens the regular file at `path` below `root`: through no symlink and no other mount, and without waiting for anybody.
pub(crate) fn file(root: &impl AsFd, path: &Path, flags: OFlag) -> Result<File, Errno> {
    let file = open(root, path, flags)?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if is_file {
        Ok(file)
    } else {
        Err(Errno::EINVAL)
    }
}

/// Opens the directory at `path` below `root` in the same way.
pub(crate) fn directory(root: &impl AsFd, path: &Path) -> Result<File, Errno> {
    open(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

fn open(root: &impl AsFd, path: &Path, flags: OFlag) -> Result<File, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(root.as_fd(), path, how).map(File::from)
}
