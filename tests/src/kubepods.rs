//! The cgroups of a node's pods, named and nested as kubelet does it.
//!
//! ```text
//! cgroupfs   kubepods[/burstable|/besteffort]/pod<uid>
//! systemd    kubepods.slice[/kubepods-burstable.slice]/kubepods[-burstable]-pod<uid, "-" as "_">.slice
//! ```

use std::fs;

use anyhow::Result;
use vineyard_charge::{CgroupId, MemoryCgroup};

use crate::cgroups::Cgroup;

/// Kubelet's setting `cgroupDriver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Plain directories.
    Cgroupfs,
    /// Slices, each with the name of all those above it.
    Systemd,
}

impl Layout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cgroupfs, Self::Systemd];

    fn top(self) -> &'static str {
        match self {
            Self::Cgroupfs => "kubepods",
            Self::Systemd => "kubepods.slice",
        }
    }

    fn class(self, class: &str) -> String {
        match self {
            Self::Cgroupfs => class.to_owned(),
            Self::Systemd => format!("kubepods-{class}.slice"),
        }
    }

    fn pod(self, class: Option<&str>, uid: &str) -> String {
        let above = class.map(|class| format!("-{class}")).unwrap_or_default();
        match self {
            Self::Cgroupfs => format!("pod{uid}"),
            Self::Systemd => format!("kubepods{above}-pod{}.slice", uid.replace('-', "_")),
        }
    }

    /// The uid in the name of a pod's cgroup.
    fn uid(self, name: &str) -> Option<String> {
        match self {
            Self::Cgroupfs => name.strip_prefix("pod").map(str::to_owned),
            Self::Systemd => {
                let (_, uid) = name.strip_suffix(".slice")?.rsplit_once("-pod")?;
                Some(uid.replace('_', "-"))
            }
        }
    }
}

/// Classes of quality of service that have a cgroup of their own; guaranteed pods are beside these.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// The parents of all pods.
#[derive(Debug)]
pub struct Kubepods {
    // Before their parent.
    classes: Vec<Cgroup>,
    top: Cgroup,
    layout: Layout,
}

impl Kubepods {
    /// Makes them below `root`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(root: &Cgroup, layout: Layout) -> Result<Self> {
        let top = root.child(layout.top())?;
        let classes = CLASSES.iter().map(|class| top.child(&layout.class(class)));
        Ok(Self {
            classes: classes.collect::<Result<_>>()?,
            top,
            layout,
        })
    }

    /// Makes the cgroup of a pod. Its uid says of which class it is, so that there are some of each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod(&self, uid: &str) -> Result<Cgroup> {
        let class = uid.bytes().map(usize::from).sum::<usize>() % (CLASSES.len() + 1);
        let class = class.checked_sub(1);
        let parent = class.map_or(&self.top, |class| &self.classes[class]);
        parent.child(&self.layout.pod(class.map(|class| CLASSES[class]), uid))
    }

    /// The uids of the pods that have a cgroup.
    ///
    /// # Errors
    /// When the parents are gone.
    pub fn uids(&self) -> Result<Vec<String>> {
        Ok(self.all()?.into_iter().map(|(uid, _)| uid).collect())
    }

    /// The pod that a cgroup belongs to; none: it is not below a pod, or the pod is gone.
    ///
    /// # Errors
    /// When a pod goes meanwhile.
    pub fn uid_of(&self, owner: CgroupId) -> Result<Option<String>> {
        for (uid, memory) in self.all()? {
            if memory.subtree()?.contains(&owner) {
                return Ok(Some(uid));
            }
        }
        Ok(None)
    }

    fn all(&self) -> Result<Vec<(String, MemoryCgroup)>> {
        let mut all = Vec::new();
        for parent in self.classes.iter().chain([&self.top]) {
            for entry in fs::read_dir(parent.directory())? {
                let entry = entry?;
                let uid = self.layout.uid(&entry.file_name().to_string_lossy());
                if let Some(uid) = uid.filter(|_| entry.path().is_dir()) {
                    all.push((uid, MemoryCgroup::open(entry.path())?));
                }
            }
        }
        Ok(all)
    }
}
