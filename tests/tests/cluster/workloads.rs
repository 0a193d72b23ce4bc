//! Pods that somebody makes: of a Job, of a Deployment that is rolled out, and those that bring a claim of their own.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vineyard_tests::commands::{Command, Content};

use crate::bills::Bills;
use crate::client::Client;
use crate::namespace::Namespace;
use crate::pods::Pod;
use crate::table::Table;
use crate::{MIB, cluster, left};

const RESULT: Content = Content {
    seed: 31,
    len: 6 * MIB,
};
const OLD: Content = Content {
    seed: 32,
    len: 8 * MIB,
};
const NEW: Content = Content {
    seed: 33,
    len: 4 * MIB,
};

/// A pod as a template of something that makes pods.
pub(crate) fn template(pod: &Pod<'_>) -> Value {
    let mut template = pod.object();
    let metadata = &mut template["metadata"];
    metadata["labels"] = json!({"app": pod.name});
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("name");
    }
    json!({"metadata": template["metadata"], "spec": template["spec"]})
}

/// A Deployment of one pod, which is replaced only when the next one works.
pub(crate) fn deployment(pod: &Pod<'_>) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pod.name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": pod.name}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": template(&Pod { restart: "Always", ..pod.clone() }),
        },
    })
}

/// The pods of something that makes pods, but for those that go.
pub(crate) fn pods_of(namespace: &Namespace<'_>, app: &str) -> Result<Vec<String>> {
    let path = "{range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
    let output = format!("jsonpath={path}");
    let listed = namespace.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", &output])?;
    let staying = listed.lines().filter_map(|line| line.strip_suffix(' '));
    Ok(staying.map(str::to_owned).collect())
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_job_completes_a_rollout_shares_the_claim_and_a_claim_of_a_pod_goes_with_it() -> Result<()> {
    let cluster = cluster()?;
    let mut table = Table::new("workloads");
    let namespace = Namespace::new(&cluster, "work")?;
    job(&namespace, &mut table)?;
    rollout(&namespace, &mut table)?;
    ephemeral(&namespace, &mut table)?;
    table.write()
}

fn job(namespace: &Namespace<'_>, table: &mut Table) -> Result<()> {
    namespace.claim("results", 64 * MIB)?;
    let put = Command::Put {
        name: Some("result".into()),
        content: RESULT,
        overwrite: false,
    };
    // The answer of the client says whether it is there.
    let script = format!(
        "echo '{}' | vineyard-test-client $VINEYARD_VOLUME $VINEYARD_SOCKET | grep object",
        serde_json::to_string(&put)?
    );
    let pod = Pod {
        writes: Some(16 * MIB),
        node: Some(1),
        ..Pod::running("job", "results", &script)
    };
    namespace.apply(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "job"},
        "spec": {"backoffLimit": 0, "template": template(&pod)},
    }))?;
    namespace.wait_for(
        "job/job",
        "{.status.conditions[?(@.type=='Complete')].status}",
        "True",
    )?;
    let bills = Bills::new(namespace, "results", 1)?;
    // Its pod is still there to be looked at; its bytes are not its own any more.
    let bill = bills.expect(&[("retainer", RESULT.len)])?;
    let pods = pods_of(namespace, "job")?;
    let pod = pods.first().context("the pod of the job")?;
    ensure!(namespace.field(&format!("pod/{pod}"), "{.status.phase}")? == "Succeeded");
    table.row(
        "a Job puts 6 MiB and completes; its sidecar ends with it",
        Some(&bill),
        "the completed pod is still listed",
    );

    let reader = Pod {
        read_only: true,
        node: Some(1),
        ..Pod::waiting("reader", "results")
    };
    namespace.apply(reader.object())?;
    namespace.wait_for("pod/reader", "{.status.phase}", "Running")?;
    Client::start(namespace, "reader")?.get("result", RESULT, 1)?;
    let volume = namespace.volume("results")?;
    namespace.delete(&["pod/reader", "job/job", "pvc/results"])?;
    left::nothing(namespace.cluster, &volume)?;
    table.row(
        "another pod reads it; all is deleted",
        None,
        "nothing is left",
    );
    Ok(())
}

fn rollout(namespace: &Namespace<'_>, table: &mut Table) -> Result<()> {
    namespace.claim("state", 64 * MIB)?;
    // Both pods must have the claim at the same time, and one node at a time may have it.
    let pod = Pod {
        writes: Some(16 * MIB),
        node: Some(1),
        ..Pod::waiting("app", "state")
    };
    let mut app = deployment(&pod);
    namespace.apply(app.clone())?;
    namespace.wait_for("deployment/app", "{.status.readyReplicas}", "1")?;
    let old = pods_of(namespace, "app")?.pop().context("a pod")?;
    let mut client = Client::start(namespace, &old)?;
    client.put("old", OLD)?;
    let bills = Bills::new(namespace, "state", 1)?;
    let bill = bills.expect(&[(&old, OLD.len)])?;
    table.row("a Deployment's pod puts 8 MiB", Some(&bill), "");

    let begin = Instant::now();
    drop(client);
    app["spec"]["template"]["metadata"]["labels"]["version"] = json!("2");
    namespace.apply(app)?;
    namespace.kubectl(&["rollout", "status", "deployment/app", "--timeout=180s"])?;
    let new = pods_of(namespace, "app")?.pop().context("a pod")?;
    ensure!(new != old, "{new} is not another pod");
    let mut client = Client::start(namespace, &new)?;
    client.get("old", OLD, 1)?;
    client.put("new", NEW)?;
    let bill = bills.expect(&[("retainer", OLD.len), (&new, NEW.len)])?;
    let seconds = begin.elapsed().as_secs_f64();
    table.row(
        "it is rolled out: the new pod begins beside the old one, reads what that put, and puts 4 MiB",
        Some(&bill),
        format!("one claim, two pods; {seconds:.0} s"),
    );
    drop(client);
    let volume = namespace.volume("state")?;
    namespace.delete(&["deployment/app"])?;
    wait_until_gone(namespace, "app")?;
    namespace.delete(&["pvc/state"])?;
    left::nothing(namespace.cluster, &volume)
}

fn ephemeral(namespace: &Namespace<'_>, table: &mut Table) -> Result<()> {
    let pod = Pod {
        writes: Some(16 * MIB),
        ..Pod::waiting("scratch", "scratch-data")
    };
    let mut object = pod.object();
    let claim = json!({"spec": {
        "storageClassName": "vineyard",
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "32Mi"}},
    }});
    object["spec"]["volumes"][0] =
        json!({"name": "data", "ephemeral": {"volumeClaimTemplate": claim}});
    namespace.apply(object)?;
    namespace.wait_for("pod/scratch", "{.status.phase}", "Running")?;
    let bills = Bills::new(namespace, "scratch-data", namespace.node("scratch")?)?;
    let mut client = Client::start(namespace, "scratch")?;
    client.put("scratch", NEW)?;
    let bill = bills.expect(&[("scratch", NEW.len)])?;
    table.row(
        "a pod with a volumeClaimTemplate of its own puts 4 MiB",
        Some(&bill),
        "",
    );
    drop(client);
    let volume = namespace.volume("scratch-data")?;
    namespace.delete(&["pod/scratch"])?;
    left::nothing(namespace.cluster, &volume)?;
    table.row(
        "the pod is deleted",
        None,
        "its claim and its memory go with it",
    );
    Ok(())
}

/// Waits for the end of the pods of a Deployment that was deleted.
pub(crate) fn wait_until_gone(namespace: &Namespace<'_>, app: &str) -> Result<()> {
    let label = format!("app={app}");
    namespace.kubectl(&[
        "wait",
        "pods",
        "-l",
        &label,
        "--for=delete",
        "--timeout=120s",
    ])?;
    Ok(())
}
