mod api;
mod cluster;

use serde_json::json;
use tempfile::TempDir;

use self::api::{ApiServer, Resizing};
use super::*;
use crate::report::events::{Counts, Recorder};

const MIB: u64 = 1 << 20;
/// What the retainer's process needs.
const OVERHEAD: u64 = 16 * MIB;
/// What the node offers.
const BUDGET: u64 = 200 * MIB;
/// More than any test needs; whoever waits so long has failed.
const LONG: Duration = Duration::from_secs(60);

/// A driver, an API server, and a kubelet that does what the test says.
struct Stage {
    folder: TempDir,
    api: ApiServer,
    request: KubernetesRequest,
}

impl Stage {
    /// With a retainer that requests so much, all of it allocated.
    fn new(request: u64) -> Self {
        let api = ApiServer::default();
        api.create("a", request);
        Self::over(api)
    }

    fn over(api: ApiServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let request = open(&api, &folder);
        Self {
            folder,
            api,
            request,
        }
    }

    /// Another driver, over the same records.
    fn restart(&mut self) {
        self.request = open(&self.api, &self.folder);
    }

    async fn set(&self, bytes: u64) {
        self.request.set(Bytes(bytes)).await.unwrap();
    }

    async fn state(&self, state: State) {
        self.until(|known| known.standing.state == state).await;
    }

    async fn until(&self, done: impl Fn(&Known) -> bool) {
        learned(&self.request, done).await;
    }
}

/// Waits until so much is known.
async fn learned(request: &KubernetesRequest, done: impl Fn(&Known) -> bool) {
    let mut known = request.known.clone();
    let waited = tokio::time::timeout(LONG, known.wait_for(|it| done(it))).await;
    if waited.is_err() {
        panic!("still {:?}", request.known.borrow());
    }
}

fn open(api: &ApiServer, folder: &TempDir) -> KubernetesRequest {
    let recorder = Recorder::new(api.client(), "vineyard-system", "vineyard.io/node");
    let place = Place {
        client: api.client(),
        namespace: "vineyard-system".into(),
        node: NodeId::parse("n1").unwrap(),
        budget: Bytes(BUDGET),
        events: Events::written_by(recorder, Counts::default()),
        overhead: Bytes(OVERHEAD),
    };
    let path = folder.path().join("request.json");
    KubernetesRequest::open(place, path, "boot").unwrap()
}

#[tokio::test]
async fn the_sum_is_asked_for_and_counts_when_kubelet_has_allocated_it() {
    let stage = Stage::new(OVERHEAD);
    stage.set(100 * MIB).await;
    assert!(stage.request.heard(LONG).await);
    assert_eq!(stage.api.resizes(), [OVERHEAD + 100 * MIB]);
    assert_eq!(stage.request.allocated(), Bytes(0));
    assert_eq!(stage.request.standing().state, State::Asked);
    let granted = stage.request.granted(Bytes(100 * MIB), LONG);
    let (granted, ()) = tokio::join!(granted, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.api.kubelet_allocates();
    });
    assert!(granted);
    assert_eq!(stage.request.allocated(), Bytes(100 * MIB));
    stage.state(State::Allocated).await;
    assert_eq!(stage.request.bound(), None);
}

#[tokio::test]
async fn what_is_not_asked_for_any_more_counts_no_more_at_once() {
    let stage = Stage::new(OVERHEAD);
    stage.set(100 * MIB).await;
    assert!(stage.request.heard(LONG).await);
    stage.api.kubelet_allocates();
    stage.state(State::Allocated).await;
    stage.set(40 * MIB).await;
    assert_eq!(stage.request.allocated(), Bytes(40 * MIB));
    stage.until(|it| it.heard == Some(Bytes(40 * MIB))).await;
    // Asked for again, before kubelet has said what became of the 100: it may have been given away meanwhile.
    stage.set(90 * MIB).await;
    stage.until(|it| it.heard == Some(Bytes(90 * MIB))).await;
    assert_eq!(stage.request.allocated(), Bytes(40 * MIB));
    stage.api.kubelet_allocates();
    assert!(stage.request.granted(Bytes(90 * MIB), LONG).await);
}

#[tokio::test]
async fn the_same_sum_is_asked_for_once() {
    let stage = Stage::new(OVERHEAD);
    stage.set(MIB).await;
    assert!(stage.request.heard(LONG).await);
    stage.api.kubelet_allocates();
    stage.state(State::Allocated).await;
    stage.set(MIB).await;
    stage.api.touch();
    stage.api.kubelet_allocates();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.api.resizes(), [OVERHEAD + MIB]);
}

#[tokio::test]
async fn never_more_is_asked_for_than_the_node_offers() {
    let stage = Stage::new(OVERHEAD);
    stage.set(BUDGET + MIB).await;
    assert!(stage.request.heard(LONG).await);
    assert_eq!(stage.api.resizes(), [OVERHEAD + BUDGET]);
    assert_eq!(stage.request.desired(), Bytes(BUDGET + MIB));
    stage.api.kubelet_allocates();
    assert!(stage.request.granted(Bytes(BUDGET), LONG).await);
}

#[tokio::test]
async fn after_a_refusal_less_is_asked_for_at_once() {
    let api = ApiServer::default();
    api.create("a", OVERHEAD);
    api.resizing(Resizing::Refused(
        403,
        "node didn't have enough allocatable resources",
    ));
    let stage = Stage::over(api);
    stage.set(100 * MIB).await;
    stage.state(State::Refused).await;
    stage.api.resizing(Resizing::Works);
    stage.set(50 * MIB).await;
    stage.until(|it| it.heard == Some(Bytes(50 * MIB))).await;
    assert_eq!(stage.request.bound(), None);
}

#[tokio::test]
async fn another_pod_requests_the_same_from_the_start() {
    let stage = Stage::new(OVERHEAD);
    stage.set(100 * MIB).await;
    assert!(stage.request.heard(LONG).await);
    stage.api.kubelet_allocates();
    assert!(stage.request.granted(Bytes(MIB), LONG).await);
    stage.api.delete();
    stage.state(State::Absent).await;
    assert_eq!(stage.request.allocated(), Bytes(0));
    assert!(!stage.request.granted(Bytes(MIB), LONG).await);
    stage.api.create("b", OVERHEAD);
    stage.until(|it| it.heard == Some(Bytes(100 * MIB))).await;
    // Of the old one's nothing counts.
    assert_eq!(stage.request.allocated(), Bytes(0));
    stage.api.kubelet_allocates();
    stage.state(State::Allocated).await;
    assert!(stage.request.granted(Bytes(100 * MIB), LONG).await);
}

#[tokio::test]
async fn a_full_node_is_known_without_waiting_and_heard_all_the_same() {
    let stage = Stage::new(OVERHEAD);
    stage.set(MIB).await;
    assert!(stage.request.heard(LONG).await);
    stage.api.kubelet_allocates();
    stage.state(State::Allocated).await;
    stage.set(100 * MIB).await;
    // The scheduler counts what is deferred.
    assert!(stage.request.heard(LONG).await);
    stage
        .api
        .kubelet_answers("Deferred", "Node didn't have enough resource: memory");
    assert!(!stage.request.granted(Bytes(100 * MIB), LONG).await);
    assert_eq!(stage.request.allocated(), Bytes(MIB));
    let standing = stage.request.standing();
    assert_eq!(standing.state, State::Deferred);
    assert!(standing.message.contains("memory"), "{standing:?}");
    // It passes, so it bounds nothing.
    assert_eq!(stage.request.bound(), None);
    stage.api.kubelet_allocates();
    stage.state(State::Allocated).await;
    assert!(stage.request.granted(Bytes(100 * MIB), LONG).await);
}

#[tokio::test]
async fn a_request_that_kubelet_never_changes_bounds_the_node() {
    let stage = Stage::new(OVERHEAD + 64 * MIB);
    stage.set(100 * MIB).await;
    assert!(stage.request.heard(LONG).await);
    stage.api.kubelet_answers("Infeasible", "swap");
    stage.state(State::Infeasible).await;
    assert_eq!(stage.request.bound(), Some(Bytes(64 * MIB)));
    assert!(!stage.request.granted(Bytes(100 * MIB), LONG).await);
}

#[tokio::test]
async fn where_nothing_is_resized_the_fixed_request_bounds_the_node_and_people_are_told() {
    for (code, message) in [
        (404, "the server could not find the requested resource"),
        (403, "pods is forbidden"),
        (422, "Pod running on node without support for resize"),
    ] {
        let api = ApiServer::default();
        api.create("a", OVERHEAD + 64 * MIB);
        api.resizing(Resizing::Refused(code, message));
        let stage = Stage::over(api);
        stage.state(State::Refused).await;
        assert_eq!(stage.request.bound(), Some(Bytes(64 * MIB)), "{code}");
        stage.set(50 * MIB).await;
        // Allocated since the pod is there.
        assert!(stage.request.granted(Bytes(50 * MIB), LONG).await);
        stage.set(100 * MIB).await;
        assert!(!stage.request.heard(LONG).await);
        assert!(!stage.request.granted(Bytes(100 * MIB), LONG).await);
        let event = stage.api.event("Node", "RetainerNotResizable").await;
        assert_eq!(event["regarding"]["name"], "n1");
        let event = stage.api.event("Pod", "RetainerNotResizable").await;
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["regarding"]["uid"], "a");
        let note = event["note"].as_str().unwrap();
        assert!(note.contains(message) && note.contains("64MiB"), "{note}");
        let written = stage.api.node_status().await;
        assert_eq!(written["retainer"]["state"], "Refused");
    }
}

#[tokio::test]
async fn a_request_that_nobody_hears_is_on_record_and_made_later_by_another_driver_too() {
    let api = ApiServer::default();
    api.create("a", OVERHEAD);
    api.resizing(Resizing::Down);
    let mut stage = Stage::over(api);
    stage.set(100 * MIB).await;
    stage.state(State::Unheard).await;
    assert!(!stage.request.heard(LONG).await);
    // Down is not refused: nothing is bounded.
    assert_eq!(stage.request.bound(), None);
    stage.restart();
    assert_eq!(stage.request.desired(), Bytes(100 * MIB));
    stage.api.resizing(Resizing::Works);
    stage.until(|it| it.heard == Some(Bytes(100 * MIB))).await;
    assert_eq!(stage.api.resizes(), [OVERHEAD + 100 * MIB]);
}

#[tokio::test]
async fn a_pod_that_has_gone_meanwhile_is_no_refusal() {
    let api = ApiServer::default();
    api.create("a", OVERHEAD);
    let stage = Stage::over(api);
    stage.set(MIB).await;
    assert!(stage.request.heard(LONG).await);
    stage.api.vanish();
    stage.set(2 * MIB).await;
    stage.state(State::Absent).await;
    assert_eq!(stage.request.bound(), None);
}

#[tokio::test]
async fn the_nodes_resource_says_what_is_retained_for_those_who_make_the_next_pod() {
    let stage = Stage::new(OVERHEAD);
    stage.set(100 * MIB).await;
    assert!(stage.request.heard(LONG).await);
    stage.api.kubelet_allocates();
    stage.state(State::Allocated).await;
    let status = stage
        .api
        .node_status_where(|it| it["retainer"]["state"] == "Allocated");
    let expected = json!({
        "requested": 100 * MIB, "allocated": 100 * MIB, "state": "Allocated", "message": "",
    });
    assert_eq!(status.await["retainer"], expected);
}
