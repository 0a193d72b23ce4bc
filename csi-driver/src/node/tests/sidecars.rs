//! Pods that write must have a sidecar, where that is required.

use std::sync::Mutex;

use super::super::Sidecars;
use super::*;
use crate::report::{Events, Reason};
use crate::volume::PodReference;

/// What Kubernetes says of every pod.
#[derive(Debug)]
struct Said(Mutex<Result<bool, String>>);

#[tonic::async_trait]
impl Sidecars for Said {
    async fn has_sidecar(&self, pod: &PodReference) -> Result<bool, String> {
        assert_eq!(pod.to_string(), "team/writer");
        self.0.lock().unwrap().clone()
    }
}

async fn bench(says: Result<bool, String>) -> (Bench, Arc<Said>) {
    let mut bench = Bench::new();
    let said = Arc::new(Said(Mutex::new(says)));
    bench.node.sidecars = Some(Arc::clone(&said) as Arc<dyn Sidecars>);
    bench.node.events = Events::unwritten(Default::default());
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    (bench, said)
}

fn request(bench: &Bench, target: &str) -> NodePublishVolumeRequest {
    let pairs = [("name", "writer"), ("namespace", "team"), ("uid", "u-1")];
    let context = pairs.map(|(key, value)| (format!("csi.storage.k8s.io/pod.{key}"), value.into()));
    NodePublishVolumeRequest {
        volume_context: context.into(),
        ..bench.publish_request("v", target)
    }
}

#[tokio::test]
async fn a_pod_that_writes_without_a_sidecar_is_refused_and_told() {
    let (bench, said) = bench(Ok(false)).await;
    for _ in 0..2 {
        let refused = bench
            .node
            .publish(request(&bench, "pods/p"))
            .await
            .unwrap_err();
        assert_eq!(code(&refused), Code::FailedPrecondition);
        assert!(refused.to_string().contains("team/writer"), "{refused}");
    }
    assert_eq!(bench.read("v").await.publications, []);
    assert!(bench.mounts(&bench.path("pods/p")).is_empty());
    let seen = bench.node.events.seen();
    assert_eq!(
        (seen[0].reason, seen[0].count, seen[0].about.as_str()),
        (Reason::SidecarMissing, 2, "pod team/writer")
    );
    *said.0.lock().unwrap() = Ok(true);
    bench.node.publish(request(&bench, "pods/p")).await.unwrap();
    // Kubelet was restarted: what is published is not looked at again.
    *said.0.lock().unwrap() = Err("away".into());
    bench.node.publish(request(&bench, "pods/p")).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_only_reads_needs_no_sidecar() {
    let (bench, _) = bench(Ok(false)).await;
    let request = NodePublishVolumeRequest {
        readonly: true,
        ..request(&bench, "pods/p")
    };
    bench.node.publish(request).await.unwrap();
}

#[tokio::test]
async fn when_nobody_knows_whether_there_is_a_sidecar_kubelet_asks_again() {
    let (bench, _) = bench(Err("the API server is away".into())).await;
    let unsure = bench
        .node
        .publish(request(&bench, "pods/p"))
        .await
        .unwrap_err();
    assert_eq!(code(&unsure), Code::Unavailable);
    let unnamed = bench.publish("v", "pods/p").await.unwrap_err();
    assert_eq!(code(&unnamed), Code::FailedPrecondition);
    assert_eq!(bench.read("v").await.publications, []);
}
