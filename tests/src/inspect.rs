//! Looks at a volume with plain system calls, as the driver would, and compares it with a [`Model`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::body::Body;
use crate::model::{Model, Place};
use crate::pattern::Pattern;
use crate::recharge;

/// Bytes that are compared at once; a multiple of 8.
const PIECE: usize = 1 << 20;

/// What the tree of a volume shows.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Files of `objects/` and their inodes.
    pub objects: BTreeMap<String, u64>,
    /// Files of `trash/` and their inodes, without those that somebody builds another object in.
    pub trash: BTreeMap<String, u64>,
    /// Ordinary files and their inodes.
    pub plain: BTreeMap<String, u64>,
    /// Names and the objects that they point to.
    pub names: BTreeMap<String, String>,
    /// Streams, and how many of their parts are consumed.
    pub streams: BTreeMap<String, u64>,
    /// Objects that have a mark of their time to live, and what it says.
    pub marks: BTreeMap<String, String>,
    /// What lies in `tmp/`.
    pub tmp: BTreeSet<String>,
}

impl Shown {
    /// Looks at the volume in `root`.
    ///
    /// # Errors
    /// When it cannot be read, or holds what the format does not know.
    pub fn scan(root: &Path) -> Result<Self> {
        let own = root.join(".vineyard");
        let mut shown = Self {
            objects: inodes(&own.join("objects"))?,
            trash: trash(&own.join("trash"))?,
            tmp: inodes(&own.join("tmp"))?.into_keys().collect(),
            ..Self::default()
        };
        for mark in inodes(&own.join("ttl"))?.into_keys() {
            let target = fs::read_link(own.join("ttl").join(&mark))?;
            let (_, object) = mark.split_once('.').context("a mark")?;
            let target = target.display().to_string();
            shown.marks.insert(object.into(), target);
        }
        shown.directory(root, "")?;
        Ok(shown)
    }

    /// What is in `root`, or in a stream, below which there are no directories.
    fn directory(&mut self, directory: &Path, below: &str) -> Result<()> {
        let objects = match below {
            "" => ".vineyard/objects",
            _ => "../.vineyard/objects",
        };
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let last = entry.file_name().to_string_lossy().into_owned();
            let name = format!("{below}{last}");
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                if last == ".consumed" {
                    let parts = target.display().to_string().parse()?;
                    self.streams.insert(stream_of(below), parts);
                    continue;
                }
                let object = target
                    .strip_prefix(objects)
                    .with_context(|| format!("{name} points to {}", target.display()))?;
                self.names.insert(name, object.display().to_string());
            } else if last == ".stream" {
                self.streams.entry(stream_of(below)).or_default();
            } else if kind.is_file() {
                self.plain.insert(name, entry.metadata()?.ino());
            } else if kind.is_dir() && below.is_empty() {
                if name != ".vineyard" {
                    self.directory(&entry.path(), &format!("{name}/"))?;
                }
            } else {
                bail!("{name} is a {kind:?}");
            }
        }
        Ok(())
    }
}

fn stream_of(below: &str) -> String {
    below.trim_end_matches('/').into()
}

/// What a client has recycled it holds a lease on: the kernel lets nobody else open it.
fn trash(directory: &Path) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match recharge::open(&entry.path()) {
            Ok(file) => {
                let name = entry.file_name().to_string_lossy().into_owned();
                all.insert(name, file.metadata()?.ino());
            }
            Err(error) if recharge::is_recycled(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

fn inodes(directory: &Path) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        all.insert(name, entry.metadata()?.ino());
    }
    Ok(all)
}

/// The path of a file of the tree.
#[must_use]
pub fn path(root: &Path, place: &Place) -> Option<PathBuf> {
    let own = root.join(".vineyard");
    match place {
        Place::Objects(name) => Some(own.join("objects").join(name)),
        Place::Trash(name) => Some(own.join("trash").join(name)),
        Place::Plain(name) => Some(root.join(name)),
        Place::Nowhere => None,
    }
}

/// Checks that the tree shows exactly what the model knows, and that every byte of every file is right.
///
/// # Errors
/// The first difference.
pub fn compare(root: &Path, model: &Model, litter: &BTreeSet<String>) -> Result<()> {
    let shown = Shown::scan(root)?;
    let (mut objects, mut trash, mut plain) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (inode, file) in &model.files {
        match &file.place {
            Place::Objects(name) => objects.insert(name.clone(), *inode),
            Place::Trash(name) => trash.insert(name.clone(), *inode),
            Place::Plain(name) => plain.insert(name.clone(), *inode),
            Place::Nowhere => None,
        };
    }
    same("objects", &shown.objects, &objects)?;
    same("trash", &shown.trash, &trash)?;
    same("plain files", &shown.plain, &plain)?;
    let mut names = BTreeMap::new();
    for (name, inode) in &model.names {
        if let Some(Place::Objects(object)) = model.files.get(inode).map(|f| &f.place) {
            names.insert(name.clone(), object.clone());
        }
    }
    same("names", &shown.names, &names)?;
    let streams = model.streams.iter();
    let consumed = streams.map(|(name, stream)| (name.clone(), stream.consumed));
    same("streams", &shown.streams, &consumed.collect())?;
    marks(&shown, model)?;
    let left: Vec<_> = shown.tmp.difference(litter).collect();
    ensure!(left.is_empty(), "left in tmp: {left:?}");
    for file in model.files.values() {
        let Some(path) = path(root, &file.place) else {
            continue;
        };
        let sealed = !matches!(file.place, Place::Plain(_));
        body(&path, &file.body, sealed).with_context(|| format!("{:?}", file.place))?;
    }
    Ok(())
}

/// Every object that expires has its mark, and there are no others but of objects that are gone.
fn marks(shown: &Shown, model: &Model) -> Result<()> {
    let mut foreign: BTreeMap<_, _> = shown.marks.iter().collect();
    for file in model.files.values() {
        if let (Place::Objects(object), Some(target)) = (&file.place, &file.expires) {
            let mark = shown.marks.get(object);
            ensure!(mark == Some(target), "the mark of {object} is {mark:?}");
        }
    }
    foreign.retain(|object, _| !model.marked.contains(*object));
    ensure!(foreign.is_empty(), "marks of nothing: {foreign:?}");
    Ok(())
}

/// As [`content`], for what is no simple value.
fn body(path: &Path, expected: &Body, sealed: bool) -> Result<()> {
    if let Body::Value(value) = expected {
        return content(path, (*value).into(), sealed);
    }
    if sealed {
        check_sealed(&fs::metadata(path)?, expected.len())?;
    }
    expected.check(path)
}

fn same<V: Eq + std::fmt::Debug>(
    what: &str,
    shown: &BTreeMap<String, V>,
    expected: &BTreeMap<String, V>,
) -> Result<()> {
    if shown == expected {
        return Ok(());
    }
    let extra: Vec<_> = shown
        .iter()
        .filter(|(k, v)| expected.get(*k) != Some(v))
        .collect();
    let missing: Vec<_> = expected
        .iter()
        .filter(|(k, v)| shown.get(*k) != Some(v))
        .collect();
    bail!("{what}: not expected {extra:?}, missing {missing:?}")
}

/// Checks every byte of a file, and of a sealed one that it is read-only, has one link and no holes.
///
/// # Errors
/// The first difference.
pub fn content(path: &Path, expected: Pattern, sealed: bool) -> Result<()> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    ensure!(
        metadata.len() == expected.len,
        "{} bytes instead of {}",
        metadata.len(),
        expected.len
    );
    if sealed {
        check_sealed(&metadata, expected.len)?;
    }
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < expected.len {
        let n = usize::try_from(expected.len - offset).map_or(PIECE, |rest| rest.min(PIECE));
        file.read_exact_at(&mut piece[..n], offset)?;
        if let Some(wrong) = expected.first_wrong(offset, &piece[..n]) {
            bail!("byte {wrong} is wrong");
        }
        offset += n as u64;
    }
    Ok(())
}

fn check_sealed(metadata: &Metadata, len: u64) -> Result<()> {
    let (mode, links) = (metadata.mode() & 0o7777, metadata.nlink());
    ensure!(mode == 0o444 && links == 1, "mode {mode:o}, {links} links");
    let allocated = metadata.blocks() * 512;
    let expected = len.next_multiple_of(crate::model::PAGE);
    ensure!(
        allocated == expected,
        "{allocated} bytes allocated instead of {expected}"
    );
    Ok(())
}
