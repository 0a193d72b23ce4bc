//! Reviews over real TLS, and certificates that are made, shared, replaced and exchanged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::api::PlayedApi;
use super::{https, settings};
use crate::metrics::Metrics;
use crate::volume::FileCatalog;
use crate::webhook::authority::Authority;
use crate::webhook::{
    Certificates, Lifetimes, Lookup, Retained, Reviewer, Rotation, Trust, Webhook,
};

const NAME: &str = "vineyard-webhook.vineyard-system.svc";
const SECRET: &str = "/api/v1/namespaces/vineyard-system/secrets/vineyard-webhook";
const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/vineyard";

async fn rotation(api: &PlayedApi) -> Rotation {
    let client = api.client().await;
    Rotation {
        trust: Trust::new(client, "vineyard-system", "vineyard-webhook", "vineyard"),
        certificates: Arc::new(Certificates::default()),
        names: vec![NAME.into()],
        lifetimes: Lifetimes::default(),
    }
}

async fn webhook(api: &PlayedApi, catalog: Arc<FileCatalog>) -> Webhook {
    Webhook {
        listen: "127.0.0.1:0".parse().unwrap(),
        retained: Retained::new(api.client().await, "vineyard-system"),
        reviewer: Reviewer {
            lookup: Lookup::new(api.client().await, catalog),
            settings: settings(),
        },
        rotation: rotation(api).await,
    }
}

fn configure(api: &PlayedApi) {
    let webhook = |name: &str| {
        let service = json!({"name": "vineyard-webhook", "namespace": "vineyard-system"});
        json!({
            "name": name, "clientConfig": {"service": service}, "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        })
    };
    let webhooks = [webhook("pods.vineyard.io"), webhook("more.vineyard.io")];
    api.put(
        CONFIGURATION,
        json!({"metadata": {"name": "vineyard"}, "webhooks": webhooks}),
    );
}

/// What the API server believes, of every webhook.
fn believed(api: &PlayedApi) -> String {
    let configuration = api.get(CONFIGURATION).unwrap();
    let of = |index: usize| {
        let bundle = &configuration["webhooks"][index]["clientConfig"]["caBundle"];
        let bundle: k8s_openapi::ByteString = serde_json::from_value(bundle.clone()).unwrap();
        String::from_utf8(bundle.0).unwrap()
    };
    assert_eq!(of(0), of(1));
    of(0)
}

/// A webhook that serves, without a rotation that runs by itself.
async fn serve(rotation: &Rotation) -> SocketAddr {
    use crate::webhook::tls::Listener;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = Listener::new(listener, Arc::clone(&rotation.certificates)).unwrap();
    let address = axum::serve::Listener::local_addr(&listener).unwrap();
    let routes = axum::Router::new().route("/", axum::routing::post(|| async { "ok" }));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_pod_is_reviewed_over_tls_that_the_api_server_believes() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Arc::new(FileCatalog::open(&folder.path().join("catalog")).unwrap());
    let api = PlayedApi::default();
    configure(&api);
    let class = json!({"metadata": {"name": "vineyard"}, "provisioner": "vineyard.io"});
    api.put("/apis/storage.k8s.io/v1/storageclasses/vineyard", class);
    let spec =
        json!({"storageClassName": "vineyard", "resources": {"requests": {"storage": "1Gi"}}});
    let claim = json!({"metadata": {"name": "work"}, "spec": spec});
    api.put("/api/v1/namespaces/team/persistentvolumeclaims/work", claim);
    let webhook = webhook(&api, catalog).await;
    // Whoever hears that it has started may call it at once.
    let serving = webhook.start(Metrics::new()).await.unwrap();
    let address = serving.address;
    let mut stream = https::connect(address, NAME, &believed(&api))
        .await
        .unwrap();
    let pod = |annotations: Value| {
        json!({
            "metadata": {"generateName": "writer-", "annotations": annotations},
            "spec": {
                "containers": [{"name": "main", "image": "x", "volumeMounts": [{"name": "work", "mountPath": "/data"}]}],
                "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}],
            },
        })
    };
    let review = |pod: &Value, dry_run: bool| {
        json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "7", "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "namespace": "team", "operation": "CREATE", "userInfo": {}, "object": pod,
                "oldObject": null, "dryRun": dry_run,
            },
        })
        .to_string()
    };
    let before = api.get("/api/v1/namespaces/team/persistentvolumeclaims/work");
    for dry_run in [true, false] {
        let (status, answer) =
            https::post(&mut stream, "/mutate", &review(&pod(json!({})), dry_run)).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (status, &answer["response"]["uid"]),
            (200, &json!("7")),
            "{answer}"
        );
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
    }
    assert_eq!(
        api.get("/api/v1/namespaces/team/persistentvolumeclaims/work"),
        before
    );
    let refused = review(&pod(json!({"vineyard.io/writes": "much"})), false);
    let (status, answer) = https::post(&mut stream, "/mutate", &refused).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (status, &answer["response"]["allowed"]),
        (200, &json!(false))
    );
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("vineyard.io/writes"), "{message}");
    // The same pod is no retainer.
    let other = review(&pod(json!({})), false);
    let (status, answer) = https::post(&mut stream, "/retainer", &other).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (status, &answer["response"]["allowed"]),
        (200, &json!(true))
    );
    assert_eq!(answer["response"]["patch"], Value::Null);
    // What cannot be answered is an error: the failure policy decides.
    let (status, _) = https::post(&mut stream, "/mutate", "{}").await;
    assert_eq!(status, 400);
    api.forbid("/api/v1/namespaces/team");
    let (status, _) = https::post(&mut stream, "/mutate", &review(&pod(json!({})), false)).await;
    assert_eq!(status, 500);
}

#[tokio::test]
async fn a_webhook_that_ends_answers_whoever_has_not_heard_of_it_and_then_hangs_up() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Arc::new(FileCatalog::open(&folder.path().join("catalog")).unwrap());
    let api = PlayedApi::default();
    configure(&api);
    let webhook = webhook(&api, catalog).await;
    let serving = webhook.start(Metrics::new()).await.unwrap();
    let (address, bundle) = (serving.address, believed(&api));
    let mut before = https::connect(address, NAME, &bundle).await.unwrap();
    assert_eq!(https::post(&mut before, "/mutate", "{}").await.0, 400);
    let end = tokio::spawn(serving.end(Duration::from_millis(500)));
    let mut late = https::connect(address, NAME, &bundle).await.unwrap();
    for stream in [&mut before, &mut late] {
        assert_eq!(https::post(stream, "/mutate", "{}").await.0, 400);
    }
    end.await.unwrap();
    // An idle connection is closed, so that its owner calls somebody else instead of an end in the middle.
    for stream in [&mut before, &mut late] {
        let read = tokio::io::AsyncReadExt::read(stream, &mut [0; 16]).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}

#[tokio::test]
async fn replicas_that_race_share_one_authority_and_have_certificates_of_their_own() {
    let api = PlayedApi::default();
    configure(&api);
    // As the chart leaves it.
    api.put(SECRET, json!({"metadata": {"name": "vineyard-webhook"}}));
    let mut replicas = Vec::new();
    for _ in 0..6 {
        replicas.push(rotation(&api).await);
    }
    let mut running = tokio::task::JoinSet::new();
    for replica in replicas {
        running.spawn(async move {
            replica.turn(&mut None, SystemTime::now()).await.unwrap();
            replica
        });
    }
    let replicas = running.join_all().await;
    let bundle = believed(&api);
    for replica in &replicas {
        assert_eq!(replica.certificates.bundle().as_ref(), Some(&bundle));
        let address = serve(replica).await;
        https::connect(address, NAME, &bundle).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_secret_one_is_made() {
    let api = PlayedApi::default();
    configure(&api);
    rotation(&api)
        .await
        .turn(&mut None, SystemTime::now())
        .await
        .unwrap();
    assert!(api.get(SECRET).is_some());
}

#[tokio::test]
async fn a_serving_certificate_is_exchanged_before_its_end_while_connections_live() {
    let api = PlayedApi::default();
    configure(&api);
    let replica = rotation(&api).await;
    let mut serving = None;
    // Good for nine more days from now.
    let made = SystemTime::now() - DAY * 21;
    replica.turn(&mut serving, made).await.unwrap();
    let address = serve(&replica).await;
    let bundle = believed(&api);
    let certificate = async || {
        let stream = https::connect(address, NAME, &bundle).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = certificate().await;
    let mut living = https::connect(address, NAME, &bundle).await.unwrap();
    replica.turn(&mut serving, made + DAY * 19).await.unwrap();
    assert_eq!(certificate().await, first);
    replica.turn(&mut serving, made + DAY * 21).await.unwrap();
    assert_ne!(certificate().await, first);
    assert_eq!(believed(&api), bundle);
    assert_eq!(https::post(&mut living, "/", "").await, (200, "ok".into()));
}

#[tokio::test]
async fn a_new_authority_is_believed_beside_the_old_one_until_all_replicas_use_it() {
    let api = PlayedApi::default();
    configure(&api);
    let (mut first, mut second) = (rotation(&api).await, rotation(&api).await);
    let (mut serving, mut other) = (None, None);
    let now = SystemTime::now();
    let long_ago = now - DAY * 400;
    first
        .trust
        .authority(long_ago, &first.lifetimes)
        .await
        .unwrap();
    first.turn(&mut serving, now).await.unwrap();
    second.turn(&mut other, now).await.unwrap();
    let old = believed(&api);
    let (one, two) = (serve(&first).await, serve(&second).await);
    first.lifetimes.authority_margin = DAY * 3300;
    first.turn(&mut serving, now).await.unwrap();
    let both = believed(&api);
    assert!(both.ends_with(&old) && both.len() > old.len());
    // The second replica has not looked yet.
    https::connect(one, NAME, &both).await.unwrap();
    https::connect(two, NAME, &both).await.unwrap();
    https::connect(two, NAME, &old).await.unwrap();
    second.turn(&mut other, now).await.unwrap();
    assert_eq!(believed(&api), both);
    for address in [one, two] {
        https::connect(address, NAME, &both).await.unwrap();
        let refused = https::connect(address, NAME, &old).await.unwrap_err();
        assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    }
    second.lifetimes.authority_margin = DAY * 3300;
    second.turn(&mut other, now).await.unwrap();
    assert_eq!(believed(&api), both);
}

#[tokio::test]
async fn what_an_upgrade_takes_away_is_put_back() {
    let api = PlayedApi::default();
    configure(&api);
    let replica = rotation(&api).await;
    let mut serving = None;
    replica.turn(&mut serving, SystemTime::now()).await.unwrap();
    let first = believed(&api);
    configure(&api);
    replica.turn(&mut serving, SystemTime::now()).await.unwrap();
    assert_eq!(believed(&api), first);
    api.remove(SECRET);
    replica.turn(&mut serving, SystemTime::now()).await.unwrap();
    assert_ne!(believed(&api), first);
    let address = serve(&replica).await;
    https::connect(address, NAME, &believed(&api))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_secret_with_something_else_in_it_is_left_alone() {
    let api = PlayedApi::default();
    configure(&api);
    let theirs =
        json!({"metadata": {"name": "vineyard-webhook"}, "data": {"ca.crt": "bm90aGluZw=="}});
    api.put(SECRET, theirs);
    let before = api.get(SECRET);
    let replica = rotation(&api).await;
    let error = replica
        .turn(&mut None, SystemTime::now())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("vineyard-webhook"), "{error}");
    assert_eq!(api.get(SECRET), before);
}

#[test]
fn an_authority_comes_back_from_its_secret() {
    let now = SystemTime::now();
    let lifetime = Lifetimes::default().authority;
    let first = Authority::make(None, now, lifetime).unwrap();
    let second = Authority::make(Some(&first), now, lifetime).unwrap();
    let data = second.to_secret();
    let read = Authority::of_secret("s", &data).unwrap().unwrap();
    assert_eq!(read.to_secret(), data);
    assert_eq!(read.bundle().matches("BEGIN CERTIFICATE").count(), 2);
    assert!(
        Authority::of_secret("s", &Default::default())
            .unwrap()
            .is_none()
    );
    for key in ["ca.crt", "ca.key", "expires"] {
        let mut data = data.clone();
        data.remove(key);
        let error = Authority::of_secret("s", &data).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
}
