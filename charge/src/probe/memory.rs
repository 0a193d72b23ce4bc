//! Huge pages of tmpfs, and who is charged for them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Answer, Capability, capability, outcome, words};
use crate::cgroup::{CgroupError, CgroupId, MemoryCgroup};
use crate::mapping::{Mapping, resident_pages};
use crate::survey::Surveyor;
use crate::{PAGE, REGION};

pub(super) fn probe(volume: Option<&Path>) -> Vec<Capability> {
    let place = match volume {
        Some(volume) => format!("in {}", volume.display()),
        None => "in a memory file".to_owned(),
    };
    let file = file(volume);
    let collapsed = match &file {
        Ok(file) => collapse(file.as_fd()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    let owners = Surveyor::open();
    let charged = match (&collapsed, &file) {
        (Ok(()), Ok(file)) => charged(file.as_fd()),
        _ => Err("nothing was collapsed".to_owned()),
    };
    let counted = file.as_ref().map_err(|e| io::Error::from(e.kind()));
    let counted = counted.and_then(|file| resident_pages(file.as_fd(), 0, PAGE));
    let setting = setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    vec![
        capability(
            "huge-page-setting",
            match setting.as_deref() {
                Some("deny") => Answer::No,
                Some(_) => Answer::Yes,
                None => Answer::Unknown,
            },
            match &setting {
                Some(setting) => format!("shmem_enabled is {setting}"),
                None => "shmem_enabled cannot be read".to_owned(),
            },
            [
                "",
                "Set /sys/kernel/mm/transparent_hugepage/shmem_enabled to never: deny also stops what is asked for",
                "The kernel may have no transparent huge pages",
            ],
        ),
        capability(
            "collapse",
            outcome(&collapsed),
            words(&collapsed, &format!("2 MiB {place}")),
            [
                "Large reserves take the fast way, large files can be pulled",
                "Reserves go page by page (about 4 GB/s) and bills of large files cannot move in place: needs Linux 6.1 \
                 with transparent huge pages, shmem_enabled other than deny, and 2 MiB of free memory in one piece",
                "",
            ],
        ),
        capability(
            "collapse-charges-us",
            match &charged {
                Ok(true) => Answer::Yes,
                Ok(false) => Answer::No,
                Err(_) => Answer::Unknown,
            },
            match &charged {
                Ok(true) => "all 512 pages are charged to this cgroup".to_owned(),
                Ok(false) => "the pages are charged to another cgroup".to_owned(),
                Err(reason) => reason.clone(),
            },
            [
                "",
                "Bills do not move on this kernel; report it with its version",
                "Only a privileged process sees who is charged",
            ],
        ),
        capability(
            "page-owners",
            outcome(&owners),
            words(&owners, "/proc/kpagecgroup can be read"),
            [
                "",
                "Bills cannot be shown or verified here; the node's driver can, or root on the host",
                "",
            ],
        ),
        capability(
            "cachestat",
            outcome(&counted),
            words(&counted, "pages are counted exactly"),
            [
                "",
                "Before Linux 6.5 pages that were allocated and never written do not show in files with holes",
                "",
            ],
        ),
    ]
}

fn file(volume: Option<&Path>) -> io::Result<File> {
    match volume {
        Some(volume) => super::volume::unnamed(volume),
        None => Ok(File::from(memfd_create(
            c"vineyard-probe",
            MFdFlags::MFD_CLOEXEC,
        )?)),
    }
}

fn collapse(file: BorrowedFd<'_>) -> io::Result<()> {
    let owned = File::from(file.try_clone_to_owned()?);
    owned.set_len(REGION)?;
    owned.write_all_at(&[1], 0)?;
    match Mapping::new(file, 0, REGION)?.collapse(0, REGION) {
        // Linux 6.1 makes the region, does not find it mapped, and says that it failed.
        Err(_) if owned.metadata()?.blocks() * 512 == REGION => Ok(()),
        other => other,
    }
}

/// `Err` says why it is not known.
fn charged(file: BorrowedFd<'_>) -> Result<bool, String> {
    let own = match MemoryCgroup::own() {
        Ok(own) => own.id(),
        Err(CgroupError::Root) => CgroupId::ROOT,
        Err(error) => return Err(error.to_string()),
    };
    let mut surveyor = Surveyor::open().map_err(|e| e.to_string())?;
    let summary = surveyor.summary(file).map_err(|e| e.to_string())?;
    let expected: Vec<(CgroupId, u64)> = vec![(own, REGION)];
    Ok(summary.owners.into_iter().collect::<Vec<_>>() == expected)
}

/// The kernel marks the chosen one of several words with brackets.
fn setting(path: &str) -> Option<String> {
    let content = fs::read_to_string(path).ok()?;
    let (_, rest) = content.split_once('[')?;
    let (chosen, _) = rest.split_once(']')?;
    Some(chosen.to_owned())
}
