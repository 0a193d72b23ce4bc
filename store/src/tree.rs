//! The volume's directories, held open: everything below is reached from these descriptors, so that no symlink that
//! somebody plants can lead outside.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use vineyard_charge::{Extent, PAGE, Payer};

use crate::error::Error;
use crate::id::ObjectId;
use crate::name::Name;
use crate::naming::TRIES;

/// Content of `.vineyard/format`.
pub(crate) const FORMAT: &str = "vineyard-volume 1\n";
/// Mode of every directory: access is decided by the mount and the root's mode, not by who came first.
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o777);
/// Mode of a sealed object.
pub(crate) const SEALED_MODE: Mode = Mode::from_bits_truncate(0o444);
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);
/// How a file that somebody else made is opened: never through a symlink, never waiting for a FIFO.
pub(crate) const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_CLOEXEC);

/// The open directories of a volume.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    pub(crate) root: OwnedFd,
    pub(crate) objects: OwnedFd,
    pub(crate) trash: OwnedFd,
    pub(crate) tmp: OwnedFd,
    pub(crate) ttl: OwnedFd,
    pub(crate) links: OwnedFd,
    /// `linkat` from the descriptor itself was refused once: go through `/proc/self/fd`.
    link_through_proc: AtomicBool,
}

impl Tree {
    /// Opens the tree, and makes it first when it is absent and `create` is set; what that takes is on `payer`'s bill.
    pub(crate) fn open(
        path: &Path,
        create: bool,
        payer: Option<&dyn Payer>,
    ) -> Result<Self, Error> {
        let at = |errno| Error::io(path.display().to_string(), errno);
        if create {
            match std::fs::create_dir_all(path) {
                Ok(()) => {}
                // A read-only mount: what is there already may do.
                Err(e) if e.raw_os_error() == Some(libc::EROFS) => {}
                Err(source) => {
                    return Err(Error::Io {
                        path: path.display().to_string(),
                        source,
                    });
                }
            }
        }
        let flags = DIRECTORY.difference(OFlag::O_NOFOLLOW);
        let root = open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => Error::NotAVolume {
                path: path.into(),
                why: "there is no such directory",
            },
            Errno::ENOTDIR => Error::NotAVolume {
                path: path.into(),
                why: "it is not a directory",
            },
            errno => at(errno),
        })?;
        match read_format(root.as_fd()) {
            Ok(found) if found == FORMAT => {}
            Ok(found) => return Err(Error::Format { found }),
            Err(Errno::ENOENT) if create => make(root.as_fd(), payer)?,
            Err(Errno::ENOENT) => {
                return Err(Error::NotAVolume {
                    path: path.into(),
                    why: "it has no .vineyard/format",
                });
            }
            Err(errno) => return Err(Error::io(".vineyard/format", errno)),
        }
        let own = openat(root.as_fd(), ".vineyard", DIRECTORY, Mode::empty()).map_err(at)?;
        let sub = |name: &'static str| {
            openat(own.as_fd(), name, DIRECTORY, Mode::empty())
                .map_err(|errno| Error::io(format!(".vineyard/{name}"), errno))
        };
        Ok(Self {
            path: path.into(),
            objects: sub("objects")?,
            trash: sub("trash")?,
            tmp: sub("tmp")?,
            ttl: sub("ttl")?,
            links: sub("links")?,
            root,
            link_through_proc: AtomicBool::new(false),
        })
    }

    /// An unnamed file in `objects/` with its final mode, open for reading and writing. It vanishes with its last
    /// descriptor unless it is linked.
    pub(crate) fn unnamed(&self) -> Result<OwnedFd, Error> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let at = |errno| Error::io(".vineyard/objects", errno);
        let file = openat(self.objects.as_fd(), c".", flags, SEALED_MODE).map_err(at)?;
        // The mode given to open obeys the umask.
        fchmod(file.as_fd(), SEALED_MODE).map_err(at)?;
        Ok(file)
    }

    /// Links the unnamed `file` as `name` in `directory`.
    pub(crate) fn link_as(
        &self,
        file: BorrowedFd<'_>,
        directory: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), Errno> {
        if !self.link_through_proc.load(Ordering::Relaxed) {
            match linkat(file, c"", directory, name, AtFlags::AT_EMPTY_PATH) {
                // Kernels before 6.10 want CAP_DAC_READ_SEARCH and say ENOENT.
                Err(Errno::ENOENT | Errno::EPERM | Errno::EINVAL) => {
                    self.link_through_proc.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(
            file,
            path.as_str(),
            directory,
            name,
            AtFlags::AT_SYMLINK_FOLLOW,
        )
    }

    /// The directory of `name`, opened step by step without following symlinks, and its last component.
    /// `None` stands for the root, which is open already.
    pub(crate) fn parent<'n>(&self, name: &'n Name) -> Result<(Option<OwnedFd>, &'n str), Errno> {
        let (directory, last) = name.split();
        Ok((directory.map(|d| self.directory(d)).transpose()?, last))
    }

    /// Opens the directory `path` below the root, step by step.
    pub(crate) fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let mut at: Option<OwnedFd> = None;
        for component in path.split('/') {
            let parent = at.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
            at = Some(openat(parent, component, DIRECTORY, Mode::empty())?);
        }
        at.ok_or(Errno::ENOENT)
    }

    /// Opens the directory `path` below the root and makes what is missing of it, again if somebody removes it meanwhile.
    pub(crate) fn make_directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        for _ in 1..TRIES {
            match self.try_make_directory(path) {
                Err(Errno::ENOENT) => {}
                other => return other,
            }
        }
        self.try_make_directory(path)
    }

    fn try_make_directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let mut at: Option<OwnedFd> = None;
        for component in path.split('/') {
            let parent = at.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
            at = Some(match openat(parent, component, DIRECTORY, Mode::empty()) {
                Err(Errno::ENOENT) => {
                    self.make_entry(parent, component)?;
                    openat(parent, component, DIRECTORY, Mode::empty())?
                }
                other => other?,
            });
        }
        at.ok_or(Errno::ENOENT)
    }

    /// Makes a directory that everybody may use, whatever the umask. One that exists is fine. Made aside: if this process
    /// dies before it has its mode, nobody else could ever use it, or remove it.
    pub(crate) fn make_entry(&self, parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let spare = ObjectId::random()?.to_string();
        let tmp = self.tmp.as_fd();
        make_directory(tmp, &spare)?;
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(tmp, spare.as_str(), parent, name, flags) {
            Ok(()) => Ok(()),
            Err(errno) => {
                let _ = unlinkat(tmp, spare.as_str(), UnlinkatFlags::RemoveDir);
                match errno {
                    Errno::EEXIST => Ok(()),
                    errno => Err(errno),
                }
            }
        }
    }

    /// Removes a file or symlink; one that is gone already is fine. Returns whether it was there.
    pub(crate) fn unlink(directory: BorrowedFd<'_>, name: &str) -> Result<bool, Errno> {
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// Makes a directory and gives it its mode, whatever the umask. One that exists is fine.
fn make_directory(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match mkdirat(parent, name, DIRECTORY_MODE) {
        Ok(()) => {
            // By descriptor: somebody may have put a symlink in its place, and its target may be anywhere.
            let made = openat(parent, name, DIRECTORY, Mode::empty())?;
            fchmod(made, DIRECTORY_MODE)
        }
        Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes the tree. The format file comes last and in one step, so that a half-made tree is never taken for a volume.
fn make(root: BorrowedFd<'_>, payer: Option<&dyn Payer>) -> Result<(), Error> {
    let at = |errno| Error::io(".vineyard", errno);
    make_directory(root, ".vineyard").map_err(at)?;
    let own = openat(root, ".vineyard", DIRECTORY, Mode::empty()).map_err(at)?;
    for name in ["objects", "trash", "tmp", "ttl", "links"] {
        make_directory(own.as_fd(), name).map_err(at)?;
    }
    let draft = format!("tmp/format.{}", ObjectId::random().map_err(at)?);
    // A payer takes only what can be read and written.
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(own.as_fd(), draft.as_str(), flags, SEALED_MODE).map_err(at)?;
    fchmod(file.as_fd(), SEALED_MODE).map_err(at)?;
    if let Some(payer) = payer {
        let page = Extent {
            offset: 0,
            length: PAGE,
        };
        // One page: without an answer it is the caller's own.
        let _ = payer.reserve(&[(file.as_fd(), page)]);
    }
    nix::unistd::write(&file, FORMAT.as_bytes()).map_err(at)?;
    nix::fcntl::renameat(own.as_fd(), draft.as_str(), own.as_fd(), "format").map_err(at)
}

fn read_format(root: BorrowedFd<'_>) -> Result<String, Errno> {
    const PATH: &CStr = c".vineyard/format";
    let file = openat(root, PATH, READ, Mode::empty())?;
    let mut content = [0; 64];
    let n = nix::sys::uio::pread(&file, &mut content, 0)?;
    Ok(String::from_utf8_lossy(&content[..n]).into_owned())
}
