use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes as Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::super::{Events, Reason};
use super::*;
use crate::volume::catalog::conformance;
use crate::volume::{Claim, PodUid, Publication};

/// What an API server was asked to write: method, path, body.
type Written = Arc<Mutex<Vec<(Method, String, Value)>>>;

/// Knows one volume, takes every event but those in the namespace `forbidden`.
async fn api(State(written): State<Written>, request: Request) -> (StatusCode, String) {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    if parts.method == Method::GET {
        return match path.ends_with("/vineyardvolumes/pvc-1") {
            true => (StatusCode::OK, serde_json::to_string(&volume()).unwrap()),
            false => (StatusCode::NOT_FOUND, status(404)),
        };
    }
    if path.contains("/forbidden/") {
        return (StatusCode::FORBIDDEN, status(403));
    }
    let body: Body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let event: Value = serde_json::from_slice(&body).unwrap();
    written
        .lock()
        .unwrap()
        .push((parts.method, path, event.clone()));
    (StatusCode::OK, event.to_string())
}

fn status(code: u16) -> String {
    let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "no", "reason": if code == 404 { "NotFound" } else { "Forbidden" }, "code": code});
    status.to_string()
}

fn pod(namespace: &str) -> PodReference {
    PodReference {
        namespace: namespace.into(),
        name: "train-0".into(),
        uid: "uid-1".into(),
    }
}

fn volume() -> VineyardVolume {
    let mut volume = conformance::volume("pvc-1");
    volume.claim = Some(ClaimReference {
        namespace: "team".into(),
        name: "features".into(),
        uid: Some("uid-claim".into()),
    });
    volume.publications.push(Publication {
        node: NodeId::parse("a").unwrap(),
        boot_id: "boot".into(),
        path: "/target".into(),
        pod_uid: Some("uid-1".into()),
        pod: Some(pod("team")),
        claim: Claim {
            access_mode: crate::volume::AccessMode::SingleNodeWriter,
            read_only: false,
            no_exec: false,
            no_atime: false,
        },
    });
    let mut resource = VineyardVolume::from(volume);
    resource.metadata.namespace = Some("system".into());
    resource.metadata.uid = Some("uid-volume".into());
    resource
}

struct Cluster {
    events: Events,
    counts: Counts,
    written: Written,
}

impl Cluster {
    async fn new() -> Self {
        let written = Written::default();
        let routes = Router::new().fallback(api).with_state(Arc::clone(&written));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, routes).await });
        let config = kube::Config::new(url.parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let counts = Counts::default();
        let recorder = Recorder::new(client, "system", "vineyard.io/node");
        Self {
            events: Events::written_by(recorder, counts.clone()),
            counts,
            written,
        }
    }

    /// Waits until so many have come to an end.
    async fn settled(&self, outcome: Outcome, count: u64) {
        while self.counts.get(outcome) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn written(&self) -> Vec<(Method, String, Value)> {
        self.written.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn an_event_about_a_volume_is_written_on_its_record_and_on_its_claim() {
    let cluster = Cluster::new().await;
    let about = [Subject::Volume(VolumeId::of_name("pvc-1"))];
    cluster
        .events
        .publish(Reason::VolumeLost, &about, "n1 was restarted");
    cluster.settled(Outcome::Written, 2).await;
    let written = cluster.written();
    let [(method, on_volume, _), (_, on_claim, event)] = &written[..] else {
        panic!("{written:?}");
    };
    assert_eq!(method, Method::POST);
    assert_eq!(on_volume, "/apis/events.k8s.io/v1/namespaces/system/events");
    assert_eq!(on_claim, "/apis/events.k8s.io/v1/namespaces/team/events");
    let regarding = &event["regarding"];
    assert_eq!(regarding["kind"], "PersistentVolumeClaim");
    assert_eq!(
        (&regarding["name"], &regarding["uid"]),
        (&"features".into(), &"uid-claim".into())
    );
    assert_eq!(
        (&event["type"], &event["reason"]),
        (&"Warning".into(), &"VolumeLost".into())
    );
    assert_eq!(event["note"], "n1 was restarted");
    assert_eq!(event["reportingController"], "vineyard.io/node");
}

#[tokio::test]
async fn a_pod_that_is_known_by_its_uid_only_is_named_by_its_volumes_record() {
    let cluster = Cluster::new().await;
    let subject = |uid: &str| Subject::PodOf {
        pod: PodUid::parse(uid).unwrap(),
        volume: VolumeId::of_name("pvc-1"),
    };
    let about = [subject("uid-1"), subject("uid-of-a-stranger")];
    cluster
        .events
        .publish(Reason::StoreFull, &about, "x".repeat(5000));
    // Said again at once: that is not worth a request. About what is not there: nobody reads it.
    cluster
        .events
        .publish(Reason::StoreFull, &about[..1], "again");
    cluster.settled(Outcome::Suppressed, 1).await;
    let written = cluster.written();
    assert_eq!(written.len(), 1);
    let (_, path, event) = &written[0];
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/team/events");
    assert_eq!(event["regarding"]["name"], "train-0");
    assert_eq!(event["note"].as_str().unwrap().len(), NOTE);
}

#[tokio::test]
async fn what_kubernetes_does_not_take_is_counted_and_the_next_one_is_written() {
    let cluster = Cluster::new().await;
    let about = [
        Subject::Pod(pod("forbidden")),
        Subject::Volume(VolumeId::of_name("unknown")),
        Subject::Node(NodeId::parse("n1").unwrap()),
    ];
    cluster
        .events
        .publish(Reason::RetainerAway, &about, "no answer");
    cluster.settled(Outcome::Written, 1).await;
    assert_eq!(cluster.counts.get(Outcome::Failed), 1);
    let (_, path, event) = &cluster.written()[0];
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!(event["regarding"]["uid"], "n1");
}
