//! `kubectl vineyard doctor`: whether the driver runs everywhere, and what it has reported as wrong.

use std::time::Duration;

use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};

use super::connection::Cluster;
use super::records::{Node, Volume};
use crate::bytes::human;
use crate::checks::{Check, Status};
use crate::exit::Outcome;
use crate::output::Format;
use crate::progress;
use crate::verb::doctor::Report;

/// A node says that it lives every five seconds.
const BEATS: Duration = Duration::from_secs(12);

/// What of a node's capabilities it cannot do without.
const NEEDED: [&str; 2] = ["kernel", "openat2"];

/// Check the driver's pods, the nodes and the volumes
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {}

impl Doctor {
    pub(super) async fn run(&self, cluster: &Cluster, format: Format) -> anyhow::Result<Outcome> {
        let before = cluster.nodes().await?;
        let mut all = workloads(cluster).await;
        let bar = progress::spinner("listening to the nodes");
        tokio::time::sleep(BEATS).await;
        let nodes = cluster.nodes().await?;
        bar.finish_and_clear();
        if nodes.is_empty() {
            let advice = "Do its pods run? kubectl -n vineyard-system get pods";
            all.push(check(
                "nodes",
                "any",
                Status::Problem,
                "no node has the driver",
                Some(advice),
            ));
        }
        for node in &nodes {
            let beats = before.iter().find(|it| it.name() == node.name());
            let is_alive = beats.is_none_or(|it| it.status.beats != node.status.beats);
            all.extend(of_node(node, is_alive));
        }
        all.extend(of_volumes(&cluster.volumes().await?));
        Report::of(all).print(format)
    }
}

/// Whether the pods of the chart are ready.
async fn workloads(cluster: &Cluster) -> Vec<Check> {
    let mut all = Vec::new();
    for (kind, plural, name, wanted, ready) in [
        (
            "Deployment",
            "deployments",
            "vineyard-controller",
            "replicas",
            "readyReplicas",
        ),
        (
            "DaemonSet",
            "daemonsets",
            "vineyard-node",
            "desiredNumberScheduled",
            "numberReady",
        ),
        (
            "DaemonSet",
            "daemonsets",
            "vineyard-retainer",
            "desiredNumberScheduled",
            "numberReady",
        ),
    ] {
        let gvk = GroupVersionKind::gvk("apps", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let namespace = &cluster.system_namespace;
        let api: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), namespace, &resource);
        let found = match api.get_opt(name).await {
            Ok(Some(object)) => object.data,
            Ok(None) => {
                let advice = "Was the chart installed as a whole?";
                all.push(check(
                    "pods",
                    name,
                    Status::Problem,
                    "it is not there",
                    Some(advice),
                ));
                continue;
            }
            Err(error) => {
                let advice = "Whoever may read the driver's namespace can see more.";
                all.push(check(
                    "pods",
                    name,
                    Status::Note,
                    error.to_string(),
                    Some(advice),
                ));
                continue;
            }
        };
        let number = |field: &str| found["status"][field].as_u64().unwrap_or(0);
        let (wanted, ready) = (number(wanted), number(ready));
        let text = format!("{ready} of {wanted} pods are ready");
        let status = if ready < wanted {
            Status::Problem
        } else {
            Status::Ok
        };
        let advice = "kubectl describe says what the others wait for.";
        all.push(check("pods", name, status, text, Some(advice)));
    }
    all
}

fn of_node(node: &Node, is_alive: bool) -> Vec<Check> {
    let area = format!("node {}", node.name());
    let report = &node.status.report;
    let mut all = vec![match is_alive {
        true => check(&area, "alive", Status::Ok, "it says that it lives", None),
        false => {
            let text = "it has not said so for a while";
            let advice =
                "Its volumes cannot be used until it is back: look at its vineyard-node pod.";
            check(&area, "alive", Status::Problem, text, Some(advice))
        }
    }];
    let sums = format!(
        "{} of {} booked, {} in use",
        human(node.status.booked_bytes),
        human(node.spec.budget),
        human(report.charged)
    );
    all.push(check(&area, "budget", Status::Ok, sums, None));
    all.push(match &report.retainer {
        None => {
            let text = "there is none";
            let advice =
                "Bytes stay on the bill of pods that have ended: is vineyard-retainer installed?";
            check(&area, "retainer", Status::Problem, text, Some(advice))
        }
        Some(it) => {
            let text = format!(
                "{} retained, {} requested, {} allocated",
                human(report.retained),
                human(it.requested),
                human(it.allocated)
            );
            let status = if it.allocated < it.requested {
                Status::Note
            } else {
                Status::Ok
            };
            let advice =
                "The node has no room for the request: the scheduler counts less than there is.";
            check(&area, "retainer", status, text, Some(advice))
        }
    });
    if report.pending > 0 {
        let text = format!("{} on a wrong bill", human(report.pending));
        let advice = "They are handed over as soon as the retainer can take them.";
        all.push(check(&area, "bills", Status::Note, text, Some(advice)));
    }
    for it in report.capabilities.iter().filter(|it| it.works == "No") {
        let status = match NEEDED.contains(&it.name.as_str()) {
            true => Status::Problem,
            false => Status::Note,
        };
        all.push(check(&area, &it.name, status, it.found.clone(), None));
    }
    all
}

fn of_volumes(volumes: &[Volume]) -> Vec<Check> {
    let area = "volumes";
    let mut all = Vec::new();
    for volume in volumes {
        let status = match volume.status.phase.as_str() {
            "Lost" => Status::Problem,
            _ => Status::Note,
        };
        let title = volume.title();
        let troubles = volume.troubles();
        all.extend(troubles.map(|it| check(area, &title, status, it, None)));
    }
    let text = format!(
        "{} volumes, {} of them with something to look at",
        volumes.len(),
        all.len()
    );
    all.insert(0, check(area, "all", Status::Ok, text, None));
    all
}

fn check(
    area: &str,
    name: &str,
    status: Status,
    found: impl Into<String>,
    advice: Option<&str>,
) -> Check {
    Check {
        area: area.to_owned().into(),
        name: name.to_owned().into(),
        status,
        found: found.into(),
        advice: advice.filter(|_| status != Status::Ok).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn statuses(checks: &[Check]) -> Vec<(&str, Status)> {
        checks.iter().map(|it| (&*it.name, it.status)).collect()
    }

    #[test]
    fn a_silent_node_without_a_retainer_is_two_problems() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1"},
            "status": {"report": {"pending": 5, "capabilities": [
                {"name": "openat2", "works": "No", "found": "ENOSYS"},
                {"name": "noswap", "works": "No", "found": "EINVAL"},
                {"name": "kernel", "works": "Yes", "found": "6.18"},
            ]}},
        }))
        .unwrap();
        let expected = [
            ("alive", Status::Problem),
            ("budget", Status::Ok),
            ("retainer", Status::Problem),
            ("bills", Status::Note),
            ("openat2", Status::Problem),
            ("noswap", Status::Note),
        ];
        assert_eq!(statuses(&of_node(&node, false)), expected);
    }

    #[test]
    fn a_lost_volume_is_a_problem_and_a_full_one_a_note() {
        let volume = |text: Value| -> Volume { serde_json::from_value(text).unwrap() };
        let volumes = [
            volume(
                serde_json::json!({"spec": {"name": "gone"}, "status": {"phase": "Lost", "reason": "n1 was restarted"}}),
            ),
            volume(
                serde_json::json!({"spec": {"name": "full"}, "status": {"phase": "Resident", "conditions": [
                {"type": "CapacityPressure", "status": "True", "message": "9 of 10 in use"}]}}),
            ),
        ];
        let expected = [
            ("all", Status::Ok),
            ("gone", Status::Problem),
            ("full", Status::Note),
        ];
        assert_eq!(statuses(&of_volumes(&volumes)), expected);
    }
}
