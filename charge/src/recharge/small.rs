//! Copies small files into pages that the payer reserved, and puts the copies in their place.
//!
//! A read lease holds writers off meanwhile: nobody can write to the old file, unnoticed, until the new one is there. Old and new
//! are exchanged by one call, which fails if the name is gone: so a file that is removed meanwhile does not come back.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, futimens};
use nix::sys::time::TimeSpec;
use nix::sys::uio::pread;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, unlinkat};

use super::lease::Lease;
use super::scratch::Scratch;
use super::{RechargeError, attributes};
use crate::PAGE;
use crate::cgroup::CgroupId;
use crate::payer::{Extent, Payer, ReserveError};
use crate::survey::{Small, Surveyor};
use crate::tree;
use crate::wire::MAX_DESCRIPTORS;

/// Copies that are reserved by one request: what one message can carry.
pub(crate) const BATCH: usize = MAX_DESCRIPTORS;

/// What is read and written at once.
const PIECE: usize = 256 << 10;

/// What became of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that are charged to the payer now.
    pub bytes: u64,
    /// Somebody still has the old file open or mapped, or that cannot be told: its bytes stay charged to the old owner until they let go.
    pub still_viewed: bool,
    /// Who is charged for the copy, where a survey was asked for that.
    pub owner: Option<CgroupId>,
}

/// A directory whose files are replaced by copies.
#[derive(Clone, Copy, Debug)]
pub struct Replace<'a> {
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// A directory on the same file system where a copy gets its first name, for a moment.
    pub scratch: BorrowedFd<'a>,
}

/// A file that is replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Original<'a> {
    /// Its name in the directory.
    pub(crate) name: &'a OsStr,
    /// Opened there, for reading.
    pub(crate) file: BorrowedFd<'a>,
    /// It stays in place if somebody views it: his view keeps the old bytes anyway, which can be pulled under it.
    pub(crate) spare_viewed: bool,
}

/// Sees to it that copies are on the right bill, before they take anybody's place.
pub(crate) struct Check<'a> {
    pub(crate) surveyor: &'a mut Surveyor,
    /// Who may be charged for a copy.
    pub(crate) owners: &'a [CgroupId],
}

impl Replace<'_> {
    /// Replaces each of the files `names` of the directory by a copy on the payer's bill, with the same mode, owner, attributes and
    /// times. Files to which somebody writes are left alone. The answers are in the order of the names.
    pub fn copy(
        &self,
        names: &[OsString],
        payer: &dyn Payer,
    ) -> Vec<Result<Copied, RechargeError>> {
        let mut results = Vec::with_capacity(names.len());
        for batch in names.chunks(BATCH) {
            let opened: Vec<Result<OwnedFd, Errno>> = batch
                .iter()
                .map(|name| tree::open_file(self.directory, name))
                .collect();
            let originals: Vec<Original<'_>> = batch
                .iter()
                .zip(opened.iter().flatten())
                .map(|(name, file)| Original {
                    name,
                    file: file.as_fd(),
                    spare_viewed: false,
                })
                .collect();
            if originals.len() == batch.len() {
                results.extend(self.copy_opened(&originals, payer, None));
                continue;
            }
            // Some could not be opened: one by one, each with its own answer.
            for (name, file) in batch.iter().zip(&opened) {
                let file = match file {
                    Ok(file) => file.as_fd(),
                    Err(errno) => {
                        results.push(Err(io::Error::from(*errno).into()));
                        continue;
                    }
                };
                let original = Original {
                    name,
                    file,
                    spare_viewed: false,
                };
                results.extend(self.copy_opened(&[original], payer, None));
            }
        }
        results
    }

    /// The same for files that are open already, at most [`BATCH`] of them.
    pub(crate) fn copy_opened(
        &self,
        originals: &[Original<'_>],
        payer: &dyn Payer,
        check: Option<Check<'_>>,
    ) -> Vec<Result<Copied, RechargeError>> {
        let prepared = originals.iter().map(|it| self.prepare(it)).collect();
        let mut copies = reserve(prepared, payer);
        let mut buffer = Vec::new();
        for copy in &mut copies {
            if let Ok(filled) = copy
                && let Err(error) = filled.fill(&mut buffer)
            {
                *copy = Err(error);
            }
        }
        if let Some(check) = check {
            check.look(&mut copies);
        }
        copies.into_iter().map(|copy| self.replace(copy?)).collect()
    }

    fn prepare<'a>(&self, original: &Original<'a>) -> Result<Copy<'a>, RechargeError> {
        let lease = Lease::take(original.file)?;
        // What was written before the lease was granted must show.
        let stat = fstat(original.file).map_err(io::Error::from)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(RechargeError::Unsuitable("not a regular file"));
        }
        if stat.st_nlink != 1 {
            return Err(RechargeError::Unsuitable("it has several names or none"));
        }
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o777);
        let copy = openat(self.scratch, ".", flags, mode).map_err(io::Error::from)?;
        Ok(Copy {
            copy: File::from(copy),
            original: *original,
            stat,
            lease,
            owner: None,
        })
    }

    fn replace(&self, copy: Copy<'_>) -> Result<Copied, RechargeError> {
        let inode = copy.dress()?;
        let scratch = Scratch::name(copy.stat.st_ino, inode);
        link(&copy.copy, self.scratch, &scratch)?;
        let placed = self.place(&scratch, &copy, inode);
        // Whatever it holds now, nobody needs: the copy that was not placed, or the original that was replaced.
        if !matches!(placed, Err(Unplaced::Foreign)) {
            let _ = unlinkat(
                self.scratch,
                scratch.as_os_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
        match placed {
            Ok(still_viewed) => {
                let copied = Copied {
                    bytes: copy.bytes(),
                    still_viewed,
                    owner: copy.owner,
                };
                if !still_viewed {
                    copy.lease.ends_with_the_file();
                }
                Ok(copied)
            }
            Err(Unplaced::Foreign) => Err(RechargeError::Changed),
            Err(Unplaced::Because(error)) => Err(error),
        }
    }

    /// Exchanges copy and original. Returns whether somebody still views the original.
    fn place(&self, scratch: &OsStr, copy: &Copy<'_>, inode: u64) -> Result<bool, Unplaced> {
        let name = copy.original.name;
        // Removed, replaced or written to meanwhile: theirs counts.
        let now = fstatat(self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if !copy.is_same(&now) || copy.lease.is_being_broken() {
            return Err(Unplaced::Because(RechargeError::Changed));
        }
        match self.exchange(scratch, name) {
            Err(Errno::ENOENT) => return Err(Unplaced::Because(RechargeError::Changed)),
            other => other?,
        }
        if self.inode_of(self.scratch, scratch) != Some(copy.stat.st_ino) {
            // Replaced between the look and the exchange: back with it.
            return Err(self.put_back(scratch, name, inode));
        }
        if copy.lease.is_alone() {
            return Ok(false);
        }
        if !copy.original.spare_viewed || self.inode_of(self.directory, name) != Some(inode) {
            return Ok(true);
        }
        match self.put_back(scratch, name, inode) {
            Unplaced::Because(_) => Err(Unplaced::Because(RechargeError::Viewed)),
            foreign => Err(foreign),
        }
    }

    /// Undoes an exchange, so that `scratch` holds the copy again.
    fn put_back(&self, scratch: &OsStr, name: &OsStr, inode: u64) -> Unplaced {
        let back = self.exchange(scratch, name);
        match (back, self.inode_of(self.scratch, scratch)) {
            (Ok(()), Some(found)) if found == inode => Unplaced::Because(RechargeError::Changed),
            // Removed meanwhile, so what was there before is not wanted any more.
            (Err(Errno::ENOENT), _) => Unplaced::Because(RechargeError::Changed),
            // Somebody is quicker than we are. What is in scratch is his, and not ours to remove.
            _ => Unplaced::Foreign,
        }
    }

    fn exchange(&self, scratch: &OsStr, name: &OsStr) -> Result<(), Errno> {
        let flags = RenameFlags::RENAME_EXCHANGE;
        renameat2(self.scratch, scratch, self.directory, name, flags)
    }

    fn inode_of(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Option<u64> {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        stat.ok().map(|it| it.st_ino)
    }
}

/// Why a copy did not take the original's place.
enum Unplaced {
    /// `scratch` holds the copy, or nothing.
    Because(RechargeError),
    /// `scratch` holds a file of somebody else.
    Foreign,
}

impl From<Errno> for Unplaced {
    fn from(errno: Errno) -> Self {
        Self::Because(io::Error::from(errno).into())
    }
}

impl Check<'_> {
    fn look(self, copies: &mut [Result<Copy<'_>, RechargeError>]) {
        let row: Vec<Small<'_>> = copies.iter().flatten().map(Copy::small).collect();
        let found = self.surveyor.row(&row);
        let mut found = found.map(Vec::into_iter);
        for slot in copies {
            let Ok(copy) = slot else { continue };
            match &mut found {
                Ok(found) => {
                    let whose = found.next().unwrap_or_default();
                    if let Some((owner, _)) = whose.foreign(&|it| self.owners.contains(&it)) {
                        *slot = Err(RechargeError::Misbilled(owner));
                    } else {
                        copy.owner = whose.owners.first().map(|(owner, _)| *owner);
                    }
                }
                Err(error) => *slot = Err(io::Error::other(error.to_string()).into()),
            }
        }
    }
}

/// One reserve for all copies of a batch. If they do not fit together, as many as do, one by one.
fn reserve<'a>(
    prepared: Vec<Result<Copy<'a>, RechargeError>>,
    payer: &dyn Payer,
) -> Vec<Result<Copy<'a>, RechargeError>> {
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

struct Copy<'a> {
    original: Original<'a>,
    lease: Lease<'a>,
    stat: FileStat,
    copy: File,
    owner: Option<CgroupId>,
}

impl Copy<'_> {
    /// Bytes that the copy takes, in whole pages.
    fn bytes(&self) -> u64 {
        self.size().next_multiple_of(PAGE)
    }

    fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    fn extent(&self) -> (BorrowedFd<'_>, Extent) {
        let extent = Extent {
            offset: 0,
            length: self.bytes(),
        };
        (self.copy.as_fd(), extent)
    }

    fn small(&self) -> Small<'_> {
        Small {
            file: self.copy.as_fd(),
            size: self.size(),
            allocated: self.bytes(),
            // The payer allocated all of them, and nobody else has it open any more.
            is_whole: true,
        }
    }

    fn fill(&self, buffer: &mut Vec<u8>) -> Result<(), RechargeError> {
        // A byte more: a file that grew shows, and one that did not is read by one call.
        let wanted = usize::try_from(self.size()).unwrap_or(usize::MAX);
        let part = wanted.saturating_add(1).min(PIECE);
        if buffer.len() < part {
            buffer.resize(part, 0);
        }
        let buffer = buffer.get_mut(..part).unwrap_or_default();
        let mut offset = 0;
        loop {
            let read = match pread(self.original.file, buffer, signed(offset)?) {
                Err(Errno::EINTR) => continue,
                read => read.map_err(io::Error::from)?,
            };
            self.copy
                .write_all_at(buffer.get(..read).unwrap_or_default(), offset)?;
            offset += read as u64;
            if read < part {
                break;
            }
        }
        // Also a file that ends in a hole has its whole size.
        if offset == self.size() {
            Ok(())
        } else {
            Err(RechargeError::Changed)
        }
    }

    /// Owner before mode: a change of owner clears mode bits. Times last. Returns the copy's inode.
    fn dress(&self) -> Result<u64, RechargeError> {
        let made = fstat(&self.copy).map_err(io::Error::from)?;
        let is_foreign = (made.st_uid, made.st_gid) != (self.stat.st_uid, self.stat.st_gid);
        if is_foreign {
            let (uid, gid) = (
                Uid::from_raw(self.stat.st_uid),
                Gid::from_raw(self.stat.st_gid),
            );
            fchown(&self.copy, Some(uid), Some(gid)).map_err(io::Error::from)?;
        }
        if made.st_mode != self.stat.st_mode || is_foreign && self.stat.st_mode & 0o7000 != 0 {
            let mode = Mode::from_bits_truncate(self.stat.st_mode);
            fchmod(&self.copy, mode).map_err(io::Error::from)?;
        }
        attributes::copy(self.original.file, self.copy.as_fd())?;
        let accessed = TimeSpec::new(self.stat.st_atime, self.stat.st_atime_nsec);
        let modified = TimeSpec::new(self.stat.st_mtime, self.stat.st_mtime_nsec);
        futimens(&self.copy, &accessed, &modified).map_err(io::Error::from)?;
        Ok(made.st_ino)
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

fn signed(bytes: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(io::Error::other)
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
