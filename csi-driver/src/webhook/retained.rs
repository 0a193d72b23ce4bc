//! What the pod of a retainer requests from its beginning: the scheduler counts what its node retains before anybody resizes the pod.
//!
//! The review only helps: where the node or its record is not known, the pod is admitted as its template has it, and the node plugin
//! asks for the rest in place (`docs/design/retainer.md` §7).

use std::fmt;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch, PatchOperation};
use k8s_openapi::api::core::v1::{Container, NodeSelectorTerm, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, DynamicObject};
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::error::Error;
use super::quantity;
use super::review::{Outcome, created, request};
use crate::bytes::Bytes;
use crate::resources::VineyardNode;

/// What the chart labels the retainer's pods with.
const COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "retainer");

/// The container that is billed; a pod with a single container may call it otherwise.
const CONTAINER: &str = "retainer";

/// Where nodes say what they retain.
#[derive(Clone)]
pub(crate) struct Retained {
    nodes: Api<VineyardNode>,
}

impl fmt::Debug for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retained").finish_non_exhaustive()
    }
}

impl Retained {
    /// In `namespace`, which is also that of the retainer's pods.
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            nodes: Api::namespaced(client, namespace),
        }
    }

    /// Answers a review. Writes nothing anywhere, and refuses nothing.
    ///
    /// # Errors
    /// [`Error::Malformed`]; a bug.
    pub(super) async fn answer(
        &self,
        body: &[u8],
    ) -> Result<(AdmissionReview<DynamicObject>, Outcome), Error> {
        let request = request(body)?;
        let response = AdmissionResponse::from(&request);
        let Some(raise) = self.raise(&request).await else {
            return Ok((response.into_review(), Outcome::Unchanged));
        };
        let patched = response.with_patch(Patch(vec![raise]));
        let patched = patched.map_err(|error| Error::Patch(error.to_string()))?;
        Ok((patched.into_review(), Outcome::Raised))
    }

    /// The change of a pod that is to be a retainer of a node with something to retain.
    async fn raise(&self, request: &AdmissionRequest<Pod>) -> Option<PatchOperation> {
        let pod = created(request)?;
        if pod.labels().get(COMPONENT.0).map(String::as_str) != Some(COMPONENT.1) {
            return None;
        }
        let spec = pod.spec.as_ref()?;
        let node = node(spec)?;
        let retained = match self.nodes.get_opt(node).await {
            Ok(found) => sum(&found?),
            Err(error) => {
                tracing::warn!(node.id = node, %error, "a retainer begins without what its node retains");
                return None;
            }
        };
        let raise = raise(spec, retained)?;
        tracing::info!(node.id = node, %retained, "a retainer begins with what its node retains");
        Some(raise)
    }
}

/// The node that a pod is for. A pod of a DaemonSet has not been scheduled yet, and names it in its affinity.
fn node(spec: &PodSpec) -> Option<&str> {
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut nodes = required.node_selector_terms.iter().map(named);
    let first = nodes.next()??;
    // One of the terms has to hold: they must all mean the same.
    nodes.all(|node| node == Some(first)).then_some(first)
}

fn named(term: &NodeSelectorTerm) -> Option<&str> {
    let mut fields = term.match_fields.iter().flatten();
    let field = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    match field.values.as_deref() {
        Some([only]) => Some(only),
        _ => None,
    }
}

/// What a node retains: what it asked for last, or what it saw last on the retainer's bill, if that is more; never more than it offers.
fn sum(node: &VineyardNode) -> Bytes {
    let Some(status) = &node.status else {
        return Bytes(0);
    };
    let asked = status.retainer.as_ref().map(|it| it.requested);
    let seen = status.report.as_ref().map(|it| it.retained);
    let most = asked.max(seen).unwrap_or_default();
    most.min(node.spec.budget)
}

/// Adds `retained` to the memory request of the container that is billed.
fn raise(spec: &PodSpec, retained: Bytes) -> Option<PatchOperation> {
    let (index, container) = match &spec.containers[..] {
        [only] => (0, only),
        several => several
            .iter()
            .enumerate()
            .find(|(_, it)| it.name == CONTAINER)?,
    };
    let own = memory(container, |it| &it.requests).unwrap_or_default();
    let mut wanted = Bytes(own.0.saturating_add(retained.0));
    // A limit is none of ours, and a request above it would be refused.
    if let Some(limit) = memory(container, |it| &it.limits) {
        wanted = wanted.min(limit);
    }
    if wanted <= own {
        return None;
    }
    let wanted = json!(quantity::of_bytes(wanted));
    let index = index.to_string();
    let place = ["spec", "containers", index.as_str()];
    let resources = container.resources.as_ref();
    let (path, value): (&[&str], Value) = match resources.map(|it| it.requests.is_some()) {
        Some(true) => (&["resources", "requests", "memory"], wanted),
        Some(false) => (&["resources", "requests"], json!({"memory": wanted})),
        None => (&["resources"], json!({"requests": {"memory": wanted}})),
    };
    let path = place.iter().chain(path).map(|part| Token::new(*part));
    Some(PatchOperation::Add(AddOperation {
        path: PointerBuf::from_tokens(path),
        value,
    }))
}

type Quantities = Option<std::collections::BTreeMap<String, Quantity>>;

fn memory(
    container: &Container,
    of: fn(&k8s_openapi::api::core::v1::ResourceRequirements) -> &Quantities,
) -> Option<Bytes> {
    let memory = of(container.resources.as_ref()?).as_ref()?.get("memory")?;
    quantity::bytes(&memory.0)
}
