//! The files of a copy: opened one by one, billed in batches, filled, then given their attributes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::libc::nlink_t;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Whence, linkat, lseek};
use vineyard_charge::{Extent, PAGE, Payer, REGION};

use super::attributes::Attributes;
use super::{Error, Progress, Report};

/// Files and extents of one reserve: twice as many descriptors are open.
const BATCH: usize = 100;
/// Bytes of one reserve of small files, and of one of a large file.
const BATCH_BYTES: u64 = 64 << 20;
const WINDOW: u64 = 128 * REGION;
/// Up to here a file is small: its extents are known before it is billed.
const SMALL: u64 = 1 << 20;
/// What is read at once; stays in the processor's cache.
const CHUNK: usize = 256 << 10;

/// The kernel breaks a lease after 45 s, unless somebody told it otherwise.
const LEASE: Duration = Duration::from_secs(60);
const LEASE_LOOK: Duration = Duration::from_millis(20);

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It is in the copy, or will be with the next flush.
    Copied,
    /// The copy has a file there already.
    Existing,
    /// It is not there, or no regular file any more.
    Vanished,
}

/// Files that are being copied.
pub(super) struct Files<'a> {
    payer: &'a dyn Payer,
    progress: &'a Progress,
    to: BorrowedFd<'a>,
    pending: Vec<Filling>,
    extents: usize,
    bytes: u64,
    linked: HashMap<u64, Linked>,
    buffer: Vec<u8>,
    pub(super) report: Report,
}

/// A file with several names: where the copy has it, and how many names may still come.
struct Linked {
    path: PathBuf,
    left: nlink_t,
}

struct Filling {
    path: PathBuf,
    source: File,
    copy: File,
    size: u64,
    extents: Vec<Extent>,
    attributes: Attributes,
}

impl<'a> Files<'a> {
    pub(super) fn new(payer: &'a dyn Payer, progress: &'a Progress, to: BorrowedFd<'a>) -> Self {
        Self {
            payer,
            progress,
            to,
            pending: Vec::new(),
            extents: 0,
            bytes: 0,
            linked: HashMap::new(),
            buffer: vec![0; CHUNK],
            report: Report::default(),
        }
    }

    /// Copies the file `name` of the directory `from` into the directory `to`; `path` is both below the volume.
    pub(super) fn add(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<Added, Error> {
        self.progress.check()?;
        let failed = |doing| move |errno: Errno| Error::system(doing, path, errno);
        // A path only: whatever it turns out to be, nothing of it has been touched.
        let found = match beneath(from, name, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Err(Errno::ENOENT | Errno::ELOOP | Errno::EXDEV) => return Ok(Added::Vanished),
            other => other.map_err(failed("find"))?,
        };
        let stat = fstat(&found).map_err(failed("stat"))?;
        if !is_file(&stat) {
            return Ok(Added::Vanished);
        }
        if stat.st_nlink > 1
            && let Some(linked) = self.linked.get_mut(&stat.st_ino)
        {
            let made = linkat(self.to, &linked.path, to, name, AtFlags::empty());
            linked.left = linked.left.saturating_sub(1);
            if linked.left == 0 {
                self.linked.remove(&stat.st_ino);
            }
            return match made {
                Err(Errno::EEXIST) => Ok(Added::Existing),
                other => other.map(|()| Added::Copied).map_err(failed("link")),
            };
        }
        let source = self.open(&found, path)?;
        // It may have grown until now; what comes later is not copied.
        let stat = fstat(&source).map_err(failed("stat"))?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let copy = match openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Err(Errno::EEXIST) => return Ok(Added::Existing),
            other => File::from(other.map_err(failed("make"))?),
        };
        if stat.st_nlink > 1 {
            let left = stat.st_nlink - 1;
            let path = path.to_owned();
            self.linked.insert(stat.st_ino, Linked { path, left });
        }
        self.fill(source, copy, &stat, path)?;
        Ok(Added::Copied)
    }

    /// Opens what was found, waiting as long as a lease may last.
    fn open(&self, found: &OwnedFd, path: &Path) -> Result<File, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOATIME;
        let through = format!("/proc/self/fd/{}", found.as_raw_fd());
        let begin = Instant::now();
        loop {
            match open(through.as_str(), flags, Mode::empty()) {
                Ok(file) => return Ok(File::from(file)),
                Err(Errno::EAGAIN) if begin.elapsed() < LEASE => {
                    self.progress.check()?;
                    std::thread::sleep(LEASE_LOOK);
                }
                Err(Errno::EAGAIN) => {
                    return Err(Error::Leased {
                        path: path.to_owned(),
                    });
                }
                Err(errno) => return Err(Error::system("open", path, errno)),
            }
        }
    }

    fn fill(
        &mut self,
        source: File,
        copy: File,
        stat: &FileStat,
        path: &Path,
    ) -> Result<(), Error> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let attributes = Attributes::of(&source, stat, path)?;
        // Before it is billed: whole regions are allocated faster then.
        let sized = copy.set_len(size);
        sized.map_err(|error| Error::system("size", path, error))?;
        self.report.files += 1;
        self.report.bytes += size;
        // Allocated without a gap, written or not: so is the copy, or its readers would be billed for the gaps of a sealed object.
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let dense = allocated >= size.next_multiple_of(PAGE);
        let mut filling = Filling {
            path: path.to_owned(),
            source,
            copy,
            size,
            extents: Vec::new(),
            attributes,
        };
        let mut next = Some(0);
        if size <= SMALL {
            next = filling.look(0, dense, SMALL)?;
            if next.is_none() {
                self.extents += filling.extents.len();
                self.bytes += size;
                self.pending.push(filling);
                let is_full = self.pending.len() >= BATCH || self.bytes >= BATCH_BYTES;
                return match is_full || self.extents >= BATCH {
                    true => self.flush(),
                    false => Ok(()),
                };
            }
        }
        loop {
            self.reserve(std::slice::from_ref(&filling))?;
            self.write(&filling)?;
            let Some(offset) = next else { break };
            filling.extents.clear();
            next = filling.look(offset, dense, WINDOW)?;
        }
        filling.finish()
    }

    /// Bills and fills what is pending.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let pending = std::mem::take(&mut self.pending);
        (self.extents, self.bytes) = (0, 0);
        self.reserve(&pending)?;
        for filling in pending {
            self.write(&filling)?;
            filling.finish()?;
        }
        Ok(())
    }

    fn reserve(&self, fillings: &[Filling]) -> Result<(), Error> {
        let extents = fillings.iter().flat_map(|filling| {
            let of = |extent: &Extent| (filling.copy.as_fd(), *extent);
            filling.extents.iter().map(of)
        });
        let extents: Vec<_> = extents.collect();
        match extents.is_empty() {
            true => Ok(()),
            false => Ok(self.payer.reserve(&extents)?),
        }
    }

    /// Writes into what is reserved and nowhere else, whatever the source has become.
    fn write(&mut self, filling: &Filling) -> Result<(), Error> {
        let failed = |doing| move |error| Error::system(doing, &filling.path, error);
        for extent in &filling.extents {
            self.progress.check()?;
            let (mut offset, end) = (extent.offset, extent.offset + extent.length);
            let end = end.min(filling.size);
            while offset < end {
                let most = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
                let buffer = &mut self.buffer[..most];
                let read = filling.source.read_at(buffer, offset);
                let read = read.map_err(failed("read"))?;
                if read == 0 {
                    // It has become shorter.
                    break;
                }
                let written = filling.copy.write_all_at(&buffer[..read], offset);
                written.map_err(failed("write"))?;
                offset += u64::try_from(read).unwrap_or(0);
            }
            self.progress.advance(extent.length);
        }
        Ok(())
    }
}

impl Filling {
    /// Notes the extents from `offset` that hold bytes, up to `most` bytes. Returns where to go on, if there is more.
    fn look(&mut self, mut offset: u64, dense: bool, most: u64) -> Result<Option<u64>, Error> {
        let mut left = most;
        while offset < self.size && left > 0 && self.extents.len() < BATCH {
            let (begin, end) = match dense {
                true => (offset, self.size),
                false => match self.next_bytes(offset)? {
                    Some(found) => found,
                    None => return Ok(None),
                },
            };
            let end = end.next_multiple_of(PAGE).min(begin + left);
            let length = end - begin;
            self.extents.push(Extent {
                offset: begin,
                length,
            });
            left -= length;
            offset = end;
        }
        Ok((offset < self.size).then_some(offset))
    }

    /// The next bytes that are not a hole, in whole pages.
    fn next_bytes(&self, offset: u64) -> Result<Option<(u64, u64)>, Error> {
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
            let found = lseek(&self.source, from, whence)?;
            u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        };
        let failed = |errno| Error::system("look for holes in", &self.path, errno);
        let begin = match seek(offset, Whence::SeekData) {
            // Nothing but a hole is left, or nothing at all.
            Err(Errno::ENXIO) => return Ok(None),
            other => (other.map_err(failed)? / PAGE * PAGE).max(offset),
        };
        let end = match seek(begin, Whence::SeekHole) {
            Err(Errno::ENXIO) => return Ok(None),
            other => other
                .map_err(failed)?
                .clamp(begin + 1, self.size.max(begin + 1)),
        };
        Ok((begin < self.size).then_some((begin, end)))
    }

    fn finish(self) -> Result<(), Error> {
        let now = self.source.metadata();
        let now = now.map_err(|error| Error::system("stat", &self.path, error))?;
        if now.len() < self.size {
            let shortened = self.copy.set_len(now.len());
            shortened.map_err(|error| Error::system("size", &self.path, error))?;
        }
        self.attributes.apply(&self.copy, &self.path)
    }
}

/// Opens one name of a directory: not through a symlink, not on another mount.
pub(super) fn beneath(
    directory: BorrowedFd<'_>,
    name: impl AsRef<Path>,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(resolve);
    openat2(directory, name.as_ref(), how)
}

/// Whether it is a regular file.
fn is_file(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}
