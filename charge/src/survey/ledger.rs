//! The bill of a volume: who pays how much, by cgroup path, and what no path reaches.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::fstatfs;

use super::{SurveyError, Surveyor, TreeSurvey, survey_tree};
use crate::cgroup::{CgroupId, Hierarchy};

/// What one cgroup is charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    /// Who.
    pub owner: CgroupId,
    /// Its directory below the hierarchy's mount, empty for the root; `None` when no directory has this id (any more).
    pub path: Option<PathBuf>,
    /// How much.
    pub bytes: u64,
}

/// The bill of a directory and the file system that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Largest first.
    pub bills: Vec<Bill>,
    /// The survey that they come from.
    pub tree: TreeSurvey,
    /// Bytes that the file system has handed out.
    pub used: u64,
    /// Bytes that it has at all, 0 without a limit.
    pub capacity: u64,
    /// Bytes that are used but that no path reaches: removed files that are still open or mapped, and files not named yet.
    pub unreached: u64,
}

impl Ledger {
    /// Surveys everything below `directory`, normally the root of a volume.
    ///
    /// # Errors
    /// As [`survey_tree`].
    pub fn of(directory: &Path) -> Result<Self, SurveyError> {
        let root = File::open(directory)?;
        let mut surveyor = Surveyor::open()?;
        let tree = survey_tree(&mut surveyor, root.as_fd())?;
        let statfs = fstatfs(&root).map_err(io::Error::from)?;
        let block = u64::try_from(statfs.block_size()).map_err(io::Error::other)?;
        let used = (statfs.blocks().saturating_sub(statfs.blocks_free())) * block;
        let paths = paths(tree.owners.keys().copied().collect());
        let mut bills: Vec<Bill> = tree
            .owners
            .iter()
            .map(|(owner, bytes)| Bill {
                owner: *owner,
                path: paths.get(owner).cloned(),
                bytes: *bytes,
            })
            .collect();
        bills.sort_by_key(|bill| (std::cmp::Reverse(bill.bytes), bill.owner));
        Ok(Self {
            bills,
            used,
            capacity: statfs.blocks() * block,
            unreached: used.saturating_sub(tree.present + tree.unseen),
            tree,
        })
    }

    /// Bytes charged to any of `owners`, such as a pod's subtree.
    pub fn billed(&self, owners: &[CgroupId]) -> u64 {
        self.bills
            .iter()
            .filter(|bill| owners.contains(&bill.owner))
            .map(|bill| bill.bytes)
            .sum()
    }
}

/// Where the wanted cgroups are. Walks until all are found.
fn paths(mut wanted: Vec<CgroupId>) -> BTreeMap<CgroupId, PathBuf> {
    let mut found = BTreeMap::new();
    let Ok(hierarchy) = Hierarchy::detect() else {
        return found;
    };
    let mut pending = vec![hierarchy.mount.clone()];
    while let Some(directory) = pending.pop() {
        if wanted.is_empty() {
            break;
        }
        let Ok(metadata) = fs::metadata(&directory) else {
            continue;
        };
        let id = CgroupId(metadata.ino());
        if let Some(index) = wanted.iter().position(|w| *w == id) {
            wanted.swap_remove(index);
            let path = directory
                .strip_prefix(&hierarchy.mount)
                .unwrap_or(&directory);
            found.insert(id, path.to_owned());
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        pending.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    found
}
