//! Calls of CSI as values: a request knows where it goes and what answers it.

use tonic::transport::Channel;
use tonic::{Response, Status};
use vineyard_proto::csi::controller_client::ControllerClient;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use vineyard_proto::csi::*;

/// A request that can be sent, again and again.
pub(crate) trait Rpc: Clone + Send + 'static {
    /// What answers it.
    type Reply: Send;

    /// Name of the call.
    const NAME: &'static str;

    /// Sends it.
    fn send(
        self,
        channel: Channel,
    ) -> impl Future<Output = Result<Response<Self::Reply>, Status>> + Send;
}

macro_rules! rpc {
    ($($client:ident.$method:ident($request:ident) -> $reply:ident;)*) => {$(
        impl Rpc for $request {
            type Reply = $reply;

            const NAME: &'static str = stringify!($method);

            async fn send(self, channel: Channel) -> Result<Response<$reply>, Status> {
                $client::new(channel).$method(self).await
            }
        }
    )*};
}

rpc! {
    ControllerClient.create_volume(CreateVolumeRequest) -> CreateVolumeResponse;
    ControllerClient.get_capacity(GetCapacityRequest) -> GetCapacityResponse;
    ControllerClient.list_volumes(ListVolumesRequest) -> ListVolumesResponse;
    ControllerClient.controller_get_volume(ControllerGetVolumeRequest) -> ControllerGetVolumeResponse;
    ControllerClient.validate_volume_capabilities(ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse;
    ControllerClient.delete_volume(DeleteVolumeRequest) -> DeleteVolumeResponse;
    ControllerClient.controller_expand_volume(ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse;
    ControllerClient.controller_modify_volume(ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse;
    NodeClient.node_stage_volume(NodeStageVolumeRequest) -> NodeStageVolumeResponse;
    NodeClient.node_unstage_volume(NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
    NodeClient.node_publish_volume(NodePublishVolumeRequest) -> NodePublishVolumeResponse;
    NodeClient.node_unpublish_volume(NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse;
    NodeClient.node_expand_volume(NodeExpandVolumeRequest) -> NodeExpandVolumeResponse;
    NodeClient.node_get_volume_stats(NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse;
}

/// What every claim of these tests asks for.
pub(crate) fn capability() -> VolumeCapability {
    capability_of(Mode::SingleNodeMultiWriter, &[])
}

/// A mounted volume in `mode`, with mount flags.
pub(crate) fn capability_of(mode: Mode, flags: &[&str]) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Default::default()
        })),
    }
}

/// At least this many bytes.
pub(crate) fn at_least(required_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange {
        required_bytes,
        limit_bytes: 0,
    })
}
