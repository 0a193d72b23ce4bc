//! `stat` and `exists`: what an object is, without its bytes.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::{FileStat, fstat};

use crate::error::Error;
use crate::get::{Found, regular};
use crate::id::ObjectId;
use crate::kind::Kind;
use crate::name::Name;
use crate::naming::Entry;
use crate::object::Key;
use crate::volume::Volume;

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The object's id; `None` for a plain file.
    pub id: Option<ObjectId>,
    /// How the bytes are decoded.
    pub kind: Kind,
    /// Length in bytes.
    pub len: u64,
    /// Allocated bytes: whole pages.
    pub allocated: u64,
    /// When it was last written.
    pub modified: SystemTime,
    /// The user that made it.
    pub uid: u32,
}

impl Stat {
    pub(crate) fn new(id: Option<ObjectId>, kind: Kind, stat: &FileStat) -> Self {
        let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        let nanoseconds = Duration::from_nanos(u64::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Self {
            id,
            kind,
            len: u64::try_from(stat.st_size).unwrap_or(0),
            allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            modified: UNIX_EPOCH + seconds + nanoseconds,
            uid: stat.st_uid,
        }
    }
}

impl Volume {
    /// What the object, plain file or member of a pack is.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Lost`] when a name points to an object that is gone.
    pub fn stat(&self, key: Key<'_>) -> Result<Stat, Error> {
        let (id, kind, file) = match key {
            Key::Name(name) => match self.open_name(name)? {
                Found::Object(object, file) => (Some(object.id), object.kind, file),
                Found::Below => return self.stat_of_member(name),
                Found::Plain(file) => (None, Kind::of_extension(name.file_name()), file),
            },
            Key::Object(..) | Key::Id(_) => {
                let (object, file) = self.open_id(key)?;
                (Some(object.id), object.kind, file)
            }
        };
        let key = key.to_string();
        let stat = fstat(file.as_fd()).map_err(|errno| Error::io(key.as_str(), errno))?;
        regular(&stat, &key)?;
        Ok(Stat::new(id, kind, &stat))
    }

    fn stat_of_member(&self, name: &Name) -> Result<Stat, Error> {
        let (id, kind, len) = self.stat_member(name)?;
        let pack = self.stat(Key::Object(id, Kind::Pack))?;
        Ok(Stat {
            kind,
            len,
            allocated: len,
            ..pack
        })
    }

    /// Whether `name` is a name, a plain file or a member of a pack. A name counts even when its object is lost.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn exists(&self, name: &Name) -> Result<bool, Error> {
        match self.resolve(name)? {
            Entry::Object(_) | Entry::Plain => Ok(true),
            Entry::Absent | Entry::Directory => Ok(false),
            Entry::Below => match self.stat_member(name) {
                Ok(_) => Ok(true),
                Err(Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(error),
            },
        }
    }
}
