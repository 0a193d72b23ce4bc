//! What the catalog in a directory knows of nodes: `nodes/<node>.json` holds the boot and the tombstones, and the time of
//! `nodes/<node>.beat` is when the node was last heard of. In a directory of their own, so that a heartbeat wakes nobody.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::catalog::Error;
use super::file::{Directory, stems, storage};
use super::listing::{Corrupt, Listing, NodeRecord, Tombstone};
use super::{NodeId, NodeReport, Volume};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeDocument {
    boot_id: String,
    tombstones: Vec<Tombstone>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    report: Option<NodeReport>,
}

impl Directory {
    fn nodes(&self) -> PathBuf {
        self.path.join("nodes")
    }

    fn node_place(&self, node: &NodeId) -> PathBuf {
        self.nodes().join(format!("{node}.json"))
    }

    fn read_node(&self, node: &NodeId) -> Result<Option<NodeDocument>, Error> {
        let place = self.node_place(node);
        match fs::read(&place) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::Corrupt {
                    path: place.display().to_string(),
                    reason: error.to_string(),
                }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(storage("read", &place, error)),
        }
    }

    fn write_node(&self, node: &NodeId, document: &NodeDocument) -> Result<(), Error> {
        let nodes = self.nodes();
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&nodes);
        made.map_err(|source| storage("make", &nodes, source))?;
        self.replace(document, &self.node_place(node))
    }

    /// How long a node was silent; for ever, when it cannot be known.
    fn silence(&self, node: &NodeId) -> Duration {
        let beat = fs::metadata(self.nodes().join(format!("{node}.beat")));
        let beat = beat.and_then(|beat| beat.modified());
        match beat.map(|beat| SystemTime::now().duration_since(beat)) {
            Ok(Ok(silent)) => silent,
            // The clock was set back.
            Ok(Err(_)) => Duration::ZERO,
            Err(_) => Duration::MAX,
        }
    }

    pub(super) fn beat(&self, node: &NodeId, boot_id: &str) -> Result<Vec<Tombstone>, Error> {
        let before = self.read_node(node)?;
        let mut tombstones = before
            .as_ref()
            .map_or_else(Vec::new, |it| it.tombstones.clone());
        tombstones.retain(|tombstone| tombstone.boot_id == boot_id);
        let document = NodeDocument {
            boot_id: boot_id.to_owned(),
            tombstones,
            report: before.as_ref().and_then(|it| it.report.clone()),
        };
        if before.as_ref() != Some(&document) {
            self.write_node(node, &document)?;
        }
        let path = self.nodes().join(format!("{node}.beat"));
        let beat = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let now = FileTimes::new().set_modified(SystemTime::now());
        beat.and_then(|file: File| file.set_times(now))
            .map_err(|source| storage("touch", &path, source))?;
        Ok(document.tombstones)
    }

    /// Gives the nodes that have layers of a volume their tombstones.
    pub(super) fn bury(&self, volume: &Volume) -> Result<(), Error> {
        for (node, layer) in &volume.layers {
            let mut document = self.read_node(node)?.unwrap_or_else(|| NodeDocument {
                boot_id: layer.boot_id.clone(),
                tombstones: Vec::new(),
                report: None,
            });
            let tombstone = Tombstone {
                volume: volume.id.clone(),
                epoch: layer.epoch,
                boot_id: layer.boot_id.clone(),
                capacity: volume.capacity,
            };
            if document.boot_id == layer.boot_id && !document.tombstones.contains(&tombstone) {
                document.tombstones.push(tombstone);
                self.write_node(node, &document)?;
            }
        }
        Ok(())
    }

    pub(super) fn report(&self, node: &NodeId, report: NodeReport) -> Result<(), Error> {
        let Some(mut document) = self.read_node(node)? else {
            return Ok(());
        };
        document.report = Some(report);
        self.write_node(node, &document)
    }

    pub(super) fn dropped(&self, node: &NodeId, tombstone: &Tombstone) -> Result<(), Error> {
        let Some(mut document) = self.read_node(node)? else {
            return Ok(());
        };
        let before = document.tombstones.len();
        document.tombstones.retain(|each| each != tombstone);
        if document.tombstones.len() < before {
            self.write_node(node, &document)?;
        }
        Ok(())
    }

    pub(super) fn list_nodes(&self, listing: &mut Listing) -> Result<(), Error> {
        if !self.nodes().exists() {
            return Ok(());
        }
        for stem in stems(&self.nodes())? {
            let Ok(node) = NodeId::parse(&stem) else {
                continue;
            };
            match self.read_node(&node) {
                Ok(Some(document)) => listing.nodes.push(NodeRecord {
                    silent: self.silence(&node),
                    node,
                    boot_id: document.boot_id,
                    tombstones: document.tombstones,
                    report: document.report,
                }),
                Ok(None) => {}
                Err(Error::Corrupt { path, reason }) => listing.corrupt.push(Corrupt {
                    id: None,
                    path,
                    reason,
                }),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
