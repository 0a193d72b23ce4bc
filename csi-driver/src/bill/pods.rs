//! Where the cgroup of a pod is: kubelet's two ways of naming it, on version 1 and 2, wherever its root is.
//!
//! ```text
//! cgroupfs   kubepods[/burstable|/besteffort]/pod<uid>
//! systemd    kubepods.slice[/kubepods-burstable.slice]/kubepods[-burstable]-pod<uid, "-" as "_">.slice
//! ```
//!
//! A bill is that of a pod's *subtree*: containers come and go below it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vineyard_charge::cgroup::{CgroupError, Hierarchy};
use vineyard_charge::{CgroupId, MemoryCgroup};

use crate::volume::PodUid;

/// The most directories that are looked at for one pod.
const MOST_DIRECTORIES: usize = 16_384;

/// The most directories that are remembered to hold pods.
const MOST_PARENTS: usize = 64;

/// How long a cgroup counts after its directory is gone: until the kernel has taken it down it names it as the owner of its pages,
/// and the one above it from then on.
const LINGER: Duration = Duration::from_secs(5);

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
    /// The cgroups of pods as they were seen last, and since when they are missed.
    seen: Mutex<HashMap<PodUid, HashMap<CgroupId, Option<Instant>>>>,
    linger: Duration,
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
            seen: Mutex::default(),
            linger: LINGER,
        })
    }

    /// The same, for a test that does not wait so long.
    #[cfg(test)]
    pub(crate) fn lingering(self, linger: Duration) -> Self {
        Self { linger, ..self }
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

    /// The ids of a pod's cgroup and of every one below it, and of those that were below it a moment ago. Empty when it has none
    /// (any more).
    pub(crate) fn subtree(&self, uid: &PodUid) -> Vec<CgroupId> {
        let there = self.directory(uid).map_or_else(Vec::new, |it| ids(&it));
        let mut all = self.seen();
        if there.is_empty() {
            all.remove(uid);
            return there;
        }
        let seen = all.entry(uid.clone()).or_default();
        for (id, missed) in seen.iter_mut() {
            if !there.contains(id) {
                missed.get_or_insert_with(Instant::now);
            }
        }
        seen.extend(there.into_iter().map(|id| (id, None)));
        seen.retain(|_, missed| missed.is_none_or(|since| since.elapsed() < self.linger));
        seen.keys().copied().collect()
    }

    /// Forgets what was seen of other pods than these.
    pub(crate) fn keep_only(&self, uids: &[PodUid]) {
        self.seen().retain(|uid, _| uids.contains(uid));
    }

    /// The ids of the cgroups that pods are in, of those above them, and of none that a pod is charged by: what is charged here
    /// was charged to pods that are gone, or to nobody's container.
    pub(crate) fn above(&self) -> HashSet<CgroupId> {
        let usual = ["kubepods", "kubepods.slice"].map(|top| self.root.join(top));
        let classes = usual.iter().flat_map(|top| {
            let below = fs::read_dir(top).into_iter().flatten().flatten();
            below
                .filter(|it| !is_a_pod(&it.file_name()))
                .map(|it| it.path())
        });
        let parents = self.parents().clone();
        let holding = parents.into_iter().chain(usual.clone()).chain(classes);
        holding
            .flat_map(|it| {
                let above = it.ancestors().take_while(|it| it.starts_with(&self.root));
                above.map(Path::to_owned).collect::<Vec<_>>()
            })
            .filter_map(|it| Some(CgroupId(fs::symlink_metadata(it).ok()?.ino())))
            .collect()
    }

    /// Whether a pod has a cgroup, and as far as the kernel has summed up, no page of a tmpfs is charged to it.
    ///
    /// It may count pages that were pulled from it meanwhile; and for two seconds it may miss 256 KiB a processor.
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

    fn seen(&self) -> MutexGuard<'_, HashMap<PodUid, HashMap<CgroupId, Option<Instant>>>> {
        // A cgroup more or less is what any moment may bring.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parents(&self) -> MutexGuard<'_, Vec<PathBuf>> {
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
