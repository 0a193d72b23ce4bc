//! Where a pod had better go: to the nodes that have its volumes, and as long as no node has one, to the pods that use the same claim. Preferences,
//! never pins. Pure.

use std::collections::BTreeSet;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, PatchOperation};
use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodSpec, PreferredSchedulingTerm, WeightedPodAffinityTerm,
};
use serde_json::{Value, json};

use super::facts::{Facts, Source, sources};
use crate::bytes::Bytes;
use crate::volume::VolumeId;

/// The most that a preference weighs.
const MOST: u128 = 100;

/// What names a node in a term, whatever its labels are.
const NODE_NAME: &str = "metadata.name";

/// The label that all nodes have one of their own of.
const HOSTNAME: &str = "kubernetes.io/hostname";

const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Additions to a pod: each node that has volumes of it weighs what it has, the one with the most 100; and so does each node with a pod that uses
/// a claim of `shared`, which no node has yet. Pods that come at the same time would else be spread, and a volume is on one node.
pub(super) fn preferences(
    pod: &Pod,
    spec: &PodSpec,
    facts: &Facts,
    shared: &BTreeSet<&str>,
) -> Vec<PatchOperation> {
    let keys: Vec<String> = shared.iter().map(|claim| label(claim)).collect();
    let mut patch = labels(pod, &keys);
    // Somebody has decided it.
    if spec
        .node_name
        .as_deref()
        .is_some_and(|node| !node.is_empty())
    {
        return patch;
    }
    let affinity = spec.affinity.clone().unwrap_or_default();
    let of_nodes = affinity.node_affinity.as_ref();
    let of_pods = affinity.pod_affinity.as_ref();
    let added = [
        Preferred {
            kind: "nodeAffinity",
            has_kind: of_nodes.is_some(),
            has_list: of_nodes.is_some_and(|it| {
                it.preferred_during_scheduling_ignored_during_execution
                    .is_some()
            }),
            terms: to_nodes(&affinity, facts),
        },
        Preferred {
            kind: "podAffinity",
            has_kind: of_pods.is_some(),
            has_list: of_pods.is_some_and(|it| {
                it.preferred_during_scheduling_ignored_during_execution
                    .is_some()
            }),
            terms: to_pods(&affinity, &keys),
        },
    ];
    let mut has_affinity = spec.affinity.is_some();
    for preferred in added.into_iter().filter(|it| !it.terms.is_empty()) {
        patch.extend(preferred.additions(has_affinity));
        has_affinity = true;
    }
    patch
}

/// Claims behind volumes of a pod that are ours, which other pods may use, too, and which no node has memory of.
pub(super) fn shared<'a>(
    pod: &'a Pod,
    facts: &Facts,
    is_ours: impl Fn(&str) -> bool,
) -> BTreeSet<&'a str> {
    let claims = sources(pod).filter_map(|(volume, source)| match source {
        Source::Claim { name, .. } => is_ours(volume).then_some(name),
        Source::Template(_) => None,
    });
    claims.filter(|it| facts.unplaced.contains(*it)).collect()
}

/// Marks the pods that use a claim.
fn label(claim: &str) -> String {
    // A name that is no label becomes one in the same way.
    format!("claim.vineyard.io/{}", VolumeId::of_name(claim).as_str())
}

fn labels(pod: &Pod, keys: &[String]) -> Vec<PatchOperation> {
    let existing = pod.metadata.labels.as_ref();
    let mut new = keys
        .iter()
        .filter(|key| existing.is_none_or(|it| !it.contains_key(*key)));
    let mut patch = Vec::new();
    if existing.is_none()
        && let Some(first) = new.next()
    {
        patch.push(add(&["metadata", "labels"], json!({first: ""})));
    }
    patch.extend(new.map(|key| add(&["metadata", "labels", key], json!(""))));
    patch
}

fn to_nodes(affinity: &Affinity, facts: &Facts) -> Vec<Value> {
    let existing = affinity.node_affinity.iter();
    let existing = existing.flat_map(|it| &it.preferred_during_scheduling_ignored_during_execution);
    let is_there = |node: &str| existing.clone().flatten().any(|term| names(term, node));
    // A volume that is empty still is where it is.
    let held = |bytes: Bytes| u128::from(bytes.0.max(1));
    let most = facts.homes.values().copied().map(held).max();
    let most = most.unwrap_or(1);
    let terms = facts.homes.iter().filter(|(node, _)| !is_there(node));
    let terms = terms.map(|(node, bytes)| {
        let weight = held(*bytes) * MOST / most;
        let name = json!({"key": NODE_NAME, "operator": "In", "values": [node]});
        json!({"weight": weight.max(1), "preference": {"matchFields": [name]}})
    });
    terms.collect()
}

fn to_pods(affinity: &Affinity, keys: &[String]) -> Vec<Value> {
    let existing = affinity.pod_affinity.iter();
    let existing = existing.flat_map(|it| &it.preferred_during_scheduling_ignored_during_execution);
    let is_there = |key: &str| existing.clone().flatten().any(|term| selects(term, key));
    let new = keys.iter().filter(|key| !is_there(key));
    let terms = new.map(|key| {
        let same = json!({"labelSelector": {"matchLabels": {key: ""}}, "topologyKey": HOSTNAME});
        json!({"weight": MOST, "podAffinityTerm": same})
    });
    terms.collect()
}

/// Terms to be added to one kind of affinity, and what of their place is there.
struct Preferred {
    kind: &'static str,
    has_kind: bool,
    has_list: bool,
    terms: Vec<Value>,
}

impl Preferred {
    fn additions(self, has_affinity: bool) -> Vec<PatchOperation> {
        let (kind, terms) = (self.kind, self.terms);
        if !has_affinity {
            let value = json!({kind: {PREFERRED: terms}});
            return vec![add(&["spec", "affinity"], value)];
        }
        if !self.has_kind {
            let value = json!({PREFERRED: terms});
            return vec![add(&["spec", "affinity", kind], value)];
        }
        let list = ["spec", "affinity", kind, PREFERRED];
        if !self.has_list {
            return vec![add(&list, json!(terms))];
        }
        let end = [&list[..], &["-"]].concat();
        terms.into_iter().map(|term| add(&end, term)).collect()
    }
}

fn names(term: &PreferredSchedulingTerm, node: &str) -> bool {
    let mut fields = term.preference.match_fields.iter().flatten();
    fields.any(|field| {
        let values = field.values.as_deref().unwrap_or_default();
        field.key == NODE_NAME && values == [node]
    })
}

fn selects(term: &WeightedPodAffinityTerm, key: &str) -> bool {
    let selector = term.pod_affinity_term.label_selector.as_ref();
    let labels = selector.and_then(|it| it.match_labels.as_ref());
    labels.is_some_and(|labels| labels.contains_key(key))
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation {
        path: PointerBuf::from_tokens(path.iter().map(|part| Token::new(*part))),
        value,
    })
}
