//! Hand-over of a layer's bill, and the room that a full layer lends for it. The engine itself is `vineyard_charge::handover`.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use vineyard_charge::PAGE;
use vineyard_charge::recharge::Slack;

use crate::bytes::Bytes;
use crate::mount::{self, Mounter};

pub(crate) use vineyard_charge::handover::{HandOver, HandOverError, Left, Outcome, Progress};

/// Lends a layer more size for a moment.
///
/// Loans are counted on top of whatever size the layer has then, so an expansion meanwhile is fine; whoever is killed while
/// something is lent leaves the layer larger, which [`settle`](Self::settle) rights. Run the node's own check of the size
/// (`fit`) after it: an expansion between a loan and its return is short of the loan otherwise.
#[derive(Debug)]
pub(crate) struct LayerSlack {
    mounter: Arc<dyn Mounter>,
    layer: PathBuf,
    turn: Mutex<()>,
}

impl LayerSlack {
    /// Of the tmpfs that is mounted on `layer`.
    pub(crate) fn new(mounter: Arc<dyn Mounter>, layer: PathBuf) -> Self {
        Self {
            mounter,
            layer,
            turn: Mutex::new(()),
        }
    }

    /// Makes the layer `capacity` large again, if it is larger and not that much is in use. Call it while nothing is lent.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn settle(&self, capacity: Bytes) -> Result<(), mount::Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = self.mounter.usage(&self.layer)?;
        if usage.bytes > capacity.0 && usage.bytes - usage.free_bytes <= capacity.0 {
            self.mounter
                .resize_tmpfs(&self.layer, capacity, usage.inodes)?;
        }
        Ok(())
    }

    fn resize(&self, change: impl FnOnce(u64) -> u64) -> Result<(), mount::Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = self.mounter.usage(&self.layer)?;
        let size = Bytes(change(usage.bytes).next_multiple_of(PAGE));
        self.mounter.resize_tmpfs(&self.layer, size, usage.inodes)
    }
}

impl Slack for LayerSlack {
    fn lend(&self, bytes: u64) -> io::Result<()> {
        self.resize(|size| size.saturating_add(bytes))
            .map_err(io::Error::other)
    }

    fn take_back(&self, bytes: u64) {
        // A writer may have used it meanwhile. Then it stays until somebody settles.
        if let Err(error) = self.resize(|size| size.saturating_sub(bytes)) {
            tracing::debug!(layer = %self.layer.display(), %error, "lent bytes are in use");
        }
    }
}
