//! Against a real API server, scheduler and kubelet, on node n1: `make cluster-conformance`.

use std::os::unix::fs::MetadataExt;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;

use super::*;
use crate::bill::Pods;
use crate::volume::PodUid;

/// An image that every node of the cluster has.
const IMAGE: &str = "vineyard.test/pause:1";

struct Cluster {
    client: Client,
    namespace: String,
    folder: TempDir,
}

impl Cluster {
    async fn new() -> Self {
        let client = Client::try_default().await.unwrap();
        let api: Api<Namespace> = Api::all(client.clone());
        let mut namespace = Namespace::default();
        namespace.metadata.generate_name = Some("retainer-".into());
        let made = api.create(&PostParams::default(), &namespace).await;
        Self {
            client,
            namespace: made.unwrap().name_any(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn request(&self) -> KubernetesRequest {
        let place = Place {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            node: NodeId::parse("n1").unwrap(),
            budget: Bytes(1 << 40),
            events: Events::default(),
            overhead: Bytes(OVERHEAD),
        };
        KubernetesRequest::open(place, self.folder.path().join("request.json"), "boot").unwrap()
    }

    async fn pod(&self, name: &str, requests: serde_json::Value) -> Pod {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/component": name}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "nodeSelector": {"kubernetes.io/hostname": "n1"},
                "containers": [{"name": name, "image": IMAGE, "resources": {"requests": requests}}],
            },
        });
        let pod = serde_json::from_value(pod).unwrap();
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .unwrap()
    }

    async fn until(&self, name: &str, is_it: impl Fn(&Pod) -> bool) -> Pod {
        let is_it = |pod: Option<&Pod>| pod.is_some_and(&is_it);
        let waiting = await_condition(self.pods(), name, is_it);
        let waited = tokio::time::timeout(LONG, waiting).await;
        match waited {
            Ok(found) => found.unwrap().unwrap(),
            Err(_) => panic!("{:?}", self.pods().get(name).await),
        }
    }

    async fn running(&self, name: &str) -> Pod {
        self.until(name, |pod| phase(pod) == "Running").await
    }

    async fn remove(self) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let gone = api.delete(&self.namespace, &DeleteParams::default()).await;
        gone.unwrap();
    }
}

fn phase(pod: &Pod) -> &str {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    phase.unwrap_or_default()
}

fn is_unschedulable(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|it| it.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| {
        it.reason.as_deref() == Some("Unschedulable")
            && it.message.as_deref().unwrap_or_default().contains("memory")
    })
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|it| it.container_statuses.as_ref());
    statuses.unwrap()[0].restart_count
}

fn requested(pod: &Pod) -> u64 {
    observe::Observation::of(pod).unwrap().request.0
}

/// The pod's cgroup, as the driver finds it, and its id.
fn cgroup(pod: &Pod) -> (PathBuf, u64) {
    let uid = PodUid::parse(&pod.uid().unwrap()).unwrap();
    let directory = Pods::new(None).unwrap().directory(&uid).unwrap();
    let inode = std::fs::metadata(&directory).unwrap().ino();
    (directory, inode)
}

/// Memory that node n1 offers to pods.
async fn allocatable(client: &Client) -> u64 {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let status = nodes.get("n1").await.unwrap().status.unwrap();
    let memory = &status.allocatable.unwrap()["memory"];
    crate::webhook::quantity::bytes(&memory.0).unwrap().0
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn a_real_kubelet_resizes_a_real_pod_up_and_down_and_the_scheduler_counts_it() {
    let cluster = Cluster::new().await;
    cluster.pod("retainer", json!({"memory": "16Mi"})).await;
    let before = cluster.running("retainer").await;
    let (directory, inode) = cgroup(&before);
    let request = cluster.request();

    // So much that a pod of half the node has no place beside it.
    let half = allocatable(&cluster.client).await / 2;
    let begin = std::time::Instant::now();
    request.set(Bytes(half)).await.unwrap();
    assert!(request.heard(LONG).await);
    let heard = begin.elapsed();
    assert!(request.granted(Bytes(half), LONG).await);
    eprintln!(
        "heard after {heard:?}, allocated after {:?}",
        begin.elapsed()
    );
    let full = cluster.pods().get("retainer").await.unwrap();
    assert_eq!(requested(&full), OVERHEAD + half);
    cluster
        .pod("other", json!({"memory": half.to_string()}))
        .await;
    cluster.until("other", is_unschedulable).await;

    request.set(Bytes(MIB)).await.unwrap();
    cluster.running("other").await;
    let after = cluster
        .until("retainer", |pod| requested(pod) == OVERHEAD + MIB)
        .await;

    // Now kubelet has no room: the scheduler counts it all the same, and new bytes are refused.
    request.set(Bytes(half)).await.unwrap();
    assert!(request.heard(LONG).await);
    assert!(!request.granted(Bytes(half), LONG).await);
    assert_eq!(request.standing().state, State::Deferred);
    assert_eq!(request.allocated(), Bytes(MIB));
    cluster
        .pods()
        .delete("other", &DeleteParams::default())
        .await
        .unwrap();
    learned(&request, |it| it.standing.state == State::Allocated).await;

    assert_eq!(after.uid(), before.uid());
    assert_eq!(restarts(&after), 0);
    let now = cluster.pods().get("retainer").await.unwrap();
    assert_eq!(cgroup(&now), (directory, inode));
    cluster.remove().await;
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn a_real_api_server_refuses_what_would_change_the_class_of_a_pod() {
    let cluster = Cluster::new().await;
    cluster.pod("retainer", json!({})).await;
    cluster.running("retainer").await;
    let request = cluster.request();
    request.set(Bytes(MIB)).await.unwrap();
    assert!(!request.granted(Bytes(MIB), LONG).await);
    let standing = request.standing();
    assert_eq!(standing.state, State::Refused);
    assert!(standing.message.contains("QOS"), "{standing:?}");
    assert_eq!(request.bound(), Some(Bytes(0)));
    cluster.remove().await;
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn another_image_restarts_the_container_and_the_pods_cgroup_lives_on() {
    let cluster = Cluster::new().await;
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let labels = json!({"app.kubernetes.io/component": "retainer"});
    let container =
        json!({"name": "retainer", "image": IMAGE, "resources": {"requests": {"memory": "16Mi"}}});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "retainer", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels}, "updateStrategy": {"type": "OnDelete"},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": "n1"},
                    "terminationGracePeriodSeconds": 1, "containers": [container],
                },
            },
        },
    });
    let set = serde_json::from_value(set).unwrap();
    sets.create(&PostParams::default(), &set).await.unwrap();
    let name = loop {
        let pods = cluster.pods().list(&Default::default()).await.unwrap();
        if let [pod] = &pods.items[..] {
            break pod.name_any();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let before = cluster.running(&name).await;
    let place = cgroup(&before);
    let request = cluster.request();
    request.set(Bytes(100 * MIB)).await.unwrap();
    assert!(request.granted(Bytes(100 * MIB), LONG).await);

    let other = json!({"spec": {"template": {"spec": {
        "containers": [{"name": "retainer", "image": "vineyard.test/shell:1"}],
    }}}});
    let (plain, other) = (PatchParams::default(), Patch::Strategic(&other));
    sets.patch("retainer", &plain, &other).await.unwrap();
    let upgrading =
        crate::retainer::upgrade::run(cluster.client.clone(), cluster.namespace.clone());
    let upgrading = tokio::spawn(upgrading);
    let after = cluster.until(&name, |pod| restarts(pod) > 0).await;
    upgrading.abort();
    assert_eq!(after.uid(), before.uid());
    assert_eq!(cgroup(&after), place);
    // What was resized stays so.
    assert_eq!(requested(&after), OVERHEAD + 100 * MIB);
    assert!(request.granted(Bytes(100 * MIB), LONG).await);
    cluster.remove().await;
}
