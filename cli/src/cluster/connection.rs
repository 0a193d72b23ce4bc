//! The way to the API server, as kubectl has it: a kubeconfig and a context, or the service account of this pod.

use anyhow::Context;
use kube::api::{Api, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde::de::DeserializeOwned;

use super::records::{Node, Volume};

/// Objects that one page of a list has.
const PAGE: u32 = 500;

/// Where the cluster is.
#[derive(Debug, clap::Args)]
pub(super) struct ConnectionFlags {
    /// Name of the kubeconfig's context
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of pods and claims [default: the context's]
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Namespace that the driver is installed in
    #[arg(
        long,
        global = true,
        env = "VINEYARD_NAMESPACE",
        value_name = "NAME",
        default_value = "vineyard-system"
    )]
    system_namespace: String,
}

/// A cluster that answers.
pub(super) struct Cluster {
    pub(super) client: Client,
    /// Of pods and claims that are named without one.
    pub(super) namespace: String,
    /// Of the driver.
    pub(super) system_namespace: String,
}

impl Cluster {
    pub(super) async fn connect(flags: ConnectionFlags) -> anyhow::Result<Self> {
        let ConnectionFlags {
            context,
            namespace,
            system_namespace,
        } = flags;
        // As ring is the only provider that is linked, it is the one.
        let config = match context {
            None => Config::infer().await.context("find the cluster")?,
            Some(context) => {
                let options = KubeConfigOptions {
                    context: Some(context),
                    ..KubeConfigOptions::default()
                };
                let file = Kubeconfig::read().context("read the kubeconfig")?;
                let config = Config::from_custom_kubeconfig(file, &options).await;
                config.context("find the cluster")?
            }
        };
        Ok(Self {
            namespace: namespace.unwrap_or_else(|| config.default_namespace.clone()),
            client: Client::try_from(config).context("connect to the cluster")?,
            system_namespace,
        })
    }

    /// The volumes, sorted by claim.
    pub(super) async fn volumes(&self) -> anyhow::Result<Vec<Volume>> {
        let mut volumes: Vec<Volume> = self.all("VineyardVolume", "vineyardvolumes").await?;
        volumes.sort_by_key(|volume| (volume.title(), volume.id().to_owned()));
        Ok(volumes)
    }

    /// The nodes, sorted by name.
    pub(super) async fn nodes(&self) -> anyhow::Result<Vec<Node>> {
        let mut nodes: Vec<Node> = self.all("VineyardNode", "vineyardnodes").await?;
        nodes.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(nodes)
    }

    async fn all<T: DeserializeOwned>(&self, kind: &str, plural: &str) -> anyhow::Result<Vec<T>> {
        let kind = GroupVersionKind::gvk("vineyard.io", "v1alpha1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.system_namespace, &resource);
        let mut all = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = api.list(&page).await.with_context(|| {
                let namespace = &self.system_namespace;
                format!("list {plural} in namespace {namespace}: is Vineyard installed there (--system-namespace)?")
            })?;
            for object in list.items {
                let name = object.metadata.name.clone().unwrap_or_default();
                let value = serde_json::to_value(object)?;
                all.push(
                    serde_json::from_value(value)
                        .with_context(|| format!("read {plural} {name}"))?,
                );
            }
            match list.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(all),
            }
        }
    }
}
