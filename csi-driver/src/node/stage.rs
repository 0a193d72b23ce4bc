//! NodeStageVolume and NodeUnstageVolume.
//!
//! Staging makes the volume present on this node, and records the staging path; unstaging forgets it, and the memory stays, for the
//! next pod. Nothing is mounted at that path: kubelet unstages a volume only when what is mounted there is mounted nowhere else, and the
//! memory has a place of its own.

use vineyard_proto::csi::{
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse,
};

use super::{Error, Node, known, mount_of};
use crate::failpoint::fail_point;
use crate::mount::{self, Flags};
use crate::validation::{self, Capability};
use crate::volume::{Claim, Conflict, Phase, Staging, Volume, VolumeId, catalog};

impl Node {
    pub(super) async fn stage(
        &self,
        request: NodeStageVolumeRequest,
    ) -> Result<NodeStageVolumeResponse, Error> {
        validation::volume_id(&request.volume_id)?;
        let path = self
            .targets
            .take("staging_target_path", &request.staging_target_path)?;
        let capability = validation::capability(request.volume_capability.as_ref())?;
        validation::map("volume_context", &request.volume_context)?;
        let id = known(&request.volume_id)?;
        let _guard = self.lock(&id)?;
        allowed(&self.catalog.get(&id).await?.volume, &capability)?;
        self.stage_at(&id, path, &capability).await?;
        Ok(NodeStageVolumeResponse {})
    }

    /// Makes the volume present for a staging path. The caller has the volume's lock.
    pub(super) async fn stage_at(
        &self,
        id: &VolumeId,
        path: std::path::PathBuf,
        capability: &Capability,
    ) -> Result<(), Error> {
        self.ensure_present(id, capability.context.as_deref())
            .await?;
        fail_point!("stage.present");
        let staging = Staging {
            node: self.id.clone(),
            boot_id: self.boot_id.clone(),
            path: path.clone(),
            claim: claim(capability, false),
        };
        catalog::change(&*self.catalog, id, |volume| {
            volume.forget_boot(&self.id, &self.boot_id);
            self.still_resident(volume)?;
            let incompatible = || Error::Incompatible {
                id: id.clone(),
                path: path.clone(),
            };
            volume.stage(staging.clone()).map_err(|_| incompatible())
        })
        .await?;
        fail_point!("stage.recorded");
        Ok(())
    }

    pub(super) async fn unstage(
        &self,
        request: NodeUnstageVolumeRequest,
    ) -> Result<NodeUnstageVolumeResponse, Error> {
        let id = validation::volume_id(&request.volume_id)?;
        let path = self
            .targets
            .take("staging_target_path", &request.staging_target_path)?;
        // A volume that nobody can know is not staged anywhere.
        let Some(id) = id else {
            return Ok(NodeUnstageVolumeResponse {});
        };
        let _guard = self.lock(&id)?;
        let (ours, at) = (mount_of(&id), path.clone());
        // What somebody mounted there. The directory is kubelet's: it made it, and it removes it.
        self.blocking(move |mounter| mount::ensure_bare(mounter, ours, &at))
            .await?;
        fail_point!("unstage.unmounted");
        let forgotten = catalog::change::<Error>(&*self.catalog, &id, |volume| {
            volume.unstage(&self.id, &path);
            Ok(())
        });
        let forgotten = forgotten.await;
        fail_point!("unstage.forgotten");
        match forgotten {
            Ok(_) | Err(Error::Catalog(catalog::Error::NotFound(_))) => {
                Ok(NodeUnstageVolumeResponse {})
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the volume may still get mounts here: it was present a moment ago.
    pub(super) fn still_resident(&self, volume: &Volume) -> Result<(), Error> {
        let here = volume.home.as_ref() == Some(&self.id);
        match &volume.phase {
            Phase::Resident if here => Ok(()),
            Phase::Deleting => Err(Error::Unknown(volume.name.clone())),
            _ => Err(catalog::Error::Conflict(volume.id.clone()).into()),
        }
    }

    /// Shows the volume's tmpfs at `path`, once.
    pub(super) async fn show(
        &self,
        id: &VolumeId,
        path: std::path::PathBuf,
        flags: Flags,
    ) -> Result<(), Error> {
        let (ours, backing) = (mount_of(id), self.layer_path(id));
        self.blocking(move |mounter| mount::ensure_bound(mounter, ours, &backing, &path, flags))
            .await
    }
}

/// Whether the volume was created for this.
pub(super) fn allowed(volume: &Volume, capability: &Capability) -> Result<(), Error> {
    if volume.access_modes.contains(&capability.access_mode) {
        return Ok(());
    }
    Err(Error::Exceeds {
        id: volume.id.clone(),
        mode: capability.access_mode,
    })
}

/// What is recorded of a request.
pub(super) fn claim(capability: &Capability, read_only: bool) -> Claim {
    let mode = capability.access_mode;
    Claim {
        access_mode: mode,
        read_only: read_only || capability.flags.read_only || mode.is_read_only(),
        no_exec: capability.flags.no_exec,
        no_atime: capability.flags.no_atime,
    }
}

/// How a claim is mounted.
pub(super) fn flags(claim: &Claim) -> Flags {
    Flags {
        read_only: claim.read_only,
        no_exec: claim.no_exec,
        no_atime: claim.no_atime,
    }
}

/// What a conflict means to a caller.
pub(super) fn refusal(id: &VolumeId, path: &std::path::Path, conflict: Conflict) -> Error {
    let id = id.clone();
    match conflict {
        Conflict::Different => Error::Incompatible {
            id,
            path: path.to_owned(),
        },
        Conflict::Exclusive(holder) => Error::Exclusive { id, path: holder },
    }
}
