//! Listing: names, plain files and streams in the order of the directories, without a `stat` unless asked.

use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use nix::dir::{Dir, OwningIter, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};

use crate::error::Error;
use crate::get::regular;
use crate::id::ObjectId;
use crate::kind::Kind;
use crate::name::{Name, ObjectFile};
use crate::stat::Stat;
use crate::volume::Volume;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only names that start with this; only directories that can hold some are read.
    pub prefix: Option<String>,
    /// Only names that match: `*` and `?` stay within a component, `**` does not.
    pub glob: Option<String>,
    /// Whether to `stat` each entry, which takes about twice as long.
    pub stat: bool,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub what: Listing,
    /// Its size and so on, when asked for; `None` also for a lost object.
    pub stat: Option<Stat>,
}

/// What an entry of a listing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// A name of this object.
    Object(ObjectId, Kind),
    /// A regular file, decoded as this kind.
    Plain(Kind),
    /// A stream; its parts are listed too.
    Stream,
    /// A symlink to elsewhere, or something that is neither file nor directory.
    Foreign,
}

/// A running listing. Entries that come or go meanwhile may or may not be seen.
#[derive(Debug)]
pub struct List(Walk<Arc<Volume>>);

impl Iterator for List {
    type Item = Result<Listed, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl Volume {
    /// Lists names, plain files and streams.
    ///
    /// # Errors
    /// [`Error::InvalidName`] for a glob that is none; otherwise when the tree cannot be read.
    pub fn list(self: &Arc<Self>, options: &ListOptions) -> Result<List, Error> {
        Walk::new(Arc::clone(self), options).map(List)
    }
}

/// The listing itself, for whoever owns or borrows the volume.
pub(crate) struct Walk<V> {
    volume: V,
    prefix: String,
    glob: Option<GlobMatcher>,
    stat: bool,
    /// The directories that are being read: their path with a trailing `/`, or empty for the root.
    open: Vec<(String, OwningIter)>,
}

impl<V: Deref<Target = Volume>> Walk<V> {
    pub(crate) fn new(volume: V, options: &ListOptions) -> Result<Self, Error> {
        let mut prefix = options.prefix.clone().unwrap_or_default();
        let glob = options.glob.as_deref().map(matcher).transpose()?;
        let mut open = Vec::new();
        let literal = options.glob.as_deref().map_or("", literal_start);
        // Otherwise no name has both beginnings.
        if literal.starts_with(&prefix) || prefix.starts_with(literal) {
            if literal.len() > prefix.len() {
                prefix = literal.to_owned();
            }
            open.extend(Self::start(&volume, &prefix)?);
        }
        Ok(Self {
            volume,
            prefix,
            glob,
            stat: options.stat,
            open,
        })
    }

    /// The deepest directory that every match is in; `None` when there is none.
    fn start(volume: &Volume, prefix: &str) -> Result<Option<(String, OwningIter)>, Error> {
        let directory = prefix.rsplit_once('/').map_or("", |(d, _)| d);
        let (path, opened) = if directory.is_empty() {
            (
                String::new(),
                openat(volume.tree().root.as_fd(), ".", DIRECTORY, Mode::empty()),
            )
        } else if Name::new(directory).is_ok() {
            (format!("{directory}/"), volume.tree().directory(directory))
        } else {
            return Ok(None);
        };
        match opened.and_then(Dir::from_fd) {
            Ok(dir) => Ok(Some((path, dir.into_iter()))),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(Error::io(directory, errno)),
        }
    }
}

fn descriptor(directory: &OwningIter) -> BorrowedFd<'_> {
    // SAFETY: the iterator owns the descriptor and is borrowed for as long.
    unsafe { BorrowedFd::borrow_raw(directory.as_raw_fd()) }
}

fn matcher(pattern: &str) -> Result<GlobMatcher, Error> {
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|_| Error::InvalidName {
            name: pattern.into(),
            why: "it is not a glob",
        })
}

/// What every name that matches `pattern` starts with.
fn literal_start(pattern: &str) -> &str {
    let end = pattern
        .find(['*', '?', '[', '{', '\\'])
        .unwrap_or(pattern.len());
    &pattern[..end]
}

impl<V: Deref<Target = Volume>> Walk<V> {
    /// Whether `path` starts with the prefix, or the other way round: then it may hold matches.
    fn may_hold(&self, path: &str) -> bool {
        path.starts_with(&self.prefix) || self.prefix.starts_with(path)
    }

    fn matches(&self, name: &str) -> bool {
        name.starts_with(&self.prefix) && self.glob.as_ref().is_none_or(|g| g.is_match(name))
    }

    /// Looks at one entry of the innermost directory: a result, or nothing to say about it.
    fn visit(
        &mut self,
        path: &str,
        file_name: &str,
        file_type: Option<Type>,
    ) -> Option<Result<Listed, Error>> {
        if file_name == ".stream" {
            let stream = path.strip_suffix('/').unwrap_or(path);
            let name = Name::new(stream)
                .ok()
                .filter(|n| self.matches(n.as_str()))?;
            return Some(Ok(Listed {
                name,
                what: Listing::Stream,
                stat: None,
            }));
        }
        let full = format!("{path}{file_name}");
        if file_type == Some(Type::Directory) {
            let inside = format!("{full}/");
            if self.may_hold(&inside) && Name::new(full.as_str()).is_ok() {
                self.descend(inside, file_name);
            }
            return None;
        }
        if !self.matches(&full) {
            return None;
        }
        let name = Name::new(full).ok()?;
        let (_, directory) = self.open.last()?;
        let directory = descriptor(directory);
        let what = match file_type {
            Some(Type::Symlink) => match self.volume.read_link(directory, file_name) {
                Ok(Some(object)) => Listing::Object(object.id, object.kind),
                Ok(None) => Listing::Foreign,
                // It went away.
                Err(_) => return None,
            },
            Some(Type::File) => Listing::Plain(Kind::of_extension(file_name)),
            _ => Listing::Foreign,
        };
        let stat = if self.stat {
            self.stat(&what, directory, file_name)
        } else {
            None
        };
        Some(Ok(Listed { name, what, stat }))
    }

    fn stat(&self, what: &Listing, directory: BorrowedFd<'_>, file_name: &str) -> Option<Stat> {
        let (id, kind, found) = match *what {
            Listing::Object(id, kind) => {
                let object = ObjectFile::new(id, kind);
                let objects = self.volume.tree().objects.as_fd();
                (
                    Some(id),
                    kind,
                    fstatat(objects, object.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW),
                )
            }
            Listing::Plain(kind) => (
                None,
                kind,
                fstatat(directory, file_name, AtFlags::AT_SYMLINK_NOFOLLOW),
            ),
            Listing::Stream | Listing::Foreign => return None,
        };
        let stat = found.ok()?;
        regular(&stat, file_name).ok()?;
        Some(Stat::new(id, kind, &stat))
    }

    /// Goes on with a directory; one that vanished is skipped.
    fn descend(&mut self, path: String, file_name: &str) {
        let Some((_, parent)) = self.open.last() else {
            return;
        };
        let opened = openat(descriptor(parent), file_name, DIRECTORY, Mode::empty());
        if let Ok(dir) = opened.and_then(Dir::from_fd) {
            self.open.push((path, dir.into_iter()));
        }
    }
}

impl<V: Deref<Target = Volume>> Iterator for Walk<V> {
    type Item = Result<Listed, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (path, directory) = self.open.last_mut()?;
            let Some(entry) = directory.next() else {
                self.open.pop();
                continue;
            };
            let path = path.clone();
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    self.open.pop();
                    return Some(Err(Error::io(path, errno)));
                }
            };
            let Ok(file_name) = entry.file_name().to_str() else {
                continue;
            };
            if matches!(file_name, "." | "..") {
                continue;
            }
            if let Some(listed) = self.visit(&path, file_name, entry.file_type()) {
                return Some(listed);
            }
        }
    }
}

impl<V> fmt::Debug for Walk<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
