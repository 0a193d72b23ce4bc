//! ListVolumes and ControllerGetVolume.

use vineyard_proto::csi::controller_get_volume_response::VolumeStatus;
use vineyard_proto::csi::list_volumes_response::Entry;
use vineyard_proto::csi::{
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ListVolumesRequest,
    ListVolumesResponse,
};

use super::create::described;
use super::{Controller, Error, known};
use crate::volume::VolumeId;

/// Before the id of the last volume that was listed. Volumes that come and go meanwhile do not shift the others.
const AFTER: &str = "after.";

impl Controller {
    pub(super) async fn list(
        &self,
        request: ListVolumesRequest,
    ) -> Result<ListVolumesResponse, Error> {
        let most = usize::try_from(request.max_entries)
            .map_err(|_| Error::Entries(request.max_entries))?;
        let token = request.starting_token;
        let after = if token.is_empty() {
            None
        } else {
            let id = token.strip_prefix(AFTER).and_then(VolumeId::parse);
            Some(id.ok_or(Error::Token(token))?)
        };
        let all = self.catalog.list().await?;
        let mut rest = all
            .iter()
            .map(|stored| &stored.volume)
            .filter(|volume| after.as_ref().is_none_or(|after| volume.id > *after));
        let page: Vec<_> = match most {
            0 => rest.by_ref().collect(),
            most => rest.by_ref().take(most).collect(),
        };
        let next_token = match (rest.next(), page.last()) {
            (Some(_), Some(last)) => format!("{AFTER}{}", last.id),
            _ => String::new(),
        };
        let entry = |volume| Entry {
            volume: Some(described(volume)),
            status: None,
        };
        Ok(ListVolumesResponse {
            entries: page.into_iter().map(entry).collect(),
            next_token,
        })
    }

    pub(super) async fn get(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<ControllerGetVolumeResponse, Error> {
        let id = known(&request.volume_id)?;
        let volume = self.catalog.get(&id).await?.volume;
        Ok(ControllerGetVolumeResponse {
            volume: Some(described(&volume)),
            // Which nodes have it is no capability of ours, and neither is its condition.
            status: Some(VolumeStatus::default()),
        })
    }
}
