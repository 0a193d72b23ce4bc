//! An API server that is played: objects in memory, with versions, creation, replacement and JSON patches as the real one has them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kube::{Client, Config};
use serde_json::{Value, json};

#[derive(Clone, Default)]
pub(in crate::webhook) struct PlayedApi {
    objects: Arc<Mutex<Objects>>,
}

#[derive(Default)]
struct Objects {
    version: u64,
    by_path: BTreeMap<String, Value>,
    /// Paths that are answered with 403.
    forbidden: Vec<String>,
}

impl PlayedApi {
    /// Puts an object at its path.
    pub(in crate::webhook) fn put(&self, path: &str, object: Value) {
        self.objects.lock().unwrap().write(path, object);
    }

    pub(in crate::webhook) fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().unwrap().by_path.get(path).cloned()
    }

    pub(in crate::webhook) fn remove(&self, path: &str) {
        self.objects.lock().unwrap().by_path.remove(path);
    }

    pub(in crate::webhook) fn forbid(&self, path: &str) {
        self.objects.lock().unwrap().forbidden.push(path.into());
    }

    /// A client of it, as long as the runtime lives.
    pub(in crate::webhook) async fn client(&self) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        Client::try_from(config).unwrap()
    }
}

impl Objects {
    fn write(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.by_path.insert(path.to_owned(), object.clone());
        object
    }

    fn list(&self, path: &str) -> Value {
        let prefix = format!("{path}/");
        let below = self.by_path.range(prefix.clone()..);
        let below = below.take_while(|(key, _)| key.starts_with(&prefix));
        let items = below.filter(|(key, _)| !key[prefix.len()..].contains('/'));
        let items: Vec<&Value> = items.map(|(_, object)| object).collect();
        json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
    }
}

async fn answer(State(api): State<PlayedApi>, method: Method, uri: Uri, body: Bytes) -> Response {
    let mut objects = api.objects.lock().unwrap();
    let path = uri.path();
    if objects
        .forbidden
        .iter()
        .any(|it| path.starts_with(it.as_str()))
    {
        return failure(403, "Forbidden");
    }
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    let found = objects.by_path.get(path).cloned();
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    let answer = match (method, found) {
        (Method::GET, Some(object)) => object,
        // Plurals are lists: no object of these tests ends in an s.
        (Method::GET, None) if path.ends_with('s') || path.ends_with("classes") => {
            objects.list(path)
        }
        (Method::POST, _) => {
            let name = sent["metadata"]["name"].as_str().unwrap_or_default();
            let path = format!("{path}/{name}");
            if objects.by_path.contains_key(&path) {
                return failure(409, "AlreadyExists");
            }
            objects.write(&path, sent)
        }
        (Method::PUT, Some(object)) if version(&sent) == version(&object) => {
            objects.write(path, sent)
        }
        (Method::PUT, Some(_)) => return failure(409, "Conflict"),
        (Method::PATCH, Some(object)) => {
            let patch: json_patch::Patch = serde_json::from_value(sent).unwrap();
            let mut patched = object.clone();
            if json_patch::patch(&mut patched, &patch).is_err() {
                return failure(422, "Invalid");
            }
            if version(&patched) != version(&object) {
                return failure(409, "Conflict");
            }
            objects.write(path, patched)
        }
        (Method::DELETE, Some(object)) => {
            let wanted = &sent["preconditions"]["resourceVersion"];
            if !wanted.is_null() && *wanted != version(&object) {
                return failure(409, "Conflict");
            }
            objects.by_path.remove(path);
            object
        }
        _ => return failure(404, "NotFound"),
    };
    (StatusCode::OK, answer.to_string()).into_response()
}

fn failure(code: u16, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": reason,
    });
    let code = StatusCode::from_u16(code).unwrap();
    (code, status.to_string()).into_response()
}
