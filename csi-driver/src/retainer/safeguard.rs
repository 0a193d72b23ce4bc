//! Tells autoscalers not to remove a node that retains bytes: for them its only pods are those of DaemonSets, so it looks empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::resources::{VineyardNode, mirror};

/// What the autoscalers heed: the cluster autoscaler, and Karpenter.
const HEEDED: [&str; 2] = [
    "cluster-autoscaler.kubernetes.io/scale-down-disabled",
    "karpenter.sh/do-not-disrupt",
];

/// Names those of them that are ours: an operator's own are never taken away.
const OURS: &str = "vineyard.io/retains";

/// Between two looks.
const PACE: Duration = Duration::from_secs(5);

/// Keeps the annotations of nodes what they should be, by what the nodes say in `namespace`. Never ends.
pub(crate) async fn run(client: Client, namespace: String) {
    let all: Api<Node> = Api::all(client.clone());
    let mut watches = JoinSet::new();
    let nodes = Api::<PartialObjectMeta<Node>>::all(client.clone());
    let nodes = mirror(nodes, watcher::Config::default(), &mut watches);
    let retaining = Api::<VineyardNode>::namespaced(client, &namespace);
    let retaining = mirror(retaining, watcher::Config::default(), &mut watches);
    if nodes.wait_until_ready().await.is_err() || retaining.wait_until_ready().await.is_err() {
        return;
    }
    loop {
        for (node, annotations) in changes(&retaining.state(), &nodes.state()) {
            let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
            let plain = PatchParams::default();
            match all.patch_metadata(&node, &plain, &patch).await {
                Ok(_) => tracing::info!(node, ?annotations, "autoscalers are told"),
                Err(error) => tracing::warn!(node, %error, "autoscalers are not told"),
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

/// The nodes whose annotations must change, and how.
fn changes(
    retaining: &[Arc<VineyardNode>],
    nodes: &[Arc<PartialObjectMeta<Node>>],
) -> Vec<(String, BTreeMap<&'static str, Value>)> {
    let retains = |node: &&Arc<VineyardNode>| {
        let retainer = node.status.as_ref().and_then(|it| it.retainer.as_ref());
        retainer.is_some_and(|it| it.requested.0 > 0)
    };
    let names = retaining.iter().filter(retains).map(|it| it.name_any());
    let names: BTreeSet<String> = names.collect();
    let mut all = Vec::new();
    for node in nodes {
        let name = node.name_any();
        let annotations = node.annotations();
        let ours = annotations.get(OURS);
        if names.contains(&name) == ours.is_some() {
            continue;
        }
        let mut change = BTreeMap::new();
        match ours {
            None => {
                let missing = HEEDED.iter().filter(|it| !annotations.contains_key(**it));
                let added: Vec<&str> = missing.copied().collect();
                change.extend(added.iter().map(|it| (*it, json!("true"))));
                change.insert(OURS, json!(added.join(",")));
            }
            Some(ours) => {
                let added = HEEDED
                    .iter()
                    .filter(|it| ours.split(',').any(|our| our == **it));
                change.extend(added.map(|it| (*it, Value::Null)));
                change.insert(OURS, Value::Null);
            }
        }
        all.push((name, change));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retaining(bytes: u64) -> Vec<Arc<VineyardNode>> {
        let retainer = json!({"requested": bytes, "allocated": 0, "state": "Allocated"});
        let node = json!({
            "apiVersion": "vineyard.io/v1alpha1", "kind": "VineyardNode",
            "metadata": {"name": "n1"}, "spec": {},
            "status": {"retainer": retainer},
        });
        vec![Arc::new(serde_json::from_value(node).unwrap())]
    }

    fn node(annotations: Value) -> Vec<Arc<PartialObjectMeta<Node>>> {
        let node = json!({"metadata": {"name": "n1", "annotations": annotations}});
        vec![Arc::new(serde_json::from_value(node).unwrap())]
    }

    /// The annotations after all changes, until there are none.
    fn after(bytes: u64, annotations: Value) -> Value {
        let mut annotations = annotations;
        let retaining = retaining(bytes);
        for _ in 0..2 {
            for (name, change) in changes(&retaining, &node(annotations.clone())) {
                assert_eq!(name, "n1");
                for (key, value) in change {
                    match value {
                        Value::Null => drop(annotations.as_object_mut().unwrap().remove(key)),
                        value => annotations[key] = value,
                    }
                }
            }
        }
        assert!(changes(&retaining, &node(annotations.clone())).is_empty());
        annotations
    }

    #[test]
    fn a_node_is_kept_while_it_retains_bytes_and_not_longer() {
        let kept = after(1, json!({"a": "b"}));
        for key in HEEDED {
            assert_eq!(kept[key], "true");
        }
        assert_eq!(after(0, kept), json!({"a": "b"}));
    }

    #[test]
    fn what_an_operator_has_set_stays_when_nothing_is_retained_any_more() {
        let own = json!({HEEDED[0]: "true"});
        let kept = after(1, own.clone());
        assert_eq!(kept[HEEDED[1]], "true");
        assert_eq!(after(0, kept), own);
        let said_no = json!({HEEDED[0]: "false", HEEDED[1]: "false"});
        let heeded = after(1, said_no.clone());
        assert_eq!(heeded[HEEDED[0]], "false");
        assert_eq!(after(0, heeded), said_no);
    }
}
