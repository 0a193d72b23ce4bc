//! A walk over a hostile tree: whoever may write it may place anything in it, at any moment.
//!
//! Each step opens one name beneath a directory that is held open, through no symlink and onto no other mount, and waits for
//! nobody: neither for a FIFO nor for whoever holds a lease. Memory and descriptors are bounded by the depth that is held open,
//! not by the number of entries.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstatat;

/// Levels of directories that are held open at once.
const DEPTH: usize = 100;

/// Subtrees below that depth which wait for their turn, each held open.
const WAITING: usize = 50;

/// What a walk shows of a tree.
pub(crate) trait Visit {
    /// Why a walk ends early.
    type Stop;

    /// An entry that is a regular file as far as the directory says. `path` is for people.
    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Self::Stop>;

    /// All entries of a directory were shown; the directories in it come next.
    fn left(&mut self, directory: BorrowedFd<'_>, path: &Path) -> Result<(), Self::Stop>;

    /// A symlink.
    fn symlink(&mut self, _directory: BorrowedFd<'_>, _name: &OsStr) {}

    /// An entry that is neither file, directory nor symlink: it holds no bytes.
    fn odd(&mut self, path: &Path, kind: &'static str);

    /// A directory whose entries cannot be shown.
    fn skipped(&mut self, path: &Path, reason: &str);
}

/// Shows everything below `root`.
///
/// # Errors
/// `Ok(Err(..))` when the root itself cannot be read, `Err(..)` when the visitor wants to stop.
pub(crate) fn walk<V: Visit>(root: BorrowedFd<'_>, visitor: &mut V) -> Result<(), Ended<V::Stop>> {
    let root = open(root, OsStr::new("."), OFlag::O_DIRECTORY).map_err(Ended::Unreadable)?;
    let mut walk = Walk {
        visitor,
        waiting: vec![(root, PathBuf::new())],
        path: PathBuf::new(),
    };
    let mut is_root = true;
    while let Some((directory, path)) = walk.waiting.pop() {
        walk.path = path;
        match walk.directory(directory, 1) {
            Err(Ended::Unreadable(errno)) if !is_root => {
                walk.visitor.skipped(&walk.path, errno.desc());
            }
            other => other?,
        }
        is_root = false;
    }
    Ok(())
}

/// Why a walk ended early.
pub(crate) enum Ended<S> {
    /// The visitor wants no more.
    Stopped(S),
    /// The directory cannot be read.
    Unreadable(Errno),
}

impl<S> From<S> for Ended<S> {
    fn from(stop: S) -> Self {
        Self::Stopped(stop)
    }
}

struct Walk<'a, V> {
    visitor: &'a mut V,
    /// Subtrees that are too deep to be held open together with all that is above them.
    waiting: Vec<(OwnedFd, PathBuf)>,
    path: PathBuf,
}

impl<V: Visit> Walk<'_, V> {
    /// First the files of a directory, then the directories in it: so files are shown in large batches, and nothing has to be
    /// remembered.
    fn directory(&mut self, opened: OwnedFd, level: usize) -> Result<(), Ended<V::Stop>> {
        let mut entries = Dir::from_fd(opened).map_err(Ended::Unreadable)?;
        let handle = entries.as_fd().try_clone_to_owned();
        let handle = handle.map_err(|error| Ended::Unreadable(errno(&error)))?;
        for entry in entries.iter() {
            let entry = entry.map_err(Ended::Unreadable)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            match kind(handle.as_fd(), name, entry.file_type()) {
                Some(Type::File) => {
                    self.path.push(name);
                    let shown = self.visitor.file(handle.as_fd(), name, &self.path);
                    self.path.pop();
                    shown?;
                }
                Some(Type::Symlink) => self.visitor.symlink(handle.as_fd(), name),
                None | Some(Type::Directory) => {}
                Some(other) => {
                    self.path.push(name);
                    self.visitor.odd(&self.path, describe(other));
                    self.path.pop();
                }
            }
        }
        self.visitor.left(handle.as_fd(), &self.path)?;
        for entry in entries {
            let entry = entry.map_err(Ended::Unreadable)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if kind(handle.as_fd(), name, entry.file_type()) == Some(Type::Directory) {
                self.path.push(name);
                let below = self.below(handle.as_fd(), name, level);
                self.path.pop();
                below?;
            }
        }
        Ok(())
    }

    fn below(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        level: usize,
    ) -> Result<(), Ended<V::Stop>> {
        let opened = match open(directory, name, OFlag::O_DIRECTORY) {
            Ok(opened) => opened,
            // Removed meanwhile.
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => {
                self.visitor.skipped(&self.path, errno.desc());
                return Ok(());
            }
        };
        if level >= DEPTH {
            if self.waiting.len() < WAITING {
                self.waiting.push((opened, self.path.clone()));
            } else {
                self.visitor
                    .skipped(&self.path, "too many directories so deep");
            }
            return Ok(());
        }
        match self.directory(opened, level + 1) {
            Err(Ended::Unreadable(errno)) => {
                self.visitor.skipped(&self.path, errno.desc());
                Ok(())
            }
            other => other,
        }
    }
}

/// What an entry is; `None` when it is gone. Some file systems do not say it in the directory.
fn kind(directory: BorrowedFd<'_>, name: &OsStr, stated: Option<Type>) -> Option<Type> {
    if stated.is_some() {
        return stated;
    }
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some(match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Type::Directory,
        libc::S_IFLNK => Type::Symlink,
        libc::S_IFREG => Type::File,
        libc::S_IFIFO => Type::Fifo,
        libc::S_IFSOCK => Type::Socket,
        libc::S_IFBLK => Type::BlockDevice,
        _ => Type::CharacterDevice,
    })
}

/// Opens a name of a directory for reading.
pub(crate) fn open(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    flags: OFlag,
) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(directory, name, how)
}

/// The same for a file, without leaving a trace of it where that is allowed.
pub(crate) fn open_file(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match open(directory, name, OFlag::O_NOATIME) {
        // Only the owner may ask for that.
        Err(Errno::EPERM) => open(directory, name, OFlag::empty()),
        other => other,
    }
}

fn describe(kind: Type) -> &'static str {
    match kind {
        Type::Fifo => "a FIFO",
        Type::Socket => "a socket",
        _ => "a device",
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
