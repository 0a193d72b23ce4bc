//! What the volume must hold after every step, and who must pay for it.
//!
//! A file is known by its inode. It is in the tree (an object, in the trash, an ordinary file), or it is out of the tree
//! and lives as long as somebody holds it: a draft that is not sealed yet, a removed object that is still mapped.

mod streams;

use std::collections::{BTreeMap, BTreeSet};

use vineyard_charge::CgroupId;

use crate::body::Body;

pub use streams::{Ends, Stream, end_mark, part};

/// Bytes of a page, the unit in which the kernel bills.
pub const PAGE: u64 = 4096;

/// Objects up to this many bytes are read and not mapped; removed, they never pass through the trash.
pub const MAX_READ: u64 = 64 << 10;

/// A view or draft of a client: pod and number.
pub type Holder = (usize, u32);

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `.vineyard/objects/<this>`.
    Objects(String),
    /// `.vineyard/trash/<this>`.
    Trash(String),
    /// `<this>`, an ordinary file.
    Plain(String),
    /// Nowhere: it is only held.
    Nowhere,
}

/// A file of the volume.
#[derive(Clone, Debug)]
pub struct File {
    /// What it must contain.
    pub body: Body,
    /// Who must pay for it.
    pub payer: CgroupId,
    /// Where it is.
    pub place: Place,
    /// Who has it mapped.
    pub holders: BTreeSet<Holder>,
    /// What the mark of its time to live says: its name, or `-`.
    pub expires: Option<String>,
}

impl File {
    /// Bytes that it takes: whole pages.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.body.len().next_multiple_of(PAGE)
    }
}

/// The expected state of a volume.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// By inode; drafts, whose inodes nobody sees, by numbers that no inode has.
    pub files: BTreeMap<u64, File>,
    /// Names and the inodes of their objects.
    pub names: BTreeMap<String, u64>,
    /// Streams by their names.
    pub streams: BTreeMap<String, Stream>,
    /// Objects of which there may be a mark of their time to live: it stays for a while when the object is removed.
    pub marked: BTreeSet<String>,
    /// What is charged for the tree itself: its format file.
    pub tree: BTreeMap<CgroupId, u64>,
}

impl Model {
    /// Bytes that each cgroup must be charged for what the tree shows.
    #[must_use]
    pub fn bill(&self) -> BTreeMap<CgroupId, u64> {
        let mut bill = self.tree.clone();
        for file in self.files.values().filter(|f| f.place != Place::Nowhere) {
            *bill.entry(file.payer).or_default() += file.allocated();
        }
        bill.retain(|_, bytes| *bytes > 0);
        bill
    }

    /// Bytes that the file system must have in use, without what clients reserved ahead of need.
    #[must_use]
    pub fn used(&self) -> u64 {
        let files: u64 = self.files.values().map(File::allocated).sum();
        files + self.tree.values().sum::<u64>()
    }

    /// The inode of the object at `place`.
    #[must_use]
    pub fn at(&self, place: &Place) -> Option<u64> {
        let mut files = self.files.iter();
        files.find_map(|(inode, file)| (file.place == *place).then_some(*inode))
    }

    /// The file that a name stands for.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&File> {
        self.files.get(self.names.get(name)?)
    }

    /// Objects that have no name.
    #[must_use]
    pub fn unnamed(&self) -> Vec<u64> {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        let objects = self
            .files
            .iter()
            .filter(|(_, f)| matches!(f.place, Place::Objects(_)));
        objects
            .map(|(inode, _)| *inode)
            .filter(|inode| !named.contains(inode))
            .collect()
    }

    /// Points `name` to an object. The object that it pointed to, if nothing else does, is removed.
    pub fn point(&mut self, name: &str, inode: u64) {
        if let Some(old) = self.names.insert(name.into(), inode)
            && old != inode
        {
            self.discard(old);
        }
    }

    /// Removes a name and its object. Returns whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let old = self.names.remove(name);
        old.is_some_and(|inode| {
            self.discard(inode);
            true
        })
    }

    /// Removes an object that no name points to: at once, or through the trash when somebody maps it.
    pub fn discard(&mut self, inode: u64) {
        if self.names.values().any(|i| *i == inode) {
            return;
        }
        let Some(file) = self.files.get_mut(&inode) else {
            return;
        };
        let trashed = match &file.place {
            Place::Objects(object) if file.body.len() > MAX_READ => Place::Trash(object.clone()),
            _ => Place::Nowhere,
        };
        file.place = trashed;
        self.collect();
    }

    /// Forgets what nobody holds any more, as the kernel does, and a sweep for the trash.
    pub fn collect(&mut self) {
        let gone = |f: &File| matches!(f.place, Place::Nowhere | Place::Trash(_));
        self.files
            .retain(|_, file| !(gone(file) && file.holders.is_empty()));
    }

    /// The time of an object is over: it goes with all its names.
    pub fn expire(&mut self, inode: u64) {
        self.names.retain(|_, object| *object != inode);
        self.discard(inode);
    }

    /// A view is unmapped.
    pub fn release(&mut self, holder: Holder) {
        for file in self.files.values_mut() {
            file.holders.remove(&holder);
        }
        self.collect();
    }

    /// A client is gone with all that it held.
    pub fn release_all(&mut self, pod: usize) {
        for file in self.files.values_mut() {
            file.holders.retain(|(p, _)| *p != pod);
        }
        self.collect();
    }

    /// The views of a pod's client.
    #[must_use]
    pub fn views(&self, pod: usize) -> Vec<(u32, u64)> {
        let all = self.files.iter();
        let views = all.flat_map(|(inode, f)| f.holders.iter().map(move |h| (h, *inode)));
        views
            .filter(|((p, _), _)| *p == pod)
            .map(|((_, view), inode)| (*view, inode))
            .collect()
    }

    /// A cgroup is gone: the kernel names its nearest living ancestor as payer.
    pub fn inherit(&mut self, gone: CgroupId, heir: CgroupId) {
        for file in self.files.values_mut().filter(|f| f.payer == gone) {
            file.payer = heir;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Content;

    const A: CgroupId = CgroupId(7);

    fn with(inode: u64, len: u64, holders: &[Holder]) -> Model {
        let mut model = Model::default();
        let file = File {
            body: Body::Value(Content { seed: 0, len }),
            payer: A,
            place: Place::Objects("x.raw".into()),
            holders: holders.iter().copied().collect(),
            expires: None,
        };
        model.files.insert(inode, file);
        model.names.insert("x".into(), inode);
        model
    }

    #[test]
    fn a_small_removed_object_that_is_held_is_in_use_and_on_nobodys_list() {
        let mut model = with(1, 5000, &[(0, 1)]);
        assert_eq!(model.bill()[&A], 8192);
        assert!(model.remove("x"));
        assert_eq!((model.bill().len(), model.used()), (0, 8192));
        model.release((0, 1));
        assert_eq!(model.used(), 0);
    }

    #[test]
    fn a_large_removed_object_stays_billed_in_the_trash_until_it_is_released() {
        let mut model = with(1, MAX_READ + 1, &[(0, 1), (1, 1)]);
        assert!(model.remove("x"));
        assert!(!model.remove("x"));
        model.release_all(0);
        assert_eq!(model.bill()[&A], MAX_READ + PAGE);
        model.release_all(1);
        assert_eq!(model.used(), 0);
    }

    #[test]
    fn the_bill_of_a_cgroup_that_is_gone_goes_to_its_heir() {
        let mut model = with(1, 1, &[]);
        model.inherit(A, CgroupId(9));
        assert_eq!(model.bill(), BTreeMap::from([(CgroupId(9), PAGE)]));
    }
}
