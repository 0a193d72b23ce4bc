//! What a test run that was killed has left: cgroups, mounts and directories named `vineyard-test-<pid>-…` whose owner
//! is gone. Nothing else is touched.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vineyard_charge::cgroup::{Hierarchy, Version};

use crate::cgroups::PREFIX;
use crate::process::poll;

/// Removes it, and returns what was removed.
///
/// # Errors
/// When the tables of the kernel cannot be read. What cannot be removed is reported on standard error and left.
pub fn remove() -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for mount in mounts()? {
        if is_left(mount.components().map(|c| c.as_os_str())) {
            note(
                &mut removed,
                &mount,
                umount2(&mount, MntFlags::MNT_DETACH).map_err(Into::into),
            );
        }
    }
    for run in runs()? {
        end_processes(&run);
        // Children before their parents.
        for cgroup in below(&run).into_iter().rev() {
            let gone = poll(Duration::from_secs(5), || {
                fs::remove_dir(&cgroup).is_ok() || !cgroup.exists()
            });
            if !gone {
                note(&mut removed, &cgroup, fs::remove_dir(&cgroup));
            }
        }
        note(
            &mut removed,
            &run,
            if run.exists() {
                fs::remove_dir(&run)
            } else {
                Ok(())
            },
        );
    }
    for place in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if is_left([entry.file_name().as_os_str()]) && entry.file_type()?.is_dir() {
                note(
                    &mut removed,
                    &entry.path(),
                    fs::remove_dir_all(entry.path()),
                );
            }
        }
    }
    Ok(removed)
}

fn note(removed: &mut Vec<PathBuf>, path: &Path, result: std::io::Result<()>) {
    match result {
        Ok(()) => removed.push(path.into()),
        Err(error) => eprintln!("{} is left: {error}", path.display()),
    }
}

/// Whether one of these names says that a test run made it which is no longer there.
fn is_left<'a>(names: impl IntoIterator<Item = &'a OsStr>) -> bool {
    names
        .into_iter()
        .any(|name| owner(name).is_some_and(|pid| !is_alive(pid)))
}

/// The pid in `vineyard-test-<pid>-<n>` or `vineyard-test-<word>-<pid>-<n>`.
fn owner(name: &OsStr) -> Option<i32> {
    let rest = name.to_str()?.strip_prefix(PREFIX)?;
    let word = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let rest = if word.len() < rest.len() {
        word.strip_prefix('-')?
    } else {
        rest
    };
    let (pid, _) = rest.split_once('-')?;
    pid.parse().ok().filter(|pid| *pid > 1)
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

fn mounts() -> Result<Vec<PathBuf>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    // Ours have no character that the kernel would escape.
    Ok(mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect())
}

/// The cgroups that test runs made: where [`crate::cgroups::base`] is, or was for another shell.
fn runs() -> Result<Vec<PathBuf>> {
    let hierarchy = Hierarchy::detect()?;
    let own = hierarchy.directory(&fs::read_to_string("/proc/self/cgroup")?)?;
    let mut bases = vec![own];
    if hierarchy.version == Version::V2 {
        bases.push(hierarchy.mount);
    }
    let entries = bases.iter().flat_map(fs::read_dir).flatten().flatten();
    let mut runs: Vec<PathBuf> = entries
        .map(|e| e.path())
        .filter(|p| p.is_dir() && is_left(p.file_name()))
        .collect();
    runs.sort();
    runs.dedup();
    Ok(runs)
}

/// Ends what runs in a cgroup that nobody owns any more.
fn end_processes(run: &Path) {
    for cgroup in below(run).iter().map(PathBuf::as_path).chain([run]) {
        let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in processes
            .lines()
            .filter_map(|pid| pid.parse().ok())
            .filter(|pid| *pid > 1)
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Directories below, parents first.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                all.push(entry.path());
                pending.push(entry.path());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_test_runs_have_an_owner() {
        for name in ["vineyard-test-4711-0", "vineyard-test-sidecar-4711-0"] {
            assert_eq!(owner(OsStr::new(name)), Some(4711), "{name}");
        }
        for name in [
            "vineyard-test-0-1",
            "vineyard-test-1-1",
            "vineyard-test--1-0",
            "vineyard-test-x-0",
            "vineyard-test-sidecar-x",
            "vineyard-47-1",
            "vineyard-test-47",
        ] {
            assert_eq!(owner(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn what_a_living_process_made_is_not_left() {
        let own = format!("vineyard-test-{}-0", std::process::id());
        assert!(!is_left([OsStr::new(&own)]));
        // The largest pid that a kernel gives is 2^22.
        assert!(is_left([OsStr::new("vineyard-test-4194305-0")]));
    }
}
