//! What a pod may write on this node: read from the records and the kernel's table, never from what the pod says.

use std::path::PathBuf;
use std::sync::Arc;

use vineyard_charge::descriptor::Device;

use crate::bill::WritableClaim;
use crate::mount::{self, Mounter};
use crate::validation::Targets;
use crate::volume::{Catalog, NodeId, PodUid, Volume, catalog};

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
        let mut volumes = self.catalog.list().await?.volumes;
        volumes.retain(|stored| self.writes(&stored.volume, pod));
        let (claims, pod) = (self.clone(), pod.clone());
        let measured = tokio::task::spawn_blocking(move || {
            let found = volumes
                .iter()
                .map(|stored| claims.measure(&stored.volume, &pod));
            found
                .filter_map(Result::transpose)
                .collect::<Result<Vec<_>, _>>()
        });
        Ok(measured
            .await
            .map_err(|panic| LookupError::Inside(panic.to_string()))??)
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
        let prefix = format!("vineyard:{}@", volume.id);
        let Some(layer) = mount::at(&*self.mounter, &path)?.filter(|layer| {
            let source = layer.source.to_str();
            layer.fs_type == "tmpfs" && source.is_some_and(|it| it.starts_with(&prefix))
        }) else {
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
