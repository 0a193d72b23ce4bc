//! Whether a pod was injected, as Kubernetes knows it: for the nodes, which refuse those that were not.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;
use tonic::async_trait;

use super::inject::is_injected;
use crate::node::Sidecars;
use crate::volume::PodReference;

/// Looks at pods.
pub(crate) struct Presence(Client);

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").finish_non_exhaustive()
    }
}

impl Presence {
    /// In the Kubernetes of `client`.
    pub(crate) fn new(client: Client) -> Self {
        Self(client)
    }
}

#[async_trait]
impl Sidecars for Presence {
    async fn has_sidecar(&self, pod: &PodReference) -> Result<bool, String> {
        let pods: Api<Pod> = Api::namespaced(self.0.clone(), &pod.namespace);
        let found = pods
            .get_opt(&pod.name)
            .await
            .map_err(|error| error.to_string())?;
        Ok(found.is_some_and(|found| {
            found.metadata.uid.as_deref() == Some(pod.uid.as_str()) && is_injected(&found)
        }))
    }
}
