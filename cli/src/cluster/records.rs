//! The driver's custom resources, as far as this command shows them. What is missing, because a driver is older or a volume is new, is empty.

use serde::{Deserialize, Serialize};

/// A `VineyardVolume`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    metadata: Metadata,
    pub(super) spec: VolumeSpec,
    pub(super) status: VolumeStatus,
}

/// A `VineyardNode`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    metadata: Metadata,
    pub(super) spec: NodeSpec,
    pub(super) status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeSpec {
    pub(super) name: String,
    pub(super) capacity: u64,
    pub(super) claim: Option<Claim>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Claim {
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeStatus {
    pub(super) phase: String,
    pub(super) reason: Option<String>,
    pub(super) booked: String,
    pub(super) home: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) conditions: Vec<Condition>,
    pub(super) publications: Vec<Publication>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Usage {
    pub(super) used: u64,
    pub(super) billed: Vec<Bill>,
    pub(super) pending: u64,
    pub(super) observed_at: String,
}

/// What one payer is billed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Bill {
    /// `Pod`, `Retainer`, `Other` or `Unknown`.
    pub(super) payer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<String>,
    pub(super) bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Publication {
    pub(super) pod: Option<Claim>,
    pub(super) pod_uid: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeSpec {
    pub(super) pool: String,
    pub(super) budget: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeStatus {
    pub(super) beats: u64,
    pub(super) booked_bytes: u64,
    pub(super) report: Report,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Report {
    pub(super) charged: u64,
    pub(super) retained: u64,
    pub(super) pending: u64,
    pub(super) retainer: Option<Retainer>,
    pub(super) capabilities: Vec<Capability>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Retainer {
    pub(super) requested: u64,
    pub(super) allocated: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Capability {
    pub(super) name: String,
    /// `Yes`, `No` or `Unknown`.
    pub(super) works: String,
    pub(super) found: String,
}

impl Volume {
    /// Its id, which its resource is named by.
    pub(super) fn id(&self) -> &str {
        &self.metadata.name
    }

    /// What people know it by: its claim, else its name.
    pub(super) fn title(&self) -> String {
        match &self.spec.claim {
            Some(claim) => format!("{}/{}", claim.namespace, claim.name),
            None => self.spec.name.clone(),
        }
    }

    /// The node where its memory is, or will be.
    pub(super) fn node(&self) -> &str {
        self.status.home.as_deref().unwrap_or(&self.status.booked)
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.status.usage.as_ref().map_or(0, |usage| usage.used)
    }

    /// Who is billed, at the last survey.
    pub(super) fn billed(&self) -> &[Bill] {
        self.status
            .usage
            .as_ref()
            .map_or(&[], |usage| &usage.billed)
    }

    /// What people should know of it, beyond its phase.
    pub(super) fn troubles(&self) -> impl Iterator<Item = &str> {
        let is_trouble = |it: &&Condition| {
            let is_true = it.status == "True";
            match it.kind.as_str() {
                "Billed" => it.status == "False",
                "CapacityPressure" => is_true,
                _ => false,
            }
        };
        let conditions = self.status.conditions.iter().filter(is_trouble);
        let reason = self.status.reason.as_deref();
        reason
            .into_iter()
            .chain(conditions.map(|it| it.message.as_str()))
    }
}

impl Node {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.metadata.name
    }
}

impl Bill {
    /// The payer, for people.
    pub(super) fn label(&self) -> String {
        match (self.payer.as_str(), &self.namespace, &self.name) {
            ("Pod", Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
            ("Pod", ..) => format!("pod {}", self.uid.as_deref().unwrap_or("?")),
            ("Retainer", ..) => "retainer".into(),
            ("Other", ..) => "(nobody's pod)".into(),
            _ => "(nobody can tell)".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by the driver's own test, from its own types.
    const VOLUME: &str = include_str!("../../../csi-driver/src/resources/golden/volume.json");
    const NODE: &str = include_str!("../../../csi-driver/src/resources/golden/node.json");

    #[test]
    fn what_the_driver_writes_is_read_here() {
        let volume: Volume = serde_json::from_str(VOLUME).unwrap();
        assert_eq!(volume.title(), "team/features");
        assert_eq!(
            (volume.node(), volume.status.phase.as_str()),
            ("n1", "Resident")
        );
        assert_eq!((volume.spec.capacity, volume.used()), (64 << 20, 40 << 20));
        let billed: Vec<_> = volume.billed().iter().map(Bill::label).collect();
        assert_eq!(billed, ["pod team/train-0", "retainer"]);
        assert_eq!(
            volume.status.publications[0].pod.as_ref().unwrap().name,
            "train-0"
        );
        let troubles: Vec<_> = volume.troubles().collect();
        assert_eq!(
            troubles,
            ["8 MiB are on a wrong bill: they are handed over"]
        );
        let node: Node = serde_json::from_str(NODE).unwrap();
        assert_eq!(
            (node.name(), node.spec.budget, node.status.booked_bytes),
            ("n1", 1 << 30, 64 << 20)
        );
        assert_eq!(node.status.report.retainer.unwrap().requested, 32 << 20);
        assert_eq!(node.status.report.capabilities[0].works, "Yes");
    }

    #[test]
    fn a_record_of_an_older_driver_is_read_as_far_as_it_goes() {
        let text = r#"{"metadata": {"name": "pvc-1"}, "spec": {"name": "pvc-1", "capacity": 4096}, "status": {"phase": "Booked", "booked": "n2"}}"#;
        let volume: Volume = serde_json::from_str(text).unwrap();
        assert_eq!(
            (volume.title().as_str(), volume.node(), volume.used()),
            ("pvc-1", "n2", 0)
        );
        assert_eq!(volume.troubles().count(), 0);
    }
}
