//! How content gets into the pages of a large object: through a mapping, not by `write`.
//!
//! On a tmpfs mounted `huge=never`, the mount whose pages nobody can steal, `write` takes every 4 KiB page by itself even
//! where a 2 MiB page is resident. A mapping of the same page is copied into at the speed of memory: 2 to 3 times faster.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise};

use crate::mapping::{HUGE, Mapping};

/// Copies `slices`, together `size` bytes, to the pages at `offset` of `file`, which is that long, reserved, and known to
/// nobody else.
///
/// # Errors
/// When the pages cannot be mapped or cannot be had: the caller may write instead.
pub(crate) fn to_pages(
    file: BorrowedFd<'_>,
    offset: u64,
    slices: &[IoSlice<'_>],
    size: usize,
) -> Result<(), Errno> {
    let window = Window::new(file, offset, size)?;
    let mut filled = 0;
    for slice in slices {
        window.copy(slice, filled);
        filled += slice.len();
    }
    Ok(())
}

/// A part of a file, mapped for writing, its pages present.
struct Window(Mapping);

impl Window {
    fn new(file: BorrowedFd<'_>, offset: u64, size: usize) -> Result<Self, Errno> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mapping = Mapping::range(file, offset, size, prot, MapFlags::MAP_SHARED)?;
        let start = std::ptr::NonNull::new(mapping.as_mut_ptr().cast()).ok_or(Errno::EFAULT)?;
        // An error here, where a plain store to a page that cannot be had would be SIGBUS.
        // SAFETY: the range is the mapping's own.
        unsafe { madvise(start, size, MmapAdvise::MADV_POPULATE_WRITE) }?;
        Ok(Self(mapping))
    }

    /// Copies `bytes` to `at`.
    fn copy(&self, bytes: &[u8], at: usize) {
        assert!(at + bytes.len() <= self.0.len(), "copy beyond the window");
        // SAFETY: the target lies in this mapping (checked), whose pages are present; it is a fresh mapping that no
        // reference points into, so it does not overlap `bytes`.
        unsafe { copy(bytes.as_ptr(), self.0.as_mut_ptr().add(at), bytes.len()) };
    }
}

/// `memcpy` for blocks far larger than the caches.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= HUGE && std::arch::is_x86_feature_detected!("ermsb") {
        // The processor's own block move does not read the lines that it is about to overwrite.
        // SAFETY: the caller's promise; the direction flag is clear by the calling convention.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rsi") from => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags),
            );
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}
