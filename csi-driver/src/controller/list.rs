//! ListVolumes and ControllerGetVolume.

use std::collections::BTreeMap;

use vineyard_proto::csi::controller_get_volume_response::VolumeStatus;
use vineyard_proto::csi::list_volumes_response::Entry;
use vineyard_proto::csi::{
    self, ControllerGetVolumeRequest, ControllerGetVolumeResponse, ListVolumesRequest,
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
        let readable = all.volumes.iter().map(|stored| &stored.volume);
        let mut entries: BTreeMap<_, _> = readable
            .map(|volume| (&volume.id, described(volume)))
            .collect();
        for corrupt in &all.corrupt {
            // It exists. Left out, it would look deleted.
            entries.extend(corrupt.id.as_ref().map(|id| (id, unreadable(id))));
        }
        let mut rest = entries
            .into_iter()
            .filter(|(id, _)| after.as_ref().is_none_or(|after| *id > after));
        let page: Vec<_> = match most {
            0 => rest.by_ref().collect(),
            most => rest.by_ref().take(most).collect(),
        };
        let next_token = match (rest.next(), page.last()) {
            (Some(_), Some((last, _))) => format!("{AFTER}{last}"),
            _ => String::new(),
        };
        let entry = |(_, volume)| Entry {
            volume: Some(volume),
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

/// A volume whose record cannot be read: 0 is how the specification says that the capacity is unknown.
fn unreadable(id: &VolumeId) -> csi::Volume {
    csi::Volume {
        volume_id: id.as_str().to_owned(),
        ..Default::default()
    }
}
