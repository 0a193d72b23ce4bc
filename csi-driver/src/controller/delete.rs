//! DeleteVolume: marks the record, waits until the nodes have dropped the memory, removes the record.

use tokio::time::{Instant, timeout_at};
use vineyard_proto::csi::{DeleteVolumeRequest, DeleteVolumeResponse};

use super::{Controller, Error};
use crate::validation;
use crate::volume::catalog::Revision;
use crate::volume::{NodeId, Phase, VolumeId, catalog};

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
        let marked = catalog::change::<Error>(&*self.catalog, &id, |volume| {
            if volume.phase != Phase::Deleting && volume.is_in_use() {
                return Err(Error::InUse {
                    id: id.clone(),
                    publications: volume.publications.len(),
                    stagings: volume.stagings.len(),
                });
            }
            volume.phase = Phase::Deleting;
            Ok(())
        });
        match marked.await {
            Ok(_) => self.finish(&id).await?,
            Err(Error::Catalog(catalog::Error::NotFound(_))) => {}
            Err(error) => return Err(error),
        }
        Ok(DeleteVolumeResponse {})
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
                match self.catalog.delete(&stored.version, id).await {
                    Ok(()) | Err(catalog::Error::NotFound(_)) => return Ok(()),
                    Err(catalog::Error::Conflict(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            match timeout_at(deadline, self.catalog.changed(seen)).await {
                Ok(revision) => seen = revision,
                Err(_) => {
                    let nodes: Vec<_> = stored.volume.layers.keys().map(NodeId::as_str).collect();
                    return Err(Error::Dropping {
                        id: id.clone(),
                        nodes: nodes.join(", "),
                    });
                }
            }
        }
    }
}
