//! The Identity service, and the names that everything else agrees on.

use std::collections::HashMap;

use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};
use vineyard_proto::csi::plugin_capability::{Service, VolumeExpansion, service, volume_expansion};
use vineyard_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse, identity_server,
    plugin_capability,
};

use crate::edge::{Edge, Never};

/// Name of the driver, as storage classes call it.
pub(crate) const DRIVER: &str = "vineyard.io";

/// Topology key whose value is the node's name.
pub(crate) const NODE_KEY: &str = "vineyard.io/node";

/// Topology key whose value is the pool that the node belongs to.
pub(crate) const POOL_KEY: &str = "vineyard.io/pool";

/// Who we are, what we can do, whether we are ready.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    edge: Edge,
    ready: watch::Receiver<bool>,
}

impl Identity {
    /// Ready as `ready` says.
    pub(crate) fn new(edge: Edge, ready: watch::Receiver<bool>) -> Self {
        Self { edge, ready }
    }
}

#[async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let response = GetPluginInfoResponse {
            name: DRIVER.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        };
        self.edge
            .answer("GetPluginInfo", "", async move { Ok::<_, Never>(response) })
            .await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| {
            plugin_capability::Type::Service(Service {
                r#type: kind.into(),
            })
        };
        let online = volume_expansion::Type::Online.into();
        let kinds = [
            service(service::Type::ControllerService),
            service(service::Type::VolumeAccessibilityConstraints),
            plugin_capability::Type::VolumeExpansion(VolumeExpansion { r#type: online }),
        ];
        let capabilities = kinds
            .map(|kind| PluginCapability { r#type: Some(kind) })
            .into();
        let response = GetPluginCapabilitiesResponse { capabilities };
        self.edge
            .answer("GetPluginCapabilities", "", async move {
                Ok::<_, Never>(response)
            })
            .await
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let response = ProbeResponse {
            ready: Some(*self.ready.borrow()),
        };
        self.edge
            .answer("Probe", "", async move { Ok::<_, Never>(response) })
            .await
    }
}
