//! The driver's part of a recharge, as root: moves what some cgroups pay for a volume to a payer.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use vineyard_charge::recharge::{Large, Replace, SMALL};
use vineyard_charge::survey::Surveyor;
use vineyard_charge::{CgroupId, Payer};

use crate::process::poll;
use crate::volume_mount::VolumeMount;

/// How long memory may be too fragmented for a single huge page.
const PATIENCE: Duration = Duration::from_secs(30);

/// What moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recharged {
    /// Files that were pulled in place.
    pub pulled: u64,
    /// Files that were replaced by a copy.
    pub copied: u64,
    /// Copies whose old file somebody still maps.
    pub still_viewed: u64,
}

/// Moves everything on the volume that is charged to `from` to `payer`, whose pod's cgroups are `to`. Nobody may be
/// writing to an ordinary file meanwhile.
///
/// # Errors
/// When anything stays.
pub fn recharge(
    mount: &VolumeMount,
    from: &[CgroupId],
    to: &[CgroupId],
    payer: &dyn Payer,
) -> Result<Recharged> {
    let own = mount.path().join(".vineyard");
    let mut surveyor = Surveyor::open()?;
    let mut done = Recharged::default();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    let mut directories = vec![
        (own.join("objects"), true),
        (own.join("trash"), false),
        (mount.path().into(), false),
    ];
    // Ends of streams.
    for entry in fs::read_dir(mount.path())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.path() != own {
            directories.push((entry.path(), false));
        }
    }
    for (directory, sealed) in directories {
        for path in charged_files(&directory, from, &mut surveyor)? {
            let len = fs::metadata(&path)?.len();
            if sealed && len <= SMALL {
                small.push(path.file_name().unwrap_or_default().to_owned());
            } else {
                large.push(path);
            }
        }
    }
    let (objects, tmp) = (
        File::open(own.join("objects"))?,
        File::open(own.join("tmp"))?,
    );
    let replace = Replace {
        directory: objects.as_fd(),
        scratch: tmp.as_fd(),
    };
    for copied in replace.copy(&small, payer) {
        done.copied += 1;
        done.still_viewed += u64::from(copied?.still_viewed);
    }
    for path in large {
        let file = File::open(&path)?;
        let exclusive = File::options().read(true).write(true).open(&path)?;
        let large = Large {
            file: file.as_fd(),
            exclusive: Some(exclusive.as_fd()),
            stays: &|owner| to.contains(&owner),
            slack: Some(mount),
        };
        let mut moved = large.recharge(&mut surveyor, payer)?;
        // Without a free huge page the kernel moves nothing: asked again, as the driver will.
        let complete = poll(PATIENCE, || {
            moved.left == 0
                || large.recharge(&mut surveyor, payer).is_ok_and(|again| {
                    moved = again;
                    moved.left == 0
                })
        });
        ensure!(complete, "{}: {moved:?}", path.display());
        done.pulled += 1;
    }
    Ok(done)
}

/// Opens a file without waiting for somebody who holds a lease on it.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
}

/// Whether a file of the trash could not be opened because somebody recycles it, or has done so.
#[must_use]
pub fn is_recycled(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound)
}

fn charged_files(
    directory: &Path,
    to: &[CgroupId],
    surveyor: &mut Surveyor,
) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let file = match open(&entry.path()) {
            Err(error) if is_recycled(&error) => continue,
            other => other?,
        };
        let summary = surveyor.summary(file.as_fd())?;
        if to.iter().any(|owner| summary.owners.contains_key(owner)) {
            files.push(entry.path());
        }
    }
    Ok(files)
}
