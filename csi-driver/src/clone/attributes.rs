//! Owner, mode, times and extended attributes: kept exactly.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fchmod, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};
use xattr::FileExt;

use super::Error;

/// Of the file system, not of the file: the mount decides it.
const LABEL: &str = "security.selinux";

/// What a file or directory has beside its content.
#[derive(Debug)]
pub(super) struct Attributes {
    owner: Owner,
    mode: Mode,
    times: Times,
    extended: Vec<(OsString, Vec<u8>)>,
}

type Owner = (Option<Uid>, Option<Gid>);

#[derive(Clone, Copy, Debug)]
struct Times {
    accessed: TimeSpec,
    modified: TimeSpec,
}

fn owner(stat: &FileStat) -> Owner {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

fn times(stat: &FileStat) -> Times {
    Times {
        accessed: TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        modified: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl Attributes {
    /// Those of an open file or directory.
    pub(super) fn of(file: &File, stat: &FileStat, path: &Path) -> Result<Self, Error> {
        Ok(Self {
            owner: owner(stat),
            mode: Mode::from_bits_truncate(stat.st_mode),
            times: times(stat),
            extended: extended(file)
                .map_err(|error| Error::system("read the attributes of", path, error))?,
        })
    }

    /// Gives them to a copy, whose content is complete.
    pub(super) fn apply(&self, copy: &File, path: &Path) -> Result<(), Error> {
        let failed = |error: Errno| Error::system("set the attributes of", path, error);
        // In this order: a new owner costs the mode its set-id bits, and an ACL is part of the mode.
        fchown(copy, self.owner.0, self.owner.1).map_err(failed)?;
        fchmod(copy, self.mode).map_err(failed)?;
        for (name, value) in &self.extended {
            let set = copy.set_xattr(name, value);
            set.map_err(|error| Error::system("set the attributes of", path, error))?;
        }
        futimens(copy, &self.times.accessed, &self.times.modified).map_err(failed)
    }
}

/// Gives a copied symlink its owner and times.
pub(super) fn apply_to_symlink(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
) -> Result<(), Errno> {
    let (user, group) = owner(stat);
    fchownat(directory, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let times = times(stat);
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(directory, name, &times.accessed, &times.modified, flags)
}

fn extended(file: &File) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = match file.list_xattr() {
        // A tmpfs of a kernel without them.
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
            return Ok(Vec::new());
        }
        other => other?,
    };
    let mut found = Vec::new();
    for name in names.filter(|name| name != LABEL) {
        // One that was removed in between is none.
        if let Some(value) = file.get_xattr(&name)? {
            found.push((name, value));
        }
    }
    Ok(found)
}
