//! Mappings of sealed objects and of drafts: aligned to 2 MiB where that lets the kernel map huge pages.

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Bytes of a huge page.
pub(crate) const HUGE: usize = 2 << 20;
/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Where the last aligned mapping starts, if there was one.
static LOWEST: AtomicUsize = AtomicUsize::new(0);

/// Address space that an aligned mapping takes.
fn footprint(len: usize) -> usize {
    len.next_multiple_of(HUGE)
}

/// Mapped memory of an object. It stays valid, whatever happens to the object, until this is dropped.
///
/// A copy-on-write mapping may be written: the pages that are touched become private memory of the process.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Mapped bytes before `start`: an object in a pack begins anywhere, a mapping at a page.
    before: usize,
}

// SAFETY: a mapping is plain memory with no ties to a thread; whoever writes through `as_ptr` synchronises himself.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access only hands out the address and reads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file`; an empty mapping needs no system call.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let Some(length) = NonZeroUsize::new(len) else {
            return Ok(Self {
                start: NonNull::dangling(),
                len,
                before: 0,
            });
        };
        if len < HUGE {
            // SAFETY: the kernel chooses the address, so no other mapping is touched.
            let start = unsafe { mmap(None, length, prot, flags, file, 0) }?;
            return Ok(Self {
                start: start.cast(),
                len,
                before: 0,
            });
        }
        Self::aligned(file, 0, length, prot, flags)
    }

    /// Maps `len` bytes from `offset` on, which may be anywhere.
    pub(crate) fn range(
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let Some(length) = NonZeroUsize::new(len) else {
            return Ok(Self {
                start: NonNull::dangling(),
                len,
                before: 0,
            });
        };
        let before = usize::try_from(offset % PAGE).map_err(|_| Errno::EOVERFLOW)?;
        let page = i64::try_from(offset - offset % PAGE).map_err(|_| Errno::EOVERFLOW)?;
        if len >= HUGE && offset.is_multiple_of(HUGE as u64) {
            return Self::aligned(file, page, length, prot, flags);
        }
        let whole = length.checked_add(before).ok_or(Errno::EOVERFLOW)?;
        // SAFETY: the kernel chooses the address; `before` is less than the mapping's length.
        let start = unsafe { mmap(None, whole, prot, flags, file, page)?.byte_add(before) };
        Ok(Self {
            start: start.cast(),
            len,
            before,
        })
    }

    /// Maps at a multiple of 2 MiB. The kernel would not, on a tmpfs mounted `huge=never`: it is asked for a place below
    /// the last one, which is free most of the time, else for room to choose from.
    fn aligned(
        file: BorrowedFd<'_>,
        offset: i64,
        length: NonZeroUsize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let below = LOWEST.load(Ordering::Relaxed);
        let wanted = below
            .checked_sub(footprint(length.get()))
            .and_then(NonZeroUsize::new);
        if let Some(address) = wanted {
            let flags = flags | MapFlags::MAP_FIXED_NOREPLACE;
            // SAFETY: the kernel refuses a place where anything is mapped.
            let mapped = unsafe { mmap(Some(address), length, prot, flags, file, offset) };
            if let Ok(start) = mapped {
                let space = Self {
                    start: start.cast(),
                    len: length.get(),
                    before: 0,
                };
                if start.as_ptr() as usize == address.get() {
                    LOWEST.store(address.get(), Ordering::Relaxed);
                    return Ok(space);
                }
            }
        }
        let space = Self::reserve(length)?;
        space.replace_from(file, offset, prot, flags)?;
        LOWEST.store(space.start.as_ptr() as usize, Ordering::Relaxed);
        Ok(space)
    }

    /// Address space at a multiple of 2 MiB, without memory.
    fn reserve(length: NonZeroUsize) -> Result<Self, Errno> {
        let pages = length
            .get()
            .next_multiple_of(usize::try_from(PAGE).unwrap_or(HUGE));
        let whole = NonZeroUsize::new(pages + HUGE).ok_or(Errno::ENOMEM)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: the kernel chooses the address.
        let raw = unsafe { mmap_anonymous(None, whole, ProtFlags::PROT_NONE, flags) }?;
        let address = raw.as_ptr() as usize;
        let before = address.next_multiple_of(HUGE) - address;
        let after = HUGE - before;
        // SAFETY: both ranges lie in the mapping that was just made and that nobody else knows; `start` lies in it.
        unsafe {
            let start = raw.byte_add(before);
            if before > 0 {
                munmap(raw, before)?;
            }
            if after > 0 {
                munmap(start.byte_add(pages), after)?;
            }
            Ok(Self {
                start: start.cast(),
                len: length.get(),
                before: 0,
            })
        }
    }

    /// Puts `file` in the place of what is mapped here; the addresses stay.
    pub(crate) fn replace(
        &self,
        file: BorrowedFd<'_>,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<(), Errno> {
        self.replace_from(file, 0, prot, flags)
    }

    fn replace_from(
        &self,
        file: BorrowedFd<'_>,
        offset: i64,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<(), Errno> {
        let (Some(address), Some(length)) = (
            NonZeroUsize::new(self.start.as_ptr() as usize),
            NonZeroUsize::new(self.len),
        ) else {
            return Ok(());
        };
        // SAFETY: the range is this mapping's own; the kernel swaps it in one step.
        unsafe {
            mmap(
                Some(address),
                length,
                prot,
                flags | MapFlags::MAP_FIXED,
                file,
                offset,
            )
        }?;
        Ok(())
    }

    /// The first byte; dangling when the mapping is empty.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The first byte, for writing. Only a copy-on-write mapping and a draft may be written; writing to a read-only
    /// mapping ends the process with SIGSEGV.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    ///
    /// Sealed objects do not change: their files are read-only and everybody who may write to the volume is trusted to
    /// leave them so.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the range is mapped readable for the life of `self`; the object behind it is sealed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            let address = self.start.as_ptr() as usize;
            let above = address.wrapping_add(footprint(self.len));
            // The next one may take its place.
            let _ = LOWEST.compare_exchange(address, above, Ordering::Relaxed, Ordering::Relaxed);
            // SAFETY: the range is this mapping's own and borrows of it have ended.
            let _ = unsafe {
                let start = self.start.cast::<c_void>().byte_sub(self.before);
                munmap(start, self.before + self.len)
            };
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("start", &self.start)
            .field("len", &self.len)
            .finish()
    }
}
