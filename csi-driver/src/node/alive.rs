//! Heartbeats: as long as they come, nobody decides anything over this node's head. What was decided while they did not come
//! is in the tombstones.

use std::sync::Arc;
use std::time::Duration;

use super::{Error, Node, mount_of};
use crate::volume::{Tombstone, catalog};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(5);

impl Node {
    /// Says every few seconds that this node lives, and drops what was deleted while it did not. Never ends.
    pub(crate) async fn live(self: Arc<Self>) {
        loop {
            tokio::time::sleep(BEAT).await;
            if let Err(error) = self.beat().await {
                tracing::warn!(%error, "the node cannot say that it lives");
            }
        }
    }

    /// Says once that this node lives.
    ///
    /// # Errors
    /// When the catalog cannot take it. Memory that cannot be dropped is logged and tried again with the next beat.
    pub(super) async fn beat(&self) -> Result<(), Error> {
        for tombstone in self.catalog.beat(&self.id, &self.boot_id).await? {
            if let Err(error) = self.drop_buried(&tombstone).await {
                tracing::warn!(volume.id = %tombstone.volume, %error, "memory of a deleted volume stays");
            }
        }
        Ok(())
    }

    async fn drop_buried(&self, tombstone: &Tombstone) -> Result<(), Error> {
        let id = &tombstone.volume;
        let _guard = self.lock(id)?;
        let successor = match self.catalog.get(id).await {
            Ok(stored) => stored.volume.layers.contains_key(&self.id),
            Err(catalog::Error::NotFound(_)) => false,
            Err(error) => return Err(error.into()),
        };
        // A new volume with this id has memory here: making that took the old one away.
        if !successor {
            self.unmount_layer(id).await?;
            let ours = mount_of(id);
            let mounts = self.blocking(|mounter| mounter.mounts()).await?;
            if mounts.iter().any(ours) {
                // A pod still has it, so its bytes are still there. Kubelet unpublishes it sooner or later.
                return Ok(());
            }
        }
        self.catalog.dropped(&self.id, tombstone).await?;
        tracing::info!(volume.id = %id, "memory of a volume that was deleted meanwhile is dropped");
        Ok(())
    }
}
