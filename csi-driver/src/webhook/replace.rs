//! Pods that were made while the webhook was away: a node refuses those that would write, and nothing can be added to a pod. So the
//! controller deletes them when somebody makes them anew, once the webhook is believed again.
//!
//! An event only says where to look. What is deleted is a pod that cannot start: it has no sidecar, would have one now, has a
//! controller, and none of its containers ever ran.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use tokio_stream::StreamExt;

use super::error::Error;
use super::facts::Claim;
use super::inject::is_injected;
use super::lookup::Lookup;
use super::tls::Certificates;
use super::trust::Trust;
use crate::report::Reason;

/// How often the pods that wait for the webhook are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Pods that may wait at the same time. Kubelet tries again, so one that is passed over comes back.
const MOST: usize = 1024;

/// Between two deletions for one owner: it doubles, so that an owner whose pods are never injected is not stormed.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);

/// Replaces pods.
#[derive(Debug)]
pub(super) struct Replacement {
    lookup: Lookup,
    trust: Trust,
    certificates: Arc<Certificates>,
    owners: Owners,
}

/// A pod that a node refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Refused {
    namespace: String,
    name: String,
    uid: String,
}

/// What becomes of it now.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Look again later.
    Waits,
    /// Nothing is to be done, now or later.
    Stays(&'static str),
    /// It was deleted.
    Replaced,
}

impl Replacement {
    pub(super) fn new(lookup: Lookup, trust: Trust, certificates: Arc<Certificates>) -> Self {
        Self {
            lookup,
            trust,
            certificates,
            owners: Owners::default(),
        }
    }

    /// Never ends.
    pub(super) async fn run(mut self) {
        let api: Api<Event> = Api::all(self.lookup.client());
        // What nodes say on a pod that they refuse.
        let reason = Reason::SidecarMissing.as_str();
        let selector = format!("reason={reason},involvedObject.kind=Pod");
        let events = watcher(api, watcher::Config::default().fields(&selector));
        let mut events = pin!(events.default_backoff().applied_objects());
        let mut ticks = tokio::time::interval(LOOK);
        let mut waiting: HashMap<String, Refused> = HashMap::new();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        if waiting.len() < MOST && let Some(refused) = refused(event) {
                            waiting.insert(refused.uid.clone(), refused);
                        }
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the watch of refused pods broke; it is tried again");
                    }
                    None => return,
                },
                _ = ticks.tick() => {
                    if !waiting.is_empty() && self.is_up().await {
                        self.look(&mut waiting).await;
                    }
                }
            }
        }
    }

    /// Whether a pod that is made now would be injected, as far as we can know.
    async fn is_up(&self) -> bool {
        let Some(bundle) = self.certificates.bundle() else {
            return false;
        };
        let believed = self.trust.is_believed(&bundle).await;
        believed.unwrap_or_else(|error| {
            tracing::warn!(%error, "refused pods are not replaced");
            false
        })
    }

    async fn look(&mut self, waiting: &mut HashMap<String, Refused>) {
        let all: Vec<Refused> = waiting.values().cloned().collect();
        for refused in all {
            let Refused {
                namespace, name, ..
            } = &refused;
            match self.consider(&refused).await {
                Ok(Verdict::Waits) => continue,
                Ok(Verdict::Replaced) => {
                    tracing::info!(
                        pod.namespace = namespace,
                        pod.name = name,
                        "deleted, so that its successor is injected"
                    );
                }
                Ok(Verdict::Stays(why)) => {
                    tracing::debug!(
                        pod.namespace = namespace,
                        pod.name = name,
                        why,
                        "not replaced"
                    );
                }
                Err(error) => {
                    tracing::warn!(pod.namespace = namespace, pod.name = name, %error, "not replaced");
                    continue;
                }
            }
            waiting.remove(&refused.uid);
        }
    }

    async fn consider(&mut self, refused: &Refused) -> Result<Verdict, Error> {
        let pods: Api<Pod> = Api::namespaced(self.lookup.client(), &refused.namespace);
        let failed = |source| Error::Lookup {
            doing: format!("replace pod {}/{}", refused.namespace, refused.name),
            source: Box::new(source),
        };
        let Some(pod) = pods.get_opt(&refused.name).await.map_err(failed)? else {
            return Ok(Verdict::Stays("it is gone"));
        };
        let owner = match owner(&pod, &refused.uid) {
            Ok(owner) => owner,
            Err(why) => return Ok(Verdict::Stays(why)),
        };
        let facts = self.lookup.facts(&pod, &refused.namespace).await?;
        let writes = |claim: &Claim| {
            matches!(
                claim,
                Claim::Ours {
                    is_read_only: false,
                    ..
                }
            )
        };
        if !facts.claims.values().any(writes) {
            return Ok(Verdict::Stays("it writes no vineyard claim"));
        }
        let made = pod
            .creation_timestamp()
            .map_or(UNIX_EPOCH, |time| time.0.into());
        if !self.owners.may(&owner.uid, made, SystemTime::now()) {
            return Ok(Verdict::Waits);
        }
        // Exactly the pod that was looked at: one that starts meanwhile is another version.
        let this = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: pod.resource_version(),
                uid: pod.uid(),
            }),
            ..DeleteParams::default()
        };
        match pods.delete(&refused.name, &this).await {
            Ok(_) => Ok(Verdict::Replaced),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Verdict::Waits),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Verdict::Stays("it is gone")),
            Err(error) => Err(failed(error)),
        }
    }
}

fn refused(event: Event) -> Option<Refused> {
    let object = event.involved_object;
    Some(Refused {
        namespace: object.namespace?,
        name: object.name?,
        uid: object.uid?,
    })
}

/// The owner that makes another pod when this one is deleted, or why it stays.
fn owner<'a>(pod: &'a Pod, uid: &str) -> Result<&'a OwnerReference, &'static str> {
    if pod.metadata.uid.as_deref() != Some(uid) {
        return Err("another pod has its name");
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Err("it is being deleted");
    }
    if is_injected(pod) {
        return Err("it has a sidecar");
    }
    let disabled = pod.annotations().get("vineyard.io/inject");
    if disabled.is_some_and(|value| value == "disabled") {
        return Err("it wants no sidecar");
    }
    if has_run(pod) {
        return Err("it has run");
    }
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let mut owners = owners.iter().filter(|owner| owner.controller == Some(true));
    owners.next().ok_or("nobody would make it anew")
}

fn has_run(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    if status
        .phase
        .as_deref()
        .is_some_and(|phase| phase != "Pending")
    {
        return true;
    }
    let containers = status.container_statuses.iter().flatten();
    let all = containers.chain(status.init_container_statuses.iter().flatten());
    all.into_iter().any(|container: &ContainerStatus| {
        let states = [&container.state, &container.last_state];
        let mut states = states.into_iter().flatten();
        container.restart_count > 0
            || states.any(|state| state.running.is_some() || state.terminated.is_some())
    })
}

/// When pods of whom were deleted.
#[derive(Debug, Default)]
struct Owners(HashMap<String, (SystemTime, Duration)>);

impl Owners {
    /// Whether a pod of `owner` that was made at `made` may be deleted. All that were there before the first deletion may; their
    /// successors were not injected either, and wait longer each time.
    fn may(&mut self, owner: &str, made: SystemTime, now: SystemTime) -> bool {
        let recent = |since: SystemTime| now.duration_since(since).unwrap_or_default();
        self.0.retain(|_, (since, _)| recent(*since) < LONGEST * 2);
        let pause = match self.0.get(owner) {
            None => PAUSE,
            Some((since, _)) if made <= *since => return true,
            Some((since, pause)) if recent(*since) < *pause => return false,
            Some((_, pause)) => (*pause * 2).min(LONGEST),
        };
        self.0.insert(owner.to_owned(), (now, pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::volume::FileCatalog;
    use crate::webhook::tests::api::PlayedApi;
    use crate::webhook::{Lifetimes, Rotation};

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "p", "uid": "1",
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "3"},
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "2", "controller": true},
                ],
            },
            "spec": {"containers": []},
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ContainerCreating"}},
            }]},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    /// A controller in a Kubernetes that is played, where claim `work` is one of ours and `disk` is not.
    async fn bench() -> (PlayedApi, Replacement, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let catalog = FileCatalog::open(&folder.path().join("catalog")).unwrap();
        let api = PlayedApi::default();
        for (class, provisioner) in [("work", "vineyard.io"), ("disk", "disk.example")] {
            api.put(
                &format!("/apis/storage.k8s.io/v1/storageclasses/{class}"),
                json!({"metadata": {"name": class}, "provisioner": provisioner}),
            );
            api.put(
                &format!("/api/v1/namespaces/team/persistentvolumeclaims/{class}"),
                json!({"metadata": {"name": class}, "spec": {"storageClassName": class}}),
            );
        }
        let lookup = Lookup::new(api.client().await, Arc::new(catalog));
        let trust = Trust::new(api.client().await, "ours", "secret", "configuration");
        let replacement = Replacement::new(lookup, trust, Arc::default());
        (api, replacement, folder)
    }

    const POD: &str = "/api/v1/namespaces/team/pods/p";

    fn put(api: &PlayedApi, claim: &str, read_only: bool) {
        let volume = json!({
            "name": "v", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only},
        });
        let pod = pod(|pod| pod["spec"]["volumes"] = json!([volume]));
        api.put(POD, serde_json::to_value(pod).unwrap());
    }

    fn event() -> Refused {
        let object = json!({"namespace": "team", "name": "p", "uid": "1"});
        let event = json!({"metadata": {}, "involvedObject": object});
        refused(serde_json::from_value(event).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_refused_pod_is_deleted_only_if_its_successor_would_be_injected() {
        let (api, mut replacement, _folder) = bench().await;
        for (claim, read_only) in [("disk", false), ("work", true), ("missing", false)] {
            put(&api, claim, read_only);
            let verdict = replacement.consider(&event()).await.unwrap();
            assert!(matches!(verdict, Verdict::Stays(_)), "{claim}: {verdict:?}");
            assert!(api.get(POD).is_some());
        }
        put(&api, "work", false);
        let verdict = replacement.consider(&event()).await.unwrap();
        assert_eq!(verdict, Verdict::Replaced);
        assert_eq!(api.get(POD), None);
        let verdict = replacement.consider(&event()).await.unwrap();
        assert_eq!(verdict, Verdict::Stays("it is gone"));
    }

    #[tokio::test]
    async fn nothing_is_deleted_while_the_api_server_does_not_believe_the_webhook() {
        let (api, replacement, _folder) = bench().await;
        assert!(!replacement.is_up().await);
        let certificates = Arc::clone(&replacement.certificates);
        let rotation = Rotation {
            trust: replacement.trust.clone(),
            certificates,
            names: vec!["webhook".into()],
            lifetimes: Lifetimes::default(),
        };
        let path =
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/configuration";
        let configuration = || {
            let webhook = json!({
                "name": "pods.vineyard.io", "clientConfig": {}, "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            });
            json!({"metadata": {"name": "configuration"}, "webhooks": [webhook]})
        };
        api.put(path, configuration());
        rotation.turn(&mut None, SystemTime::now()).await.unwrap();
        assert!(replacement.is_up().await);
        api.put(path, configuration());
        assert!(!replacement.is_up().await);
        api.remove(path);
        assert!(!replacement.is_up().await);
    }

    #[test]
    fn only_a_pod_that_never_ran_and_that_somebody_makes_anew_is_replaced() {
        assert_eq!(owner(&pod(|_| ()), "1").unwrap().uid, "2");
        assert!(owner(&pod(|_| ()), "9").is_err());
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let ended = json!({"terminated": {"exitCode": 1}});
        let injected = json!({
            "containers": [], "initContainers": [{"name": "vineyard-sidecar", "restartPolicy": "Always"}],
            "volumes": [{"name": "vineyard-sockets", "csi": {"driver": "vineyard.io"}}],
        });
        let status = |at: &'static str, value: Value| {
            pod(move |pod| pod["status"]["containerStatuses"][0][at] = value)
        };
        for stays in [
            status("state", running),
            status("lastState", ended),
            status("restartCount", json!(1)),
            pod(|pod| pod["status"]["phase"] = json!("Running")),
            pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
            pod(|pod| pod["metadata"]["ownerReferences"][1]["controller"] = json!(false)),
            pod(|pod| pod["metadata"]["annotations"] = json!({"vineyard.io/inject": "disabled"})),
            pod(|pod| pod["spec"] = injected),
        ] {
            assert!(owner(&stays, "1").is_err(), "{stays:?}");
        }
    }

    #[test]
    fn an_owner_whose_new_pods_are_not_injected_either_waits_longer_each_time() {
        let mut owners = Owners::default();
        let start = SystemTime::now();
        let second = Duration::from_secs(1);
        for _ in 0..5 {
            assert!(owners.may("a", start - second, start));
        }
        assert!(owners.may("b", start, start));
        let mut deletions = 0;
        for passed in 1..=120 {
            let now = start + second * passed;
            deletions += u32::from(owners.may("a", now, now));
        }
        // After 10, 30 and 70 seconds.
        assert_eq!(deletions, 3);
    }
}
