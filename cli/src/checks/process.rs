//! This process: its cgroup and the limits that a client meets.

use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit};
use vineyard_charge::{CgroupError, MemoryCgroup};

use super::{Area, Check};
use crate::bytes::human;

const AREA: Area = Area("process");
/// Below this, a stock of reserved files and a few hundred views compete.
const FEW_FILES: u64 = 1024;

/// Checks what this process may use.
pub(crate) fn checks() -> Vec<Check> {
    vec![headroom(), open_files(), inotify()]
}

fn headroom() -> Check {
    let advice = "Without a visible memory cgroup, reserves probe for room step by step.";
    match MemoryCgroup::own().and_then(|own| own.headroom()) {
        Err(CgroupError::Root) => {
            AREA.ok("headroom", "it is in the root cgroup, which has no limit")
        }
        Err(error) => AREA.note("headroom", error.to_string(), advice),
        Ok(free) => {
            let room = free.map_or_else(
                || "it has no memory limit that is visible".into(),
                |bytes| format!("{} are free below its memory limits", human(bytes)),
            );
            AREA.ok("headroom", room)
        }
    }
}

fn open_files() -> Check {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < FEW_FILES => AREA.note(
            "open-files",
            format!("it may open {soft} files"),
            "Raise the limit (ulimit -n) to 1024 or more.",
        ),
        Ok((soft, _)) => AREA.ok("open-files", format!("it may open {soft} files")),
        Err(errno) => AREA.note(
            "open-files",
            format!("getrlimit: {errno}"),
            "The limit of open files is not known.",
        ),
    }
}

fn inotify() -> Check {
    match Inotify::init(InitFlags::IN_CLOEXEC) {
        Ok(_) => AREA.ok("inotify", "it can watch directories"),
        Err(errno) => AREA.note(
            "inotify",
            format!("it gets no inotify instance ({errno})"),
            "wait polls instead. Raise fs.inotify.max_user_instances.",
        ),
    }
}
