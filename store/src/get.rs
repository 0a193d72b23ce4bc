//! `get`: an object's bytes, mapped when it is large, read when it is small. No daemon is asked.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, openat};
use nix::sys::stat::{FileStat, Mode as FileMode, SFlag, fstat, fstatat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::uio::pread;

use crate::error::Error;
use crate::kind::Kind;
use crate::mapping::{Mapping, PAGE};
use crate::name::{Name, ObjectFile};
use crate::naming::{Entry, TRIES};
use crate::object::{Content, Key, Mode, Object};
use crate::recycle::SMALLEST;
use crate::tree::READ;
use crate::volume::Volume;

/// Up to this many bytes one read gets an object, without asking for its size first.
const FIRST_READ: usize = 16 << 10;
/// Objects up to this many bytes are read, larger ones mapped (docs/adr/0001).
pub(crate) const MAX_READ: u64 = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Volume {
    /// Gets an object, a member of a pack, or a plain file.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Lost`] when a name points to an object that is gone.
    pub fn get(&self, key: Key<'_>, mode: Mode) -> Result<Object, Error> {
        match key {
            Key::Name(name) => match self.open_name(name)? {
                Found::Object(object, file) => {
                    let content = match self.content(&object, file.as_fd(), mode, name.as_str()) {
                        // It was re-pointed meanwhile, or removed.
                        Err(Error::NotFound { .. }) => return self.get(key, mode),
                        other => other?,
                    };
                    Ok(Object {
                        id: Some(object.id),
                        kind: object.kind,
                        content,
                    })
                }
                Found::Below => self.get_member(name, mode),
                Found::Plain(file) => Ok(Object {
                    id: None,
                    kind: Kind::of_extension(name.file_name()),
                    content: Content::Small(read_plain(file.as_fd(), name.as_str())?),
                }),
            },
            Key::Object(..) | Key::Id(_) => {
                let (object, file) = self.open_id(key)?;
                let content = self.content(&object, file.as_fd(), mode, object.as_str())?;
                Ok(Object {
                    id: Some(object.id),
                    kind: object.kind,
                    content,
                })
            }
        }
    }

    /// Opens what `name` points to. A name that is re-pointed meanwhile is resolved again.
    pub(crate) fn open_name(&self, name: &Name) -> Result<Found, Error> {
        let mut gone: Option<ObjectFile> = None;
        for _ in 0..TRIES {
            match self.resolve(name)? {
                Entry::Object(object) => match self.open_object(&object) {
                    Ok(file) => return Ok(Found::Object(object, file)),
                    Err(Errno::ENOENT) if gone == Some(object) => break,
                    Err(Errno::ENOENT) => gone = Some(object),
                    Err(errno) => return Err(Error::io(name.as_str(), errno)),
                },
                Entry::Plain => match self.open_plain(name) {
                    Ok(file) => return Ok(Found::Plain(file)),
                    // It became a name, or vanished.
                    Err(Errno::ENOENT | Errno::ELOOP) => {}
                    Err(errno) => return Err(Error::io(name.as_str(), errno)),
                },
                Entry::Directory => {
                    return Err(Error::Foreign {
                        key: name.to_string(),
                        why: "it is a directory",
                    });
                }
                Entry::Below => return Ok(Found::Below),
                Entry::Absent => return Err(Error::not_found(name.as_str())),
            }
        }
        Err(Error::Lost {
            key: name.to_string(),
        })
    }

    fn open_plain(&self, name: &Name) -> Result<OwnedFd, Errno> {
        let (directory, last) = self.tree().parent(name)?;
        let at = directory
            .as_ref()
            .map_or(self.tree().root.as_fd(), |fd| fd.as_fd());
        openat(at, last, READ, FileMode::empty())
    }

    /// Opens a sealed object.
    pub(crate) fn open_object(&self, object: &ObjectFile) -> Result<OwnedFd, Errno> {
        let objects = self.tree().objects.as_fd();
        match openat(objects, object.as_str(), READ, FileMode::empty()) {
            // It was removed just now, and its file is being recycled.
            Err(Errno::EAGAIN) => Err(Errno::ENOENT),
            other => other,
        }
    }

    /// Refuses an object that was removed while it was being opened, after its name was found: its file may have been
    /// emptied since, or be another object. One that is still there now, and open, stays what it is.
    pub(crate) fn refuse_removed(&self, object: &ObjectFile, stat: &FileStat) -> Result<(), Error> {
        if (1..SMALLEST).contains(&u64::try_from(stat.st_size).unwrap_or(0)) {
            return Ok(());
        }
        let objects = self.tree().objects.as_fd();
        match fstatat(objects, object.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(now) if now.st_ino == stat.st_ino => Ok(()),
            Ok(_) | Err(Errno::ENOENT) => Err(Error::not_found(object.as_str())),
            Err(errno) => Err(Error::io(object.as_str(), errno)),
        }
    }

    /// Opens an object by its id.
    pub(crate) fn open_id(&self, key: Key<'_>) -> Result<(ObjectFile, OwnedFd), Error> {
        let object = self.object_of(key)?;
        match self.open_object(&object) {
            Ok(file) => Ok((object, file)),
            Err(Errno::ENOENT) => Err(Error::not_found(key.to_string())),
            Err(errno) => Err(Error::io(key.to_string(), errno)),
        }
    }

    /// Reads or maps a sealed file.
    pub(crate) fn content(
        &self,
        object: &ObjectFile,
        file: BorrowedFd<'_>,
        mode: Mode,
        key: &str,
    ) -> Result<Content, Error> {
        let at = |errno| Error::io(key, errno);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(FIRST_READ, 0);
            // `pread` refuses FIFOs and sockets.
            let n = pread(file, scratch, 0).map_err(at)?;
            if 0 < n && n < FIRST_READ {
                return Ok(Content::Small(scratch[..n].to_vec()));
            }
            let stat = fstat(file).map_err(at)?;
            let len = regular(&stat, key)?;
            self.refuse_removed(object, &stat)?;
            if len <= MAX_READ {
                let mut bytes = scratch[..n].to_vec();
                read_rest(file, &mut bytes, len, key)?;
                return Ok(Content::Small(bytes));
            }
            refuse_sparse(file, &stat, key)?;
            map(file, len, mode, key)
        })
    }
}

/// What was found under a name.
#[derive(Debug)]
pub(crate) enum Found {
    Object(ObjectFile, OwnedFd),
    Plain(OwnedFd),
    /// Nothing, but a beginning of the name is not a directory: it may be a pack.
    Below,
}

/// Maps `len` bytes, or reads them when the process has no mapping left.
fn map(file: BorrowedFd<'_>, len: u64, mode: Mode, key: &str) -> Result<Content, Error> {
    let size = usize::try_from(len).map_err(|_| Error::io(key, Errno::EFBIG))?;
    let (prot, flags) = mode.protection();
    match Mapping::new(file, size, prot, flags) {
        Ok(mapping) => Ok(Content::Mapped(mapping)),
        Err(Errno::ENOMEM) => {
            let mut bytes = Vec::new();
            read_rest(file, &mut bytes, len, key)?;
            Ok(Content::Small(bytes))
        }
        Err(errno) => Err(Error::io(key, errno)),
    }
}

/// Refuses to map what was never allocated: in memory, looking at a hole allocates it, on the bill of whoever looks.
pub(crate) fn refuse_sparse(file: BorrowedFd<'_>, stat: &FileStat, key: &str) -> Result<(), Error> {
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    if allocated >= len.next_multiple_of(PAGE) {
        return Ok(());
    }
    let fs = fstatfs(file).map_err(|errno| Error::io(key, errno))?;
    if fs.filesystem_type() != TMPFS_MAGIC {
        // Elsewhere files take fewer blocks for other reasons too, and reading allocates nothing.
        return Ok(());
    }
    let why = format!("it has holes: {allocated} of {len} bytes are allocated");
    Err(Error::corrupt(key, why))
}

/// The length of a regular file.
pub(crate) fn regular(stat: &FileStat, key: &str) -> Result<u64, Error> {
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Error::Foreign {
            key: key.into(),
            why: "it is not a regular file",
        });
    }
    u64::try_from(stat.st_size).map_err(|_| Error::io(key, Errno::EFBIG))
}

/// A plain file may change at any time, even shrink under a mapping: it is copied.
fn read_plain(file: BorrowedFd<'_>, key: &str) -> Result<Vec<u8>, Error> {
    let stat = fstat(file).map_err(|errno| Error::io(key, errno))?;
    let len = regular(&stat, key)?;
    let fs = fstatfs(file).map_err(|errno| Error::io(key, errno))?;
    let capacity = fs
        .blocks()
        .saturating_mul(u64::try_from(fs.block_size()).unwrap_or(1));
    if capacity > 0 && len > capacity {
        return Err(Error::corrupt(
            key,
            "it is sparse and larger than the volume",
        ));
    }
    let mut bytes = Vec::new();
    read_rest(file, &mut bytes, len, key)?;
    Ok(bytes)
}

/// Reads what is missing up to `len`, or up to the file's end.
pub(crate) fn read_rest(
    file: BorrowedFd<'_>,
    bytes: &mut Vec<u8>,
    len: u64,
    key: &str,
) -> Result<(), Error> {
    let io_error = |source: io::Error| Error::Io {
        path: key.into(),
        source,
    };
    let len = usize::try_from(len).map_err(|_| Error::io(key, Errno::EFBIG))?;
    let mut done = bytes.len();
    let missing = len.saturating_sub(done);
    bytes
        .try_reserve_exact(missing)
        .map_err(|_| Error::io(key, Errno::ENOMEM))?;
    bytes.resize(done + missing, 0);
    while done < bytes.len() {
        let offset = i64::try_from(done).unwrap_or(i64::MAX);
        match pread(file, &mut bytes[done..], offset) {
            Ok(0) => bytes.truncate(done),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(io_error(errno.into())),
        }
    }
    Ok(())
}

/// Reads exactly `bytes`.
pub(crate) fn read_at(
    file: BorrowedFd<'_>,
    bytes: &mut [u8],
    offset: u64,
    key: &str,
) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset.saturating_add(done as u64);
        let at = i64::try_from(at).map_err(|_| Error::io(key, Errno::EINVAL))?;
        match pread(file, &mut bytes[done..], at) {
            Ok(0) => return Err(Error::corrupt(key, "it became shorter")),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::io(key, errno)),
        }
    }
    Ok(())
}
