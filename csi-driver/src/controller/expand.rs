//! ControllerExpandVolume: books the additional capacity. The node then gives it to the tmpfs.

use vineyard_proto::csi::{ControllerExpandVolumeRequest, ControllerExpandVolumeResponse};

use super::{Controller, Error, known};
use crate::bytes::Bytes;
use crate::validation;
use crate::volume::{CapacityRange, Phase, RangeError, catalog};

impl Controller {
    pub(super) async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, Error> {
        validation::volume_id(&request.volume_id)?;
        let range = request
            .capacity_range
            .ok_or(validation::Invalid::Missing("capacity_range"))?;
        let range = CapacityRange::parse(range.required_bytes, range.limit_bytes)?;
        if request.volume_capability.is_some() {
            validation::capability(request.volume_capability.as_ref())?;
        }
        let id = known(&request.volume_id)?;
        let _guard = self.lock(&id)?;
        let _booking = self.booking.lock().await;
        let all = self.catalog.list().await?;
        let volume = catalog::change::<Error>(&*self.catalog, &id, |volume| {
            if volume.phase == Phase::Deleting {
                return Err(Error::Unknown(id.as_str().to_owned()));
            }
            let (required, limit) = (range.required, range.limit);
            if limit > 0 && volume.capacity.0 > limit {
                // A volume never becomes smaller.
                return Err(RangeError::Empty {
                    required: volume.capacity.0,
                    limit,
                }
                .into());
            }
            if volume.capacity.0 >= required {
                return Ok(());
            }
            let capacity = range.choose(volume.capacity)?;
            let more = Bytes(capacity.0 - volume.capacity.0);
            let node = self.nodes.iter().find(|node| node.node == volume.booked);
            let free = node.map_or(Bytes(0), |node| node.free(&all));
            if free < more {
                let nodes = usize::from(node.is_some());
                return Err(Error::NoRoom {
                    capacity: more,
                    nodes,
                    free,
                });
            }
            volume.capacity = capacity;
            Ok(())
        })
        .await?;
        Ok(ControllerExpandVolumeResponse {
            capacity_bytes: volume.capacity.wire(),
            node_expansion_required: volume.home.is_some(),
        })
    }
}
