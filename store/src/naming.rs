//! Names: symlinks that are made, re-pointed in one step, and that own their objects.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat2};
use nix::sys::stat::{SFlag, fstatat};
use nix::unistd::symlinkat;

use crate::error::Error;
use crate::id::ObjectId;
use crate::name::{Name, ObjectFile};
use crate::object::PutOptions;
use crate::tree::Tree;
use crate::volume::Volume;

/// How often a name that changes all the time is tried.
pub(crate) const TRIES: usize = 1000;

/// What a path of the volume is.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A name.
    Object(ObjectFile),
    /// A regular file.
    Plain,
    /// A directory, maybe a stream.
    Directory,
    /// Nothing.
    Absent,
    /// A component before the last is not a directory: maybe a pack.
    Below,
}

impl Volume {
    /// Points `name` to `object`, and removes what it pointed to.
    pub(crate) fn point(
        &self,
        name: &Name,
        object: &ObjectFile,
        overwrite: bool,
    ) -> Result<(), Error> {
        let target = name.target(object);
        for _ in 0..TRIES {
            let (directory, last) = self.parent_made(name)?;
            let at = directory
                .as_ref()
                .map_or(self.tree().root.as_fd(), |fd| fd.as_fd());
            match symlinkat(target.as_str(), at, last) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) if overwrite => {
                    if self.replace(name, at, last, &target)? {
                        return Ok(());
                    }
                }
                Err(Errno::EEXIST) => {
                    return Err(Error::Exists {
                        name: name.to_string(),
                    });
                }
                // Somebody removed the directory: make it again.
                Err(Errno::ENOENT) if directory.is_some() => {}
                Err(errno) => return Err(self.failed(name.as_str(), errno, 0)),
            }
        }
        Err(Error::io(name.as_str(), Errno::EBUSY))
    }

    fn parent_made<'n>(&self, name: &'n Name) -> Result<(Option<OwnedFd>, &'n str), Error> {
        match self.tree().parent(name) {
            Err(Errno::ENOENT) => {
                let (directory, last) = name.split();
                let made = directory.map(|d| self.tree().make_directory(d)).transpose();
                made.map(|fd| (fd, last))
            }
            other => other,
        }
        .map_err(|errno| match errno {
            Errno::ENOTDIR | Errno::ELOOP => Error::Foreign {
                key: name.to_string(),
                why: "a part of its path is not a directory",
            },
            errno => self.failed(name.as_str(), errno, 0),
        })
    }

    /// Swaps a new symlink with whatever has the name; so exactly one of several that do this at once gets, and
    /// removes, each old object. False: the name vanished meanwhile.
    fn replace(
        &self,
        name: &Name,
        at: BorrowedFd<'_>,
        last: &str,
        target: &str,
    ) -> Result<bool, Error> {
        let tree = self.tree();
        let is_directory = || {
            fstatat(at, last, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|s| {
                SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
            })
        };
        if is_directory() {
            return Err(Error::Exists {
                name: name.to_string(),
            });
        }
        let id = ObjectId::random().map_err(|errno| Error::io("getrandom", errno))?;
        let spare = std::str::from_utf8(&id.digits())
            .unwrap_or_default()
            .to_owned();
        symlinkat(target, tree.tmp.as_fd(), spare.as_str())
            .map_err(|errno| self.failed(".vineyard/tmp", errno, 0))?;
        let swap = || {
            renameat2(
                tree.tmp.as_fd(),
                spare.as_str(),
                at,
                last,
                RenameFlags::RENAME_EXCHANGE,
            )
        };
        let swapped = match swap() {
            Ok(()) => true,
            Err(Errno::ENOENT) => false,
            Err(errno) => {
                let _ = Tree::unlink(tree.tmp.as_fd(), &spare);
                return Err(self.failed(name.as_str(), errno, 0));
            }
        };
        if !swapped {
            let _ = Tree::unlink(tree.tmp.as_fd(), &spare);
            return Ok(false);
        }
        match self.read_link(tree.tmp.as_fd(), &spare) {
            Ok(old) => {
                let _ = Tree::unlink(tree.tmp.as_fd(), &spare);
                if let Some(old) = old {
                    self.release(&old)?;
                }
                Ok(true)
            }
            Err(_) => match Tree::unlink(tree.tmp.as_fd(), &spare) {
                // A plain file.
                Ok(_) => Ok(true),
                // A directory that came in between.
                Err(_) => {
                    let _ = swap();
                    let _ = Tree::unlink(tree.tmp.as_fd(), &spare);
                    Err(Error::Exists {
                        name: name.to_string(),
                    })
                }
            },
        }
    }

    /// Gives a name that points to `object` the target that its place wants.
    pub(crate) fn retarget(
        &self,
        name: &Name,
        at: BorrowedFd<'_>,
        last: &str,
        object: &ObjectFile,
    ) -> Result<(), Errno> {
        let tmp = self.tree().tmp.as_fd();
        let spare = ObjectId::random()?.to_string();
        symlinkat(name.target(object).as_str(), tmp, spare.as_str())?;
        let renamed = renameat2(tmp, spare.as_str(), at, last, RenameFlags::empty());
        if renamed.is_err() {
            let _ = Tree::unlink(tmp, &spare);
        }
        renamed
    }

    /// What `name` is.
    pub(crate) fn resolve(&self, name: &Name) -> Result<Entry, Error> {
        let (directory, last) = match self.tree().parent(name) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(Entry::Absent),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Entry::Below),
            Err(errno) => return Err(Error::io(name.as_str(), errno)),
        };
        let at = directory
            .as_ref()
            .map_or(self.tree().root.as_fd(), |fd| fd.as_fd());
        match self.read_link(at, last) {
            Ok(Some(object)) => Ok(Entry::Object(object)),
            Ok(None) => Err(Error::Foreign {
                key: name.to_string(),
                why: "it is a symlink to elsewhere",
            }),
            Err(Errno::ENOENT) => Ok(Entry::Absent),
            // Not a symlink.
            Err(Errno::EINVAL) => match fstatat(at, last, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
                    SFlag::S_IFREG => Ok(Entry::Plain),
                    SFlag::S_IFDIR => Ok(Entry::Directory),
                    _ => Err(Error::Foreign {
                        key: name.to_string(),
                        why: "it is neither a file nor a directory",
                    }),
                },
                Err(Errno::ENOENT) => Ok(Entry::Absent),
                Err(errno) => Err(Error::io(name.as_str(), errno)),
            },
            Err(errno) => Err(Error::io(name.as_str(), errno)),
        }
    }

    /// The object that a symlink points to; `None` when it points elsewhere.
    pub(crate) fn read_link(
        &self,
        at: BorrowedFd<'_>,
        name: &str,
    ) -> Result<Option<ObjectFile>, Errno> {
        use std::os::fd::AsRawFd;
        // Longest target: a name of 1,024 bytes has at most 511 directories.
        let mut target = [0_u8; 2048];
        let n = nix::NixPath::with_nix_path(name, |path| {
            // SAFETY: `path` ends in NUL; the buffer's pointer and length belong together.
            unsafe {
                libc::readlinkat(
                    at.as_raw_fd(),
                    path.as_ptr(),
                    target.as_mut_ptr().cast(),
                    target.len(),
                )
            }
        })?;
        let n = usize::try_from(Errno::result(n)?).unwrap_or(0);
        Ok(ObjectFile::from_target(&target[..n]))
    }

    /// Refuses a name that is taken before anything is written, when it must not be overwritten.
    pub(crate) fn refuse_taken(&self, options: &PutOptions) -> Result<(), Error> {
        match &options.name {
            Some(name) if !options.overwrite && !matches!(self.resolve(name)?, Entry::Absent) => {
                Err(Error::Exists {
                    name: name.to_string(),
                })
            }
            _ => Ok(()),
        }
    }
}
