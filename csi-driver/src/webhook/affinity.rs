//! Where a pod had better go: to the nodes that have its volumes. A preference, never a pin. Pure.

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, PatchOperation};
use k8s_openapi::api::core::v1::{PodSpec, PreferredSchedulingTerm};
use serde_json::{Value, json};

use super::facts::Facts;
use crate::bytes::Bytes;

/// The most that a preference weighs.
const MOST: u128 = 100;

/// What names a node in a term, whatever its labels are.
const NODE_NAME: &str = "metadata.name";

const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Additions to a pod: each node that has volumes of it weighs what it has, the one with the most 100.
pub(super) fn preferences(spec: &PodSpec, facts: &Facts) -> Vec<PatchOperation> {
    // Somebody has decided it.
    if spec
        .node_name
        .as_deref()
        .is_some_and(|node| !node.is_empty())
    {
        return Vec::new();
    }
    let affinity = spec.affinity.as_ref();
    let of_nodes = affinity.and_then(|it| it.node_affinity.as_ref());
    let existing = of_nodes.and_then(|it| {
        it.preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let is_there = |node: &str| existing.into_iter().flatten().any(|term| names(term, node));
    // A volume that is empty still is where it is.
    let held = |bytes: Bytes| u128::from(bytes.0.max(1));
    let most = facts.homes.values().copied().map(held).max();
    let most = most.unwrap_or(1);
    let terms = facts.homes.iter().filter(|(node, _)| !is_there(node));
    let terms: Vec<Value> = terms
        .map(|(node, bytes)| {
            let weight = held(*bytes) * MOST / most;
            let name = json!({"key": NODE_NAME, "operator": "In", "values": [node]});
            json!({"weight": weight.max(1), "preference": {"matchFields": [name]}})
        })
        .collect();
    if terms.is_empty() {
        return Vec::new();
    }
    match (affinity, of_nodes, existing) {
        (None, ..) => vec![add(
            &["affinity"],
            json!({"nodeAffinity": {PREFERRED: terms}}),
        )],
        (_, None, _) => vec![add(
            &["affinity", "nodeAffinity"],
            json!({PREFERRED: terms}),
        )],
        (.., None) => vec![add(&["affinity", "nodeAffinity", PREFERRED], json!(terms))],
        (.., Some(_)) => {
            let terms = terms.into_iter();
            let path = ["affinity", "nodeAffinity", PREFERRED, "-"];
            terms.map(|term| add(&path, term)).collect()
        }
    }
}

fn names(term: &PreferredSchedulingTerm, node: &str) -> bool {
    let mut fields = term.preference.match_fields.iter().flatten();
    fields.any(|field| {
        let values = field.values.as_deref().unwrap_or_default();
        field.key == NODE_NAME && values == [node]
    })
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    let path = ["spec"].iter().chain(path).map(|part| Token::new(*part));
    PatchOperation::Add(AddOperation {
        path: PointerBuf::from_tokens(path),
        value,
    })
}
