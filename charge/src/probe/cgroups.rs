//! The cgroup hierarchy.

use std::fs;

use super::{Answer, Capability, capability};
use crate::cgroup::{Hierarchy, MemoryCgroup, Version};

pub(super) fn probe() -> Vec<Capability> {
    let hierarchy = Hierarchy::detect();
    let own = MemoryCgroup::own();
    let layout = match &hierarchy {
        Ok(h) => {
            let version = match h.version {
                Version::V1 => "version 1",
                Version::V2 => "version 2",
            };
            let other = if h.hybrid {
                ", another version beside it"
            } else {
                ""
            };
            format!("{version} at {}{other}", h.mount.display())
        }
        Err(error) => error.to_string(),
    };
    let limits = match &own {
        Ok(own) if own.has_hidden_ancestors() => (
            Answer::No,
            format!("{} levels, more above them", own.ancestors().len() + 1),
        ),
        Ok(own) => (
            Answer::Yes,
            format!("{} levels up to the root", own.ancestors().len() + 1),
        ),
        Err(error) => (Answer::Unknown, error.to_string()),
    };
    vec![
        capability(
            "cgroup-hierarchy",
            super::outcome(&hierarchy),
            layout,
            [
                "",
                "Nobody is billed and no limit is known: mount the cgroup hierarchy to see bills",
                "",
            ],
        ),
        capability(
            "memory-cgroup",
            super::outcome(&own),
            match &own {
                Ok(own) => format!("{} is cgroup {}", own.directory().display(), own.id().0),
                Err(error) => error.to_string(),
            },
            [
                "",
                "The limit of this process is unknown; a probe of 2 MiB stands in for it",
                "",
            ],
        ),
        capability(
            "limits-visible",
            limits.0,
            limits.1,
            [
                "",
                "As in any container: room above is probed by 2 MiB steps, which is slower for small reserves of many MiB",
                "Limits cannot be checked; room is probed by 2 MiB steps",
            ],
        ),
        create(own.as_ref().ok(), hierarchy.as_ref().ok()),
    ]
}

/// Tried by making one, for a moment.
fn create(own: Option<&MemoryCgroup>, hierarchy: Option<&Hierarchy>) -> Capability {
    let says = [
        "",
        "No separate bills can be shown by tests and demos: run them as root, or with a delegated cgroup",
        "No separate bills can be shown by tests and demos",
    ];
    // On version 2 a cgroup with processes cannot have children with the memory controller.
    let parent = match (own, hierarchy) {
        (Some(own), Some(h)) if h.version == Version::V1 => own.directory().to_owned(),
        (_, Some(h)) => h.mount.clone(),
        _ => return capability("create-cgroups", Answer::Unknown, "no hierarchy", says),
    };
    let directory = parent.join(format!("vineyard-probe-{}", std::process::id()));
    let made = fs::create_dir(&directory);
    if made.is_ok() {
        // It was empty a moment ago; if it stays, it costs nothing.
        let _ = fs::remove_dir(&directory);
    }
    let found = super::words(&made, &format!("below {}", parent.display()));
    capability("create-cgroups", super::outcome(&made), found, says)
}
