//! The cgroup hierarchy.

use std::fs;

use super::{Answer, Capability, capability};
use crate::cgroup::{CgroupError, Hierarchy, MemoryCgroup, Version};

pub(super) fn probe() -> Vec<Capability> {
    let hierarchy = Hierarchy::detect();
    let own = MemoryCgroup::own();
    vec![
        layout(&hierarchy),
        bill(&own),
        limits(&own),
        create(own.as_ref().ok(), hierarchy.as_ref().ok()),
    ]
}

fn layout(hierarchy: &Result<Hierarchy, CgroupError>) -> Capability {
    let says = [
        "",
        "Nobody is billed and no limit is known: mount the cgroup hierarchy, with the memory controller, to see bills",
        "",
    ];
    let (answer, found) = match hierarchy {
        Ok(h) => {
            let accounts = accounts_memory(h);
            let version = match h.version {
                Version::V1 => "version 1",
                Version::V2 => "version 2",
            };
            let other = match (h.hybrid, accounts) {
                (_, false) => ", without the memory controller",
                (true, true) => ", another version beside it",
                (false, true) => "",
            };
            let answer = if accounts { Answer::Yes } else { Answer::No };
            (answer, format!("{version} at {}{other}", h.mount.display()))
        }
        Err(error) => (Answer::No, error.to_string()),
    };
    capability("cgroup-hierarchy", answer, found, says)
}

/// Version 2 is mounted as a whole, also where the kernel was told to leave the memory controller out.
fn accounts_memory(hierarchy: &Hierarchy) -> bool {
    if hierarchy.version == Version::V1 {
        return true;
    }
    let controllers = fs::read_to_string(hierarchy.mount.join("cgroup.controllers"));
    // What cannot be read is found out by the next probe.
    controllers.map_or(true, |list| {
        list.split_whitespace().any(|it| it == "memory")
    })
}

fn bill(own: &Result<MemoryCgroup, CgroupError>) -> Capability {
    let name = "memory-cgroup";
    match own {
        Ok(own) => capability(
            name,
            Answer::Yes,
            format!("{} is cgroup {}", own.directory().display(), own.id().0),
            ["", "", ""],
        ),
        Err(error) => {
            let meaning = match error {
                CgroupError::Root => {
                    "What this process allocates is on nobody's bill: it is not in a container"
                }
                _ => "The limit of this process is unknown; a probe of 2 MiB stands in for it",
            };
            capability(name, Answer::No, error.to_string(), ["", meaning, ""])
        }
    }
}

fn limits(own: &Result<MemoryCgroup, CgroupError>) -> Capability {
    let (answer, found) = match own {
        Ok(own) if own.has_hidden_ancestors() => (
            Answer::No,
            format!("{} levels, more above them", own.ancestors().len() + 1),
        ),
        Ok(own) => (
            Answer::Yes,
            format!("{} levels up to the root", own.ancestors().len() + 1),
        ),
        Err(CgroupError::Root) => (Answer::Yes, "the root has none".to_owned()),
        Err(error) => (Answer::Unknown, error.to_string()),
    };
    let says = [
        "",
        "As in any container: room above is probed by 2 MiB steps, which is slower for small reserves of many MiB",
        "Limits cannot be checked; room is probed by 2 MiB steps",
    ];
    capability("limits-visible", answer, found, says)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_without_the_memory_controller_bills_nobody() {
        let mount = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy {
            version: Version::V2,
            mount: mount.path().to_owned(),
            root: "/".into(),
            hybrid: false,
        };
        for (controllers, answer) in [
            ("cpuset cpu io pids\n", Answer::No),
            ("cpuset cpu io memory pids\n", Answer::Yes),
        ] {
            fs::write(mount.path().join("cgroup.controllers"), controllers).unwrap();
            let said = layout(&Ok(hierarchy.clone()));
            assert_eq!(said.answer, answer, "{said:?}");
        }
    }

    #[test]
    fn a_process_in_the_root_of_version_2_has_no_bill_and_no_limit() {
        assert_eq!(bill(&Err(CgroupError::Root)).answer, Answer::No);
        assert_eq!(limits(&Err(CgroupError::Root)).answer, Answer::Yes);
        assert_eq!(
            limits(&Err(CgroupError::NotMounted)).answer,
            Answer::Unknown
        );
    }
}
