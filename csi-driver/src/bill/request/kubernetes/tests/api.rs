//! An API server with one pod, one node, and events: as much of it as the request of the retainer needs.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Method, Request, Response};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::LONG;
use crate::bytes::Bytes;
use crate::webhook::quantity;

const NODE: &str = "/apis/vineyard.io/v1alpha1/namespaces/vineyard-system/vineyardnodes/n1";
const PODS: &str = "/api/v1/namespaces/vineyard-system/pods";

/// How it answers to a resize.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Resizing {
    #[default]
    Works,
    Refused(u16, &'static str),
    Down,
}

#[derive(Debug, Default)]
struct Content {
    pod: Option<Value>,
    version: u64,
    watchers: Vec<UnboundedSender<Result<String, Infallible>>>,
    resizing: Resizing,
    resizes: Vec<u64>,
    events: Vec<Value>,
    node_status: Value,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ApiServer {
    content: Arc<Mutex<Content>>,
}

impl ApiServer {
    pub(super) fn client(&self) -> Client {
        let router = Router::new().fallback(answer).with_state(self.clone());
        Client::new(router, "vineyard-system")
    }

    /// A pod that kubelet has admitted with what it requests.
    pub(super) fn create(&self, uid: &str, request: u64) {
        let requests = json!({"memory": request.to_string()});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("retainer-{uid}"), "uid": uid, "generation": 1,
                "creationTimestamp": "2026-11-26T00:00:00Z",
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "retainer", "resources": {"requests": requests}}]},
            "status": {"phase": "Running", "observedGeneration": 1, "containerStatuses": [{
                "name": "retainer", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": requests,
            }]},
        });
        self.content.lock().unwrap().put(pod, "ADDED");
    }

    /// As kubelet does when it has room.
    pub(super) fn kubelet_allocates(&self) {
        self.change(|pod| {
            let requests = pod["spec"]["containers"][0]["resources"]["requests"].clone();
            pod["status"]["containerStatuses"][0]["allocatedResources"] = requests;
            pod["status"]["observedGeneration"] = pod["metadata"]["generation"].clone();
            pod["status"]["conditions"] = json!([]);
        });
    }

    /// As kubelet does when it does not allocate.
    pub(super) fn kubelet_answers(&self, reason: &str, message: &str) {
        self.change(|pod| {
            let generation = pod["metadata"]["generation"].clone();
            pod["status"]["observedGeneration"] = generation.clone();
            pod["status"]["conditions"] = json!([{
                "type": "PodResizePending", "status": "True", "reason": reason,
                "message": message, "observedGeneration": generation,
            }]);
        });
    }

    /// Something else about the pod changes.
    pub(super) fn touch(&self) {
        self.change(|pod| pod["metadata"]["labels"] = json!({"touched": "yes"}));
    }

    /// The pod goes, and whoever watches hears of it.
    pub(super) fn delete(&self) {
        let mut content = self.content.lock().unwrap();
        let pod = content.pod.take().unwrap();
        content.say("DELETED", &pod);
    }

    /// The pod goes, and nobody hears of it.
    pub(super) fn vanish(&self) {
        self.content.lock().unwrap().pod = None;
    }

    pub(super) fn resizing(&self, resizing: Resizing) {
        self.content.lock().unwrap().resizing = resizing;
    }

    /// The requests that were asked for and taken, in bytes.
    pub(super) fn resizes(&self) -> Vec<u64> {
        self.content.lock().unwrap().resizes.clone()
    }

    /// The first event with this reason on an object of this kind.
    pub(super) async fn event(&self, kind: &str, reason: &str) -> Value {
        self.eventually(|content| {
            let its =
                |event: &&Value| event["reason"] == reason && event["regarding"]["kind"] == kind;
            content.events.iter().find(its).cloned()
        })
        .await
    }

    /// What the node's resource says, once it says something.
    pub(super) async fn node_status(&self) -> Value {
        self.node_status_where(|status| !status.is_null()).await
    }

    pub(super) async fn node_status_where(&self, is_it: impl Fn(&Value) -> bool) -> Value {
        self.eventually(|content| Some(content.node_status.clone()).filter(&is_it))
            .await
    }

    async fn eventually<T>(&self, find: impl Fn(&Content) -> Option<T>) -> T {
        let looking = async {
            loop {
                if let Some(found) = find(&self.content.lock().unwrap()) {
                    return found;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, looking).await.unwrap()
    }

    fn change(&self, edit: impl FnOnce(&mut Value)) {
        let mut content = self.content.lock().unwrap();
        let mut pod = content.pod.clone().unwrap();
        edit(&mut pod);
        content.put(pod, "MODIFIED");
    }
}

impl Content {
    fn put(&mut self, mut pod: Value, kind: &str) {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.say(kind, &pod);
        self.pod = Some(pod);
    }

    fn say(&mut self, kind: &str, pod: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": pod}));
        self.watchers.retain(|it| it.send(Ok(line.clone())).is_ok());
    }

    fn resize(&mut self, patch: &Value) -> Response<Body> {
        match self.resizing {
            Resizing::Down => return failure(503, "down"),
            Resizing::Refused(code, message) => return failure(code, message),
            Resizing::Works => {}
        }
        let Some(mut pod) = self.pod.clone() else {
            return failure(404, "pods not found");
        };
        let container = &patch["spec"]["containers"][0];
        assert_eq!(container["name"], "retainer");
        let memory = &container["resources"]["requests"]["memory"];
        let Bytes(bytes) = quantity::bytes(memory.as_str().unwrap()).unwrap();
        self.resizes.push(bytes);
        pod["spec"]["containers"][0]["resources"]["requests"]["memory"] = memory.clone();
        let generation = pod["metadata"]["generation"].as_i64().unwrap();
        pod["metadata"]["generation"] = json!(generation + 1);
        self.put(pod, "MODIFIED");
        success(&self.pod)
    }
}

async fn answer(State(server): State<ApiServer>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let mut content = server.content.lock().unwrap();
    if head.method == Method::PATCH && path == NODE {
        content.node_status = body["status"].clone();
        let node = json!({"metadata": {"name": "n1"}, "spec": {}, "status": {}});
        return success(&node);
    }
    if head.method == Method::POST && path.ends_with("/events") {
        content.events.push(body.clone());
        return success(&body);
    }
    if head.method == Method::PATCH && path.ends_with("/resize") {
        return content.resize(&body);
    }
    if path != PODS {
        return match &content.pod {
            Some(pod) if path.ends_with(pod["metadata"]["name"].as_str().unwrap()) => success(pod),
            _ => failure(404, "not found"),
        };
    }
    assert!(query.contains("component%3Dretainer"), "{query}");
    assert!(query.contains("spec.nodeName%3Dn1"), "{query}");
    if query.contains("watch=true") {
        let (watcher, events) = unbounded_channel();
        content.watchers.push(watcher);
        return Response::new(Body::from_stream(UnboundedReceiverStream::new(events)));
    }
    let items: Vec<_> = content.pod.iter().collect();
    let version = content.version.to_string();
    success(&json!({
        "apiVersion": "v1", "kind": "PodList",
        "metadata": {"resourceVersion": version}, "items": items,
    }))
}

fn success(body: &impl serde::Serialize) -> Response<Body> {
    Response::new(Body::from(serde_json::to_vec(body).unwrap()))
}

fn failure(code: u16, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": ""});
    let mut response = success(&status);
    *response.status_mut() = code.try_into().unwrap();
    response
}
