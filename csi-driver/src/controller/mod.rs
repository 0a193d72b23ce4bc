//! The Controller service: volumes exist, have a size, and fit into what the nodes offer.

mod budget;
mod clone;
mod create;
mod delete;
mod error;
mod expand;
mod forgotten;
mod list;
mod modify;
mod offers;
mod report;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tonic::{Request, Response, Status, async_trait};
use vineyard_proto::csi::controller_service_capability::{Rpc, Type, rpc};
use vineyard_proto::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerModifyVolumeRequest,
    ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse,
    CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse,
    GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse,
    ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, controller_server,
};

use crate::bytes::Bytes;
use crate::edge::{Edge, Never};
use crate::keyed_lock::{Guard, KeyedLock};
use crate::report::Events;
use crate::validation;
use crate::volume::{Catalog, VolumeId};

pub(crate) use budget::NodeBudget;
pub(crate) use error::Error;
pub(crate) use forgotten::Forgotten;
pub(crate) use offers::Offers;

/// The volumes and the nodes that they fit on.
#[derive(Debug)]
pub(crate) struct Controller {
    /// The records.
    pub(crate) catalog: Arc<dyn Catalog>,
    /// What the nodes offer.
    pub(crate) nodes: Offers,
    /// Capacity of a volume whose claim names none.
    pub(crate) default_capacity: Bytes,
    /// How long DeleteVolume waits for nodes to drop the memory.
    pub(crate) drop_patience: Duration,
    /// One operation per volume.
    pub(crate) locks: KeyedLock,
    /// Held while a source is looked at and its clone recorded, and while a volume without clones is marked as deleted.
    pub(crate) cloning: Mutex<()>,
    /// How long a node may be silent before it is taken for dead.
    pub(crate) node_grace: Duration,
    /// Stagings that keep a volume from being deleted, for a while.
    pub(crate) forgotten: Forgotten,
    /// Where users are told what happened.
    pub(crate) events: Events,
}

impl Controller {
    fn lock(&self, id: &VolumeId) -> Result<Guard, Error> {
        self.locks
            .try_lock(id)
            .ok_or_else(|| Error::Busy(id.clone()))
    }
}

/// Takes the id of a volume that may exist.
fn known(volume_id: &str) -> Result<VolumeId, Error> {
    validation::volume_id(volume_id)?.ok_or_else(|| Error::Unknown(volume_id.to_owned()))
}

/// The gRPC face of a [`Controller`].
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Where calls come in.
    pub(crate) edge: Edge,
    /// What they are about.
    pub(crate) controller: Arc<Controller>,
}

fn unimplemented<T>(rpc: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!(
        "{rpc} is not a capability of this driver"
    )))
}

#[async_trait]
impl controller_server::Controller for Service {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        let id = VolumeId::of_name(&request.name);
        let call = async move { controller.create(request).await };
        self.edge.answer("CreateVolume", id.as_str(), call).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        let id = request.volume_id.clone();
        let call = async move { controller.delete(request).await };
        self.edge.answer("DeleteVolume", &id, call).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        let id = request.volume_id.clone();
        let call = async move { controller.validate(request).await };
        self.edge
            .answer("ValidateVolumeCapabilities", &id, call)
            .await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        self.edge
            .answer(
                "ListVolumes",
                "",
                async move { controller.list(request).await },
            )
            .await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        self.edge
            .answer("GetCapacity", "", async move {
                controller.capacity(request).await
            })
            .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        let id = request.volume_id.clone();
        let call = async move { controller.get(request).await };
        self.edge.answer("ControllerGetVolume", &id, call).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        let id = request.volume_id.clone();
        let call = async move { controller.expand(request).await };
        self.edge.answer("ControllerExpandVolume", &id, call).await
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        let (controller, request) = (Arc::clone(&self.controller), request.into_inner());
        let id = request.volume_id.clone();
        let call = async move { controller.modify(request).await };
        self.edge.answer("ControllerModifyVolume", &id, call).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let kinds = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::GetCapacity,
            rpc::Type::ListVolumes,
            rpc::Type::GetVolume,
            rpc::Type::CloneVolume,
            rpc::Type::ExpandVolume,
            rpc::Type::ModifyVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capability = |kind: rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        };
        let capabilities = kinds.map(capability).into();
        let response = ControllerGetCapabilitiesResponse { capabilities };
        self.edge
            .answer("ControllerGetCapabilities", "", async move {
                Ok::<_, Never>(response)
            })
            .await
    }

    // The epoch in the record is the fence; attaching would only add latency.
    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        unimplemented("ControllerPublishVolume")
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        unimplemented("ControllerUnpublishVolume")
    }

    // A snapshot in memory that dies with the node would promise more than it keeps.
    async fn create_snapshot(
        &self,
        _: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        unimplemented("CreateSnapshot")
    }

    async fn delete_snapshot(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        unimplemented("DeleteSnapshot")
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        unimplemented("ListSnapshots")
    }

    async fn get_snapshot(
        &self,
        _: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        unimplemented("GetSnapshot")
    }
}
