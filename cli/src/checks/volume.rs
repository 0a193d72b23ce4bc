//! The volume: a tmpfs with room, mounted so that charges stay where they are put.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{AccessFlags, access};
use vineyard_store::{Options, Usage, Volume};

use super::{Area, Check};
use crate::bytes::human;

const AREA: Area = Area("volume");
/// Below this part of the capacity, or of the files, a volume is nearly full.
const NEARLY_FULL: u64 = 20;

/// Checks the directory and what it is on.
pub(crate) fn checks(directory: &Path) -> Vec<Check> {
    let shown = directory.display();
    let volume = match Volume::open(
        directory,
        Options {
            payer: None,
            create: false,
        },
    ) {
        Ok(volume) => volume,
        Err(error) => {
            let advice = "Name it with --volume or VINEYARD_VOLUME; the first put makes a volume of a directory.";
            return vec![AREA.problem("format", error.to_string(), advice)];
        }
    };
    let mut checks = vec![AREA.ok("format", format!("{shown} is a volume"))];
    checks.extend(huge_pages(directory));
    checks.extend(access_checks(directory));
    match volume.usage() {
        Ok(usage) => checks.extend(room(&usage)),
        Err(error) => {
            checks.push(AREA.problem("format", error.to_string(), "Its use cannot be read."))
        }
    }
    checks
}

/// Pages that the kernel itself collects into huge ones change their bill.
fn huge_pages(directory: &Path) -> Option<Check> {
    let mode = huge_mode(directory)?;
    Some(if mode == "never" {
        AREA.ok("huge-pages", "it is mounted with huge=never")
    } else {
        AREA.note(
            "huge-pages",
            format!("it is mounted with huge={mode}"),
            "khugepaged may move charges to a process that only reads. Mount it with huge=never.",
        )
    })
}

/// The `huge=` option of the tmpfs that holds the directory; the kernel's default, never, does not show.
fn huge_mode(directory: &Path) -> Option<String> {
    let device = std::fs::metadata(directory).ok()?.dev();
    let wanted = format!(
        "{}:{}",
        nix::sys::stat::major(device),
        nix::sys::stat::minor(device)
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(wanted.as_str()))?;
    line.rsplit(' ')
        .next()?
        .split(',')
        .find_map(|option| option.strip_prefix("huge="))
        .map(str::to_owned)
}

fn access_checks(directory: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    if access(directory, AccessFlags::W_OK).is_err() {
        checks.push(AREA.note(
            "access",
            "this user may not write to it",
            "It can be read; put as another user.",
        ));
    }
    let mode = std::fs::metadata(directory).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o1000 != 0 && mode & 0o002 != 0 {
        checks.push(AREA.problem(
            "access",
            "its directory is world-writable and sticky",
            "Names of other users cannot be followed or replaced: chmod -t it.",
        ));
    }
    checks
}

fn room(usage: &Usage) -> Vec<Check> {
    let Usage {
        capacity,
        used,
        free,
        trash,
        trash_objects,
        free_files,
    } = *usage;
    let mut checks = Vec::new();
    let found = format!(
        "{} of {} used, {} free, room for {free_files} files",
        human(used),
        human(capacity),
        human(free)
    );
    if capacity > 0 && free < capacity / NEARLY_FULL || free_files < 1000 {
        checks.push(AREA.problem(
            "room",
            found,
            "Remove objects (`vineyard ls -l --sort size`), or remount it larger.",
        ));
    } else {
        checks.push(AREA.ok("room", found));
    }
    if trash_objects > 0 {
        let found = format!(
            "{} in {trash_objects} removed objects are still mapped",
            human(trash)
        );
        checks.push(AREA.note("trash", found, "They go with their last view."));
    }
    checks
}
