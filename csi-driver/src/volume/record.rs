//! The record of a volume: everything that must survive the driver.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AccessMode, ClaimReference, Condition, NodeId, PAGE, Parameters, PodReference, Usage, VolumeId,
};
use crate::bytes::Bytes;

/// What is true of a volume. Stored by a [`Catalog`](super::Catalog), changed only by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Volume {
    /// Identity, derived from the name.
    pub(crate) id: VolumeId,
    /// CreateVolume's name.
    pub(crate) name: String,
    /// Where in its life it is.
    pub(crate) phase: Phase,
    /// Capacity that is booked.
    pub(crate) capacity: Bytes,
    /// Parameters of its classes.
    pub(crate) parameters: Parameters,
    /// Who may use it at the same time; any of these.
    pub(crate) access_modes: Vec<AccessMode>,
    /// The pool whose nodes it may live on.
    pub(crate) pool: String,
    /// The node whose budget it is booked on: the home once there is one.
    pub(crate) booked: NodeId,
    /// The node whose layer is authoritative; none before the first stage.
    pub(crate) home: Option<NodeId>,
    /// Counts changes of the home. 0: never had one.
    pub(crate) epoch: u64,
    /// Counts how often the content began anew, empty. 1: the first content.
    pub(crate) generation: u64,
    /// The memory that holds it, by node. Before the first stage: what a clone is being copied to.
    pub(crate) layers: BTreeMap<NodeId, Layer>,
    /// The volume that its first content is copied from, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content_source: Option<ContentSource>,
    /// The claim that it was made for, when the provisioner said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) claim: Option<ClaimReference>,
    /// Where it is staged.
    pub(crate) stagings: Vec<Staging>,
    /// Where it is published.
    pub(crate) publications: Vec<Publication>,
    /// What its home saw of its memory last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    /// What that and the rest of the record mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) conditions: Vec<Condition>,
}

/// Inodes that every volume has beyond two for each page: the tree's own directories and links.
const SPARE_INODES: u64 = 1024;

impl Volume {
    /// `nr_inodes` of it: an object is at least a page, and a name is another inode.
    pub(crate) fn inodes(&self) -> u64 {
        let fitting = self.capacity.0 / PAGE * 2 + SPARE_INODES;
        self.parameters.inodes.unwrap_or(fitting)
    }

    /// Whether it is being deleted, and `node` still has memory of it.
    pub(crate) fn is_doomed_on(&self, node: &NodeId) -> bool {
        self.phase == Phase::Deleting && self.layers.contains_key(node)
    }
}

/// What a volume is a clone of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ContentSource {
    /// The source.
    pub(crate) volume_id: VolumeId,
    /// Which content of it: another generation is not what was cloned. `None`: it had none, and neither has the clone.
    pub(crate) generation: Option<u64>,
}

/// Where in its life a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "name", deny_unknown_fields)]
pub(crate) enum Phase {
    /// Capacity is booked; no memory exists.
    Booked,
    /// Its memory is at its home.
    Resident,
    /// Its bytes go from its home to another node.
    Moving {
        /// Where they go.
        to: NodeId,
    },
    /// Its home does not answer; its memory may still be there.
    Unreachable,
    /// Its memory is known to be gone.
    Lost {
        /// How that is known.
        reason: String,
    },
    /// DeleteVolume was called; layers are being dropped.
    Deleting,
}

/// The part of a volume that is resident on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Layer {
    /// The boot of the node that it lives in.
    pub(crate) boot_id: String,
    /// The epoch that it was made in; names its tmpfs.
    pub(crate) epoch: u64,
    /// SELinux context of its tmpfs; cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) context: Option<String>,
}

/// What a caller may do, and how it is mounted for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Claim {
    /// The access mode that was asked for.
    pub(crate) access_mode: AccessMode,
    /// Nothing can be written through this mount.
    pub(crate) read_only: bool,
    /// Nothing can be executed through this mount.
    pub(crate) no_exec: bool,
    /// Reading through this mount leaves access times alone.
    pub(crate) no_atime: bool,
}

/// A volume at kubelet's staging path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Staging {
    /// The node.
    pub(crate) node: NodeId,
    /// The boot that the mount lives in.
    pub(crate) boot_id: String,
    /// `staging_target_path`.
    pub(crate) path: PathBuf,
    /// What it was staged for.
    pub(crate) claim: Claim,
}

/// A volume at a pod's target path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Publication {
    /// The node.
    pub(crate) node: NodeId,
    /// The boot that the mount lives in.
    pub(crate) boot_id: String,
    /// `target_path`.
    pub(crate) path: PathBuf,
    /// The pod's uid, when kubelet says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod_uid: Option<String>,
    /// The pod, when kubelet says all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<PodReference>,
    /// What it was published for.
    pub(crate) claim: Claim,
}
