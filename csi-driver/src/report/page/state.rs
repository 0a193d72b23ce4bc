//! What the page shows, as JSON. `api/state` is for the page; scripts should read the resources.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Page;
use crate::report::events::Seen;
use crate::volume::{Listing, NodeId, NodeRecord, Phase, Volume, catalog};

impl Page {
    pub(super) async fn state(&self) -> Result<Value, catalog::Error> {
        let all = self.catalog.list().await?;
        let mut nodes: BTreeMap<NodeId, (Value, Option<&NodeRecord>)> = BTreeMap::new();
        for record in &all.nodes {
            nodes.insert(record.node.clone(), (Value::Null, Some(record)));
        }
        let offered = self.nodes.all().await?;
        for offer in &offered {
            let entry = nodes.entry(offer.node.clone()).or_default();
            entry.0 = json!({"pool": offer.pool, "budget": offer.budget});
        }
        let nodes = nodes.iter();
        let nodes = nodes.map(|(name, (offer, record))| self.node(&all, name, offer, *record));
        let volumes = all.volumes.iter().map(|stored| volume(&stored.volume));
        let unreadable = all.corrupt.iter();
        let unreadable = unreadable.map(|it| json!({"path": it.path, "reason": it.reason}));
        Ok(json!({
            "now": seconds(SystemTime::now()),
            "version": env!("CARGO_PKG_VERSION"),
            "nodes": nodes.collect::<Vec<_>>(),
            "volumes": volumes.collect::<Vec<_>>(),
            "unreadable": unreadable.collect::<Vec<_>>(),
            "events": self.events.seen().iter().map(event).collect::<Vec<_>>(),
        }))
    }

    fn node(
        &self,
        all: &Listing,
        name: &NodeId,
        offer: &Value,
        record: Option<&NodeRecord>,
    ) -> Value {
        let alive = record.map(|record| record.silent <= self.node_grace);
        let report = record.and_then(|record| record.report.as_ref());
        let retainer = report.and_then(|report| report.retainer.as_ref());
        json!({
            "name": name,
            "pool": offer.get("pool"),
            "budget": offer.get("budget").cloned().unwrap_or(json!(0)),
            // Unknown while a record cannot be read: the page names that record.
            "booked": all.booked(name).map_or(0, |booked| booked.0),
            "alive": alive,
            "silentSeconds": record.filter(|_| alive == Some(false)).map(|it| it.silent.as_secs()),
            "bootId": record.map(|record| &record.boot_id),
            "endpoint": report.and_then(|report| report.endpoint.as_ref()),
            "requested": retainer.map(|it| it.requested),
            "allocated": retainer.map(|it| it.allocated),
            "missing": report.map_or_else(Vec::new, |report| report.missing()),
        })
    }
}

fn volume(volume: &Volume) -> Value {
    let (phase, moving_to, reason) = match &volume.phase {
        Phase::Booked => ("Booked", None, None),
        Phase::Resident => ("Resident", None, None),
        Phase::Moving { to } => ("Moving", Some(to), None),
        Phase::Unreachable => ("Unreachable", None, None),
        Phase::Lost { reason } => ("Lost", None, Some(reason)),
        Phase::Deleting => ("Deleting", None, None),
    };
    let usage = volume.usage.as_ref();
    let pods = volume.publications.iter().map(|it| {
        json!({
            "node": it.node,
            "namespace": it.pod.as_ref().map(|pod| &pod.namespace),
            "name": it.pod.as_ref().map(|pod| &pod.name),
            "uid": it.pod_uid,
            "readOnly": it.claim.read_only,
        })
    });
    json!({
        "id": volume.id,
        "name": volume.name,
        "claim": volume.claim,
        "phase": phase,
        "movingTo": moving_to,
        "reason": reason,
        "booked": volume.booked,
        "home": volume.home,
        "epoch": volume.epoch,
        "generation": volume.generation,
        "capacity": volume.capacity,
        "used": usage.map_or(0, |usage| usage.used.0),
        "billed": usage.map_or(&[][..], |usage| &usage.billed),
        "pending": usage.map_or(0, |usage| usage.pending.0),
        "observedAt": usage.map(|usage| &usage.observed_at),
        "conditions": volume.conditions,
        "pods": pods.collect::<Vec<_>>(),
    })
}

fn event(event: &Seen) -> Value {
    json!({
        "reason": event.reason.as_str(),
        "warning": event.reason.is_warning(),
        "about": event.about,
        "note": event.note,
        "count": event.count,
        "at": seconds(event.at),
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}
