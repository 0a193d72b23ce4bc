//! What no call asks for: putting records right when the driver starts, and dropping the memory of deleted volumes.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Node};
use crate::failpoint::fail_point;
use crate::report::{Reason, Subject};
use crate::volume::catalog::Revision;
use crate::volume::{Phase, Presence, Volume, VolumeId, catalog};

/// Between tries of something that failed.
const PAUSE: Duration = Duration::from_secs(1);

impl Node {
    /// Makes records and mounts agree after a restart of the driver or of the node. Before any call is served.
    ///
    /// # Errors
    /// When the records or the mounts cannot be read. One volume's trouble is logged and does not stop the others.
    pub(crate) async fn reconcile(&self) -> Result<(), Error> {
        fail_point!("reconcile.begin");
        // Known as alive before the first call, and before anybody asks.
        if let Err(error) = self.beat().await {
            tracing::error!(%error, "the node cannot say that it lives");
        }
        let all = self.catalog.list().await?;
        for corrupt in &all.corrupt {
            let (path, reason) = (&corrupt.path, &corrupt.reason);
            tracing::error!(
                path,
                reason,
                "a record cannot be read; whatever it is about is left alone"
            );
            let about = [Subject::Node(self.id.clone())];
            let note =
                format!("{path} cannot be read, and what it is about is left alone: {reason}");
            self.events.publish(Reason::RecordUnreadable, &about, note);
        }
        for stored in &all.volumes {
            if let Err(error) = self.put_right(&stored.volume).await {
                tracing::warn!(volume.id = %stored.volume.id, %error, "a volume is not put right");
            }
        }
        fail_point!("reconcile.recorded");
        // Read again: what was found to be lost has no layer any more.
        let all = self.catalog.list().await?;
        for id in self.found().await? {
            let recorded = all.volumes.iter().find(|stored| stored.volume.id == id);
            let unknown = !all.is_corrupt(&id)
                && recorded.is_none_or(|stored| !stored.volume.layers.contains_key(&self.id));
            if unknown {
                // A crash came between the mount and its record: nobody has seen this memory.
                tracing::warn!(volume.id = %id, "memory without a record is dropped");
                if let Err(error) = self.unmount_layer(&id).await {
                    tracing::warn!(volume.id = %id, %error, "memory without a record stays");
                }
                fail_point!("reconcile.dropped");
            }
        }
        Ok(())
    }

    async fn put_right(&self, volume: &Volume) -> Result<(), Error> {
        let id = &volume.id;
        if let Presence::Gone { reason } = self.presence(volume).await? {
            self.lose(id, &reason).await?;
        }
        let stale = |volume: &Volume| {
            volume
                .layers
                .get(&self.id)
                .is_some_and(|layer| layer.boot_id != self.boot_id)
        };
        // A clone that was not filled to its end.
        let half = |volume: &Volume| volume.phase == Phase::Booked;
        if half(volume) && volume.layers.contains_key(&self.id) {
            self.unmount_layer(id).await?;
        }
        let volume = catalog::change::<Error>(&*self.catalog, id, |latest| {
            latest.forget_boot(&self.id, &self.boot_id);
            if stale(latest) || half(latest) {
                latest.layers.remove(&self.id);
            }
            Ok(())
        })
        .await?;
        if volume.phase == Phase::Resident && volume.home.as_ref() == Some(&self.id) {
            let here = volume.publications.iter();
            let here = here.filter(|publication| publication.node == self.id);
            let tenants = here.map(|publication| {
                let pod = self.targets.pod(&publication.path);
                (publication.path.clone(), pod, !publication.claim.read_only)
            });
            let tenants = tenants.collect();
            self.fit(&volume).await?;
            self.bills.resident(id, tenants).await?;
        }
        Ok(())
    }

    /// The volumes that have a directory among our layers.
    async fn found(&self) -> Result<Vec<VolumeId>, Error> {
        let layers = self.layers.clone();
        let names = tokio::task::spawn_blocking(move || {
            fs::read_dir(layers)?
                .map(|entry| Ok(entry?.file_name()))
                .collect()
        });
        let names: std::io::Result<Vec<_>> = names
            .await
            .map_err(|panic| Error::Inside(panic.to_string()))?;
        let names = names.map_err(|error| Error::Inside(format!("list the layers: {error}")))?;
        Ok(names
            .iter()
            .filter_map(|name| VolumeId::parse(name.to_str()?))
            .collect())
    }

    /// Drops the memory of deleted volumes as they appear. Never ends.
    pub(crate) async fn sweep(self: Arc<Self>) {
        let mut seen = Revision::default();
        loop {
            seen = self.catalog.changed(None, seen).await;
            if let Err(error) = self.drop_deleted().await {
                tracing::warn!(%error, "deleted volumes are not dropped yet");
                tokio::time::sleep(PAUSE).await;
                seen = Revision::default();
            }
        }
    }

    /// Drops the memory of every volume that is being deleted.
    pub(super) async fn drop_deleted(&self) -> Result<(), Error> {
        let mut trouble = Ok(());
        for id in self.catalog.doomed(&self.id).await? {
            if let Err(error) = self.drop_layer(&id).await {
                trouble = Err(error);
            }
        }
        trouble
    }

    async fn drop_layer(&self, id: &VolumeId) -> Result<(), Error> {
        // Before the lock: a stage that waits for the copy has it.
        self.stop_filling(id).await?;
        let _guard = self.lock(id)?;
        match self.catalog.get(id).await {
            Ok(stored) if stored.volume.is_doomed_on(&self.id) => {}
            // It was dropped, and may be another one by now.
            Ok(_) | Err(catalog::Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.unmount_layer(id).await?;
        fail_point!("drop.unmounted");
        catalog::change::<Error>(&*self.catalog, id, |volume| {
            volume.layers.remove(&self.id);
            Ok(())
        })
        .await?;
        fail_point!("drop.forgotten");
        tracing::info!(volume.id = %id, "memory of a deleted volume is dropped");
        Ok(())
    }
}
