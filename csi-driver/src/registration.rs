//! How kubelet learns of the node plugin: it watches a directory for sockets and asks whoever serves there.

use std::path::PathBuf;

use tokio::sync::mpsc;
use tonic::{Request, Response, Status, async_trait};
use vineyard_proto::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server,
};

use crate::identity::DRIVER;

/// Name of our socket in kubelet's directory of plugins.
pub(crate) const SOCKET: &str = "vineyard.io-reg.sock";

/// Version of CSI as kubelet compares it.
const CSI_VERSION: &str = "1.0.0";

/// Answers kubelet's questions about the plugin.
#[derive(Debug)]
pub(crate) struct Registration {
    /// Our CSI socket, as kubelet reaches it.
    pub(crate) endpoint: PathBuf,
    /// Gets kubelet's refusal. A process that is refused ends, so that it is started, and asked, again.
    pub(crate) refused: mpsc::Sender<String>,
}

#[async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec![CSI_VERSION.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("registered with kubelet");
        } else {
            tracing::error!(error = status.error, "kubelet refused the registration");
            // One is enough; the process ends.
            let _ = self.refused.try_send(status.error);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use registration_server::Registration as _;

    #[tokio::test]
    async fn kubelet_is_told_who_we_are_and_its_refusal_is_passed_on() {
        let (refused, mut refusals) = mpsc::channel(1);
        let registration = Registration {
            endpoint: "/plugins/csi.sock".into(),
            refused,
        };
        let told = registration
            .get_info(Request::new(InfoRequest {}))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (told.r#type.as_str(), told.name.as_str()),
            ("CSIPlugin", "vineyard.io")
        );
        assert_eq!(told.endpoint, "/plugins/csi.sock");
        assert_eq!(told.supported_versions, ["1.0.0"]);
        let status = |plugin_registered, error: &str| {
            Request::new(RegistrationStatus {
                plugin_registered,
                error: error.into(),
            })
        };
        registration
            .notify_registration_status(status(true, ""))
            .await
            .unwrap();
        assert!(refusals.try_recv().is_err());
        registration
            .notify_registration_status(status(false, "no"))
            .await
            .unwrap();
        assert_eq!(refusals.recv().await.unwrap(), "no");
    }
}
