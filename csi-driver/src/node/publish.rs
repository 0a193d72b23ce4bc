//! NodePublishVolume and NodeUnpublishVolume.
//!
//! The publication is recorded before the mount is made and forgotten after it is gone, so a mount without a record does not exist.

use std::path::Path;

use vineyard_proto::csi::{
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse,
};

use super::inline::is_inline;
use super::stage::{allowed, claim, flags, refusal};
use super::{Error, Node, known, mount_of};
use crate::failpoint::fail_point;
use crate::mount::{self, Mount};
use crate::report::{Reason, Subject};
use crate::validation;
use crate::volume::{PodReference, Publication, VolumeId, catalog};

/// What kubelet adds to the volume context when the CSIDriver asks for it (`podInfoOnMount`).
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";

impl Node {
    pub(super) async fn publish(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Error> {
        if is_inline(&request.volume_context) {
            return self.publish_inline(request).await;
        }
        let pod = PodReference::of_context(&request.volume_context);
        let published = self.publish_volume(request).await;
        if let (Some(pod), Err(error @ Error::Lost { .. })) = (pod, &published) {
            let about = [Subject::Pod(pod)];
            let note = error.to_string();
            self.events.publish(Reason::VolumeLost, &about, note);
        }
        published
    }

    async fn publish_volume(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Error> {
        validation::volume_id(&request.volume_id)?;
        let path = self.targets.take("target_path", &request.target_path)?;
        let capability = validation::capability(request.volume_capability.as_ref())?;
        validation::map("volume_context", &request.volume_context)?;
        if request.staging_target_path.is_empty() {
            return Err(Error::NoStagingPath);
        }
        let staged = self
            .targets
            .take("staging_target_path", &request.staging_target_path)?;
        let id = known(&request.volume_id)?;
        let _guard = self.lock(&id)?;
        let mut volume = self.catalog.get(&id).await?.volume;
        allowed(&volume, &capability)?;
        if self.begins_anew(&volume).await? {
            // After a reboot kubelet may leave out the staging.
            self.stage_at(&id, staged.clone(), &capability).await?;
            volume = self.catalog.get(&id).await?.volume;
        }
        let not_staged = || Error::NotStaged {
            id: id.clone(),
            path: staged.clone(),
        };
        let staging = volume.staging(&self.id, &staged);
        let staging = staging.filter(|staging| staging.boot_id == self.boot_id);
        // Before the staging: a lost volume is reported as lost, staged or not.
        self.require_present(&volume).await?;
        let staging = staging.ok_or_else(not_staged)?.clone();
        let read_only = request.readonly || staging.claim.read_only;
        let publication = Publication {
            node: self.id.clone(),
            boot_id: self.boot_id.clone(),
            path: path.clone(),
            pod_uid: request.volume_context.get(POD_UID).cloned(),
            pod: PodReference::of_context(&request.volume_context),
            claim: claim(&capability, read_only),
        };
        let is_there = volume
            .publications
            .iter()
            .any(|it| it.node == self.id && it.boot_id == self.boot_id && it.path == path);
        if !publication.claim.read_only && !is_there {
            self.require_sidecar(&id, &request.volume_context).await?;
        }
        let mut is_new = false;
        catalog::change(&*self.catalog, &id, |volume| {
            volume.forget_boot(&self.id, &self.boot_id);
            self.still_resident(volume)?;
            let before = volume.publications.len();
            let published = volume.publish(publication.clone());
            is_new = volume.publications.len() > before;
            published.map_err(|conflict| refusal(&id, &path, conflict))
        })
        .await?;
        fail_point!("publish.recorded");
        let (pod, writable) = (self.targets.pod(&path), !publication.claim.read_only);
        let shown = async {
            self.bills.published(&id, &path, pod, writable).await?;
            fail_point!("publish.noted");
            self.show(&id, path.clone(), flags(&publication.claim))
                .await
        };
        if let Err(error) = shown.await {
            if is_new {
                self.withdraw(&id, &path).await;
            }
            return Err(error);
        }
        fail_point!("publish.shown");
        Ok(NodePublishVolumeResponse {})
    }

    pub(super) async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Error> {
        let id = validation::volume_id(&request.volume_id)?;
        let path = self.targets.take("target_path", &request.target_path)?;
        if let Some(sockets) = &self.sockets
            && sockets.unpublish(&request.volume_id, &path).await?
        {
            return Ok(NodeUnpublishVolumeResponse {});
        }
        match id {
            Some(id) => {
                // Before the lock: meanwhile other pods may come and go.
                self.bills.before_unpublish(&id, &path).await;
                let _guard = self.lock(&id)?;
                self.remove(&id, &path).await?;
                self.bills.after_unpublish(&id, &path).await;
            }
            // A volume that nobody can know is not mounted anywhere; an empty directory may be left.
            None => {
                let nothing = |_: &Mount| false;
                self.blocking(move |mounter| mount::ensure_unmounted(mounter, nothing, &path))
                    .await?;
            }
        }
        fail_point!("unpublish.forgotten");
        Ok(NodeUnpublishVolumeResponse {})
    }

    async fn remove(&self, id: &VolumeId, path: &Path) -> Result<(), Error> {
        let (ours, at) = (mount_of(id), path.to_owned());
        self.blocking(move |mounter| mount::ensure_unmounted(mounter, ours, &at))
            .await?;
        fail_point!("unpublish.unmounted");
        let forgotten = catalog::change::<Error>(&*self.catalog, id, |volume| {
            volume.unpublish(&self.id, path);
            Ok(())
        });
        match forgotten.await {
            Ok(_) | Err(Error::Catalog(catalog::Error::NotFound(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes back a publication that could not be mounted. What cannot be undone is left to NodeUnpublishVolume.
    async fn withdraw(&self, id: &VolumeId, path: &Path) {
        let at = path.to_owned();
        let bare = self
            .blocking(move |mounter| Ok(mount::at(mounter, &at)?.is_none()))
            .await;
        if !matches!(bare, Ok(true)) {
            return;
        }
        fail_point!("publish.failed");
        let withdrawn = catalog::change::<Error>(&*self.catalog, id, |volume| {
            volume.unpublish(&self.id, path);
            Ok(())
        });
        match withdrawn.await {
            Ok(_) => self.bills.after_unpublish(id, path).await,
            Err(error) => {
                tracing::warn!(volume.id = %id, %error, "a publication that failed stays recorded");
            }
        }
    }
}
