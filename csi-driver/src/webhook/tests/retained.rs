//! What a retainer's pod requests from its beginning.

use serde_json::{Value, json};

use super::api::PlayedApi;
use crate::webhook::Retained;
use crate::webhook::error::Error;

const NODES: &str = "/apis/vineyard.io/v1alpha1/namespaces/vineyard-system/vineyardnodes";

const MIB: u64 = 1 << 20;

/// A pod as the controller of a DaemonSet makes it.
fn pod(node: &str) -> Value {
    let name = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let terms = json!([{"matchFields": [name]}]);
    let required = json!({"nodeSelectorTerms": terms});
    json!({
        "metadata": {"generateName": "vineyard-retainer-", "labels": {"app.kubernetes.io/component": "retainer"}},
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}},
            "containers": [{"name": "retainer", "resources": {"requests": {"memory": "16Mi", "cpu": "5m"}}}],
        },
    })
}

/// An API server where node n1 has asked for `asked` MiB, and has seen `seen` MiB on its retainer's bill.
fn api(asked: u64, seen: u64) -> PlayedApi {
    let retainer =
        json!({"requested": asked * MIB, "allocated": 0, "state": "Absent", "message": ""});
    let report = json!({"retained": seen * MIB});
    let api = PlayedApi::default();
    api.put(
        &format!("{NODES}/n1"),
        json!({
            "apiVersion": "vineyard.io/v1alpha1", "kind": "VineyardNode", "metadata": {"name": "n1"},
            "spec": {"pool": "default", "budget": 1024 * MIB},
            "status": {"retainer": retainer, "report": report},
        }),
    );
    api
}

/// What becomes of a pod, as the API server does it.
async fn admitted(api: &PlayedApi, pod: &Value) -> Result<Value, Error> {
    let retained = Retained::new(api.client().await, "vineyard-system");
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "operation": "CREATE", "namespace": "vineyard-system", "userInfo": {}, "dryRun": false,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": pod,
        },
    });
    let (answer, _) = retained.answer(review.to_string().as_bytes()).await?;
    let response = answer.response.unwrap();
    assert!(response.allowed);
    let mut pod = pod.clone();
    if let Some(patch) = response.patch {
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
    }
    Ok(pod)
}

async fn request(api: &PlayedApi, pod: &Value) -> Value {
    let pod = admitted(api, pod).await.unwrap();
    pod["spec"]["containers"][0]["resources"]["requests"]["memory"].clone()
}

#[tokio::test]
async fn a_retainer_begins_with_what_its_node_retains_and_what_its_process_needs() {
    assert_eq!(request(&api(300, 200), &pod("n1")).await, "316Mi");
    // Seen, and not asked for yet.
    assert_eq!(request(&api(0, 200), &pod("n1")).await, "216Mi");
    // The rest of the pod is as it was.
    let mut expected = pod("n1");
    expected["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!("316Mi");
    assert_eq!(
        admitted(&api(300, 200), &pod("n1")).await.unwrap(),
        expected
    );
}

#[tokio::test]
async fn a_node_never_retains_more_than_it_offers() {
    assert_eq!(request(&api(5000, 0), &pod("n1")).await, "1040Mi");
}

#[tokio::test]
async fn a_pod_that_is_scheduled_already_is_known_by_its_node() {
    let mut pod = pod("n2");
    pod["spec"]["nodeName"] = json!("n1");
    assert_eq!(request(&api(64, 0), &pod).await, "80Mi");
}

#[tokio::test]
async fn where_nothing_is_known_the_pod_is_admitted_as_it_is() {
    let api = api(300, 0);
    let unchanged = async |pod: Value| {
        assert_eq!(admitted(&api, &pod).await.unwrap(), pod);
    };
    unchanged(pod("n9")).await;
    let mut anywhere = pod("n1");
    anywhere["spec"]["affinity"] = json!({});
    unchanged(anywhere).await;
    let mut either = pod("n1");
    let terms = &mut either["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"];
    let terms = terms.as_array_mut().unwrap();
    terms.push(json!({"matchExpressions": []}));
    unchanged(either).await;
    let mut other = pod("n1");
    other["metadata"]["labels"] = json!({"app.kubernetes.io/component": "node"});
    unchanged(other).await;
    api.put(
        &format!("{NODES}/n1"),
        json!({"spec": {"budget": 1}, "metadata": {"name": "n1"}}),
    );
    unchanged(pod("n1")).await;
}

#[tokio::test]
async fn a_node_that_cannot_be_read_holds_nobody_up() {
    let api = api(300, 0);
    api.forbid(NODES);
    assert_eq!(admitted(&api, &pod("n1")).await.unwrap(), pod("n1"));
}

#[tokio::test]
async fn a_limit_that_somebody_set_is_kept() {
    let mut pod = pod("n1");
    pod["spec"]["containers"][0]["resources"]["limits"] = json!({"memory": "100Mi"});
    assert_eq!(request(&api(300, 0), &pod).await, "100Mi");
}

#[tokio::test]
async fn a_retainer_without_requests_gets_one() {
    let mut bare = pod("n1");
    for resources in [json!({}), json!({"requests": {}}), Value::Null] {
        let container = &mut bare["spec"]["containers"][0];
        match resources {
            Value::Null => drop(container.as_object_mut().unwrap().remove("resources")),
            resources => container["resources"] = resources,
        }
        assert_eq!(request(&api(64, 0), &bare).await, "64Mi");
    }
}

#[tokio::test]
async fn only_a_review_of_a_pod_is_answered() {
    let retained = Retained::new(api(1, 1).client().await, "vineyard-system");
    let refused = retained.answer(b"{}").await.unwrap_err();
    assert!(matches!(refused, Error::Malformed(_)), "{refused}");
}
