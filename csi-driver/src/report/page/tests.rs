use std::collections::HashMap;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::bytes::Bytes;
use crate::report::{Reason, Subject};
use crate::volume::catalog::{change, conformance};
use crate::volume::{Bill, ClaimReference, FileCatalog, Layer, NodeId, Payer, Usage, VolumeId};

struct Served {
    _folder: tempfile::TempDir,
    catalog: Arc<dyn Catalog>,
    events: Events,
    address: SocketAddr,
}

async fn served() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let catalog: Arc<dyn Catalog> = Arc::new(FileCatalog::open(folder.path()).unwrap());
    let events = Events::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = Page {
        catalog: Arc::clone(&catalog),
        nodes: ["a=1GiB".parse().unwrap()].into_iter().collect(),
        node_grace: Duration::from_secs(40),
        events: events.clone(),
    };
    tokio::spawn(page.serve(listener));
    Served {
        _folder: folder,
        catalog,
        events,
        address,
    }
}

impl Served {
    async fn get(&self, path: &str, host: &str) -> (String, HashMap<String, String>, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, headers) = head.split_once("\r\n").unwrap();
        let headers = headers.lines().filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        (status.to_owned(), headers.collect(), body.to_owned())
    }

    async fn state(&self) -> Value {
        let (status, _, body) = self.get("/api/state", "localhost").await;
        assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn the_state_has_nodes_volumes_bills_and_events() {
    let served = served().await;
    let node = NodeId::parse("a").unwrap();
    let mut volume = conformance::volume("pvc-x");
    volume.claim = Some(ClaimReference {
        namespace: "team".into(),
        name: "<b>features</b>".into(),
        uid: None,
    });
    served.catalog.create(volume).await.unwrap();
    served.catalog.beat(&node, "boot").await.unwrap();
    let id = VolumeId::of_name("pvc-x");
    change::<catalog::Error>(&*served.catalog, &id, |volume| {
        let layer = Layer {
            boot_id: "boot".into(),
            epoch: 1,
            context: None,
        };
        volume.settle(&node, 1, layer);
        volume.usage = Some(Usage {
            used: Bytes(4096),
            billed: vec![Bill {
                payer: Payer::Retainer,
                bytes: Bytes(4096),
                ..Bill::default()
            }],
            ..Usage::default()
        });
        Ok(())
    })
    .await
    .unwrap();
    let about = [Subject::Volume(id)];
    served
        .events
        .publish(Reason::VolumeResident, &about, "4KiB of memory");
    let state = served.state().await;
    let node = &state["nodes"][0];
    assert_eq!((&node["name"], &node["alive"]), (&"a".into(), &true.into()));
    assert_eq!(
        (&node["budget"], &node["booked"]),
        (&(1 << 30).into(), &4096.into())
    );
    let volume = &state["volumes"][0];
    // Markup goes out as text, and the page makes text of it.
    assert_eq!(volume["claim"]["name"], "<b>features</b>");
    assert_eq!(
        (&volume["phase"], &volume["home"]),
        (&"Resident".into(), &"a".into())
    );
    assert_eq!(volume["billed"][0]["payer"], "Retainer");
    assert_eq!(volume["conditions"][0]["status"], "True");
    assert_eq!(state["events"][0]["reason"], "VolumeResident");
    assert_eq!(state["unreadable"], serde_json::json!([]));
}

#[tokio::test]
async fn only_the_pages_own_script_may_run_in_it() {
    let served = served().await;
    let (_, first, body) = served.get("/", "127.0.0.1").await;
    let (_, second, _) = served.get("/", "127.0.0.1").await;
    let policy = &first["content-security-policy"];
    assert_ne!(policy, &second["content-security-policy"]);
    let (_, rest) = policy.split_once("script-src 'nonce-").unwrap();
    let (nonce, _) = rest.split_once('\'').unwrap();
    assert_eq!(nonce.len(), 36);
    assert!(body.contains(&format!("<script nonce=\"{nonce}\">")));
    assert!(!policy.contains("unsafe") && !body.contains(PLACEHOLDER));
    assert_eq!(first["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn another_sites_name_that_points_here_is_not_answered() {
    let served = served().await;
    for (host, status) in [
        ("localhost:9811", 200),
        ("127.0.0.1", 200),
        ("[::1]:9811", 200),
        ("evil.example:9811", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ] {
        let (line, _, _) = served.get("/api/state", host).await;
        assert!(
            line.starts_with(&format!("HTTP/1.1 {status}")),
            "{host:?}: {line}"
        );
    }
}

#[tokio::test]
async fn nothing_can_be_changed() {
    let served = served().await;
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let request =
            format!("{method} /api/state HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    }
}
