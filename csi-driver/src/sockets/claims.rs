//! What a pod may write on this node: read from the records and the kernel's table, never from what the pod says.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use vineyard_charge::descriptor::Device;

use crate::bill::WritableClaim;
use crate::mount::{self, Mount, Mounter};
use crate::validation::Targets;
use crate::volume::{Catalog, NodeId, PodUid, Volume, VolumeId, catalog};

/// A volume counts as empty below this: the driver's own files in it are a few pages.
const EMPTY: u64 = 64 << 10;

/// Where the claims of this node's pods are looked up.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    /// This node.
    pub(crate) node: NodeId,
    /// This boot of it.
    pub(crate) boot_id: String,
    /// Directory of the volumes' own mounts.
    pub(crate) layers: PathBuf,
    /// Tells pods by kubelet's paths.
    pub(crate) targets: Targets,
    /// The records of volumes.
    pub(crate) catalog: Arc<dyn Catalog>,
    /// The kernel's table.
    pub(crate) mounter: Arc<dyn Mounter>,
}

/// One volume that a pod may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// What its allowance depends on.
    pub(super) claim: WritableClaim,
    /// The device of its files.
    pub(super) device: Device,
}

/// Why they could not be looked up.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// The records.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The table of mounts.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// A bug.
    #[error("the look-up failed inside: {0}")]
    Inside(String),
}

impl Claims {
    /// The volumes that are published for writing to `pod` now.
    pub(super) async fn of(&self, pod: &PodUid) -> Result<Vec<Claim>, LookupError> {
        let its = pod.clone();
        let shown = self.blocking(move |claims| claims.shown(&its)).await?;
        let mut volumes = Vec::new();
        for id in shown {
            match self.catalog.get(&id).await {
                Ok(stored) if self.writes(&stored.volume, pod) => volumes.push(stored.volume),
                Ok(_) | Err(catalog::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let pod = pod.clone();
        self.blocking(move |claims| {
            let found = volumes.iter().map(|volume| claims.measure(volume, &pod));
            found.filter_map(Result::transpose).collect()
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, mount::Error> + Send + 'static,
    ) -> Result<T, LookupError> {
        let claims = self.clone();
        let result = tokio::task::spawn_blocking(move || work(&claims)).await;
        Ok(result.map_err(|panic| LookupError::Inside(panic.to_string()))??)
    }

    /// The volumes that are mounted for `pod`, by the kernel's table: asked first, because there are many records of which few are this
    /// pod's. Kubelet starts no container before all of the pod's volumes are mounted.
    fn shown(&self, pod: &PodUid) -> Result<BTreeSet<VolumeId>, mount::Error> {
        let its = |mount: &&Mount| self.targets.pod(&mount.point).as_ref() == Some(pod);
        let mounts = self.mounter.mounts()?;
        Ok(mounts.iter().filter(its).filter_map(volume_of).collect())
    }

    fn writes(&self, volume: &Volume, pod: &PodUid) -> bool {
        volume.publications.iter().any(|publication| {
            publication.node == self.node
                && publication.boot_id == self.boot_id
                && !publication.claim.read_only
                && self.targets.pod(&publication.path).as_ref() == Some(pod)
        })
    }

    /// `None` when the volume's memory is not there.
    fn measure(&self, volume: &Volume, pod: &PodUid) -> Result<Option<Claim>, mount::Error> {
        let path = self.layers.join(volume.id.as_str());
        let Some(layer) = mount::at(&*self.mounter, &path)?
            .filter(|layer| volume_of(layer).as_ref() == Some(&volume.id))
        else {
            return Ok(None);
        };
        let usage = self.mounter.usage(&path)?;
        let pods: Vec<Option<PodUid>> = volume
            .publications
            .iter()
            .map(|publication| self.targets.pod(&publication.path))
            .collect();
        let alone = pods.iter().all(|other| other.as_ref() == Some(pod));
        let (major, minor) = layer.device;
        Ok(Some(Claim {
            claim: WritableClaim {
                id: volume.id.clone(),
                capacity: volume.capacity,
                is_fresh: alone && usage.bytes.saturating_sub(usage.free_bytes) <= EMPTY,
                others: pods
                    .into_iter()
                    .flatten()
                    .filter(|other| other != pod)
                    .collect(),
            },
            device: Device { major, minor },
        }))
    }
}

/// The volume that is mounted there, if it is one of ours.
pub(crate) fn volume_of(mount: &Mount) -> Option<VolumeId> {
    let (id, _epoch) = mount
        .source
        .to_str()?
        .strip_prefix("vineyard:")?
        .split_once('@')?;
    VolumeId::parse(id).filter(|_| mount.fs_type == "tmpfs")
}
