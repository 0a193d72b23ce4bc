//! Work in a volume's memory that is not the bill's: it ends before the memory goes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Bills, Inner};
use crate::volume::VolumeId;

/// Somebody works in a volume's memory. It stays until this is dropped, unless he does not stop in time.
#[derive(Debug)]
pub(crate) struct Hold {
    inner: Arc<Inner>,
    id: VolumeId,
    stop: Arc<AtomicBool>,
}

impl Bills {
    /// The volumes whose memory is here.
    pub(crate) fn here(&self) -> Vec<VolumeId> {
        self.inner.accounts().volumes.keys().cloned().collect()
    }

    /// Announces work in the memory of a volume. `None`: it is not here or about to go, or somebody works there already.
    pub(crate) fn hold(&self, id: &VolumeId) -> Option<Hold> {
        let stop = self.inner.accounts().volumes.get_mut(id)?.hold()?;
        Some(Hold {
            inner: Arc::clone(&self.inner),
            id: id.clone(),
            stop,
        })
    }
}

impl Hold {
    /// Where the memory is mounted.
    pub(crate) fn layer(&self) -> PathBuf {
        self.inner.layer(&self.id)
    }

    /// Set when the work must end.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.stop
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(account) = self.inner.accounts().volumes.get_mut(&self.id) {
            account.let_go(&self.stop);
        }
        self.inner.changed.send_replace(());
    }
}
