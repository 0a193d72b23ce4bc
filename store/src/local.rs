//! Pages without a bill: the same allocation in the caller's own memory, for the sake of huge pages.

use std::os::fd::BorrowedFd;

use nix::fcntl::{FallocateFlags, fallocate};
use vineyard_charge::{Extent, Payer, ReserveError};

/// Allocates in this process.
#[derive(Debug, Default)]
pub(crate) struct LocalPages(Fallocate);

impl LocalPages {
    pub(crate) fn payer(&self) -> &dyn Payer {
        &self.0
    }
}

/// Plain `fallocate`.
#[derive(Debug, Default)]
struct Fallocate;

impl Payer for Fallocate {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        for (file, extent) in extents {
            let offset = i64::try_from(extent.offset).map_err(std::io::Error::other)?;
            let length = i64::try_from(extent.length).map_err(std::io::Error::other)?;
            fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length)
                .map_err(std::io::Error::from)?;
        }
        Ok(())
    }

    fn pull(&self, _: BorrowedFd<'_>, _: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        Ok(Vec::new())
    }

    fn give_back(&self, _: u64) {}
}
