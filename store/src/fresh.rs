//! A file that is being filled: nobody else has it open, and a note of what was reserved for it lets the payer hear of it
//! when nothing comes of it. It is unnamed, so that the kernel frees it with its last descriptor, or recycled.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::mman::{MapFlags, ProtFlags};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::ftruncate;
use vineyard_charge::Payer;

use crate::error::Error;
use crate::lease;
use crate::mapping::{Mapping, PAGE};
use crate::recycle::{InTrash, Recycled, extensible};
use crate::tree::Tree;
use crate::volume::Volume;

/// Milliseconds before each attempt to free a part of a huge page.
const PAUSES: [u64; 8] = [0, 1, 2, 4, 8, 16, 32, 64];

/// A file and its bill. Dropped before it is sealed, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// Its name so far, if it is recycled.
    place: Option<InTrash>,
    // Closed before the bill is settled: only then the pages are free.
    file: OwnedFd,
    bill: Bill,
    /// Bytes that are allocated already, from the start: pages of the object that it was.
    resident: u64,
}

/// Reserved bytes that are given back unless they are settled.
#[derive(Debug)]
struct Bill {
    payer: Option<Arc<dyn Payer>>,
    bytes: AtomicU64,
}

impl Fresh {
    /// A file without any pages.
    pub(crate) fn new(volume: &Volume) -> Result<Self, Error> {
        Ok(Self::reserved(volume.tree().unnamed()?, volume, 0))
    }

    /// A file for which `bytes` are reserved already.
    pub(crate) fn reserved(file: OwnedFd, volume: &Volume, bytes: u64) -> Self {
        let bill = Bill {
            payer: volume.payer().cloned(),
            bytes: bytes.into(),
        };
        Self {
            place: None,
            file,
            bill,
            resident: 0,
        }
    }

    /// A file of `len` bytes. Without pages, or with those of an object that this process has removed: then what it
    /// contains is anything.
    pub(crate) fn sized(volume: &Volume, len: u64) -> Result<Self, Error> {
        let end = i64::try_from(len).map_err(|_| Error::io("put", Errno::EFBIG))?;
        while let Some(recycled) = volume.recycling().take(len) {
            let mut file = Self::recycled(recycled, volume);
            if file.cut(end).is_ok() {
                return Ok(file);
            }
        }
        let file = Self::new(volume)?;
        ftruncate(file.as_fd(), end).map_err(|errno| volume.failed("put", errno, len))?;
        Ok(file)
    }

    fn recycled(recycled: Recycled, volume: &Volume) -> Self {
        Self {
            place: Some(recycled.place),
            resident: recycled.bytes,
            ..Self::reserved(recycled.file, volume, recycled.bytes)
        }
    }

    /// Makes a recycled file `end` bytes long. That also counts as its last change.
    fn cut(&mut self, end: i64) -> Result<(), Errno> {
        let wanted = u64::try_from(end).unwrap_or(0).next_multiple_of(PAGE);
        let kept = if wanted > self.resident {
            extensible(self.resident)
        } else {
            wanted
        };
        if kept < self.resident.min(wanted) {
            ftruncate(self.file.as_fd(), i64::try_from(kept).unwrap_or(end))?;
        }
        ftruncate(self.file.as_fd(), end)?;
        if kept == self.resident {
            return Ok(());
        }
        // A huge page that the end falls into has to be split, and that may fail.
        if self.allocated()? != kept {
            return Err(Errno::EBUSY);
        }
        self.trimmed(self.resident - kept);
        self.resident = kept;
        Ok(())
    }

    /// Makes the file end at `end`, and frees what is allocated beyond. Returns the bytes that are allocated then.
    ///
    /// The huge page that the end falls into is split for that. While somebody looks at it, such as a survey, that fails, and
    /// the kernel does not say so.
    pub(crate) fn end_at(&self, end: i64) -> Result<u64, Errno> {
        let most = u64::try_from(end).unwrap_or(0).next_multiple_of(PAGE);
        for pause in PAUSES {
            thread::sleep(Duration::from_millis(pause));
            // Also when the size stays, this frees the pages beyond it.
            ftruncate(self.file.as_fd(), end)?;
            if self.allocated()? <= most {
                break;
            }
        }
        self.allocated()
    }

    /// Bytes that are allocated.
    pub(crate) fn allocated(&self) -> Result<u64, Errno> {
        let stat = fstat(self.file.as_fd())?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Whether it was another object before.
    pub(crate) fn is_recycled(&self) -> bool {
        self.place.is_some()
    }

    /// Bytes that are allocated already, from the start.
    pub(crate) fn resident(&self) -> u64 {
        self.resident
    }

    /// Reserves the pages of a range, as far as they are not there.
    pub(crate) fn reserve(&self, volume: &Volume, offset: u64, length: u64) -> Result<(), Error> {
        let from = offset.max(self.resident);
        let missing = (offset + length).saturating_sub(from);
        volume.reserve(self.file.as_fd(), from, missing)?;
        self.bill.bytes.fetch_add(missing, Ordering::Relaxed);
        Ok(())
    }

    /// `bytes` of the file were freed.
    pub(crate) fn trimmed(&self, bytes: u64) {
        let held = self.bill.bytes.load(Ordering::Relaxed);
        let bytes = bytes.min(held);
        self.bill.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let (Some(payer), 1..) = (&self.bill.payer, bytes) {
            payer.give_back(bytes);
        }
    }

    /// Opens the file for reading only, in place of the descriptor that could write.
    pub(crate) fn forbid_writing(&mut self) -> Result<(), Errno> {
        self.let_others_open();
        let place = self.place.as_ref();
        if let Some(file) = place.and_then(InTrash::reopen) {
            self.file = file;
            return Ok(());
        }
        let again = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        self.file = open(again.as_str(), flags, Mode::empty())?;
        Ok(())
    }

    fn let_others_open(&self) {
        if self.is_recycled() {
            lease::release(self.file.as_fd());
        }
    }

    /// Whether nobody else has got hold of the file. From here on nobody is kept off any more: it is about to be sealed.
    pub(crate) fn is_exclusive(&self) -> bool {
        if !self.is_recycled() {
            return true;
        }
        let held = lease::is_held(self.file.as_fd());
        self.let_others_open();
        held || lease::nobody_uses(self.file.as_fd()).unwrap_or(false)
    }

    /// Gives the file its name among the objects.
    pub(crate) fn link(&self, tree: &Tree, object: &str) -> Result<(), Errno> {
        let Some(place) = &self.place else {
            return tree.link_as(self.as_fd(), tree.objects.as_fd(), object);
        };
        place.move_to(object)
    }

    /// The file is sealed and keeps its pages.
    pub(crate) fn settle(&self) {
        self.bill.bytes.store(0, Ordering::Relaxed);
    }
}

impl Volume {
    /// Another file with the first `len` bytes of this one.
    pub(crate) fn copy_of(&self, file: &Fresh, len: u64) -> Result<Fresh, Error> {
        let size = usize::try_from(len).map_err(|_| Error::io("seal", Errno::EFBIG))?;
        let mapping = Mapping::new(
            file.as_fd(),
            size,
            ProtFlags::PROT_READ,
            MapFlags::MAP_SHARED,
        )
        .map_err(|errno| Error::io("seal", errno))?;
        self.copied(mapping.as_slice())
    }

    /// A file that holds `bytes`.
    pub(crate) fn copied(&self, bytes: &[u8]) -> Result<Fresh, Error> {
        let copy = Fresh::new(self)?;
        copy.reserve(self, 0, bytes.len() as u64)?;
        self.write_all(copy.as_fd(), &[IoSlice::new(bytes)], 0)?;
        Ok(copy)
    }
}

impl AsFd for Fresh {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if let (Some(payer), 1..) = (&self.payer, *self.bytes.get_mut()) {
            payer.give_back(*self.bytes.get_mut());
        }
    }
}
