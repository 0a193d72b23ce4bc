//! All records at one moment: what is booked where, which nodes live, and what could not be read.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::catalog::{Error, Stored};
use super::{NodeId, NodeReport, VolumeId};
use crate::bytes::Bytes;

/// A catalog, read as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The volumes, sorted by id.
    pub(crate) volumes: Vec<Stored>,
    /// The records that cannot be read.
    pub(crate) corrupt: Vec<Corrupt>,
    /// The nodes that ever were alive.
    pub(crate) nodes: Vec<NodeRecord>,
}

/// A record that cannot be read. Nothing is guessed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt {
    /// The volume that it is about, as its place says; `None`: it is about a node.
    pub(crate) id: Option<VolumeId>,
    /// Where it is.
    pub(crate) path: String,
    /// What is wrong.
    pub(crate) reason: String,
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    /// Which.
    pub(crate) node: NodeId,
    /// Its boot, as it said last.
    pub(crate) boot_id: String,
    /// How long ago that was.
    pub(crate) silent: Duration,
    /// What it has to drop.
    pub(crate) tombstones: Vec<Tombstone>,
    /// What it says about itself.
    pub(crate) report: Option<NodeReport>,
}

/// Memory of a volume that was deleted while its node was dead. It stays booked until the node has dropped it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Tombstone {
    /// The volume that was deleted. There may be a new one with the same id.
    pub(crate) volume: VolumeId,
    /// The epoch that the layer was made in.
    pub(crate) epoch: u64,
    /// The boot that the layer lives in.
    pub(crate) boot_id: String,
    /// What stays booked.
    pub(crate) capacity: Bytes,
}

impl Listing {
    /// What is booked on a node: volumes, and what was deleted but not dropped yet.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a record cannot be read: what it books, and where, nobody knows.
    pub(crate) fn booked(&self, node: &NodeId) -> Result<Bytes, Error> {
        if let Some(corrupt) = self.corrupt.first() {
            return Err(corrupt.clone().into());
        }
        let here = |stored: &&Stored| stored.volume.booked == *node;
        let volumes = self.volumes.iter().filter(here);
        let volumes = volumes.map(|stored| stored.volume.capacity.0);
        let buried = self.nodes.iter().filter(|record| record.node == *node);
        let buried = buried.flat_map(|record| &record.tombstones);
        let buried = buried.map(|tombstone| tombstone.capacity.0);
        Ok(Bytes(volumes.chain(buried).sum()))
    }

    /// Whether a node is known to be dead: it was silent for longer than `grace`. One that never said anything is not known.
    pub(crate) fn is_dead(&self, node: &NodeId, grace: Duration) -> bool {
        let mut records = self.nodes.iter();
        records.any(|record| record.node == *node && record.silent > grace)
    }

    /// Whether the record of this volume is there but cannot be read.
    pub(crate) fn is_corrupt(&self, id: &VolumeId) -> bool {
        self.corrupt.iter().any(|each| each.id.as_ref() == Some(id))
    }
}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt {
            path: corrupt.path,
            reason: corrupt.reason,
        }
    }
}
