//! Read-only shared mappings whose addresses are aligned like the file's offsets, so that 2 MiB of file are 2 MiB of
//! page table: what `MADV_COLLAPSE` and `/proc/self/pagemap` need.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::REGION;

/// Linux 6.1; not in every libc.
const MADV_COLLAPSE: libc::c_int = 25;

/// Linux 5.14.
pub(crate) const MADV_POPULATE_READ: libc::c_int = 22;

/// A part of a file, mapped. Nobody forms a reference to its bytes, which other processes may write.
#[derive(Debug)]
pub(crate) struct Mapping {
    reservation: NonNull<libc::c_void>,
    reserved: usize,
    address: usize,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes, rounded up to whole regions, from `offset`, a multiple of 2 MiB.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<Self> {
        debug_assert_eq!(offset % REGION, 0);
        let region = usize::try_from(REGION).map_err(|_| overflow())?;
        let length = usize::try_from(length.next_multiple_of(REGION)).map_err(|_| overflow())?;
        let offset = libc::off_t::try_from(offset).map_err(|_| overflow())?;
        let mut mapping = Self::reserve(length.checked_add(region).ok_or_else(overflow)?)?;
        mapping.address = mapping.address.next_multiple_of(region);
        mapping.length = length;
        mapping.place(file, mapping.address, length, offset)?;
        Ok(mapping)
    }

    /// Addresses without access, for files to be mapped into.
    fn reserve(reserved: usize) -> io::Result<Self> {
        // SAFETY: a new private reservation without access; no existing mapping is touched.
        let reservation = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let reservation = pointer(reservation)?;
        Ok(Self {
            reservation,
            reserved,
            address: reservation.as_ptr() as usize,
            length: reserved,
        })
    }

    /// Maps a part of a file over a part of the reservation.
    fn place(
        &self,
        file: BorrowedFd<'_>,
        address: usize,
        length: usize,
        offset: libc::off_t,
    ) -> io::Result<()> {
        let begin = self.reservation.as_ptr() as usize;
        if address < begin || address + length > begin + self.reserved {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: `address .. address + length` lies inside the reservation, as was just seen, which nobody else knows.
        let mapped = unsafe { show(file, address, length, offset, libc::MAP_FIXED) };
        pointer(mapped)?;
        Ok(())
    }

    /// Has the kernel copy `length` bytes at `offset` of the mapping into huge pages of this process' cgroup.
    pub(crate) fn collapse(&self, offset: u64, length: u64) -> io::Result<()> {
        self.advise(offset, length, MADV_COLLAPSE)
    }

    /// `madvise` on a part of the mapping.
    pub(crate) fn advise(&self, offset: u64, length: u64, advice: libc::c_int) -> io::Result<()> {
        let (address, length) = self.part(offset, length)?;
        // SAFETY: the range lies in this mapping (`part`); no advice used here discards or moves anonymous memory, and
        // no Rust reference points into it.
        let result = unsafe { libc::madvise(address as *mut libc::c_void, length, advice) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// One byte for each page of a part, bit 0 set for what is in the page cache and was written once.
    pub(crate) fn in_core(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let (address, length) = self.part(offset, length)?;
        let mut pages = vec![0u8; length.div_ceil(4096)];
        // SAFETY: the range lies in this mapping, and the vector has a byte for each of its pages.
        let result =
            unsafe { libc::mincore(address as *mut libc::c_void, length, pages.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages)
    }

    /// Address and length of a part that must lie inside.
    pub(crate) fn part(&self, offset: u64, length: u64) -> io::Result<(usize, usize)> {
        let inside = || {
            let offset = usize::try_from(offset).ok()?;
            let length = usize::try_from(length).ok()?;
            (offset.checked_add(length)? <= self.length).then_some((self.address + offset, length))
        };
        inside().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.reserved == 0 {
            return;
        }
        // SAFETY: the whole reservation, including the files mapped into it, belongs to this value.
        unsafe { libc::munmap(self.reservation.as_ptr(), self.reserved) };
    }
}

/// Addresses where rows of small files are mapped.
#[derive(Debug)]
pub(crate) struct Place {
    first: usize,
    length: usize,
}

/// Far from whatever the kernel places by itself. Where there are no such addresses, rows are mapped elsewhere.
const PLACES: usize = 1 << 45;

/// So many are handed out before the first one comes again. Two may have the same: one of them finds it taken.
const COUNT: usize = 1024;

impl Place {
    /// A place for rows of at most `length` bytes.
    pub(crate) fn take(length: u64) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let length = usize::try_from(length).unwrap_or(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        Self {
            first: PLACES + number * length,
            length,
        }
    }

    /// Maps small files from their beginnings one behind the other; each length is in whole pages. They are not aligned to
    /// regions.
    pub(crate) fn row<'a>(
        &self,
        files: impl Iterator<Item = (BorrowedFd<'a>, u64)> + Clone,
    ) -> io::Result<Mapping> {
        let total = files.clone().map(|(_, length)| length).sum::<u64>();
        let total = usize::try_from(total).map_err(|_| overflow())?;
        if let Some(mapping) = self.free_row(files.clone(), total) {
            return Ok(mapping);
        }
        let mapping = Mapping::reserve(total)?;
        let mut at = mapping.address;
        for (file, length) in files {
            let length = usize::try_from(length).map_err(|_| overflow())?;
            mapping.place(file, at, length, 0)?;
            at += length;
        }
        Ok(mapping)
    }

    /// Without a reservation, which each file would have to be cut out of: a fifth of the time that a row takes. `None` when
    /// anybody is there.
    fn free_row<'a>(
        &self,
        files: impl Iterator<Item = (BorrowedFd<'a>, u64)>,
        total: usize,
    ) -> Option<Mapping> {
        if total > self.length {
            return None;
        }
        // Grows with what is mapped, so that nothing else is ever unmapped.
        let mut mapping = Mapping {
            reservation: NonNull::new(self.first as *mut libc::c_void)?,
            reserved: 0,
            address: self.first,
            length: 0,
        };
        for (file, length) in files {
            let (at, length) = (self.first + mapping.length, usize::try_from(length).ok()?);
            // SAFETY: nothing that exists is replaced.
            let mapped = unsafe { show(file, at, length, 0, libc::MAP_FIXED_NOREPLACE) };
            if mapped == libc::MAP_FAILED {
                return None;
            }
            if mapped as usize != at {
                // Before Linux 4.17 the address is only a wish.
                // SAFETY: it was mapped a moment ago, and nobody knows it.
                unsafe { libc::munmap(mapped, length) };
                return None;
            }
            mapping.length += length;
            mapping.reserved = mapping.length;
        }
        Some(mapping)
    }
}

/// Maps a part of a file for reading.
///
/// # Safety
/// With `MAP_FIXED` whatever is mapped at these addresses must be the caller's.
unsafe fn show(
    file: BorrowedFd<'_>,
    address: usize,
    length: usize,
    offset: libc::off_t,
    how: libc::c_int,
) -> *mut libc::c_void {
    // SAFETY: as the caller says.
    unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            length,
            libc::PROT_READ,
            libc::MAP_SHARED | how,
            file.as_raw_fd(),
            offset,
        )
    }
}

/// The offsets of the regions of a range that starts with one.
pub(crate) fn regions(begin: u64, end: u64) -> impl Iterator<Item = u64> + Clone {
    (0..end.saturating_sub(begin).div_ceil(REGION)).map(move |index| begin + index * REGION)
}

/// Linux 6.5; the same number on every architecture.
const CACHESTAT: libc::c_long = 451;

/// Pages of a range that are in the page cache or swapped out, also those that were allocated and never written.
///
/// A length of 0 means up to the end of what is allocated, beyond the end of the file too.
pub(crate) fn resident_pages(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<u64> {
    let range = [offset, length];
    let mut counts = [0u64; 5];
    // SAFETY: the kernel reads two and writes five 64-bit numbers.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [cached, _dirty, _writeback, evicted, _recently] = counts;
    Ok(cached + evicted)
}

fn overflow() -> io::Error {
    io::Error::from_raw_os_error(libc::EOVERFLOW)
}

fn pointer(result: *mut libc::c_void) -> io::Result<NonNull<libc::c_void>> {
    if result == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(result).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))
}
