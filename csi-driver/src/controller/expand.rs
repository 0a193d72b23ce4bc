//! ControllerExpandVolume: books the additional capacity. The node then gives it to the tmpfs.

use vineyard_proto::csi::{ControllerExpandVolumeRequest, ControllerExpandVolumeResponse};

use super::{Controller, Error, known};
use crate::bytes::Bytes;
use crate::failpoint::fail_point;
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
        let booked = self.catalog.get(&id).await?.volume.booked;
        let nodes = self.nodes.all().await?;
        let node = nodes.iter().find(|node| node.node == booked);
        let budget = node.map_or(Bytes(0), |node| node.budget);
        let mut more = Bytes(0);
        let expanded = catalog::change_booking::<Error>(&*self.catalog, &id, budget, |volume| {
            if volume.booked != booked {
                // It found its home meanwhile.
                return Err(Error::Busy(id.clone()));
            }
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
            more = Bytes(capacity.0 - volume.capacity.0);
            volume.capacity = capacity;
            Ok(())
        });
        let volume = match expanded.await {
            Err(Error::Catalog(catalog::Error::NoRoom { free, .. })) => {
                let nodes = usize::from(node.is_some());
                let capacity = more;
                return Err(Error::NoRoom {
                    capacity,
                    nodes,
                    free,
                });
            }
            other => other?,
        };
        fail_point!("expand.booked");
        Ok(ControllerExpandVolumeResponse {
            capacity_bytes: volume.capacity.wire(),
            node_expansion_required: volume.home.is_some(),
        })
    }
}
