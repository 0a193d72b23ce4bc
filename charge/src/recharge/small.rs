//! Copies small files into pages that the payer reserved, and puts the copies in their place.
//!
//! A read lease holds writers off meanwhile: nobody can write to the old file, unnoticed, until the new one is there.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, unlinkat};

use super::RechargeError;
use super::lease::{Held, Lease};
use crate::PAGE;
use crate::payer::{Extent, Payer, ReserveError};

/// Copies that are reserved by one request.
const BATCH: usize = 64;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// What became of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that are charged to the payer now.
    pub bytes: u64,
    /// Somebody still has the old file open or mapped, or that cannot be told: its bytes stay charged to the old owner until they let go.
    pub still_viewed: bool,
}

/// A directory whose files are replaced by copies.
#[derive(Clone, Copy, Debug)]
pub struct Replace<'a> {
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// A directory on the same file system where a copy gets its first name, for a moment.
    pub scratch: BorrowedFd<'a>,
}

impl Replace<'_> {
    /// Replaces each of the files `names` of the directory by a copy on the payer's bill, with the same mode, owner and
    /// times. Files to which somebody writes are left alone. The answers are in the order of the names.
    pub fn copy(
        &self,
        names: &[OsString],
        payer: &dyn Payer,
    ) -> Vec<Result<Copied, RechargeError>> {
        let mut results = Vec::with_capacity(names.len());
        for batch in names.chunks(BATCH) {
            let prepared: Vec<_> = batch.iter().map(|name| self.prepare(name)).collect();
            let reserved = reserve(prepared, payer);
            let pairs = batch.iter().zip(reserved);
            results.extend(pairs.map(|(name, copy)| self.replace(name, &copy?)));
        }
        results
    }

    fn prepare(&self, name: &OsStr) -> Result<Copy, RechargeError> {
        let how = |flags: OFlag| {
            OpenHow::new()
                .flags(flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
        };
        let original = match openat2(self.directory, name, how(OFlag::O_NOATIME)) {
            Err(Errno::EPERM) => openat2(self.directory, name, how(OFlag::empty())),
            other => other,
        };
        let original = File::from(original.map_err(io::Error::from)?);
        let stat = fstat(&original).map_err(io::Error::from)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(RechargeError::Unsuitable("not a regular file"));
        }
        if stat.st_nlink != 1 {
            return Err(RechargeError::Unsuitable("it has several names or none"));
        }
        let held = Lease::take(&original)?;
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let copy = openat(self.scratch, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(io::Error::from)?;
        Ok(Copy {
            // What was written before the lease was granted must show.
            stat: fstat(&original).map_err(io::Error::from)?,
            original,
            held,
            copy: File::from(copy),
        })
    }

    fn replace(&self, name: &OsStr, copy: &Copy) -> Result<Copied, RechargeError> {
        copy.fill()?;
        copy.dress()?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let scratch = OsString::from(format!("recharge-{}-{serial}", process::id()));
        link(&copy.copy, self.scratch, &scratch)?;
        let placed = self.place(&scratch, name, copy);
        if placed.is_err() {
            // It has a name nobody knows; leaving it would leak its bytes.
            let _ = unlinkat(
                self.scratch,
                scratch.as_os_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
        placed?;
        Ok(Copied {
            bytes: copy.bytes(),
            still_viewed: !Lease::is_alone(&copy.original),
        })
    }

    fn place(&self, scratch: &OsStr, name: &OsStr, copy: &Copy) -> Result<(), RechargeError> {
        let now =
            fstatat(self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(io::Error::from)?;
        // Removed, replaced or written to meanwhile: theirs counts.
        if !copy.is_same(&now) || copy.held == Held::Yes && !Lease::is_whole(&copy.original) {
            return Err(RechargeError::Changed);
        }
        renameat(self.scratch, scratch, self.directory, name).map_err(io::Error::from)?;
        Ok(())
    }
}

/// One reserve for all copies of a batch. If they do not fit together, as many as do, one by one.
fn reserve(
    prepared: Vec<Result<Copy, RechargeError>>,
    payer: &dyn Payer,
) -> Vec<Result<Copy, RechargeError>> {
    let extents: Vec<_> = prepared.iter().flatten().map(Copy::extent).collect();
    match payer.reserve(&extents) {
        Ok(()) => prepared,
        Err(ReserveError::Full(_)) if extents.len() > 1 => prepared
            .into_iter()
            .map(|copy| {
                let copy = copy?;
                payer.reserve(&[copy.extent()])?;
                Ok(copy)
            })
            .collect(),
        Err(error) => prepared
            .into_iter()
            .map(|copy| copy.and(Err(same(&error).into())))
            .collect(),
    }
}

/// An error that every file of a batch gets.
fn same(error: &ReserveError) -> ReserveError {
    let copy = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
    match error {
        ReserveError::Full(full) => ReserveError::Full(*full),
        ReserveError::Refused { message } => ReserveError::Refused {
            message: message.clone(),
        },
        ReserveError::Unreachable(error) => ReserveError::Unreachable(copy(error)),
        ReserveError::Io(error) => ReserveError::Io(copy(error)),
    }
}

struct Copy {
    original: File,
    held: Held,
    stat: FileStat,
    copy: File,
}

impl Copy {
    /// Bytes that the copy takes, in whole pages.
    fn bytes(&self) -> u64 {
        u64::try_from(self.stat.st_size)
            .unwrap_or(0)
            .next_multiple_of(PAGE)
    }

    fn extent(&self) -> (BorrowedFd<'_>, Extent) {
        let extent = Extent {
            offset: 0,
            length: self.bytes(),
        };
        (self.copy.as_fd(), extent)
    }

    fn fill(&self) -> Result<(), RechargeError> {
        let mut part = vec![0u8; 256 << 10];
        let mut offset = 0;
        loop {
            let read = self.original.read_at(&mut part, offset)?;
            let Some(bytes) = part.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            self.copy.write_all_at(bytes, offset)?;
            offset += read as u64;
        }
        // Also a file that ends in a hole has its whole size.
        if offset == u64::try_from(self.stat.st_size).unwrap_or(u64::MAX) {
            Ok(())
        } else {
            Err(RechargeError::Changed)
        }
    }

    /// Owner before mode: a change of owner clears mode bits. Times last.
    fn dress(&self) -> Result<(), RechargeError> {
        let (uid, gid) = (
            Uid::from_raw(self.stat.st_uid),
            Gid::from_raw(self.stat.st_gid),
        );
        fchown(&self.copy, Some(uid), Some(gid)).map_err(io::Error::from)?;
        fchmod(&self.copy, Mode::from_bits_truncate(self.stat.st_mode)).map_err(io::Error::from)?;
        let accessed = TimeSpec::new(self.stat.st_atime, self.stat.st_atime_nsec);
        let modified = TimeSpec::new(self.stat.st_mtime, self.stat.st_mtime_nsec);
        futimens(&self.copy, &accessed, &modified).map_err(io::Error::from)?;
        Ok(())
    }

    fn is_same(&self, now: &FileStat) -> bool {
        let key = |s: &FileStat| {
            (
                (s.st_dev, s.st_ino, s.st_size, s.st_nlink),
                (s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec),
            )
        };
        key(now) == key(&self.stat)
    }
}

fn link(file: &File, directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let empty = CString::default();
    match linkat(
        file,
        empty.as_c_str(),
        directory,
        name,
        AtFlags::AT_EMPTY_PATH,
    ) {
        // Without CAP_DAC_READ_SEARCH only older ways lead there.
        Err(Errno::ENOENT) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let root = nix::fcntl::AT_FDCWD;
            Ok(linkat(
                root,
                path.as_str(),
                directory,
                name,
                AtFlags::AT_SYMLINK_FOLLOW,
            )?)
        }
        other => Ok(other?),
    }
}
