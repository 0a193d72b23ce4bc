//! Where the records are, as the command line says: in a directory, or in the Kubernetes that this process runs in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::bill::{FileRequest, RetainerRequest};
use crate::bytes::Bytes;
use crate::controller::{NodeBudget, Offers};
use crate::node::{Node, Sidecars};
use crate::report::Events;
use crate::report::events::Counts;
use crate::volume::{Catalog, FileCatalog, NodeId};

/// Where the records are.
#[derive(Debug, Args)]
pub(crate) struct RecordFlags {
    /// Directory of the records. One process, or several on one machine. None: they are resources in the namespace.
    #[arg(long, env = "VINEYARD_CATALOG", value_name = "PATH", required = cfg!(not(feature = "kubernetes")))]
    catalog: Option<PathBuf>,

    /// Namespace of the resources.
    #[cfg(feature = "kubernetes")]
    #[arg(
        long,
        env = "VINEYARD_NAMESPACE",
        value_name = "NAME",
        default_value = "vineyard-system"
    )]
    namespace: String,
}

/// The records, opened.
pub(crate) struct Records {
    /// The volumes.
    pub(crate) catalog: Arc<dyn Catalog>,
    /// Where users are told what happened.
    pub(crate) events: Events,
    /// Where they are resources.
    #[cfg(feature = "kubernetes")]
    kubernetes: Option<Kubernetes>,
}

/// The Kubernetes that the records are in.
#[cfg(feature = "kubernetes")]
struct Kubernetes {
    client: kube::Client,
    namespace: String,
    /// They write themselves what they offer.
    nodes: crate::resources::Nodes,
}

impl RecordFlags {
    /// Opens them, for what `component` says in events.
    pub(crate) async fn open(&self, component: &str, counts: Counts) -> anyhow::Result<Records> {
        match &self.catalog {
            Some(path) => Ok(Records {
                catalog: Arc::new(FileCatalog::open(path)?),
                events: Events::unwritten(counts),
                #[cfg(feature = "kubernetes")]
                kubernetes: None,
            }),
            #[cfg(feature = "kubernetes")]
            None => self.open_kubernetes(component, counts).await,
            #[cfg(not(feature = "kubernetes"))]
            None => anyhow::bail!("no catalog is named for {component}"),
        }
    }

    #[cfg(feature = "kubernetes")]
    async fn open_kubernetes(&self, component: &str, counts: Counts) -> anyhow::Result<Records> {
        use anyhow::Context;

        use crate::report::events::Recorder;

        let client = kube::Client::try_default().await.context("Kubernetes")?;
        let nodes = crate::resources::Nodes::new(client.clone(), &self.namespace);
        let recorder = Recorder::new(client.clone(), &self.namespace, component);
        let events = Events::written_by(recorder, counts);
        let catalog = crate::volume::KubernetesCatalog::new(client.clone(), &self.namespace);
        Ok(Records {
            catalog: Arc::new(catalog),
            events,
            kubernetes: Some(Kubernetes {
                client,
                namespace: self.namespace.clone(),
                nodes,
            }),
        })
    }
}

impl Records {
    /// Which pods have a sidecar; none where there are no pods to be looked at.
    pub(crate) fn sidecars(&self) -> Option<Arc<dyn Sidecars>> {
        #[cfg(feature = "kubernetes")]
        if let Some(Kubernetes { client, .. }) = &self.kubernetes {
            return Some(Arc::new(crate::webhook::Presence::new(client.clone())));
        }
        None
    }

    /// The Kubernetes that they are in, and its namespace of ours; none when they are files.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn kubernetes(&self) -> Option<(kube::Client, &str)> {
        let it = self.kubernetes.as_ref()?;
        Some((it.client.clone(), &it.namespace))
    }

    /// What the nodes offer: what they write themselves, or `named` on the command line.
    ///
    /// # Errors
    /// When it is named in both, or in neither.
    pub(crate) fn offers(&self, named: Vec<NodeBudget>) -> anyhow::Result<Offers> {
        #[cfg(feature = "kubernetes")]
        if let Some(Kubernetes { nodes, .. }) = &self.kubernetes {
            if !named.is_empty() {
                anyhow::bail!(
                    "--node is for records in a directory: here the nodes say it themselves"
                );
            }
            return Ok(Offers::Resources(Box::new(nodes.clone())));
        }
        if named.is_empty() {
            anyhow::bail!("no --node is named");
        }
        Ok(Offers::Fixed(named))
    }

    /// The memory request of the retainer on `node`, on record in the file `path`. Its pod requests `overhead` on top.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(crate) fn retainer_request(
        &self,
        path: &Path,
        boot_id: &str,
        node: &NodeId,
        budget: Bytes,
        overhead: Bytes,
    ) -> anyhow::Result<Arc<dyn RetainerRequest>> {
        tracing::debug!(%node, %overhead, "the retainer's request");
        #[cfg(feature = "kubernetes")]
        if let Some(Kubernetes {
            client, namespace, ..
        }) = &self.kubernetes
        {
            let place = crate::bill::Place {
                client: client.clone(),
                namespace: namespace.clone(),
                node: node.clone(),
                budget,
                events: self.events.clone(),
                overhead,
            };
            let request = crate::bill::KubernetesRequest::open(place, path.to_owned(), boot_id)?;
            return Ok(Arc::new(request));
        }
        let request = FileRequest::open(path.to_owned(), boot_id, budget)?;
        Ok(Arc::new(request))
    }

    /// Looks after the nodes' retainers, where there is Kubernetes: a controller's part.
    pub(crate) fn look_after_retainers(&self) {
        #[cfg(feature = "kubernetes")]
        if let Some(Kubernetes {
            client, namespace, ..
        }) = &self.kubernetes
        {
            let (client, namespace) = (client.clone(), namespace.clone());
            tokio::spawn(crate::retainer::upgrade::run(
                client.clone(),
                namespace.clone(),
            ));
            tokio::spawn(crate::retainer::safeguard::run(client, namespace));
        }
    }

    /// Tells the controller that `node` offers `budget`, where it is told so.
    ///
    /// # Errors
    /// When it cannot be told.
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(clippy::unused_async, reason = "only Kubernetes is told")
    )]
    pub(crate) async fn announce(&self, node: &Node, budget: Bytes) -> anyhow::Result<()> {
        tracing::info!(node.id = %node.id, %budget, "this node offers memory");
        #[cfg(feature = "kubernetes")]
        if let Some(Kubernetes { nodes, .. }) = &self.kubernetes {
            let spec = crate::resources::VineyardNodeSpec {
                pool: node.pool.clone(),
                budget,
            };
            let told = nodes.announce(&node.id, spec).await;
            return anyhow::Context::context(told, "say what this node offers");
        }
        Ok(())
    }
}
