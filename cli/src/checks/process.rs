//! This process: its cgroup and the limits that a client meets.

use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit};
use vineyard_charge::MemoryCgroup;

use super::Check;
use crate::bytes::human;

const AREA: &str = "process";
/// Below this, a stock of reserved files and a few hundred views compete.
const FEW_FILES: u64 = 1024;

/// Checks what this process may use.
pub(crate) fn checks() -> Vec<Check> {
    vec![cgroup(), open_files(), inotify()]
}

fn cgroup() -> Check {
    let advice = "Without a visible memory cgroup, reserves probe for room step by step.";
    match MemoryCgroup::own().and_then(|own| Ok((own.headroom()?, own))) {
        Err(error) => Check::note(AREA, error.to_string(), advice),
        Ok((headroom, own)) => {
            let room = headroom.map_or_else(
                || "no limit".into(),
                |bytes| format!("{} free below its limits", human(bytes)),
            );
            Check::ok(
                AREA,
                format!("its memory cgroup is {}: {room}", own.directory().display()),
            )
        }
    }
}

fn open_files() -> Check {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < FEW_FILES => Check::note(
            AREA,
            format!("it may open {soft} files"),
            "Raise the limit (ulimit -n) to 1024 or more.",
        ),
        Ok((soft, _)) => Check::ok(AREA, format!("it may open {soft} files")),
        Err(errno) => Check::note(
            AREA,
            format!("getrlimit: {errno}"),
            "The limit of open files is not known.",
        ),
    }
}

fn inotify() -> Check {
    match Inotify::init(InitFlags::IN_CLOEXEC) {
        Ok(_) => Check::ok(AREA, "it can watch directories"),
        Err(errno) => Check::note(
            AREA,
            format!("it gets no inotify instance ({errno})"),
            "wait polls instead. Raise fs.inotify.max_user_instances.",
        ),
    }
}
