//! What is found out about claims.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::api::PlayedApi;
use crate::bytes::Bytes;
use crate::volume::catalog::conformance;
use crate::volume::{Catalog, FileCatalog, NodeId, OnLoss, Phase, Usage, catalog};
use crate::webhook::Lookup;
use crate::webhook::error::Error;
use crate::webhook::facts::{Bounds, Claim, Facts};

const CLAIMS: &str = "/api/v1/namespaces/team/persistentvolumeclaims";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";

struct Bench {
    api: PlayedApi,
    catalog: Arc<dyn Catalog>,
    lookup: Lookup,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let catalog: Arc<dyn Catalog> =
            Arc::new(FileCatalog::open(&folder.path().join("catalog")).unwrap());
        let api = PlayedApi::default();
        for (name, provisioner) in [("vineyard", "vineyard.io"), ("disk", "disk.example")] {
            api.put(
                &format!("{CLASSES}/{name}"),
                json!({"metadata": {"name": name}, "provisioner": provisioner}),
            );
        }
        let lookup = Lookup::new(api.client().await, Arc::clone(&catalog));
        Self {
            api,
            catalog,
            lookup,
            _folder: folder,
        }
    }

    fn claim(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["resources"] = json!({"requests": {"storage": "1Gi"}});
        let claim = json!({"metadata": {"name": name}, "spec": spec});
        self.api.put(&format!("{CLAIMS}/{name}"), claim);
    }

    /// A volume of ours with a record, bound to a claim of its name.
    async fn bound(&self, name: &str) {
        self.catalog
            .create(conformance::volume(name))
            .await
            .unwrap();
        self.claim(
            name,
            json!({"storageClassName": "vineyard", "volumeName": name}),
        );
        self.api.put(
            &format!("/api/v1/persistentvolumes/{name}"),
            json!({"metadata": {"name": name}, "spec": {"csi": {"driver": "vineyard.io", "volumeHandle": name}}}),
        );
    }

    async fn facts(&self, volumes: Value) -> Result<Facts, Error> {
        let pod =
            json!({"metadata": {"name": "mine"}, "spec": {"containers": [], "volumes": volumes}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.lookup.facts(&pod, "team").await
    }

    /// What is known of one claim.
    async fn of(&self, claim: &str) -> Option<Claim> {
        let facts = self.facts(volumes(claim)).await.unwrap();
        facts.claims.get("v").cloned()
    }
}

fn volumes(claim: &str) -> Value {
    json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}])
}

fn ours(capacity: u64, is_fresh: bool) -> Option<Claim> {
    Some(Claim::Ours {
        capacity: Bytes(capacity),
        is_fresh,
        is_read_only: false,
    })
}

#[tokio::test]
async fn an_unbound_claim_is_known_by_its_class() {
    let bench = Bench::new().await;
    bench.claim("a", json!({"storageClassName": "vineyard"}));
    bench.claim("b", json!({"storageClassName": "disk"}));
    bench.claim("c", json!({"storageClassName": "unheard-of"}));
    bench.claim("d", json!({"storageClassName": ""}));
    bench.claim("e", json!({}));
    bench.claim("f", json!({"storageClassName": "vineyard", "dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}));
    assert_eq!(bench.of("a").await, ours(1 << 30, true));
    for claim in ["b", "c", "d", "e"] {
        assert_eq!(bench.of(claim).await, None, "{claim}");
    }
    // A clone begins with content.
    assert_eq!(bench.of("f").await, ours(1 << 30, false));
}

#[tokio::test]
async fn a_claim_without_a_class_is_of_the_default_class_that_was_made_last() {
    let bench = Bench::new().await;
    bench.claim("a", json!({}));
    let class = |name: &str, time: &str, provisioner: &str| {
        let annotations = json!({"storageclass.kubernetes.io/is-default-class": "true"});
        bench.api.put(
            &format!("{CLASSES}/{name}"),
            json!({"metadata": {"name": name, "creationTimestamp": time, "annotations": annotations}, "provisioner": provisioner}),
        );
    };
    class("x", "2026-01-01T00:00:00Z", "disk.example");
    assert_eq!(bench.of("a").await, None);
    class("b", "2026-02-01T00:00:00Z", "vineyard.io");
    assert_eq!(bench.of("a").await, ours(1 << 30, true));
}

#[tokio::test]
async fn a_claim_that_does_not_exist_is_missing() {
    let bench = Bench::new().await;
    let missing = Claim::Missing {
        name: "later".into(),
        is_read_only: false,
    };
    assert_eq!(bench.of("later").await, Some(missing));
}

#[tokio::test]
async fn a_template_is_known_by_its_class() {
    let bench = Bench::new().await;
    let template = |class: &str| {
        let spec = json!({
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "64Mi"}},
        });
        json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}])
    };
    let facts = bench.facts(template("vineyard")).await.unwrap();
    assert_eq!(facts.claims.get("v").cloned(), ours(64 << 20, true));
    assert_eq!(
        bench.facts(template("disk")).await.unwrap(),
        Facts::default()
    );
}

#[tokio::test]
async fn a_bound_claim_is_fresh_until_its_volume_has_had_memory() {
    let bench = Bench::new().await;
    bench.bound("a").await;
    let capacity = conformance::volume("a").capacity.0;
    assert_eq!(bench.of("a").await, ours(capacity, true));
    let id = conformance::volume("a").id;
    let set = async |phase: Phase, on_loss: OnLoss| {
        catalog::change::<catalog::Error>(&*bench.catalog, &id, |volume| {
            volume.phase = phase.clone();
            volume.parameters.on_loss = on_loss;
            Ok(())
        })
        .await
        .unwrap();
    };
    set(Phase::Resident, OnLoss::Fail).await;
    assert_eq!(bench.of("a").await, ours(capacity, false));
    let lost = || Phase::Lost {
        reason: "rebooted".into(),
    };
    set(lost(), OnLoss::Fail).await;
    assert_eq!(bench.of("a").await, ours(capacity, false));
    set(lost(), OnLoss::Recreate).await;
    assert_eq!(bench.of("a").await, ours(capacity, true));
}

#[tokio::test]
async fn the_home_of_a_bound_claim_is_known_until_its_memory_is_gone() {
    let bench = Bench::new().await;
    bench.bound("a").await;
    let volume = conformance::volume("a");
    bench.claim("nowhere", json!({"storageClassName": "vineyard"}));
    let unplaced = async |claim| bench.facts(volumes(claim)).await.unwrap().unplaced;
    assert_eq!(unplaced("nowhere").await, ["nowhere".to_owned()].into());
    assert!(unplaced("a").await.is_empty());
    let homes = async || bench.facts(volumes("a")).await.unwrap().homes;
    let at = |node: &str, bytes| [(node.to_owned(), Bytes(bytes))].into();
    assert_eq!(homes().await, at(volume.booked.as_str(), 0));
    let set = async |phase: Phase| {
        catalog::change::<catalog::Error>(&*bench.catalog, &volume.id, |volume| {
            volume.home = Some(NodeId::parse("elsewhere").unwrap());
            volume.phase = phase.clone();
            volume.usage = Some(Usage {
                used: Bytes(4096),
                ..Usage::default()
            });
            Ok(())
        })
        .await
        .unwrap();
    };
    set(Phase::Resident).await;
    assert_eq!(homes().await, at("elsewhere", 4096));
    set(Phase::Unreachable).await;
    assert_eq!(homes().await, at("elsewhere", 4096));
    let reason = "rebooted".into();
    set(Phase::Lost { reason }).await;
    assert_eq!(homes().await, BTreeMap::new());
}

#[tokio::test]
async fn a_bound_claim_of_another_driver_is_not_ours_whatever_its_class_says() {
    let bench = Bench::new().await;
    bench.claim(
        "a",
        json!({"storageClassName": "vineyard", "volumeName": "theirs"}),
    );
    bench.api.put(
        "/api/v1/persistentvolumes/theirs",
        json!({"metadata": {"name": "theirs"}, "spec": {"csi": {"driver": "disk.example", "volumeHandle": "x"}}}),
    );
    assert_eq!(bench.of("a").await, None);
}

#[tokio::test]
async fn a_claim_that_another_live_pod_has_is_not_fresh() {
    let bench = Bench::new().await;
    bench.claim("a", json!({"storageClassName": "vineyard"}));
    let pod = |name: &str, claim: &str, phase: &str| {
        bench.api.put(
            &format!("/api/v1/namespaces/team/pods/{name}"),
            json!({"metadata": {"name": name}, "spec": {"containers": [], "volumes": volumes(claim)}, "status": {"phase": phase}}),
        );
    };
    pod("ended", "a", "Succeeded");
    pod("failed", "a", "Failed");
    pod("elsewhere", "b", "Running");
    pod("mine", "a", "Pending");
    assert_eq!(bench.of("a").await, ours(1 << 30, true));
    pod("other", "a", "Pending");
    assert_eq!(bench.of("a").await, ours(1 << 30, false));
}

#[tokio::test]
async fn a_claim_that_is_only_read_is_so_by_the_pod_or_by_its_modes() {
    let bench = Bench::new().await;
    bench.claim("a", json!({"storageClassName": "vineyard"}));
    bench.claim(
        "b",
        json!({"storageClassName": "vineyard", "accessModes": ["ReadOnlyMany"]}),
    );
    let read_only =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "a", "readOnly": true}}]);
    for facts in [
        bench.facts(read_only).await,
        bench.facts(volumes("b")).await,
    ] {
        let claim = facts.unwrap().claims.remove("v");
        assert!(matches!(
            claim,
            Some(Claim::Ours {
                is_read_only: true,
                is_fresh: false,
                ..
            })
        ));
    }
}

#[tokio::test]
async fn limit_ranges_are_taken_together() {
    let bench = Bench::new().await;
    bench.claim("a", json!({"storageClassName": "vineyard"}));
    for (name, limits) in [
        (
            "one",
            json!([{"type": "Container", "max": {"memory": "1Gi", "cpu": "1"}, "min": {"memory": "8Mi"}}]),
        ),
        (
            "two",
            json!([
                {"type": "Container", "max": {"memory": "512Mi"}, "min": {"memory": "16Mi", "cpu": "5m"}},
                {"type": "Pod", "max": {"memory": "2Gi"}},
                {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
            ]),
        ),
    ] {
        bench.api.put(
            &format!("/api/v1/namespaces/team/limitranges/{name}"),
            json!({"metadata": {"name": name}, "spec": {"limits": limits}}),
        );
    }
    let facts = bench.facts(volumes("a")).await.unwrap();
    let expected = Bounds {
        least_memory: Some(Bytes(16 << 20)),
        most_memory: Some(Bytes(512 << 20)),
        most_pod_memory: Some(Bytes(2 << 30)),
        least_cpu: Some(5),
        most_cpu: Some(1000),
    };
    assert_eq!(facts.bounds, expected);
}

#[tokio::test]
async fn what_kubernetes_does_not_say_is_no_answer() {
    let bench = Bench::new().await;
    bench.claim("a", json!({"storageClassName": "vineyard"}));
    for path in [CLASSES, CLAIMS] {
        bench.api.forbid(path);
        let facts = bench.facts(volumes("a")).await;
        assert!(matches!(facts, Err(Error::Lookup { .. })), "{path}");
    }
}
