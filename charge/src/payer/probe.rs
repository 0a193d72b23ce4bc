//! Asks the kernel whether 2 MiB fit below every limit, also those that nobody here can see.
//!
//! Collapsing a region charges 2 MiB at once; what does not fit is refused with `EBUSY`, after the kernel has dropped
//! what page cache it could, and nobody is killed for it. While a probe is *held*, its 2 MiB are ballast: when a limit
//! is hit, letting go of it leaves the processes there room to go on.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::mapping::{MADV_POPULATE_READ, Mapping};
use crate::{PAGE, REGION};

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

/// Page cache is indexed in leaves of 64 pages.
pub(super) const LEAF: u64 = 64 * PAGE;

/// A private region of which one page in each leaf of its index is resident between probes. A collapse needs something
/// to collapse; and it makes the leaves that are missing *after* it has charged the 2 MiB, with the OOM killer behind it.
#[derive(Debug)]
pub(super) struct Probe {
    file: File,
}

impl Probe {
    pub(super) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"vineyard-probe", MFdFlags::MFD_CLOEXEC)?);
        let probe = Self { file };
        probe.reset()?;
        Ok(probe)
    }

    /// Takes 2 MiB and gives them back.
    pub(super) fn run(&self) -> Verdict {
        self.hold(|verdict| verdict)
    }

    /// Takes 2 MiB, does `work` and gives them back.
    pub(super) fn hold<T>(&self, work: impl FnOnce(Verdict) -> T) -> T {
        let taken = self.take();
        let result = work(match taken {
            Ok(()) => Verdict::Room,
            Err(libc::EBUSY) => Verdict::Full,
            Err(_) => Verdict::Unknown,
        });
        // The pages that stay are allocated out of the 2 MiB that are given back just before. Without them the next probe
        // fails as unknown.
        let _ = self.reset();
        result
    }

    /// Between success and the end of a probe there may be no byte left: nothing is allocated here meanwhile.
    fn take(&self) -> Result<(), i32> {
        let code = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        let mapping = Mapping::new(self.file.as_fd(), 0, REGION).map_err(code)?;
        // Without a page table Linux 6.1 allocates the region and reports a failure.
        mapping.advise(0, PAGE, MADV_POPULATE_READ).map_err(code)?;
        match mapping.collapse(0, REGION).map_err(code) {
            Err(libc::EINVAL) if self.is_whole() => Ok(()),
            other => other,
        }
    }

    fn is_whole(&self) -> bool {
        self.file
            .metadata()
            .is_ok_and(|metadata| metadata.blocks() * 512 == REGION)
    }

    fn reset(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(REGION)?;
        (0..REGION / LEAF).try_for_each(|leaf| self.file.write_all_at(&[0], leaf * LEAF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_gives_back_what_it_took() {
        let probe = Probe::new().unwrap();
        let blocks = || probe.file.metadata().unwrap().blocks() * 512;
        for _ in 0..3 {
            let held = probe.hold(|verdict| (verdict, blocks()));
            // A kernel without huge pages cannot tell, and then nothing is taken.
            assert!(
                held == (Verdict::Room, REGION) || held == (Verdict::Unknown, 8 * PAGE),
                "{held:?}"
            );
            assert_eq!(blocks(), 8 * PAGE);
        }
    }
}
