//! Asks the kernel whether 2 MiB fit below every limit, also those that nobody here can see.
//!
//! Collapsing a region charges 2 MiB at once; what does not fit is refused with `EBUSY`, after the kernel has dropped
//! what page cache it could, and nobody is killed for it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::REGION;
use crate::mapping::Mapping;

/// What a probe found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// 2 MiB were free a moment ago.
    Room,
    /// Some cgroup's limit is reached.
    Full,
    /// This kernel cannot tell.
    Unknown,
}

/// A private region of which one page is resident between probes: a collapse needs something to collapse.
#[derive(Debug)]
pub(super) struct Probe {
    file: File,
}

impl Probe {
    pub(super) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"vineyard-probe", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(REGION)?;
        let probe = Self { file };
        probe.seed()?;
        Ok(probe)
    }

    pub(super) fn run(&self) -> Verdict {
        let Ok(mapping) = Mapping::new(self.file.as_fd(), 0, REGION) else {
            return Verdict::Unknown;
        };
        let collapsed = mapping.collapse(0, REGION);
        drop(mapping);
        match collapsed {
            // The page that stays is allocated out of the 2 MiB that are given back just before.
            Ok(()) => match self.clear().and_then(|()| self.seed()) {
                Ok(()) => Verdict::Room,
                Err(_) => Verdict::Unknown,
            },
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Verdict::Full,
            Err(_) => Verdict::Unknown,
        }
    }

    fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(REGION)
    }

    fn seed(&self) -> io::Result<()> {
        self.file.write_all_at(&[0], 0)
    }
}
