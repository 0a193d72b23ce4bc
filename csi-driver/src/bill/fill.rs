//! Who pays for what the driver itself fills into a volume: the retainer, under the request that is allocated to it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use tokio::runtime::Handle;
use vineyard_charge::{Extent, PAGE, Payer, ReserveError};

use super::Bills;
use super::engine::Engine;
use crate::volume::VolumeId;

/// The payer of one volume that is being filled.
#[derive(Debug)]
struct Filler {
    bills: Bills,
    engine: Arc<dyn Engine>,
    id: VolumeId,
    runtime: Handle,
}

impl Bills {
    /// The volume's memory is there and is about to be filled by the driver. Until [`resident`](Self::resident) no run touches it.
    /// `None`: there is no retainer on this node.
    pub(crate) fn filling(&self, id: &VolumeId) -> Option<Arc<dyn Payer>> {
        let engine = self.inner.engine.clone()?;
        let mut all = self.inner.accounts();
        all.volumes.entry(id.clone()).or_default().halt();
        Some(Arc::new(Filler {
            bills: self.clone(),
            engine,
            id: id.clone(),
            runtime: Handle::current(),
        }))
    }
}

impl Payer for Filler {
    /// Blocking; never called on the executor.
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        let lengths = extents.iter().map(|(_, extent)| extent.length);
        let bytes = lengths.map(|length| length.next_multiple_of(PAGE)).sum();
        let share = vec![(self.id.clone(), bytes)];
        let reserving = self.runtime.block_on(self.bills.cover(share))?;
        let payer = self.engine.payer();
        let payer = payer.map_err(|trouble| {
            ReserveError::Unreachable(std::io::Error::other(trouble.to_string()))
        });
        payer?.reserve(extents)?;
        reserving.done();
        Ok(())
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        let payer = self.engine.payer();
        let payer = payer.map_err(|trouble| {
            ReserveError::Unreachable(std::io::Error::other(trouble.to_string()))
        });
        payer?.pull(file, regions)
    }

    fn give_back(&self, _bytes: u64) {}
}
