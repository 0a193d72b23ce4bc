//! The Node service: the volume's memory on this node, and where kubelet wants to see it.

mod alive;
mod clone;
mod error;
mod expand;
mod inline;
mod layer;
mod publish;
mod sidecars;
mod stage;
mod stats;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};
use vineyard_proto::csi::node_service_capability::{Rpc, Type, rpc};
use vineyard_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology, node_server,
};

use crate::bill::Bills;
use crate::bytes::Bytes;
use crate::edge::{Edge, Never};
use crate::identity::{NODE_KEY, POOL_KEY};
use crate::keyed_lock::{Guard, KeyedLock};
use crate::mount::{self, Mount, Mounter};
use crate::report::Events;
use crate::sockets::{Sockets, volume_of};
use crate::validation::{self, Targets};
use crate::volume::{Catalog, NodeId, VolumeId};

pub(crate) use clone::Clones;
pub(crate) use error::{Error, catalog_code};
pub(crate) use sidecars::Sidecars;

/// This node, and what it works with. Cheap to clone: everything that changes is shared.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) id: NodeId,
    /// The pool that it belongs to.
    pub(crate) pool: String,
    /// This boot of it: memory of any other one is gone.
    pub(crate) boot_id: String,
    /// Memory that it offers to volumes.
    pub(crate) budget: Bytes,
    /// Directory of the volumes' own mounts; private to root.
    pub(crate) layers: PathBuf,
    /// Where kubelet may have volumes.
    pub(crate) targets: Targets,
    /// The records.
    pub(crate) catalog: Arc<dyn Catalog>,
    /// The system calls.
    pub(crate) mounter: Arc<dyn Mounter>,
    /// One operation per volume.
    pub(crate) locks: KeyedLock,
    /// The clones that are being filled.
    pub(crate) clones: Arc<Clones>,
    /// Who is billed for what is on them.
    pub(crate) bills: Bills,
    /// The pods' sockets volumes.
    pub(crate) sockets: Option<Arc<Sockets>>,
    /// Where users are told what happened.
    pub(crate) events: Events,
    /// Which pods have a sidecar, where those that write must have one.
    pub(crate) sidecars: Option<Arc<dyn Sidecars>>,
}

impl Node {
    /// Memory that it can offer to volumes now: never more than its retainer can be billed for.
    pub(crate) fn offers(&self) -> Bytes {
        let bound = self.bills.bound().unwrap_or(self.budget);
        self.budget.min(bound)
    }

    fn lock(&self, id: &VolumeId) -> Result<Guard, Error> {
        self.locks
            .try_lock(id)
            .ok_or_else(|| Error::Busy(id.clone()))
    }

    /// Runs mount calls off the executor.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Mounter) -> Result<T, mount::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mounter = Arc::clone(&self.mounter);
        let result = tokio::task::spawn_blocking(move || work(&*mounter)).await;
        Ok(result.map_err(|panic| Error::Inside(panic.to_string()))??)
    }
}

/// Takes the id of a volume that may exist.
fn known(volume_id: &str) -> Result<VolumeId, Error> {
    validation::volume_id(volume_id)?.ok_or_else(|| Error::Unknown(volume_id.to_owned()))
}

/// Recognises the mounts of a volume: in all epochs, and of no other volume.
fn mount_of(id: &VolumeId) -> impl Fn(&Mount) -> bool + Clone + Send + 'static {
    let id = id.clone();
    move |mount| volume_of(mount).as_ref() == Some(&id)
}

/// The gRPC face of a [`Node`].
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Where calls come in.
    pub(crate) edge: Edge,
    /// What they are about.
    pub(crate) node: Arc<Node>,
}

#[async_trait]
impl node_server::Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let id = request.volume_id.clone();
        self.edge
            .answer(
                "NodeStageVolume",
                &id,
                async move { node.stage(request).await },
            )
            .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let id = request.volume_id.clone();
        self.edge
            .answer("NodeUnstageVolume", &id, async move {
                node.unstage(request).await
            })
            .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let id = request.volume_id.clone();
        self.edge
            .answer("NodePublishVolume", &id, async move {
                node.publish(request).await
            })
            .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let id = request.volume_id.clone();
        let call = async move { node.unpublish(request).await };
        self.edge.answer("NodeUnpublishVolume", &id, call).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let id = request.volume_id.clone();
        self.edge
            .answer("NodeGetVolumeStats", &id, async move {
                node.stats(request).await
            })
            .await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let (node, request) = (Arc::clone(&self.node), request.into_inner());
        let id = request.volume_id.clone();
        self.edge
            .answer("NodeExpandVolume", &id, async move {
                node.expand(request).await
            })
            .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let kinds = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capability = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        };
        let response = NodeGetCapabilitiesResponse {
            capabilities: kinds.map(capability).into(),
        };
        self.edge
            .answer("NodeGetCapabilities", "", async move {
                Ok::<_, Never>(response)
            })
            .await
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = HashMap::from([
            (NODE_KEY.to_owned(), self.node.id.as_str().to_owned()),
            (POOL_KEY.to_owned(), self.node.pool.clone()),
        ]);
        let response = NodeGetInfoResponse {
            node_id: self.node.id.as_str().to_owned(),
            // 0: the budget is the limit, not the number.
            max_volumes_per_node: 0,
            accessible_topology: Some(Topology { segments }),
        };
        self.edge
            .answer("NodeGetInfo", "", async move { Ok::<_, Never>(response) })
            .await
    }
}
