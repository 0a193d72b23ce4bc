//! The custom resource of a node: what it offers, that it lives, and what is booked on it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, CustomResource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bill::State;
use crate::bytes::Bytes;
use crate::controller::NodeBudget;
use crate::volume::{NodeId, NodeReport, Tombstone, catalog};

/// Who the API server says wrote what a node offers.
const FIELD_MANAGER: &str = "vineyard-node";

/// What a node offers to volumes. Written by the node itself, named like it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "vineyard.io",
    version = "v1alpha1",
    kind = "VineyardNode",
    namespaced,
    status = "VineyardNodeStatus",
    shortname = "vyn",
    category = "vineyard",
    printcolumn = r#"{"name": "Pool", "type": "string", "jsonPath": ".spec.pool"}"#,
    printcolumn = r#"{"name": "Budget", "type": "integer", "jsonPath": ".spec.budget"}"#,
    printcolumn = r#"{"name": "Booked", "type": "integer", "jsonPath": ".status.bookedBytes"}"#,
    printcolumn = r#"{"name": "Charged", "type": "integer", "jsonPath": ".status.report.charged"}"#,
    printcolumn = r#"{"name": "Retained", "type": "integer", "jsonPath": ".status.report.retained"}"#,
    printcolumn = r#"{"name": "Retainer", "type": "string", "jsonPath": ".status.retainer.state"}"#,
    printcolumn = r#"{"name": "Boot", "type": "string", "jsonPath": ".status.bootId", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VineyardNodeSpec {
    /// The pool that it belongs to.
    #[serde(default)]
    pub(crate) pool: String,
    /// Memory that it offers to volumes, in bytes.
    #[serde(default)]
    pub(crate) budget: Bytes,
}

/// What is true of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VineyardNodeStatus {
    /// The boot that it is in: memory of any other one is gone. None: it was never heard of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) boot_id: Option<String>,
    /// Counts the times that it said that it lives. Who watches knows by their own clock how long it was silent.
    pub(crate) beats: u64,
    /// Counts the bookings that were made here.
    pub(crate) booked: u64,
    /// What is booked here in all, in bytes.
    pub(crate) booked_bytes: Bytes,
    /// What is booked here, by volume. May be more than the volumes have for a while, never less.
    pub(crate) bookings: BTreeMap<String, Booking>,
    /// Memory of deleted volumes that it still has to drop.
    pub(crate) tombstones: Vec<Tombstone>,
    /// What its retainer is asked to hold. None: nothing is retained on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retainer: Option<RetainerStatus>,
    /// What it says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) report: Option<NodeReport>,
}

/// What a node's retainer is asked to hold, written by the node alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RetainerStatus {
    /// Memory that its pod has to request for retained bytes, in bytes; what its process needs comes on top.
    pub(crate) requested: Bytes,
    /// What of it kubelet has allocated.
    pub(crate) allocated: Bytes,
    /// How the request stands.
    pub(crate) state: State,
    /// What Kubernetes says about it.
    #[serde(default)]
    pub(crate) message: String,
}

/// What is booked for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Booking {
    /// How much, in bytes.
    pub(crate) capacity: Bytes,
    /// The booking that wrote this; the next one has another number.
    pub(crate) number: u64,
    /// When that was, in seconds since 1970.
    pub(crate) since: u64,
}

/// What all nodes say.
#[derive(Clone)]
pub(crate) struct Nodes {
    api: Api<VineyardNode>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes")
            .field("url", &self.api.resource_url())
            .finish()
    }
}

impl Nodes {
    /// Those that say so in `namespace`.
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api }
    }

    /// What they offer.
    ///
    /// # Errors
    /// When the API server does not say, or a resource has a name that no node has.
    pub(crate) async fn budgets(&self) -> Result<Vec<NodeBudget>, catalog::Error> {
        let listed = self.api.list(&ListParams::default()).await;
        let listed = listed.map_err(|error| catalog::Error::Storage {
            doing: "list nodes in Kubernetes".into(),
            source: io::Error::other(error),
        })?;
        listed.items.into_iter().map(budget).collect()
    }

    /// Writes what node `name` offers.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub(crate) async fn announce(
        &self,
        name: &NodeId,
        spec: VineyardNodeSpec,
    ) -> Result<(), kube::Error> {
        let node = VineyardNode::new(name.as_str(), spec);
        let only_writer = PatchParams::apply(FIELD_MANAGER).force();
        let whole = Patch::Apply(&node);
        self.api.patch(name.as_str(), &only_writer, &whole).await?;
        Ok(())
    }
}

fn budget(resource: VineyardNode) -> Result<NodeBudget, catalog::Error> {
    let name = resource.name_any();
    let node = NodeId::parse(&name).map_err(|reason| catalog::Error::Corrupt {
        path: format!("vineyardnode {name}"),
        reason,
    })?;
    Ok(NodeBudget {
        node,
        pool: resource.spec.pool,
        budget: resource.spec.budget,
    })
}
