//! Removal: names own their objects, and an object that somebody may still map goes through the trash.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fstatat};

use crate::error::Error;
use crate::get::MAX_READ;
use crate::id::ObjectId;
use crate::kind::Kind;
use crate::lease::nobody_uses;
use crate::name::{Name, ObjectFile};
use crate::naming::Entry;
use crate::object::Key;
use crate::pace::Pace;
use crate::recycle::SMALLEST;
use crate::tree::{READ, Tree};
use crate::volume::Volume;

impl Volume {
    /// Removes a name and the object that it owns, a plain file, or an object by id. Views of it stay valid. Returns
    /// whether it was there.
    ///
    /// # Errors
    /// When the volume is read-only or the tree cannot be changed.
    pub fn remove(&self, key: Key<'_>) -> Result<bool, Error> {
        let Key::Name(name) = key else {
            let object = match self.object_of(key) {
                Err(Error::NotFound { .. }) => return Ok(false),
                other => other?,
            };
            let pace = Pace::free();
            self.unname_others(&object, &pace)?;
            let removed = self.discard(&object)?;
            self.forget_links(&object, &pace)?;
            return Ok(removed);
        };
        let entry = self.resolve(name)?;
        let (Entry::Object(_) | Entry::Plain) = entry else {
            return match entry {
                Entry::Directory => Err(Error::Foreign {
                    key: name.to_string(),
                    why: "it is a directory",
                }),
                Entry::Below if self.exists(name)? => Err(Error::Foreign {
                    key: name.to_string(),
                    why: "it is a member of a pack, which is removed as a whole",
                }),
                _ => Ok(false),
            };
        };
        let at = |errno| Error::io(name.as_str(), errno);
        let (directory, last) = match self.tree().parent(name) {
            // Its directory went meanwhile, and so did it.
            Err(Errno::ENOENT) => return Ok(false),
            other => other.map_err(at)?,
        };
        let parent = directory
            .as_ref()
            .map_or(self.tree().root.as_fd(), |fd| fd.as_fd());
        self.remove_entry(parent, last).map_err(|e| match e {
            Error::Io { source, .. } => Error::Io {
                path: name.to_string(),
                source,
            },
            other => other,
        })
    }

    /// Removes `known` and the object that it owns if it points to the object of `key`, however often it is re-pointed
    /// meanwhile; otherwise the object alone, as [`Volume::remove`].
    ///
    /// # Errors
    /// As [`Volume::remove`].
    pub fn remove_known(&self, key: Key<'_>, known: &Name) -> Result<bool, Error> {
        let object = match self.object_of(key) {
            Err(Error::NotFound { .. }) => return Ok(false),
            other => other?,
        };
        if self.unname(known, &object)? {
            self.release(&object)?;
            return Ok(true);
        }
        self.remove(key)
    }

    /// Removes the name or plain file `last` in `directory`, and the object that the name owned.
    pub(crate) fn remove_entry(
        &self,
        directory: BorrowedFd<'_>,
        last: &str,
    ) -> Result<bool, Error> {
        let Some(taken) = Taken::new(self.tree(), directory, last)? else {
            return Ok(false);
        };
        let object = self.read_link(self.tree().tmp.as_fd(), &taken.spare);
        taken.unlink()?;
        if let Ok(Some(object)) = object {
            self.release(&object)?;
        }
        Ok(true)
    }

    /// Removes `name` if it points to `object`.
    pub(crate) fn unname(&self, name: &Name, object: &ObjectFile) -> Result<bool, Error> {
        match self.resolve(name)? {
            Entry::Object(found) if found == *object => {}
            _ => return Ok(false),
        }
        let at = |errno| Error::io(name.as_str(), errno);
        let (directory, last) = match self.tree().parent(name) {
            // Its directory went meanwhile, and so did it.
            Err(Errno::ENOENT) => return Ok(false),
            other => other.map_err(at)?,
        };
        let parent = directory
            .as_ref()
            .map_or(self.tree().root.as_fd(), |fd| fd.as_fd());
        let Some(taken) = Taken::new(self.tree(), parent, last)? else {
            return Ok(false);
        };
        match self.read_link(self.tree().tmp.as_fd(), &taken.spare) {
            Ok(Some(found)) if found == *object => taken.unlink().map(|()| true),
            // It was re-pointed just now: back, unless there is yet another.
            Ok(found) => {
                if !taken.put_back(parent, last) {
                    taken.unlink()?;
                    if let Some(found) = found {
                        self.release(&found)?;
                    }
                }
                Ok(false)
            }
            Err(_) => {
                taken.put_back(parent, last);
                Ok(false)
            }
        }
    }

    /// A name does not point to `object` any more: removes the object unless it has another name.
    pub(crate) fn release(&self, object: &ObjectFile) -> Result<(), Error> {
        self.release_in(object, &Pace::free())
    }

    /// The same, as long as it may take.
    pub(crate) fn release_in(&self, object: &ObjectFile, pace: &Pace<'_>) -> Result<(), Error> {
        match self.has_other_name(object, pace)? {
            None => self.discard(object).map(drop),
            Some(false) => {
                self.discard(object)?;
                self.forget_links(object, pace)
            }
            Some(true) => Ok(()),
        }
    }

    /// Removes the object itself. Small ones are never mapped by us; others leave through the trash, where nobody can
    /// open them any more, so that a lease decides without a race.
    pub(crate) fn discard(&self, object: &ObjectFile) -> Result<bool, Error> {
        let tree = self.tree();
        let at = |errno| Error::io(object.as_str(), errno);
        let stat = match fstatat(
            tree.objects.as_fd(),
            object.as_str(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        ) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(false),
            Err(errno) => return Err(at(errno)),
        };
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        if len <= MAX_READ {
            return Tree::unlink(tree.objects.as_fd(), object.as_str()).map_err(at);
        }
        match renameat(
            tree.objects.as_fd(),
            object.as_str(),
            tree.trash.as_fd(),
            object.as_str(),
        ) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Ok(false),
            Err(errno) => return Err(at(errno)),
        }
        let recycled = len >= SMALLEST
            && self.recycling().knows(object.id, &stat)
            && self.recycling().keep(object, || self.payable());
        if !recycled {
            self.bury(object.as_str(), false);
        }
        Ok(true)
    }

    /// Unlinks a file of the trash if nobody has it open or mapped, or if that may not be asked, because it belongs to
    /// another user, and `unasked` is set.
    pub(crate) fn bury(&self, name: &str, unasked: bool) -> Burial {
        let trash = self.tree().trash.as_fd();
        let file = match openat(trash, name, READ, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::EAGAIN) => return Burial::Recycled,
            Err(_) => return Burial::Used,
        };
        let gone = match nobody_uses(file.as_fd()) {
            Ok(true) => Tree::unlink(trash, name).is_ok(),
            Err(Errno::EACCES) if unasked => Tree::unlink(trash, name).is_ok(),
            // A file system without leases: nobody will ever know.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOLCK) => {
                Tree::unlink(trash, name).is_ok()
            }
            // In use, or not ours to ask about.
            Ok(false) | Err(_) => false,
        };
        if gone { Burial::Gone } else { Burial::Used }
    }

    /// Unlinks what nobody maps any more, and as [`bury`](Self::bury) says. To try to open a recycled file has its owner
    /// free it, for which he gets a moment.
    pub(crate) fn empty_trash(&self, unasked: bool) -> Result<Emptied, Error> {
        self.recycling().free();
        let mut emptied = Emptied::default();
        for turn in 0..TURNS {
            let (mut used, mut recycled) = (0, 0);
            self.each_of_trash(&Pace::free(), |name| {
                match self.bury(name, unasked) {
                    Burial::Gone => emptied.gone += 1,
                    Burial::Used => used += 1,
                    Burial::Recycled => recycled += 1,
                }
                Ok(ControlFlow::Continue(()))
            })?;
            emptied.used = used;
            if recycled == 0 || turn + 1 == TURNS {
                break;
            }
            std::thread::sleep(MOMENT);
        }
        Ok(emptied)
    }

    /// Allocated bytes and number of the objects in the trash.
    pub(crate) fn trash_bytes(&self) -> Result<(u64, u64), Error> {
        let (mut bytes, mut count) = (0_u64, 0_u64);
        self.each_of_trash(&Pace::free(), |name| {
            let trash = self.tree().trash.as_fd();
            if let Ok(stat) = fstatat(trash, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
                count += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((bytes, count))
    }

    pub(crate) fn each_of_trash(
        &self,
        pace: &Pace<'_>,
        each: impl FnMut(&str) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        each_entry(self.tree().trash.as_fd(), ".vineyard/trash", pace, each)
    }

    /// The file of an object that is asked for by id.
    pub(crate) fn object_of(&self, key: Key<'_>) -> Result<ObjectFile, Error> {
        match key {
            Key::Object(id, kind) => Ok(ObjectFile::new(id, kind)),
            Key::Name(name) => match self.resolve(name)? {
                Entry::Object(object) => Ok(object),
                _ => Err(Error::not_found(name.as_str())),
            },
            Key::Id(id) => {
                for kind in Kind::KNOWN {
                    let object = ObjectFile::new(id, kind);
                    match fstatat(
                        self.tree().objects.as_fd(),
                        object.as_str(),
                        AtFlags::AT_SYMLINK_NOFOLLOW,
                    ) {
                        Ok(_) => return Ok(object),
                        Err(Errno::ENOENT) => {}
                        Err(errno) => return Err(Error::io(id.to_string(), errno)),
                    }
                }
                // A kind of somebody else: the directory has to be searched.
                let names = list_directory(self.tree().objects.as_fd(), ".vineyard/objects")?;
                names
                    .iter()
                    .filter_map(|n| ObjectFile::parse(n.as_bytes()))
                    .find(|o| o.id == id)
                    .ok_or_else(|| Error::not_found(id.to_string()))
            }
        }
    }
}

/// How long the owner of a recycled file may take to free it, and how often one looks meanwhile.
const MOMENT: Duration = Duration::from_millis(2);
const TURNS: u32 = 20;

/// What became of a file in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Burial {
    Gone,
    /// Somebody has it open or mapped, or it is not ours to ask about.
    Used,
    /// It is kept for its pages by whoever removed it.
    Recycled,
}

/// What emptying the trash came to, in objects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Emptied {
    pub(crate) gone: u64,
    /// Still in use.
    pub(crate) used: u64,
}

/// What was moved from its place to `tmp/`, in one step: so it is known for certain what a removed name pointed to.
struct Taken<'t> {
    tree: &'t Tree,
    spare: String,
}

impl<'t> Taken<'t> {
    fn new(tree: &'t Tree, directory: BorrowedFd<'_>, last: &str) -> Result<Option<Self>, Error> {
        let at = |errno| Error::io(last, errno);
        let spare = ObjectId::random().map_err(at)?.to_string();
        match renameat(directory, last, tree.tmp.as_fd(), spare.as_str()) {
            Ok(()) => Ok(Some(Self { tree, spare })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(at(errno)),
        }
    }

    fn unlink(&self) -> Result<(), Error> {
        Tree::unlink(self.tree.tmp.as_fd(), &self.spare)
            .map(drop)
            .map_err(|errno| Error::io(".vineyard/tmp", errno))
    }

    /// False when its place is taken again.
    fn put_back(&self, directory: BorrowedFd<'_>, last: &str) -> bool {
        let flags = RenameFlags::RENAME_NOREPLACE;
        renameat2(
            self.tree.tmp.as_fd(),
            self.spare.as_str(),
            directory,
            last,
            flags,
        )
        .is_ok()
    }
}

/// Names in one of the volume's own, flat directories.
pub(crate) fn list_directory(directory: BorrowedFd<'_>, path: &str) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    each_entry(directory, path, &Pace::free(), |name| {
        names.push(name.to_owned());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(names)
}

/// Does something with the names in one of the volume's own, flat directories, however many there are. It may remove them.
pub(crate) fn each_entry(
    directory: BorrowedFd<'_>,
    path: &str,
    pace: &Pace<'_>,
    mut each: impl FnMut(&str) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let at = |errno| Error::io(path, errno);
    let mut dir = match Dir::openat(directory, ".", flags, Mode::empty()) {
        // It was removed while we had it open, so it was empty.
        Err(Errno::ENOENT) => return Ok(()),
        other => other.map_err(at)?,
    };
    for entry in dir.iter() {
        let entry = match entry {
            // It was removed while we read it.
            Err(Errno::ENOENT) => break,
            other => other.map_err(at)?,
        };
        pace.go_on()?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => {
                if each(name)?.is_break() {
                    break;
                }
            }
        }
    }
    Ok(())
}
