//! What is booked on a node, kept in the node's own resource: one compare-and-swap on it decides whether a booking fits.
//!
//! A booking is entered before the volume's record is written and taken out after the record is gone. Whoever dies in between leaves an entry
//! without a volume: too much is booked then, never too little. So does a node's plugin that takes a volume over, since it may not write about
//! the node that had it. Such entries are trimmed when they are old: by their own node when it sees them, and when room is needed. An entry
//! has the number of the booking that wrote it, so nobody takes out what somebody else has entered since.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};

use super::access::{self, code, corrupt, part, storage};
use crate::bytes::Bytes;
use crate::resources::{
    Booking, VineyardNode, VineyardNodeSpec, VineyardNodeStatus, VineyardVolume,
};
use crate::volume::catalog::Error;
use crate::volume::listing::{Corrupt, NodeRecord, Tombstone};
use crate::volume::{NodeId, NodeReport, Volume, VolumeId};

/// Tries of a swap: every writer of a node's resource may be faster once.
const TRIES: usize = 64;

/// Age from which an entry without its volume is a leftover: longer than anybody takes between the entry and the record.
const LEFTOVER: Duration = Duration::from_secs(300);

/// The nodes' resources.
pub(super) struct Ledger {
    api: Api<VineyardNode>,
    client: Client,
    namespace: String,
    /// How many beats of a node were seen last, and since when.
    beats: Mutex<HashMap<String, (u64, Instant)>>,
}

/// An entry that was made, and what was there before.
pub(super) struct Entry {
    node: NodeId,
    id: VolumeId,
    number: u64,
    before: Option<Booking>,
}

impl Ledger {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            client,
            namespace: namespace.to_owned(),
            beats: Mutex::default(),
        }
    }

    /// Reads, edits and swaps the status of a node, which is made when it is missing. An edit that changes nothing writes nothing.
    async fn change<T>(
        &self,
        node: &NodeId,
        mut edit: impl FnMut(&mut VineyardNodeStatus) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..TRIES {
            let found = self.api.get_opt(node.as_str()).await;
            let found = found.map_err(|error| storage("read", node.as_str(), error))?;
            let before = found.as_ref().and_then(|found| found.status.clone());
            let mut status = before.clone().unwrap_or_default();
            let result = edit(&mut status)?;
            status.booked_bytes = Bytes(booked(&status));
            if before.as_ref() == Some(&status) {
                return Ok(result);
            }
            let written = match found {
                None => {
                    let mut new = VineyardNode::new(node.as_str(), VineyardNodeSpec::default());
                    new.status = Some(status);
                    self.api.create(&PostParams::default(), &new).await
                }
                Some(found) => {
                    let version = found.resource_version().unwrap_or_default();
                    let parts = [("status", part(node.as_str(), &status)?)];
                    access::swap(&self.api, node.as_str(), &version, &parts).await
                }
            };
            match written {
                Ok(_) => return Ok(result),
                // Somebody else was faster, or removed it.
                Err(error) if matches!(code(&error), Some(404 | 409)) => {}
                Err(error) => return Err(storage("change", node.as_str(), error)),
            }
        }
        let source = std::io::Error::other("others were faster too often");
        Err(Error::Storage {
            doing: format!("change {node} in Kubernetes"),
            source,
        })
    }

    /// Enters `volume` for the node that it is booked on, if that fits into `budget`.
    pub(super) async fn enter(&self, volume: &Volume, budget: Bytes) -> Result<Entry, Error> {
        match self.try_enter(volume, budget).await {
            Err(Error::NoRoom { .. }) => {
                self.trim(&volume.booked).await?;
                self.try_enter(volume, budget).await
            }
            other => other,
        }
    }

    async fn try_enter(&self, volume: &Volume, budget: Bytes) -> Result<Entry, Error> {
        let key = volume.id.as_str();
        let entered = self.change(&volume.booked, |status| {
            let before = status.bookings.get(key).cloned();
            let own = before.as_ref().map_or(0, |booking| booking.capacity.0);
            let free = budget.0.saturating_sub(booked(status));
            if volume.capacity.0.saturating_sub(own) > free {
                return Err(Error::NoRoom {
                    node: volume.booked.clone(),
                    free: Bytes(free),
                });
            }
            status.booked += 1;
            let booking = Booking {
                // Another booking of the same volume may be on its way with more.
                capacity: Bytes(volume.capacity.0.max(own)),
                number: status.booked,
                since: now(),
            };
            status.bookings.insert(key.to_owned(), booking);
            Ok((status.booked, before))
        });
        let (number, before) = entered.await?;
        Ok(Entry {
            node: volume.booked.clone(),
            id: volume.id.clone(),
            number,
            before,
        })
    }

    /// Takes an entry back whose volume is known not to be written.
    pub(super) async fn take_back(&self, entry: Entry) -> Result<(), Error> {
        let key = entry.id.as_str();
        self.change(&entry.node, |status| {
            let is_last = |booking: &&Booking| booking.number == entry.number;
            if status.bookings.get(key).filter(is_last).is_some() {
                match &entry.before {
                    Some(before) => status.bookings.insert(key.to_owned(), before.clone()),
                    None => status.bookings.remove(key),
                };
            }
            Ok(())
        })
        .await
    }

    /// The number of the entry of a volume.
    pub(super) async fn number(&self, node: &NodeId, id: &VolumeId) -> Result<Option<u64>, Error> {
        let found = self.api.get_opt(node.as_str()).await;
        let found = found.map_err(|error| storage("read", node.as_str(), error))?;
        let status = found.and_then(|found| found.status);
        Ok(status.and_then(|status| Some(status.bookings.get(id.as_str())?.number)))
    }

    /// Takes out the entry of a volume that is not booked here any more, unless it was booked anew since `number` was read.
    pub(super) async fn take_out(
        &self,
        node: &NodeId,
        id: &VolumeId,
        number: Option<u64>,
    ) -> Result<(), Error> {
        self.change(node, |status| {
            let booking = status.bookings.get(id.as_str());
            if booking.is_some_and(|booking| Some(booking.number) == number) {
                status.bookings.remove(id.as_str());
            }
            Ok(())
        })
        .await
    }

    /// Makes old entries what their volumes are.
    pub(super) async fn trim(&self, node: &NodeId) -> Result<(), Error> {
        let found = self.api.get_opt(node.as_str()).await;
        let found = found.map_err(|error| storage("read", node.as_str(), error))?;
        let status = found.and_then(|found| found.status).unwrap_or_default();
        if !status.bookings.values().any(is_old) {
            return Ok(());
        }
        // Read after the entries: a volume that is written later has a younger entry.
        let volumes = access::list::<VineyardVolume>(&self.client, &self.namespace).await?;
        let mut booked = HashMap::new();
        for (name, resource) in volumes {
            let volume = resource.and_then(Volume::try_from);
            // What a record that cannot be read has booked, stays.
            booked.insert(name, volume.ok());
        }
        self.change(node, |now| {
            for (id, entry) in &status.bookings {
                if !is_old(entry) || now.bookings.get(id) != Some(entry) {
                    continue;
                }
                match booked.get(id) {
                    Some(None) => {}
                    Some(Some(volume)) if volume.booked == *node => {
                        let capacity = volume.capacity;
                        now.bookings
                            .entry(id.clone())
                            .and_modify(|entry| entry.capacity = capacity);
                    }
                    _ => drop(now.bookings.remove(id)),
                }
            }
            Ok(())
        })
        .await
    }

    /// Says that a node lives, and returns what is known of it.
    pub(super) async fn beat(
        &self,
        node: &NodeId,
        boot_id: &str,
    ) -> Result<VineyardNodeStatus, Error> {
        self.change(node, |status| {
            status.boot_id = Some(boot_id.to_owned());
            status.beats += 1;
            status
                .tombstones
                .retain(|tombstone| tombstone.boot_id == boot_id);
            Ok(status.clone())
        })
        .await
    }

    /// Gives a node its tombstone, unless it is in another boot. Returns whether it has a new one.
    pub(super) async fn bury(&self, node: &NodeId, tombstone: &Tombstone) -> Result<bool, Error> {
        self.change(node, |status| {
            let boot_id = status
                .boot_id
                .get_or_insert_with(|| tombstone.boot_id.clone());
            let is_new = *boot_id == tombstone.boot_id && !status.tombstones.contains(tombstone);
            if is_new {
                status.tombstones.push(tombstone.clone());
            }
            Ok(is_new)
        })
        .await
    }

    /// Writes down what a node says about itself.
    pub(super) async fn report(&self, node: &NodeId, report: NodeReport) -> Result<(), Error> {
        self.change(node, |status| {
            status.report = Some(report.clone());
            Ok(())
        })
        .await
    }

    /// Forgets a tombstone.
    pub(super) async fn dropped(&self, node: &NodeId, tombstone: &Tombstone) -> Result<(), Error> {
        self.change(node, |status| {
            status.tombstones.retain(|each| each != tombstone);
            Ok(())
        })
        .await
    }

    /// What is known of all nodes.
    pub(super) async fn list(&self) -> Result<(Vec<NodeRecord>, Vec<Corrupt>), Error> {
        let looked = Instant::now();
        let (mut records, mut unread) = (Vec::new(), Vec::new());
        for (name, node) in access::list::<VineyardNode>(&self.client, &self.namespace).await? {
            let parsed =
                node.and_then(|node| Ok((NodeId::parse(&name)?, node.status.unwrap_or_default())));
            let (node, status) = match parsed {
                Ok(parsed) => parsed,
                Err(reason) => {
                    unread.push(Corrupt {
                        id: None,
                        path: format!("resource {name}"),
                        reason,
                    });
                    continue;
                }
            };
            let Some(boot_id) = status.boot_id else {
                continue;
            };
            records.push(NodeRecord {
                silent: self.silence(name, status.beats, looked)?,
                node,
                boot_id,
                tombstones: status.tombstones,
                report: status.report,
            });
        }
        Ok((records, unread))
    }

    /// How long a node was silent, by the clock of this process: since it saw the last beat first.
    fn silence(&self, name: String, beats: u64, looked: Instant) -> Result<Duration, Error> {
        let mut seen = self.beats.lock().map_err(|error| corrupt(&name, &error))?;
        let last = seen.entry(name).or_insert((beats, looked));
        if last.0 != beats {
            *last = (beats, looked);
        }
        Ok(last.1.elapsed())
    }
}

/// Whether a node has an old entry of a volume that, as far as is known, is booked elsewhere.
pub(super) fn has_left(status: &VineyardNodeStatus, is_elsewhere: impl Fn(&str) -> bool) -> bool {
    let mut bookings = status.bookings.iter();
    bookings.any(|(id, booking)| is_old(booking) && is_elsewhere(id))
}

fn is_old(booking: &Booking) -> bool {
    booking.since + LEFTOVER.as_secs() < now()
}

/// Everything that is booked on a node.
fn booked(status: &VineyardNodeStatus) -> u64 {
    let volumes = status.bookings.values().map(|booking| booking.capacity.0);
    let buried = status
        .tombstones
        .iter()
        .map(|tombstone| tombstone.capacity.0);
    volumes.chain(buried).sum()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
