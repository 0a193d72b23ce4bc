//! Which pages of a file exist. Asking must not make any.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::FileStat;

use crate::PAGE;
use crate::mapping::{Mapping, resident_pages};

/// How residency is known on this kernel.
#[derive(Debug)]
pub(super) enum Residency<'a> {
    /// `cachestat` counts exactly (Linux 6.5).
    Counted(BorrowedFd<'a>),
    /// Every page up to the end of the file is allocated.
    Full,
    /// Only `mincore`, which does not see pages that were allocated and never written.
    Core,
}

/// Whether this kernel has `cachestat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Yes,
    No,
}

impl Counted {
    pub(super) fn probe() -> Self {
        let asked = memfd_create(c"vineyard-survey", MFdFlags::MFD_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|file| resident_pages(file.as_fd(), 0, PAGE));
        if asked.is_ok() { Self::Yes } else { Self::No }
    }
}

impl<'a> Residency<'a> {
    pub(super) fn of(file: BorrowedFd<'a>, stat: &FileStat, counted: Counted) -> Self {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if counted == Counted::Yes {
            Self::Counted(file)
        } else if allocated == size.next_multiple_of(PAGE) {
            Self::Full
        } else {
            Self::Core
        }
    }

    /// Of a file that is not all there.
    pub(super) fn partly(file: BorrowedFd<'a>, counted: Counted) -> Self {
        match counted {
            Counted::Yes => Self::Counted(file),
            Counted::No => Self::Core,
        }
    }

    /// Whether the range can hold anything: spares mapping the holes of a sparse file.
    pub(super) fn may_hold(&self, begin: u64, end: u64) -> bool {
        match self {
            Self::Counted(file) => {
                resident_pages(*file, begin, end - begin).is_ok_and(|pages| pages > 0)
            }
            Self::Full | Self::Core => true,
        }
    }

    /// Calls `run` with each resident part of `begin .. end`, the part of the file that `mapping` shows from `at` on.
    pub(super) fn runs(
        &self,
        mapping: &Mapping,
        at: u64,
        begin: u64,
        end: u64,
        run: &mut dyn FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Self::Counted(file) => bisect(*file, begin, end, run),
            Self::Full => run(begin, end - begin),
            Self::Core => core(mapping, at, begin, end, run),
        }
    }
}

/// Halves the range until each part is all there or not there at all.
fn bisect(
    file: BorrowedFd<'_>,
    begin: u64,
    end: u64,
    run: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let pages = (end - begin) / PAGE;
    let present = resident_pages(file, begin, end - begin)?;
    if present == 0 || pages == 0 {
        return Ok(());
    }
    if present >= pages {
        return run(begin, end - begin);
    }
    // Halves of a power of two stay aligned to huge pages as long as possible.
    let middle = begin + (pages.next_power_of_two() / 2) * PAGE;
    bisect(file, begin, middle, run)?;
    bisect(file, middle, end, run)
}

fn core(
    mapping: &Mapping,
    at: u64,
    begin: u64,
    end: u64,
    run: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let pages = mapping.in_core(at, end - begin)?;
    let mut offset = begin;
    for same in pages.chunk_by(|a, b| a & 1 == b & 1) {
        let length = same.len() as u64 * PAGE;
        if same.first().is_some_and(|page| page & 1 == 1) {
            run(offset, length)?;
        }
        offset += length;
    }
    Ok(())
}
