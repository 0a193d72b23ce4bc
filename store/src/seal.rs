//! Sealing: a filled file becomes an object, and gets its name and its time to live.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::symlinkat;

use crate::error::Error;
use crate::fresh::Fresh;
use crate::id::ObjectId;
use crate::kind::Kind;
use crate::mapping::PAGE;
use crate::name::{Name, ObjectFile};
use crate::object::{PutOptions, Ref};
use crate::recycle::SMALLEST;
use crate::tree::Tree;
use crate::volume::Volume;

/// Objects of at least this many bytes leave a note until they are named. For smaller ones that would double the work,
/// and a process must die between two system calls to leave one behind.
const ANNOUNCED: u64 = 1 << 20;

impl Volume {
    /// Links a filled file that nobody else knows, and names it. If that fails, the object is gone again.
    pub(crate) fn seal_file(
        &self,
        file: &Fresh,
        kind: Kind,
        len: u64,
        options: &PutOptions,
    ) -> Result<Ref, Error> {
        let tree = self.tree();
        let mut copy = None;
        let notes = loop {
            let file = copy.as_ref().unwrap_or(file);
            let id = ObjectId::random().map_err(|errno| Error::io("getrandom", errno))?;
            let object = ObjectFile::new(id, kind);
            let notes = Notes::leave(self, &object, len, options)?;
            match file.link(tree, object.as_str()) {
                Ok(()) => break notes,
                Err(Errno::EEXIST) => notes.withdraw(self),
                // Somebody who needed room removed its name from the trash.
                Err(Errno::ENOENT) if file.is_recycled() => {
                    notes.withdraw(self);
                    copy = Some(self.copy_of(file, len)?);
                }
                Err(errno) => {
                    notes.withdraw(self);
                    return Err(self.failed(".vineyard/objects", errno, len));
                }
            }
        };
        let named = options
            .name
            .as_ref()
            .map(|name| self.point(name, &notes.object, options.overwrite));
        if let Some(Err(error)) = named {
            let _ = Tree::unlink(tree.objects.as_fd(), notes.object.as_str());
            notes.withdraw(self);
            return Err(error);
        }
        notes.named(self, options.name.as_ref())?;
        let file = copy.as_ref().unwrap_or(file);
        file.settle();
        if len >= SMALLEST {
            self.recycling().made(notes.object.id, file.as_fd());
        }
        Ok(Ref {
            id: notes.object.id,
            kind,
            len,
            name: options.name.clone(),
        })
    }
}

/// What lets a sweep find an object whose writer died before it was named, and one that is not needed any more.
struct Notes {
    object: ObjectFile,
    /// Whether there is `tmp/<id>.<kind>`, which points to the name.
    announced: bool,
    /// The mark of its time to live.
    ttl: Option<String>,
}

impl Notes {
    fn leave(
        volume: &Volume,
        object: &ObjectFile,
        len: u64,
        options: &PutOptions,
    ) -> Result<Self, Error> {
        let mut notes = Self {
            object: *object,
            announced: false,
            ttl: None,
        };
        if let Some(name) = &options.name
            && len >= ANNOUNCED
        {
            symlinkat(name.as_str(), volume.tree().tmp.as_fd(), object.as_str())
                .map_err(|errno| volume.failed(".vineyard/tmp", errno, 0))?;
            notes.announced = true;
        }
        if let Some(ttl) = options.ttl {
            let target = options.name.as_ref().map_or("-", Name::as_str);
            let marker = ttl_marker(object, ttl);
            if let Err(errno) = symlinkat(target, volume.tree().ttl.as_fd(), marker.as_str()) {
                notes.withdraw(volume);
                return Err(volume.failed(".vineyard/ttl", errno, 0));
            }
            notes.ttl = Some(marker);
        }
        Ok(notes)
    }

    /// The object has its name. A sweep may have come in between, when this process was stopped for a minute just then: it takes
    /// such an object for one whose writer died.
    fn named(&self, volume: &Volume, name: Option<&Name>) -> Result<(), Error> {
        if !self.announced || self.unlink_note(volume) || volume.exists_object(&self.object) {
            return Ok(());
        }
        let Some(name) = name else { return Ok(()) };
        volume.unname(name, &self.object)?;
        Err(Error::io(name.as_str(), Errno::ESTALE))
    }

    /// Whether it was there, or cannot be removed.
    fn unlink_note(&self, volume: &Volume) -> bool {
        Tree::unlink(volume.tree().tmp.as_fd(), self.object.as_str()).unwrap_or(true)
    }

    /// There is no object.
    fn withdraw(&self, volume: &Volume) {
        if self.announced {
            self.unlink_note(volume);
        }
        if let Some(marker) = &self.ttl {
            let _ = Tree::unlink(volume.tree().ttl.as_fd(), marker);
        }
    }
}

/// `<unix seconds, 12 digits>.<id>.<kind>`.
fn ttl_marker(object: &ObjectFile, ttl: Duration) -> String {
    let end = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_add(ttl);
    // Rounded up, and no more than the digits hold: that is in 31,000 years.
    let seconds = end.as_secs().saturating_add(1).min(999_999_999_999);
    format!("{seconds:012}.{}", object.as_str())
}

/// Refuses a file that has pages which were never allocated: they would be charged to whoever reads them.
pub(crate) fn refuse_holes(file: BorrowedFd<'_>, len: u64) -> Result<(), Error> {
    let stat = fstat(file).map_err(|errno| Error::io("stat", errno))?;
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    if allocated >= len.next_multiple_of(PAGE) {
        return Ok(());
    }
    let fs = fstatfs(file).map_err(|errno| Error::io("statfs", errno))?;
    if fs.filesystem_type() != TMPFS_MAGIC {
        // Elsewhere a file may be compressed, and reading allocates nothing.
        return Ok(());
    }
    Err(Error::Holes { allocated, len })
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::object::Key;
    use crate::volume::Options;

    #[test]
    fn an_object_that_was_swept_before_its_writer_went_on_leaves_no_name() {
        let directory = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let volume = Volume::open(directory.path(), Options::default()).unwrap();
        let name = Name::new("a").unwrap();
        let options = PutOptions::named(name.clone());
        let put = volume
            .put(Kind::Raw, &[IoSlice::new(b"1")], &options)
            .unwrap();
        let notes = Notes {
            object: ObjectFile::new(put.id, put.kind),
            announced: true,
            ttl: None,
        };
        notes.named(&volume, Some(&name)).unwrap();
        assert!(volume.stat(Key::Name(&name)).is_ok(), "only its note went");
        volume.discard(&notes.object).unwrap();
        notes.named(&volume, Some(&name)).unwrap_err();
        assert!(!volume.exists(&name).unwrap());
    }
}
