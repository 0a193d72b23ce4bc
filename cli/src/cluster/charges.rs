//! `kubectl vineyard charges`: who is billed for what, of one pod, claim or node.

use std::str::FromStr;

use anyhow::bail;
use serde::Serialize;

use super::connection::Cluster;
use super::records::{Bill, Claim, Volume};
use crate::bytes::human;
use crate::exit::Outcome;
use crate::output::{Format, columns};

/// Show who is billed for which bytes, as the nodes' last surveys found it
#[derive(Debug, clap::Args)]
pub(super) struct Charges {
    /// What of: pod/NAME, pvc/NAME, node/NAME, or a name that only one of them has [default: everything]
    #[arg(value_name = "POD|PVC|NODE")]
    target: Option<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// None: any.
    kind: Option<Kind>,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Claim,
    Node,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            None => (None, text),
            Some(("pod" | "pods" | "po", name)) => (Some(Kind::Pod), name),
            Some(("pvc" | "persistentvolumeclaim" | "claim", name)) => (Some(Kind::Claim), name),
            Some(("node" | "nodes" | "no", name)) => (Some(Kind::Node), name),
            Some((other, _)) => return Err(format!("{other:?} is none of pod, pvc, node")),
        };
        if name.is_empty() {
            return Err("the name is missing".into());
        }
        let name = name.to_owned();
        Ok(Self { kind, name })
    }
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    volume: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<Claim>,
    node: String,
    /// `Pod`, `Retainer`, `Other` or `Unknown`.
    payer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Claim>,
    bytes: u64,
    /// When the node looked.
    observed_at: String,
    #[serde(skip)]
    title: String,
    #[serde(skip)]
    label: String,
}

impl Charges {
    pub(super) async fn run(&self, cluster: &Cluster, format: Format) -> anyhow::Result<Outcome> {
        let volumes = cluster.volumes().await?;
        let rows = match &self.target {
            None => all(&volumes, |_, _| true),
            Some(target) => {
                let kind = target.kind(&volumes, &cluster.namespace)?;
                all(&volumes, |volume, bill| {
                    target.is(kind, volume, bill, &cluster.namespace)
                })
            }
        };
        format.print_rows(&rows, table)?;
        Ok(Outcome::Done)
    }
}

impl Target {
    /// What the name is of. Nothing may be guessed: a claim and a pod of the same name are asked about.
    fn kind(&self, volumes: &[Volume], namespace: &str) -> anyhow::Result<Kind> {
        if let Some(kind) = self.kind {
            return Ok(kind);
        }
        let kinds = [Kind::Pod, Kind::Claim, Kind::Node];
        let known: Vec<_> = kinds
            .into_iter()
            .filter(|kind| volumes.iter().any(|it| self.has(*kind, it, namespace)))
            .collect();
        match known[..] {
            [kind] => Ok(kind),
            [] => bail!(
                "no volume has to do with a pod, claim or node {:?} in namespace {namespace}",
                self.name
            ),
            _ => bail!(
                "{0:?} is more than one thing: say pod/{0}, pvc/{0} or node/{0}",
                self.name
            ),
        }
    }

    /// Whether it has anything to do with the volume.
    fn has(&self, kind: Kind, volume: &Volume, namespace: &str) -> bool {
        let billed = volume.billed().iter();
        let mut publications = volume.status.publications.iter();
        match kind {
            Kind::Pod => {
                let mut billed = billed.filter_map(pod_of);
                billed.any(|pod| self.names(&pod, namespace))
                    || publications.any(|it| {
                        it.pod
                            .as_ref()
                            .is_some_and(|pod| self.names(pod, namespace))
                            || it.pod_uid.as_ref() == Some(&self.name)
                    })
            }
            _ => self.is(kind, volume, &Bill::default(), namespace),
        }
    }

    /// Whether a bill of a volume is asked about.
    fn is(&self, kind: Kind, volume: &Volume, bill: &Bill, namespace: &str) -> bool {
        match kind {
            Kind::Pod => {
                bill.uid.as_ref() == Some(&self.name)
                    || pod_of(bill).is_some_and(|pod| self.names(&pod, namespace))
            }
            Kind::Claim => {
                let claim = volume.spec.claim.as_ref();
                claim.is_some_and(|claim| self.names(claim, namespace)) || volume.id() == self.name
            }
            Kind::Node => volume.node() == self.name,
        }
    }

    fn names(&self, object: &Claim, namespace: &str) -> bool {
        object.name == self.name && object.namespace == namespace
    }
}

fn pod_of(bill: &Bill) -> Option<Claim> {
    Some(Claim {
        namespace: bill.namespace.clone()?,
        name: bill.name.clone()?,
    })
}

fn all(volumes: &[Volume], wanted: impl Fn(&Volume, &Bill) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for volume in volumes {
        let usage = volume.status.usage.clone().unwrap_or_default();
        let bills = usage.billed.iter().filter(|bill| wanted(volume, bill));
        rows.extend(bills.map(|bill| Row {
            volume: volume.id().to_owned(),
            claim: volume.spec.claim.clone(),
            node: volume.node().to_owned(),
            payer: bill.payer.clone(),
            pod: pod_of(bill),
            bytes: bill.bytes,
            observed_at: usage.observed_at.clone(),
            title: volume.title(),
            label: bill.label(),
        }));
    }
    rows
}

fn table(rows: &[Row]) -> String {
    let row = |row: &Row| {
        vec![
            row.label.clone(),
            row.title.clone(),
            row.node.clone(),
            human(row.bytes),
            row.observed_at.clone(),
        ]
    };
    let header = ["charged to", "for", "on node", "bytes", "surveyed"];
    let mut text = columns(&header, &[3], rows.iter().map(row));
    let sum: u64 = rows.iter().map(|row| row.bytes).sum();
    text += &format!("\n{} in all\n", human(sum));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(claim: &str, node: &str, pod: &str) -> Volume {
        let text = serde_json::json!({
            "metadata": {"name": format!("pvc-{claim}")},
            "spec": {"name": claim, "claim": {"namespace": "team", "name": claim}},
            "status": {"home": node, "usage": {"used": 12, "billed": [
                {"payer": "Pod", "namespace": "team", "name": pod, "uid": format!("uid-{pod}"), "bytes": 8},
                {"payer": "Retainer", "bytes": 4},
            ]}},
        });
        serde_json::from_value(text).unwrap()
    }

    fn charged(volumes: &[Volume], target: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let target: Target = target.parse().map_err(anyhow::Error::msg)?;
        let kind = target.kind(volumes, "team")?;
        let rows = all(volumes, |volume, bill| {
            target.is(kind, volume, bill, "team")
        });
        Ok(rows.into_iter().map(|it| (it.label, it.bytes)).collect())
    }

    #[test]
    fn a_pod_a_claim_and_a_node_are_each_told_their_own_bills() {
        let volumes = [
            volume("a", "n1", "x"),
            volume("b", "n2", "x"),
            volume("c", "n2", "y"),
        ];
        let (x, y) = ("pod team/x".to_owned(), "pod team/y".to_owned());
        let retainer = || ("retainer".to_owned(), 4);
        assert_eq!(
            charged(&volumes, "pod/x").unwrap(),
            [(x.clone(), 8), (x.clone(), 8)]
        );
        assert_eq!(charged(&volumes, "uid-y").unwrap_or_default(), []);
        assert_eq!(charged(&volumes, "pod/uid-y").unwrap(), [(y.clone(), 8)]);
        assert_eq!(
            charged(&volumes, "pvc/a").unwrap(),
            [(x.clone(), 8), retainer()]
        );
        assert_eq!(
            charged(&volumes, "a").unwrap(),
            [(x.clone(), 8), retainer()]
        );
        assert_eq!(
            charged(&volumes, "n2").unwrap(),
            [(x, 8), retainer(), (y, 8), retainer()]
        );
    }

    #[test]
    fn a_name_of_two_things_is_asked_about_and_one_of_nothing_is_an_error() {
        let volumes = [volume("x", "n1", "x")];
        let two = charged(&volumes, "x").unwrap_err().to_string();
        assert!(two.contains("more than one thing"), "{two}");
        let none = charged(&volumes, "z").unwrap_err().to_string();
        assert!(none.contains("no volume has to do with"), "{none}");
        assert!(charged(&volumes, "deployment/x").is_err());
        assert!(charged(&volumes, "pod/").is_err());
    }
}
