//! The custom resource that a volume's record is.
//!
//! Its status is no subresource: a record is changed as a whole, by one compare-and-swap (docs/adr/0008-a-record-is-one-object.md).

use std::collections::BTreeMap;

use kube::CustomResource;
use kube::api::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::volume::{
    AccessMode, ClaimReference, Condition, ContentSource, Layer, NodeId, Parameters, Phase,
    Publication, Staging, Usage, Volume, VolumeId,
};

/// A memory volume: what was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "vineyard.io",
    version = "v1alpha1",
    kind = "VineyardVolume",
    namespaced,
    status = "VineyardVolumeStatus",
    shortname = "vyv",
    category = "vineyard",
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Home", "type": "string", "jsonPath": ".status.home"}"#,
    printcolumn = r#"{"name": "Namespace", "type": "string", "jsonPath": ".spec.claim.namespace"}"#,
    printcolumn = r#"{"name": "Claim", "type": "string", "jsonPath": ".spec.claim.name"}"#,
    printcolumn = r#"{"name": "Used", "type": "integer", "jsonPath": ".status.usage.used"}"#,
    printcolumn = r#"{"name": "Capacity", "type": "integer", "jsonPath": ".spec.capacity"}"#,
    printcolumn = r#"{"name": "Epoch", "type": "integer", "jsonPath": ".status.epoch", "priority": 1}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.reason", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VineyardVolumeSpec {
    /// CreateVolume's name; the resource is named by the id that derives from it.
    name: String,
    /// Capacity that is booked, in bytes.
    capacity: Bytes,
    /// Parameters of its classes.
    parameters: Parameters,
    /// Who may use it at the same time; any of these.
    access_modes: Vec<AccessMode>,
    /// The pool whose nodes it may live on.
    pool: String,
    /// The volume that its first content is copied from, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_source: Option<ContentSource>,
    /// The claim that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<ClaimReference>,
}

/// A memory volume: what is true of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VineyardVolumeStatus {
    /// Where in its life it is.
    phase: PhaseName,
    /// Where its bytes go, while it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moving_to: Option<NodeId>,
    /// How it is known that its memory is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The node whose budget it is booked on.
    booked: NodeId,
    /// The node whose layer is authoritative; none before the first stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    home: Option<NodeId>,
    /// Counts changes of the home. 0: never had one.
    epoch: u64,
    /// Counts how often the content began anew, empty. 1: the first content.
    generation: u64,
    /// The memory that holds it, by node.
    #[serde(default)]
    layers: BTreeMap<NodeId, Layer>,
    /// Where it is staged.
    #[serde(default)]
    stagings: Vec<Staging>,
    /// Where it is published.
    #[serde(default)]
    publications: Vec<Publication>,
    /// What its home saw of its memory last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    /// What that and the rest mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
}

/// Where in its life a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum PhaseName {
    /// Capacity is booked; no memory exists.
    Booked,
    /// Its memory is at its home.
    Resident,
    /// Its bytes go from its home to another node.
    Moving,
    /// Its home does not answer; its memory may still be there.
    Unreachable,
    /// Its memory is known to be gone.
    Lost,
    /// It is being deleted.
    Deleting,
}

impl From<Volume> for VineyardVolume {
    fn from(volume: Volume) -> Self {
        // Every field: what is added to the record must be added here.
        let Volume {
            id,
            name,
            phase,
            capacity,
            parameters,
            access_modes,
            pool,
            booked,
            home,
            epoch,
            generation,
            layers,
            content_source,
            claim,
            stagings,
            publications,
            usage,
            conditions,
        } = volume;
        let (phase, moving_to, reason) = match phase {
            Phase::Booked => (PhaseName::Booked, None, None),
            Phase::Resident => (PhaseName::Resident, None, None),
            Phase::Moving { to } => (PhaseName::Moving, Some(to), None),
            Phase::Unreachable => (PhaseName::Unreachable, None, None),
            Phase::Lost { reason } => (PhaseName::Lost, None, Some(reason)),
            Phase::Deleting => (PhaseName::Deleting, None, None),
        };
        Self {
            metadata: ObjectMeta {
                name: Some(id.as_str().to_owned()),
                ..Default::default()
            },
            spec: VineyardVolumeSpec {
                name,
                capacity,
                parameters,
                access_modes,
                pool,
                content_source,
                claim,
            },
            status: Some(VineyardVolumeStatus {
                phase,
                moving_to,
                reason,
                booked,
                home,
                epoch,
                generation,
                layers,
                stagings,
                publications,
                usage,
                conditions,
            }),
        }
    }
}

impl TryFrom<VineyardVolume> for Volume {
    type Error = String;

    fn try_from(resource: VineyardVolume) -> Result<Self, String> {
        let name = resource.metadata.name.unwrap_or_default();
        let id = VolumeId::parse(&name).ok_or("its name is no volume id")?;
        let spec = resource.spec;
        let status = resource.status.ok_or("it has no status")?;
        let phase = match status.phase {
            PhaseName::Booked => Phase::Booked,
            PhaseName::Resident => Phase::Resident,
            PhaseName::Moving => Phase::Moving {
                to: status.moving_to.ok_or("it moves nowhere")?,
            },
            PhaseName::Unreachable => Phase::Unreachable,
            PhaseName::Lost => Phase::Lost {
                reason: status.reason.unwrap_or_default(),
            },
            PhaseName::Deleting => Phase::Deleting,
        };
        Ok(Self {
            id,
            name: spec.name,
            phase,
            capacity: spec.capacity,
            parameters: spec.parameters,
            access_modes: spec.access_modes,
            pool: spec.pool,
            content_source: spec.content_source,
            claim: spec.claim,
            booked: status.booked,
            home: status.home,
            epoch: status.epoch,
            generation: status.generation,
            layers: status.layers,
            stagings: status.stagings,
            publications: status.publications,
            usage: status.usage,
            conditions: status.conditions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::catalog::conformance::volume;

    #[test]
    fn a_record_comes_back_from_its_resource_in_every_phase() {
        let node = || NodeId::parse("n1").unwrap();
        let reason = || "node n1 was restarted".to_owned();
        for phase in [
            Phase::Booked,
            Phase::Resident,
            Phase::Moving { to: node() },
            Phase::Unreachable,
            Phase::Lost { reason: reason() },
            Phase::Deleting,
        ] {
            let mut before = volume("Not a label: ü");
            before.phase = phase;
            before.home = Some(node());
            let layer = Layer {
                boot_id: "b".into(),
                epoch: 1,
                context: None,
            };
            before.layers.insert(node(), layer);
            let json = serde_json::to_string(&VineyardVolume::from(before.clone())).unwrap();
            let resource: VineyardVolume = serde_json::from_str(&json).unwrap();
            assert_eq!(Volume::try_from(resource), Ok(before));
        }
    }

    #[test]
    fn a_resource_that_is_no_record_is_refused() {
        let mut resource = VineyardVolume::from(volume("a"));
        resource.status = None;
        assert!(Volume::try_from(resource).is_err());
        let mut resource = VineyardVolume::from(volume("a"));
        resource.metadata.name = Some("v.x".into());
        assert!(Volume::try_from(resource).is_err());
    }
}
