//! The cgroups of a node: one of its name in every hierarchy, below which its kubelet has those of its pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::poll;

/// What must be filled before a cgroup of this hierarchy takes processes.
const CPUSETS: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// How long the kernel may take to let go of a cgroup whose processes are gone.
const REMOVAL: Duration = Duration::from_secs(10);

/// Makes the cgroup `name` in every hierarchy.
///
/// # Errors
/// What the kernel says.
pub(super) fn make(name: &str) -> Result<()> {
    for hierarchy in hierarchies(&["cgroup"])? {
        let cgroup = hierarchy.join(name);
        fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        for file in CPUSETS {
            if cgroup.join(file).exists() {
                fs::write(cgroup.join(file), fs::read(hierarchy.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Removes the cgroup `name` and everything below it. Nothing runs there any more.
///
/// # Errors
/// When something does.
pub(super) fn remove(name: &str) -> Result<()> {
    // Where version 2 is mounted beside version 1, the nodes' containers had cgroups in it, too.
    for hierarchy in hierarchies(&["cgroup", "cgroup2"])? {
        let cgroup = hierarchy.join(name);
        if !poll(REMOVAL, || remove_tree(&cgroup).is_ok()) {
            bail!("{} is left", cgroup.display());
        }
    }
    Ok(())
}

/// Removes everything below the cgroup `name`. Nothing runs there any more.
///
/// # Errors
/// When something does.
pub(super) fn empty(name: &str) -> Result<()> {
    for hierarchy in hierarchies(&["cgroup", "cgroup2"])? {
        let cgroup = hierarchy.join(name);
        if !poll(REMOVAL, || remove_below(&cgroup).is_ok()) {
            bail!("cgroups in {} are left", cgroup.display());
        }
    }
    Ok(())
}

fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    remove_below(cgroup)?;
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_below(cgroup: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn hierarchies(versions: &[&str]) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (point, kind) = (fields.nth(1)?, fields.next()?);
            versions.contains(&kind).then(|| point.into())
        })
        .collect();
    if found.is_empty() {
        bail!("no hierarchy of cgroup version 1 is mounted");
    }
    Ok(found)
}
