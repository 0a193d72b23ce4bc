//! ControllerModifyVolume: what a VolumeAttributesClass may change.

use vineyard_proto::csi::{ControllerModifyVolumeRequest, ControllerModifyVolumeResponse};

use super::{Controller, Error, known};
use crate::failpoint::fail_point;
use crate::validation;
use crate::volume::{Phase, catalog};

impl Controller {
    pub(super) async fn modify(
        &self,
        request: ControllerModifyVolumeRequest,
    ) -> Result<ControllerModifyVolumeResponse, Error> {
        validation::volume_id(&request.volume_id)?;
        validation::map("mutable_parameters", &request.mutable_parameters)?;
        let id = known(&request.volume_id)?;
        let _guard = self.lock(&id)?;
        catalog::change::<Error>(&*self.catalog, &id, |volume| {
            if volume.phase == Phase::Deleting {
                return Err(Error::Unknown(id.as_str().to_owned()));
            }
            volume.parameters = volume.parameters.modified(&request.mutable_parameters)?;
            Ok(())
        })
        .await?;
        fail_point!("modify.recorded");
        Ok(ControllerModifyVolumeResponse {})
    }
}
