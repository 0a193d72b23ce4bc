//! NodeExpandVolume: the tmpfs gets the capacity that ControllerExpandVolume booked.

use vineyard_proto::csi::{NodeExpandVolumeRequest, NodeExpandVolumeResponse};

use super::{Error, Node};
use crate::failpoint::fail_point;
use crate::validation;
use crate::volume::CapacityRange;

impl Node {
    pub(super) async fn expand(
        &self,
        request: NodeExpandVolumeRequest,
    ) -> Result<NodeExpandVolumeResponse, Error> {
        validation::volume_id(&request.volume_id)?;
        let range = request.capacity_range.unwrap_or_default();
        let range = CapacityRange::parse(range.required_bytes, range.limit_bytes)?;
        if request.volume_capability.is_some() {
            validation::capability(request.volume_capability.as_ref())?;
        }
        let (id, _) = self
            .volume_at(&request.volume_id, &request.volume_path)
            .await?;
        let _guard = self.lock(&id)?;
        let volume = self.catalog.get(&id).await?.volume;
        self.require_present(&volume).await?;
        let capacity = volume.capacity;
        if capacity.0 < range.required {
            let required = range.required;
            return Err(Error::NotBooked {
                id,
                capacity,
                required,
            });
        }
        self.fit(&volume).await?;
        fail_point!("expand.resized");
        Ok(NodeExpandVolumeResponse {
            capacity_bytes: capacity.wire(),
        })
    }
}
