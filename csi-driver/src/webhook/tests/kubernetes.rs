//! Against a real API server: `make cluster-conformance`. The webhook listens on this process' address in the API server's network,
//! so the configuration names a URL instead of a Service; everything else is as on any cluster.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{
    LimitRange, Namespace, PersistentVolumeClaim, Pod, ResourceQuota, Secret, ServiceAccount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use kube::api::{DeleteParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use super::settings;
use crate::metrics::Metrics;
use crate::volume::FileCatalog;
use crate::webhook::inject::is_injected;
use crate::webhook::{
    Certificates, Lifetimes, Lookup, Retained, Reviewer, Rotation, Trust, Webhook,
};

/// A namespace whose pods are admitted by a webhook of this test.
struct Bench {
    client: Client,
    namespace: String,
    configuration: String,
    class: String,
    has_made_driver: bool,
    _folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// The CSIDriver is one for the whole cluster, and each test leaves it as it was.
static ALONE: Mutex<()> = Mutex::const_new(());

impl Bench {
    async fn new() -> Self {
        let alone = ALONE.lock().await;
        let client = Client::try_default().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let catalog = Arc::new(FileCatalog::open(&folder.path().join("catalog")).unwrap());
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = json!({"metadata": {"generateName": "webhook-", "labels": labels}});
        let namespace = create(&namespaces, namespace).await.unwrap().name_any();
        let here = here().await;
        let webhook = Webhook {
            listen: SocketAddr::new(here, 0),
            retained: Retained::new(client.clone(), &namespace),
            reviewer: Reviewer {
                lookup: Lookup::new(client.clone(), catalog),
                settings: settings(),
            },
            rotation: Rotation {
                trust: Trust::new(client.clone(), &namespace, "vineyard-webhook", &namespace),
                certificates: Arc::new(Certificates::default()),
                names: vec![here.to_string()],
                lifetimes: Lifetimes::default(),
            },
        };
        let certificates = Arc::clone(&webhook.rotation.certificates);
        let address = webhook.start(Metrics::new()).await.unwrap().address;
        let mut bench = Self {
            configuration: namespace.clone(),
            class: namespace.clone(),
            namespace,
            client,
            has_made_driver: false,
            _folder: folder,
            _alone: alone,
        };
        bench.configure(address).await;
        while certificates.bundle().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bench.wait_for_injection().await;
        bench
    }

    async fn configure(&mut self, address: SocketAddr) {
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let class = json!({
            "metadata": {"name": self.class}, "provisioner": "vineyard.io",
            "volumeBindingMode": "WaitForFirstConsumer",
        });
        create(&classes, class).await.unwrap();
        // As the chart has it: "restricted" admits inline volumes only with the label.
        let drivers: Api<CSIDriver> = Api::all(self.client.clone());
        let driver = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
            "metadata": {
                "name": "vineyard.io",
                "labels": {"security.kubernetes.io/csi-ephemeral-volume-profile": "restricted"},
            },
            "spec": {"attachRequired": false, "podInfoOnMount": true, "volumeLifecycleModes": ["Persistent", "Ephemeral"]},
        });
        let found = drivers.get_opt("vineyard.io").await.unwrap();
        self.has_made_driver = found.is_none();
        if self.has_made_driver {
            create(&drivers, driver).await.unwrap();
        }
        // The controller of service accounts takes a moment.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        while accounts.get_opt("default").await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let rule = json!({
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
        });
        let configuration = json!({
            "metadata": {"name": self.configuration},
            "webhooks": [{
                "name": "pods.vineyard.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "failurePolicy": "Ignore", "reinvocationPolicy": "IfNeeded", "timeoutSeconds": 5,
                "clientConfig": {"url": format!("https://{address}/mutate")},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
                "rules": [rule],
            }],
        });
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        create(&configurations, configuration).await.unwrap();
    }

    /// The API server reads its configuration a moment after it was written.
    async fn wait_for_injection(&self) {
        self.claim("probe", "1Gi").await;
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        for _ in 0..200 {
            let pods: Api<Pod> = self.api();
            let pod = serde_json::from_value(writer("probe", "probe", json!({}))).unwrap();
            if is_injected(&pods.create(&dry, &pod).await.unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the API server never calls the webhook");
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn claim(&self, name: &str, size: &str) {
        let claim = json!({
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": self.class,
                "resources": {"requests": {"storage": size}},
            },
        });
        create(&self.api::<PersistentVolumeClaim>(), claim)
            .await
            .unwrap();
    }

    async fn pod(&self, pod: Value) -> Result<Pod, kube::Error> {
        create(&self.api::<Pod>(), pod).await
    }

    async fn remove(self) {
        let once = DeleteParams::default();
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        configurations
            .delete(&self.configuration, &once)
            .await
            .unwrap();
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        classes.delete(&self.class, &once).await.unwrap();
        if self.has_made_driver {
            let drivers: Api<CSIDriver> = Api::all(self.client.clone());
            drivers.delete("vineyard.io", &once).await.unwrap();
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &once).await.unwrap();
    }
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<K, kube::Error>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await
}

/// The address by which the API server reaches this process.
async fn here() -> IpAddr {
    let config = kube::Config::infer().await.unwrap();
    let server = config.cluster_url.authority().unwrap();
    let server: SocketAddr = server.as_str().parse().unwrap();
    // Nothing is sent: the kernel says which address it would send from.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(server).unwrap();
    socket.local_addr().unwrap().ip()
}

fn writer(name: &str, claim: &str, annotations: Value) -> Value {
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "containers": [{
                "name": "main", "image": "vineyard.test/shell:1",
                "volumeMounts": [{"name": "work", "mountPath": "/data"}],
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 1000, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
            "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": claim}}],
        },
    })
}

fn memory(pod: &Pod) -> &str {
    let sidecar = &pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0];
    assert_eq!(sidecar.name, "vineyard-sidecar");
    let resources = sidecar.resources.as_ref().unwrap();
    let (requests, limits) = (resources.requests.as_ref(), resources.limits.as_ref());
    assert_eq!(requests.unwrap()["memory"], limits.unwrap()["memory"]);
    &limits.unwrap()["memory"].0
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn a_real_api_server_admits_injected_pods_in_a_restricted_namespace() {
    let bench = Bench::new().await;
    bench.claim("work", "1Gi").await;
    let first = bench.pod(writer("first", "work", json!({}))).await.unwrap();
    assert!(is_injected(&first));
    assert_eq!(memory(&first), "1056Mi");
    // It has the claim, so the second one gets nothing to add.
    let second = bench
        .pod(writer("second", "work", json!({})))
        .await
        .unwrap();
    assert_eq!(memory(&second), "32Mi");
    // No container of ours gets the token of the pod.
    let sidecar = &first
        .spec
        .as_ref()
        .unwrap()
        .init_containers
        .as_ref()
        .unwrap()[0];
    let mounts = sidecar.volume_mounts.as_ref().unwrap();
    assert!(
        mounts.iter().all(|mount| mount.name == "vineyard-sockets"),
        "{mounts:?}"
    );
    let main = &first.spec.as_ref().unwrap().containers[0];
    let variables = main.env.as_ref().unwrap();
    let variable = |name: &str| {
        let found = variables.iter().find(|it| it.name == name).unwrap();
        found.value.clone().unwrap()
    };
    assert_eq!(variable("VINEYARD_VOLUME"), "/data");
    assert_eq!(variable("VINEYARD_VOLUME_WORK"), "/data");
    assert_eq!(
        variable("VINEYARD_SOCKET"),
        "/run/vineyard/pod/vineyard.sock"
    );
    // A claim that is not there: as it was sent, and not the last word.
    let early = bench
        .pod(writer("early", "later", json!({})))
        .await
        .unwrap();
    assert!(!is_injected(&early));
    let wish = json!({"vineyard.io/inject": "enabled"});
    let wanted = bench.pod(writer("wanted", "later", wish)).await.unwrap();
    assert!(is_injected(&wanted));
    let wrong = json!({"vineyard.io/writes": "all"});
    let refused = bench.pod(writer("wrong", "work", wrong)).await.unwrap_err();
    assert!(
        refused.to_string().contains("vineyard.io/writes"),
        "{refused}"
    );
    bench.remove().await;
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn a_real_limit_range_bounds_the_allowance_and_a_real_quota_says_what_is_too_much() {
    let bench = Bench::new().await;
    for claim in ["a", "b", "c"] {
        bench.claim(claim, "1Gi").await;
    }
    let limits =
        json!([{"type": "Container", "max": {"memory": "512Mi"}, "default": {"memory": "64Mi"}}]);
    let range = json!({"metadata": {"name": "bounds"}, "spec": {"limits": limits}});
    create(&bench.api::<LimitRange>(), range).await.unwrap();
    // The API server's own admission reads it a moment later, and so may we.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let bounded = bench.pod(writer("bounded", "a", json!({}))).await.unwrap();
    assert_eq!(memory(&bounded), "512Mi");
    let wish = json!({"vineyard.io/writes": "1Gi"});
    let refused = bench.pod(writer("wish", "b", wish)).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("maximum memory usage per Container is 512Mi"),
        "{refused}"
    );
    let hard = json!({"hard": {"requests.memory": "700Mi"}});
    let quota = json!({"metadata": {"name": "quota"}, "spec": hard});
    create(&bench.api::<ResourceQuota>(), quota).await.unwrap();
    let quotas = bench.api::<ResourceQuota>();
    while quotas
        .get("quota")
        .await
        .unwrap()
        .status
        .and_then(|it| it.used)
        .is_none()
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = bench.pod(writer("much", "b", json!({}))).await.unwrap_err();
    assert!(refused.to_string().contains("exceeded quota"), "{refused}");
    let little = json!({"vineyard.io/writes": "16Mi"});
    let fits = bench.pod(writer("little", "b", little)).await.unwrap();
    assert_eq!(memory(&fits), "48Mi");
    bench.remove().await;
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn a_certificate_authority_is_kept_by_a_real_api_server_and_replaced_under_it() {
    let bench = Bench::new().await;
    let secrets: Api<Secret> = bench.api();
    let secret = secrets.get("vineyard-webhook").await.unwrap();
    assert!(secret.data.unwrap().contains_key("ca.crt"));
    let once = DeleteParams::default();
    secrets.delete("vineyard-webhook", &once).await.unwrap();
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(bench.client.clone());
    let before = configurations.get(&bench.configuration).await.unwrap();
    // Looked at every 15 seconds.
    loop {
        let now = configurations.get(&bench.configuration).await.unwrap();
        if now.resource_version() != before.resource_version() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bench.wait_for_new_authority().await;
    bench.remove().await;
}

impl Bench {
    /// Ends when a pod is injected by way of the new authority.
    async fn wait_for_new_authority(&self) {
        let pods: Api<Pod> = self.api();
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        loop {
            let pod = serde_json::from_value(writer("probe", "probe", json!({}))).unwrap();
            if is_injected(&pods.create(&dry, &pod).await.unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
