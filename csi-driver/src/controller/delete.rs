//! DeleteVolume: marks the record, waits until the nodes have dropped the memory, removes the record. Dead nodes are not waited
//! for: they get a tombstone, and drop the memory when they come back.

use tokio::time::{Instant, timeout_at};
use vineyard_proto::csi::{DeleteVolumeRequest, DeleteVolumeResponse};

use super::{Controller, Error, clone};
use crate::failpoint::fail_point;
use crate::report::{Reason, Subject};
use crate::validation;
use crate::volume::catalog::Revision;
use crate::volume::{NodeId, Phase, Volume, VolumeId, catalog};

impl Controller {
    pub(super) async fn delete(
        &self,
        request: DeleteVolumeRequest,
    ) -> Result<DeleteVolumeResponse, Error> {
        // What does not exist is deleted.
        let Some(id) = validation::volume_id(&request.volume_id)? else {
            return Ok(DeleteVolumeResponse {});
        };
        let _guard = self.lock(&id)?;
        // Nobody clones it between the look for clones and its mark.
        let cloning = self.cloning.lock().await;
        let all = self.catalog.list().await?;
        let marked = catalog::change::<Error>(&*self.catalog, &id, |volume| {
            // Kubelet of a dead node takes nothing away any more.
            let (stagings, publications) = volume.users(|node| !all.is_dead(node, self.node_grace));
            if volume.phase != Phase::Deleting
                && self.forgotten.is_in_use(&id, stagings, publications)
            {
                return Err(Error::InUse {
                    id: id.clone(),
                    publications,
                    stagings,
                });
            }
            let clones = clone::unfilled(&all, volume);
            if volume.phase != Phase::Deleting && !clones.is_empty() {
                let clones: Vec<_> = clones.iter().map(VolumeId::as_str).collect();
                return Err(Error::Cloned {
                    id: id.clone(),
                    clones: clones.join(", "),
                });
            }
            if volume.phase != Phase::Deleting && stagings > 0 {
                tracing::warn!(volume.id = %id, stagings, "deleted although it is staged: nobody has unstaged it for a while");
            }
            volume.phase = Phase::Deleting;
            Ok(())
        });
        let marked = marked.await;
        drop(cloning);
        let deleted = self.removed(&id, marked).await;
        if let Err(error @ (Error::InUse { .. } | Error::Cloned { .. } | Error::Dropping { .. })) =
            &deleted
        {
            let about = [Subject::Volume(id.clone())];
            self.events
                .publish(Reason::BytesInUse, &about, error.to_string());
        }
        deleted?;
        self.forgotten.forget(&id);
        fail_point!("delete.removed");
        Ok(DeleteVolumeResponse {})
    }

    async fn removed(&self, id: &VolumeId, marked: Result<Volume, Error>) -> Result<(), Error> {
        match marked {
            Ok(_) => {
                fail_point!("delete.marked");
                self.finish(id).await
            }
            Err(Error::Catalog(catalog::Error::NotFound(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the record once no memory is left.
    async fn finish(&self, id: &VolumeId) -> Result<(), Error> {
        let deadline = Instant::now() + self.drop_patience;
        let mut seen = Revision::default();
        loop {
            let stored = match self.catalog.get(id).await {
                Err(catalog::Error::NotFound(_)) => return Ok(()),
                other => other?,
            };
            if stored.volume.layers.is_empty() {
                fail_point!("delete.dropped");
                match self.catalog.delete(&stored.version, id).await {
                    Ok(()) | Err(catalog::Error::NotFound(_)) => return Ok(()),
                    Err(catalog::Error::Conflict(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            let nodes = || stored.volume.layers.keys();
            let all = self.catalog.list().await?;
            if nodes().all(|node| all.is_dead(node, self.node_grace)) {
                match self.catalog.bury(&stored.version, id).await {
                    Ok(()) => {
                        let nodes = names(nodes());
                        tracing::warn!(volume.id = %id, nodes, "deleted on dead nodes: they drop the memory when they come back");
                        return Ok(());
                    }
                    Err(catalog::Error::NotFound(_)) => return Ok(()),
                    Err(catalog::Error::Conflict(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            match timeout_at(deadline, self.catalog.changed(Some(id), seen)).await {
                Ok(revision) => seen = revision,
                Err(_) => {
                    return Err(Error::Dropping {
                        id: id.clone(),
                        nodes: names(nodes()),
                    });
                }
            }
        }
    }
}

fn names<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}
