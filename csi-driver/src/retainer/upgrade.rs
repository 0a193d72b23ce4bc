//! A new image for retainers that live: their containers are restarted, one node after the other, and their pods stay, with the
//! cgroups that retained bytes are billed to. A DaemonSet would delete the pods, so it is told to leave them alone (`OnDelete`).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::resources::mirror;

/// The retainers and their set, by what the chart labels them with.
const SELECTOR: &str = "app.kubernetes.io/component=retainer";

/// Between two restarts, and between two looks.
const PACE: Duration = Duration::from_secs(10);

/// Gives the retainers in `namespace` the image that their set has. Never ends.
pub(crate) async fn run(client: Client, namespace: String) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let ours = || watcher::Config::default().labels(SELECTOR);
    let mut watches = JoinSet::new();
    let sets = Api::<DaemonSet>::namespaced(client, &namespace);
    let sets = mirror(sets, ours(), &mut watches);
    let pods = mirror(api.clone(), ours(), &mut watches);
    loop {
        tokio::time::sleep(PACE).await;
        let Some((name, patch)) = next(&sets.state(), &pods.state()) else {
            continue;
        };
        let (plain, strategic) = (PatchParams::default(), Patch::Strategic(&patch));
        match api.patch(&name, &plain, &strategic).await {
            Ok(_) => tracing::info!(pod = name, %patch, "a retainer gets another image"),
            Err(error) => tracing::warn!(pod = name, %error, "a retainer keeps its image"),
        }
    }
}

/// The pod that is next, and how to patch it. None as long as one that was patched is not ready: an image that does not run stops
/// nothing but that one.
fn next(sets: &[Arc<DaemonSet>], pods: &[Arc<Pod>]) -> Option<(String, Value)> {
    let mut candidates = Vec::new();
    for set in sets {
        let spec = set.spec.as_ref()?;
        let strategy = spec.update_strategy.as_ref();
        if strategy.and_then(|it| it.type_.as_deref()) != Some("OnDelete") {
            continue;
        }
        let template = spec.template.spec.as_ref()?;
        let uid = set.uid();
        let its = pods.iter().filter(|pod| {
            let owners = pod.owner_references();
            pod.metadata.deletion_timestamp.is_none()
                && owners.iter().any(|owner| Some(&owner.uid) == uid.as_ref())
        });
        for pod in its {
            let others = other_images(&template.containers, pod);
            match others.is_empty() {
                true if !is_ready(pod) => return None,
                true => {}
                false => candidates.push((is_ready(pod), pod.name_any(), others)),
            }
        }
    }
    // Those that do not work first: they may be of an image that was not meant.
    let (_, name, containers) =
        candidates
            .into_iter()
            .min_by(|(ready, name, _), (other_ready, other, _)| {
                (ready, name).cmp(&(other_ready, other))
            })?;
    Some((name, json!({"spec": {"containers": containers}})))
}

/// The containers of a pod whose image is another one in the template.
fn other_images(template: &[Container], pod: &Pod) -> Vec<Value> {
    let containers = pod.spec.as_ref().map(|spec| &spec.containers[..]);
    let others = template.iter().filter(|wanted| {
        let has = containers.unwrap_or_default().iter();
        let mut same = has.filter(|it| it.name == wanted.name);
        same.any(|it| it.image != wanted.image)
    });
    others
        .map(|wanted| json!({"name": wanted.name, "image": wanted.image}))
        .collect()
}

/// Whether kubelet has seen the pod as it is, and all its containers are ready.
fn is_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    let is_seen = match (pod.metadata.generation, status.observed_generation) {
        (Some(generation), Some(observed)) => observed >= generation,
        _ => true,
    };
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    is_seen && !containers.is_empty() && containers.iter().all(|it| it.ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(image: &str, strategy: &str) -> Vec<Arc<DaemonSet>> {
        let set = json!({
            "metadata": {"name": "retainer", "uid": "set"},
            "spec": {
                "selector": {}, "updateStrategy": {"type": strategy},
                "template": {"spec": {"containers": [{"name": "retainer", "image": image}]}},
            },
        });
        vec![Arc::new(serde_json::from_value(set).unwrap())]
    }

    fn pod(name: &str, image: &str, ready: bool) -> Arc<Pod> {
        let owner =
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "retainer", "uid": "set"});
        let status = json!({"name": "retainer", "image": image, "imageID": "", "ready": ready, "restartCount": 0});
        let pod = json!({
            "metadata": {"name": name, "generation": 2, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "retainer", "image": image}]},
            "status": {"observedGeneration": 2, "containerStatuses": [status]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn name(found: Option<(String, Value)>) -> Option<String> {
        found.map(|(name, _)| name)
    }

    #[test]
    fn one_pod_after_the_other_gets_the_image_of_the_set() {
        let set = set("new", "OnDelete");
        let (a, b) = (pod("a", "old", true), pod("b", "old", true));
        let (first, patch) = next(&set, &[b.clone(), a]).unwrap();
        let container = json!({"name": "retainer", "image": "new"});
        assert_eq!(
            (first.as_str(), patch),
            ("a", json!({"spec": {"containers": [container]}}))
        );
        // It restarts: nobody else does.
        assert_eq!(next(&set, &[pod("a", "new", false), b.clone()]), None);
        let second = next(&set, &[pod("a", "new", true), b]);
        assert_eq!(name(second).as_deref(), Some("b"));
        assert_eq!(next(&set, &[pod("a", "new", true)]), None);
    }

    #[test]
    fn a_status_of_before_the_change_says_nothing_about_readiness() {
        let mut restarting = (*pod("a", "new", true)).clone();
        restarting.metadata.generation = Some(3);
        let pods = [Arc::new(restarting), pod("b", "old", true)];
        assert_eq!(next(&set("new", "OnDelete"), &pods), None);
    }

    #[test]
    fn a_pod_with_an_image_that_does_not_run_is_mended_first() {
        let pods = [pod("a", "old", true), pod("b", "broken", false)];
        let mended = next(&set("new", "OnDelete"), &pods);
        assert_eq!(name(mended).as_deref(), Some("b"));
    }

    #[test]
    fn pods_that_the_set_replaces_itself_are_left_to_it() {
        let pods = [pod("a", "old", true)];
        assert_eq!(next(&set("new", "RollingUpdate"), &pods), None);
    }
}
