//! More names for one object, and names that go away together.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::error::Error;
use crate::id::ObjectId;
use crate::name::{Name, ObjectFile};
use crate::naming::Entry;
use crate::object::Key;
use crate::pace::Pace;
use crate::remove::{each_entry, list_directory};
use crate::tree::Tree;
use crate::volume::Volume;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

impl Volume {
    /// Gives an object another name. It lives until the last of its names is removed.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such object, [`Error::Exists`] when the name is taken and `overwrite` is false.
    pub fn link(&self, key: Key<'_>, name: &Name, overwrite: bool) -> Result<(), Error> {
        self.linked(key, None, name, overwrite).map(drop)
    }

    /// As [`Volume::link`] of an object by id, whose name was `known` at some time: if it still is, removing `name`
    /// leaves the object to it.
    ///
    /// # Errors
    /// As [`Volume::link`].
    pub fn link_known(
        &self,
        key: Key<'_>,
        known: &Name,
        name: &Name,
        overwrite: bool,
    ) -> Result<(), Error> {
        self.linked(key, Some(known), name, overwrite).map(drop)
    }

    fn linked(
        &self,
        key: Key<'_>,
        known: Option<&Name>,
        name: &Name,
        overwrite: bool,
    ) -> Result<ObjectFile, Error> {
        let object = self.object_of(key)?;
        if matches!(self.resolve(name)?, Entry::Object(already) if already == object) {
            return Ok(object);
        }
        // The note comes before the name, so that whoever removes another name meanwhile sees it.
        let digits = object.id.to_string();
        let links = self.tree().links.as_fd();
        let at = |errno| self.failed(".vineyard/links", errno, 0);
        let opened = self
            .tree()
            .make_entry(links, &digits)
            .and_then(|()| openat(links, digits.as_str(), DIRECTORY, Mode::empty()));
        let directory = match opened {
            // Whoever removed the object meanwhile took its notes along.
            Err(Errno::ENOENT) => return Err(Error::not_found(key.to_string())),
            other => other.map_err(at)?,
        };
        let first = match key {
            Key::Name(first) => Some(first),
            _ => known,
        };
        if let Some(first) = first {
            self.note(directory.as_fd(), first)?;
        }
        self.note(directory.as_fd(), name)?;
        self.point(name, &object, overwrite)?;
        if matches!(self.open_object(&object), Err(Errno::ENOENT)) {
            let _ = self.unname(name, &object);
            return Err(Error::not_found(key.to_string()));
        }
        Ok(object)
    }

    /// Gives the object of `from` the name `to` instead. An object that `to` had before is removed.
    ///
    /// # Errors
    /// As [`Volume::link`].
    pub fn rename(&self, from: &Name, to: &Name, overwrite: bool) -> Result<(), Error> {
        if from == to {
            return Ok(());
        }
        let object = self.linked(Key::Name(from), None, to, overwrite)?;
        // What somebody else put there meanwhile stays.
        if self.unname(from, &object)? {
            // Whoever removed `to` just now saw `from`, and left the object to us.
            self.release(&object)?;
        }
        Ok(())
    }

    fn note(&self, directory: BorrowedFd<'_>, name: &Name) -> Result<(), Error> {
        let id = ObjectId::random().map_err(|errno| Error::io("getrandom", errno))?;
        symlinkat(name.as_str(), directory, id.to_string().as_str()).map_err(|errno| match errno {
            // Whoever removed the object meanwhile took its notes along.
            Errno::ENOENT => Error::not_found(name.as_str()),
            errno => self.failed(".vineyard/links", errno, 0),
        })
    }

    /// Does something with the names in `links/<id>/` that still point to `object`, until it breaks. Returns whether it ever
    /// had a second name.
    fn each_other_name(
        &self,
        object: &ObjectFile,
        pace: &Pace<'_>,
        mut each: impl FnMut(&Name) -> Result<ControlFlow<()>, Error>,
    ) -> Result<bool, Error> {
        let Some(directory) = self.links_of(object)? else {
            return Ok(false);
        };
        let directory = directory.as_fd();
        each_entry(directory, ".vineyard/links", pace, |entry| {
            let target = readlinkat(directory, entry).ok();
            let name = target.and_then(|target| Name::new(target.to_str()?).ok());
            match name {
                Some(name) if matches!(self.resolve(&name), Ok(Entry::Object(o)) if o == *object) => {
                    each(&name)
                }
                _ => Ok(ControlFlow::Continue(())),
            }
        })?;
        Ok(true)
    }

    /// Whether a name in `links/<id>/` still points to `object`; `None` when it never had a second name.
    pub(crate) fn has_other_name(
        &self,
        object: &ObjectFile,
        pace: &Pace<'_>,
    ) -> Result<Option<bool>, Error> {
        let mut has = false;
        let had = self.each_other_name(object, pace, |_| {
            has = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(had.then_some(has))
    }

    /// Removes the names in `links/<id>/` that still point to `object`.
    pub(crate) fn unname_others(&self, object: &ObjectFile, pace: &Pace<'_>) -> Result<(), Error> {
        self.each_other_name(object, pace, |name| {
            self.unname(name, object)?;
            Ok(ControlFlow::Continue(()))
        })
        .map(drop)
    }

    fn links_of(&self, object: &ObjectFile) -> Result<Option<OwnedFd>, Error> {
        let digits = object.id.digits();
        let digits = std::str::from_utf8(&digits).unwrap_or_default();
        match openat(self.tree().links.as_fd(), digits, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::io(format!(".vineyard/links/{digits}"), errno)),
        }
    }

    /// Removes `links/<id>/` of an object that is gone.
    pub(crate) fn forget_links(&self, object: &ObjectFile, pace: &Pace<'_>) -> Result<(), Error> {
        let Some(directory) = self.links_of(object)? else {
            return Ok(());
        };
        let at = |errno| Error::io(".vineyard/links", errno);
        each_entry(directory.as_fd(), ".vineyard/links", pace, |entry| {
            Tree::unlink(directory.as_fd(), entry).map_err(at)?;
            Ok(ControlFlow::Continue(()))
        })?;
        let digits = object.id.to_string();
        match unlinkat(
            self.tree().links.as_fd(),
            digits.as_str(),
            UnlinkatFlags::RemoveDir,
        ) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => Ok(()),
            Err(errno) => Err(at(errno)),
        }
    }

    /// Removes every name and plain file that starts with `prefix`, and the directories that become empty by it. Returns
    /// how many names and files went.
    ///
    /// # Errors
    /// When the volume is read-only or the tree cannot be changed.
    pub fn remove_prefix(&self, prefix: &str) -> Result<u64, Error> {
        let (path, start) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let opened = if path.is_empty() {
            openat(self.tree().root.as_fd(), ".", DIRECTORY, Mode::empty())
        } else {
            Name::new(path)?;
            self.tree().directory(path)
        };
        let directory = match opened {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(0),
            Err(errno) => return Err(Error::io(path, errno)),
        };
        let base = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let removed = self.remove_below(directory.as_fd(), &base, start)?;
        if start.is_empty() && !path.is_empty() {
            let name = Name::new(path)?;
            if let Ok((parent, last)) = self.tree().parent(&name) {
                let parent = parent
                    .as_ref()
                    .map_or(self.tree().root.as_fd(), |fd| fd.as_fd());
                // Somebody may have put something there meanwhile.
                let _ = unlinkat(parent, last, UnlinkatFlags::RemoveDir);
            }
        }
        Ok(removed)
    }

    fn remove_below(
        &self,
        directory: BorrowedFd<'_>,
        base: &str,
        start: &str,
    ) -> Result<u64, Error> {
        let mut removed = 0;
        for entry in list_directory(directory, base)? {
            if !entry.starts_with(start) || entry.starts_with(".vineyard") {
                continue;
            }
            let full = format!("{base}{entry}");
            let at = |errno| Error::io(full.as_str(), errno);
            if matches!(entry.as_str(), ".stream" | ".end" | ".consumed") {
                Tree::unlink(directory, &entry).map_err(at)?;
                continue;
            }
            match openat(directory, entry.as_str(), DIRECTORY, Mode::empty()) {
                Ok(inner) => {
                    removed += self.remove_below(inner.as_fd(), &format!("{full}/"), "")?;
                    let _ = unlinkat(directory, entry.as_str(), UnlinkatFlags::RemoveDir);
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    removed += u64::from(self.remove_entry(directory, &entry)?);
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(at(errno)),
            }
        }
        Ok(removed)
    }
}
