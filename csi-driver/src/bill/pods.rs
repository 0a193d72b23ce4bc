//! Where the cgroup of a pod is: kubelet's two ways of naming it, on version 1 and 2, wherever its root is.
//!
//! ```text
//! cgroupfs   kubepods[/burstable|/besteffort]/pod<uid>
//! systemd    kubepods.slice[/kubepods-burstable.slice]/kubepods[-burstable]-pod<uid, "-" as "_">.slice
//! ```
//!
//! A bill is that of a pod's *subtree*: containers come and go below it.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use vineyard_charge::cgroup::{CgroupError, Hierarchy};
use vineyard_charge::{CgroupId, MemoryCgroup};

use crate::volume::PodUid;

/// The most directories that are looked at for one pod.
const MOST_DIRECTORIES: usize = 16_384;

/// The most directories that are remembered to hold pods.
const MOST_PARENTS: usize = 64;

/// Whether a directory of this name is the cgroup of the pod `uid`.
fn is_of(directory: &str, uid: &PodUid) -> bool {
    match directory.strip_suffix(".slice") {
        Some(slice) => slice
            .strip_suffix(&uid.as_str().replace('-', "_"))
            .is_some_and(|before| before.ends_with("-pod")),
        None => directory.strip_prefix("pod") == Some(uid.as_str()),
    }
}

/// Finds the cgroups of pods. Blocking, but for a pod that exists a handful of system calls.
#[derive(Debug)]
pub(crate) struct Pods {
    root: PathBuf,
    /// Directories in which pods were found: the next one is there too.
    parents: Mutex<Vec<PathBuf>>,
}

impl Pods {
    /// Looks below `root`, or else below the whole hierarchy that accounts memory.
    ///
    /// # Errors
    /// When no root is given and no such hierarchy is mounted.
    pub(crate) fn new(root: Option<PathBuf>) -> Result<Self, CgroupError> {
        let root = match root {
            Some(root) => root,
            None => Hierarchy::detect()?.mount,
        };
        Ok(Self {
            root,
            parents: Mutex::default(),
        })
    }

    /// The cgroup directory of a pod; `None` when it has none (any more).
    pub(crate) fn directory(&self, uid: &PodUid) -> Option<PathBuf> {
        let parents = self.parents().clone();
        let usual = self.usual(uid);
        let near = parents.iter().flat_map(|parent| {
            usual
                .iter()
                .filter_map(|it| Some(parent.join(it.file_name()?)))
        });
        let found = near
            .chain(usual.iter().map(|path| self.root.join(path)))
            .find(|path| path.is_dir());
        found.or_else(|| {
            let found = self.search(uid)?;
            self.remember(found.parent()?);
            Some(found)
        })
    }

    /// The ids of a pod's cgroup and of every one below it. Empty when it has none (any more).
    pub(crate) fn subtree(&self, uid: &PodUid) -> Vec<CgroupId> {
        self.directory(uid).map_or_else(Vec::new, |it| ids(&it))
    }

    /// Whether a pod has a cgroup, and no page of a tmpfs is charged to it: then no volume's bill changes when it goes.
    ///
    /// The kernel may count pages that were pulled from it meanwhile, but never too few.
    pub(crate) fn owes_nothing(&self, uid: &PodUid) -> bool {
        let stat = self
            .directory(uid)
            .and_then(|it| fs::read_to_string(it.join("memory.stat")).ok());
        stat.is_some_and(|stat| shmem(&stat) == Some(0))
    }

    /// The pod-level directory that a process is in; `None` when it is in no pod.
    ///
    /// # Errors
    /// When the process is gone or its cgroup cannot be seen from here.
    pub(crate) fn directory_of(&self, pid: u32) -> Result<Option<PathBuf>, CgroupError> {
        let own = MemoryCgroup::of_pid(pid)?;
        let pod = own
            .directory()
            .ancestors()
            .take_while(|directory| *directory != self.root)
            .find(|directory| directory.file_name().is_some_and(is_a_pod));
        Ok(pod.map(Path::to_owned))
    }

    /// Where kubelet puts it by default.
    fn usual(&self, uid: &PodUid) -> Vec<PathBuf> {
        let slice = uid.as_str().replace('-', "_");
        ["", "burstable", "besteffort"]
            .iter()
            .flat_map(|class| {
                let plain = Path::new("kubepods").join(class).join(format!("pod{uid}"));
                let (in_class, prefix) = match *class {
                    "" => (PathBuf::new(), "kubepods".to_owned()),
                    class => (
                        PathBuf::from(format!("kubepods-{class}.slice")),
                        format!("kubepods-{class}"),
                    ),
                };
                let systemd = Path::new("kubepods.slice")
                    .join(in_class)
                    .join(format!("{prefix}-pod{slice}.slice"));
                [plain, systemd]
            })
            .collect()
    }

    /// Breadth first, because pods are near the top; never into a pod.
    fn search(&self, uid: &PodUid) -> Option<PathBuf> {
        let mut pending = VecDeque::from([self.root.clone()]);
        for _ in 0..MOST_DIRECTORIES {
            let directory = pending.pop_front()?;
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            for entry in entries {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let name = entry.file_name();
                if name.to_str().is_some_and(|name| is_of(name, uid)) {
                    return Some(entry.path());
                }
                if !is_a_pod(&name) {
                    pending.push_back(entry.path());
                }
            }
        }
        tracing::warn!(root = %self.root.display(), "too many cgroups to find a pod in: name the root of kubelet's");
        None
    }

    fn remember(&self, parent: &Path) {
        let mut parents = self.parents();
        if parents.len() < MOST_PARENTS && !parents.iter().any(|it| it == parent) {
            parents.push(parent.to_owned());
        }
    }

    fn parents(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        // A list of hints is whole after any panic.
        self.parents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ids of the cgroup at `directory` and of every one below it, as the kernel names owners of pages.
pub(crate) fn ids(directory: &Path) -> Vec<CgroupId> {
    let mut ids = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(metadata) = fs::symlink_metadata(&directory) else {
            continue;
        };
        ids.push(CgroupId(metadata.ino()));
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        pending.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    ids
}

/// Bytes of tmpfs that are charged to a cgroup and everything below it. Version 1 names the sum apart.
fn shmem(stat: &str) -> Option<u64> {
    let of = |key: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key)?.1.parse().ok()
    };
    of("total_shmem").or_else(|| of("shmem"))
}

/// Whether a directory of this name is the cgroup of some pod.
fn is_a_pod(name: &std::ffi::OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid),
        None => name.strip_prefix("pod"),
    };
    // Not `podruntime.slice`, nor a directory `pods`: a uid has digits.
    uid.is_some_and(|uid| {
        uid.bytes().any(|b| b.is_ascii_digit())
            && uid
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    })
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
