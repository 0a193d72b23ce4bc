//! Steps that may be repeated, after a crash at any point too: look first, then do what is missing.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::failpoint::fail_point;

use super::mountinfo::topmost;
use super::{Error, Flags, Mount, Mounter, describe};

/// The most mounts that are taken off one point in one go.
const BOUND: usize = 64;

/// Mode of directories for mount points: what kubelet uses.
const MODE: u32 = 0o750;

/// The topmost mount on `point`.
///
/// # Errors
/// What reading the table says.
pub(crate) fn at(mounter: &dyn Mounter, point: &Path) -> Result<Option<Mount>, Error> {
    Ok(topmost(&mounter.mounts()?, point.as_os_str()).cloned())
}

/// Makes `target` show the tmpfs that is mounted on `source`, once, with these flags. Mounts of ours that are stale or stacked
/// go; any other mount is left alone and an error.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Stacked`], or what the kernel says.
pub(crate) fn ensure_bound(
    mounter: &dyn Mounter,
    ours: impl Fn(&Mount) -> bool,
    source: &Path,
    target: &Path,
    flags: Flags,
) -> Result<(), Error> {
    let mounts = mounter.mounts()?;
    let backing = topmost(&mounts, source.as_os_str())
        .ok_or_else(|| Error::system("find the tmpfs on", source, ErrorKind::NotFound))?
        .clone();
    let shows = |mount: &Mount| mount.device == backing.device && mount.root == backing.root;
    let here: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.point == target)
        .collect();
    if let Some(foreign) = here.iter().find(|mount| !ours(mount)) {
        return Err(Error::Foreign {
            path: target.to_owned(),
            found: describe(foreign),
        });
    }
    let top = match here.as_slice() {
        [only] if shows(only) => Some((*only).clone()),
        [] => None,
        _ => {
            ensure_bare(mounter, &ours, target)?;
            fail_point!("bind.bare");
            None
        }
    };
    match top {
        Some(top) if top.flags() == flags && top.is_confined() => return Ok(()),
        // A crash came between the bind and its flags.
        Some(_) => {}
        None => {
            make_directory(target)?;
            fail_point!("bind.directory");
            mounter.bind(source, target)?;
            fail_point!("bind.bound");
        }
    }
    mounter.set_flags(target, flags)
}

/// Takes every mount of ours off `target` and removes the directory. Nothing there is fine.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Stacked`], [`Error::Hanging`], or what the kernel says, such as that it is busy.
pub(crate) fn ensure_unmounted(
    mounter: &dyn Mounter,
    ours: impl Fn(&Mount) -> bool,
    target: &Path,
) -> Result<(), Error> {
    ensure_bare(mounter, ours, target)?;
    fail_point!("unmount.bare");
    // Only ever an empty directory: whatever else is there, it is somebody's.
    match fs::remove_dir(target) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::system("remove the directory", target, error))
        }
        _ => Ok(()),
    }
}

/// Takes every mount of ours off `target` and leaves the directory. Nothing there is fine.
///
/// # Errors
/// [`Error::Foreign`], [`Error::Stacked`], [`Error::Hanging`], or what the kernel says, such as that it is busy.
pub(crate) fn ensure_bare(
    mounter: &dyn Mounter,
    ours: impl Fn(&Mount) -> bool,
    target: &Path,
) -> Result<(), Error> {
    for _ in 0..BOUND {
        let Some(top) = at(mounter, target)? else {
            return Ok(());
        };
        if !ours(&top) {
            return Err(Error::Foreign {
                path: target.to_owned(),
                found: describe(&top),
            });
        }
        if let Err(error) = mounter.unmount(target) {
            // Somebody else, such as an unmount that hung before, may have taken it off.
            if at(mounter, target)?.is_some_and(|still| still.id == top.id) {
                return Err(error);
            }
        }
    }
    match at(mounter, target)? {
        None => Ok(()),
        Some(_) => Err(Error::Stacked {
            path: target.to_owned(),
            bound: BOUND,
        }),
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(MODE).create(path) {
        // Not through a symlink: the mount would land elsewhere.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            match fs::symlink_metadata(path) {
                Ok(found) if found.is_dir() => Ok(()),
                _ => Err(Error::system("use as a directory", path, error)),
            }
        }
        other => other.map_err(|error| Error::system("make the directory", path, error)),
    }
}
