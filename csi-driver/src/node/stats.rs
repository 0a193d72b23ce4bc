//! NodeGetVolumeStats.

use std::path::PathBuf;

use vineyard_proto::csi::volume_usage::Unit;
use vineyard_proto::csi::{NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, VolumeUsage};

use super::{Error, Node, known, mount_of};
use crate::bytes::Bytes;
use crate::failpoint::fail_point;
use crate::mount;
use crate::validation::{self, Invalid};
use crate::volume::VolumeId;

impl Node {
    pub(super) async fn stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Error> {
        let (id, at) = (&request.volume_id, &request.volume_path);
        let path = match self.inline_at(id, at).await? {
            Some(path) => path,
            None => self.volume_at(id, at).await?.1,
        };
        fail_point!("stats.found");
        let usage = self.blocking(move |mounter| mounter.usage(&path)).await?;
        let entry = |unit: Unit, total: u64, free: u64| VolumeUsage {
            unit: unit.into(),
            total: Bytes(total).wire(),
            available: Bytes(free).wire(),
            used: Bytes(total.saturating_sub(free)).wire(),
        };
        Ok(NodeGetVolumeStatsResponse {
            usage: vec![
                entry(Unit::Bytes, usage.bytes, usage.free_bytes),
                entry(Unit::Inodes, usage.inodes, usage.free_inodes),
            ],
            volume_condition: None,
        })
    }

    /// The volume that is mounted at one of kubelet's paths, and that path.
    pub(super) async fn volume_at(
        &self,
        volume_id: &str,
        volume_path: &str,
    ) -> Result<(VolumeId, PathBuf), Error> {
        validation::volume_id(volume_id)?;
        let path = match self.targets.take("volume_path", volume_path) {
            Err(missing @ Invalid::Missing(_)) => return Err(missing.into()),
            taken => taken.ok(),
        };
        let id = known(volume_id)?;
        self.catalog.get(&id).await?;
        let not_there = || Error::NotThere {
            id: id.clone(),
            path: volume_path.into(),
        };
        // Nothing of ours is at a path that we would not have taken.
        let path = path.ok_or_else(not_there)?;
        let (ours, at) = (mount_of(&id), path.clone());
        let top = self
            .blocking(move |mounter| mount::at(mounter, &at))
            .await?;
        match top {
            Some(mount) if ours(&mount) => Ok((id, path)),
            _ => Err(not_there()),
        }
    }
}
