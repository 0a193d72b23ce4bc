//! GetCapacity and ValidateVolumeCapabilities: questions that change nothing.

use vineyard_proto::csi::validate_volume_capabilities_response::Confirmed;
use vineyard_proto::csi::{
    GetCapacityRequest, GetCapacityResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
};

use super::{Controller, Error, known};
use crate::bytes::Bytes;
use crate::validation::{self, Invalid};
use crate::volume::{PAGE, Parameters, Volume};

impl Controller {
    /// Budget less what is booked, and nothing else: subtracting what pods request would keep the scheduler from preempting.
    pub(super) async fn capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse, Error> {
        let parameters = Parameters::parse(&request.parameters, &Default::default());
        let mut capabilities = request.volume_capabilities.iter();
        let possible = parameters.is_ok()
            && capabilities.all(|each| validation::capability(Some(each)).is_ok());
        // With a record that cannot be read, nobody knows what is left: no answer is better than a wrong one.
        let all = self.catalog.list().await?;
        let segments = request.accessible_topology.unwrap_or_default().segments;
        let offered = self.nodes.all().await?;
        let nodes = offered
            .iter()
            .filter(|node| possible && node.is_in(&segments));
        let pages = |free: Bytes| free.0 / PAGE * PAGE;
        let free = nodes.map(|node| node.free(&all).map(pages));
        let free: Vec<u64> = free.collect::<Result<_, _>>()?;
        let largest = free.iter().max().copied().unwrap_or(0);
        Ok(GetCapacityResponse {
            available_capacity: Bytes(free.iter().sum()).wire(),
            // One volume is on one node.
            maximum_volume_size: Some(Bytes(largest).wire()),
            minimum_volume_size: Some(Bytes(PAGE).wire()),
        })
    }

    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Error> {
        validation::volume_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Invalid::Missing("volume_capabilities").into());
        }
        let id = known(&request.volume_id)?;
        let volume = self.catalog.get(&id).await?.volume;
        Ok(match objection(&request, &volume)? {
            Some(message) => ValidateVolumeCapabilitiesResponse {
                confirmed: None,
                message,
            },
            None => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
        })
    }
}

/// Why the volume is not what is asked about, if so. A question that is no question is an error.
fn objection(
    request: &ValidateVolumeCapabilitiesRequest,
    volume: &Volume,
) -> Result<Option<String>, Error> {
    for capability in &request.volume_capabilities {
        match validation::capability(Some(capability)) {
            Err(unsupported @ Invalid::Unsupported(_)) => return Ok(Some(unsupported.to_string())),
            Err(error) => return Err(error.into()),
            Ok(it) if !volume.access_modes.contains(&it.access_mode) => {
                return Ok(Some(format!(
                    "the volume was not created for {:?}",
                    it.access_mode
                )));
            }
            Ok(_) => {}
        }
    }
    if !request.volume_context.is_empty() {
        return Ok(Some("the volume has no volume_context".into()));
    }
    let asked = !request.parameters.is_empty() || !request.mutable_parameters.is_empty();
    match Parameters::parse(&request.parameters, &request.mutable_parameters) {
        Err(error) => Ok(Some(error.to_string())),
        Ok(parameters) if asked && parameters != volume.parameters => {
            Ok(Some("the volume has other parameters".into()))
        }
        Ok(_) => Ok(None),
    }
}
