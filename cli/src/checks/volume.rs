//! The volume: a tmpfs with room, mounted so that charges stay where they are put.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};
use vineyard_store::{Options, Usage, Volume};

use super::Check;
use crate::bytes::human;

const AREA: &str = "volume";
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
            return vec![Check::problem(AREA, error.to_string(), advice)];
        }
    };
    let mut checks = vec![Check::ok(AREA, format!("{shown} is a volume"))];
    checks.push(file_system(directory));
    checks.extend(access_checks(directory));
    match volume.usage() {
        Ok(usage) => checks.extend(room(&usage)),
        Err(error) => checks.push(Check::problem(
            AREA,
            error.to_string(),
            "Its use cannot be read.",
        )),
    }
    checks
}

fn file_system(directory: &Path) -> Check {
    match statfs(directory) {
        Err(errno) => Check::problem(
            AREA,
            format!("statfs: {errno}"),
            "The file system does not answer.",
        ),
        Ok(fs) if fs.filesystem_type() != TMPFS_MAGIC => Check::note(
            AREA,
            "it is not on a tmpfs",
            "Objects go through a disk's page cache: slower, and nothing bounds or bills them. Mount a tmpfs.",
        ),
        Ok(_) => match huge_mode(directory) {
            Some(mode) if mode != "never" => Check::note(
                AREA,
                format!("it is a tmpfs with huge={mode}"),
                "khugepaged may move charges to a process that only reads. Mount it with huge=never.",
            ),
            _ => Check::ok(AREA, "it is a tmpfs with huge=never"),
        },
    }
}

/// The `huge=` option of the mount that holds the directory.
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
        checks.push(Check::note(
            AREA,
            "this user may not write to it",
            "It can be read; put as another user.",
        ));
    }
    let mode = std::fs::metadata(directory).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o1000 != 0 && mode & 0o002 != 0 {
        checks.push(Check::problem(
            AREA,
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
        checks.push(Check::problem(
            AREA,
            found,
            "Remove objects (`vineyard ls -l --sort size`), or remount it larger.",
        ));
    } else {
        checks.push(Check::ok(AREA, found));
    }
    if trash_objects > 0 {
        let found = format!(
            "{} in {trash_objects} removed objects are still mapped",
            human(trash)
        );
        checks.push(Check::note(AREA, found, "They go with their last view."));
    }
    checks
}
