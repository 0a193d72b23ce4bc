//! Against a real API server: `make cluster-conformance`.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use kube::api::PatchParams;

use super::*;
use crate::volume::catalog::conformance;

/// More than there are cases.
const CATALOGS: usize = 16;

async fn define(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let text = crate::resources::definitions().unwrap();
    for document in text.split("---\n").skip(1) {
        let definition: CustomResourceDefinition = serde_saphyr::from_str(document).unwrap();
        let name = definition.name_any();
        let forced = PatchParams::apply("vineyard-tests").force();
        api.patch(&name, &forced, &kube::api::Patch::Apply(&definition))
            .await
            .unwrap();
        let established = kube::runtime::conditions::is_crd_established();
        let waiting = kube::runtime::wait::await_condition(api.clone(), &name, established);
        tokio::time::timeout(Duration::from_secs(60), waiting)
            .await
            .unwrap()
            .unwrap();
    }
}

async fn namespaces(client: &Client) -> Vec<String> {
    let api: Api<Namespace> = Api::all(client.clone());
    let mut names = Vec::new();
    for _ in 0..CATALOGS {
        let mut namespace = Namespace::default();
        namespace.metadata.generate_name = Some("conformance-".into());
        let made = api.create(&PostParams::default(), &namespace).await;
        names.push(made.unwrap().name_any());
    }
    names
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn the_kubernetes_catalog_is_a_catalog() {
    let client = Client::try_default().await.unwrap();
    define(&client).await;
    let all = namespaces(&client).await;
    let mut next = all.iter();
    conformance::all(|| KubernetesCatalog::new(client.clone(), next.next().unwrap())).await;
    let api: Api<Namespace> = Api::all(client);
    for name in &all {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn what_others_wrote_on_a_resource_stays() {
    let client = Client::try_default().await.unwrap();
    define(&client).await;
    let all = namespaces(&client).await;
    let catalog = KubernetesCatalog::new(client.clone(), &all[0]);
    let first = catalog.create(conformance::volume("a")).await.unwrap();
    let label = serde_json::json!({"metadata": {"labels": {"team": "a"}}});
    let label = kube::api::Patch::Merge(label);
    let plain = PatchParams::default();
    let labelled = catalog.api.patch("a", &plain, &label).await.unwrap();
    let stale = catalog.update(&first.version, first.volume.clone()).await;
    assert!(matches!(stale, Err(Error::Conflict(_))));
    let version = ResourceVersion(labelled.resource_version().unwrap());
    let mut volume = first.volume;
    volume.epoch = 7;
    catalog.update(&version, volume).await.unwrap();
    let now = catalog.api.get("a").await.unwrap();
    assert_eq!(now.labels()["team"], "a");
    assert_eq!(Volume::try_from(now).unwrap().epoch, 7);
    let api: Api<Namespace> = Api::all(client);
    for name in &all {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs a cluster: make cluster-conformance"]
async fn a_node_takes_out_what_another_one_has_taken_over() {
    let client = Client::try_default().await.unwrap();
    define(&client).await;
    let all = namespaces(&client).await;
    let catalog = KubernetesCatalog::new(client.clone(), &all[0]);
    let stored = catalog.create(conformance::volume("a")).await.unwrap();
    let left = stored.volume.booked.clone();
    let mut moved = stored.volume;
    moved.booked = NodeId::parse("elsewhere").unwrap();
    // As the plugin of the other node does it, which may not write about this one.
    catalog.update(&stored.version, moved).await.unwrap();
    let nodes: Api<crate::resources::VineyardNode> = Api::namespaced(client.clone(), &all[0]);
    let booked = async || {
        let node = nodes.get(left.as_str()).await.unwrap();
        node.status.unwrap().bookings.contains_key("a")
    };
    catalog.beat(&left, "boot").await.unwrap();
    assert!(
        booked().await,
        "an entry that is young may be ahead of its record"
    );
    let old = serde_json::json!({"status": {"bookings": {"a": {"since": 1}}}});
    let plain = PatchParams::default();
    let patch = kube::api::Patch::Merge(old);
    nodes.patch(left.as_str(), &plain, &patch).await.unwrap();
    for _ in 0..100 {
        catalog.beat(&left, "boot").await.unwrap();
        if !booked().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!booked().await);
    let api: Api<Namespace> = Api::all(client);
    for name in &all {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
}
