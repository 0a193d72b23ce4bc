//! What a watch of the volumes has seen: what changed when, which volumes are being deleted, and where they are booked. It costs one request,
//! however many volumes there are and however often they change; it may be late, and is never the last word.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;

use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio_stream::StreamExt;

use crate::resources::VineyardVolume;
use crate::volume::{NodeId, Phase, Volume, VolumeId};

/// Volumes whose changes are remembered one by one; beyond that, all have changed.
const REMEMBERED: usize = 10_000;

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Counts changes; from 1, so that nobody has seen the first state yet.
    revision: u128,
    /// The revision that changed everything last.
    all: u128,
    /// The revision that changed a volume last, if that was later; also of volumes that are gone.
    each: HashMap<String, u128>,
    /// What is known of each volume, by the name of its record. None: not everything was seen yet.
    known: Option<BTreeMap<String, Known>>,
    /// The same while everything is being listed.
    listing: BTreeMap<String, Known>,
}

/// What is remembered of a volume.
#[derive(Debug, Default)]
struct Known {
    /// Its id, and the node that it is booked on. None: its record cannot be read, and nothing is done about it.
    booked: Option<(VolumeId, NodeId)>,
    /// The nodes that have its memory, while it is being deleted.
    doomed: BTreeSet<NodeId>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            revision: 1,
            all: 1,
            each: HashMap::new(),
            known: None,
            listing: BTreeMap::new(),
        }
    }
}

impl Seen {
    /// The last change.
    pub(super) fn revision(&self) -> u128 {
        self.revision
    }

    /// The last change of one volume, or of any.
    pub(super) fn changed(&self, only: Option<&VolumeId>) -> u128 {
        let Some(id) = only else { return self.revision };
        let its = self.each.get(id.as_str()).copied();
        its.unwrap_or(self.all).max(self.all)
    }

    /// The volumes that are being deleted and have memory on `node`. None: nobody knows yet.
    pub(super) fn doomed(&self, node: &NodeId) -> Option<Vec<VolumeId>> {
        let doomed = self.known.as_ref()?.values();
        let here = doomed.filter(|known| known.doomed.contains(node));
        Some(
            here.filter_map(|known| Some(known.booked.as_ref()?.0.clone()))
                .collect(),
        )
    }

    /// Whether a volume is booked on another node than this, or nowhere any more.
    pub(super) fn is_booked_elsewhere(&self, id: &str, node: &NodeId) -> bool {
        let Some(known) = &self.known else {
            return false;
        };
        known.get(id).is_none_or(|it| {
            let booked = it.booked.as_ref();
            booked.is_some_and(|(_, booked)| booked != node)
        })
    }

    fn learn(&mut self, event: watcher::Event<DynamicObject>) {
        self.revision += 1;
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => {
                self.listing.insert(object.name_any(), known(object));
            }
            watcher::Event::InitDone => {
                self.known = Some(std::mem::take(&mut self.listing));
                self.every();
            }
            watcher::Event::Apply(object) => self.change(object.name_any(), Some(known(object))),
            watcher::Event::Delete(object) => self.change(object.name_any(), None),
        }
    }

    fn change(&mut self, name: String, now: Option<Known>) {
        if let Some(known) = &mut self.known {
            match now {
                Some(now) => known.insert(name.clone(), now),
                None => known.remove(&name),
            };
        }
        self.each.insert(name, self.revision);
        if self.each.len() > REMEMBERED {
            self.every();
        }
    }

    fn every(&mut self) {
        self.all = self.revision;
        self.each.clear();
    }
}

fn known(object: DynamicObject) -> Known {
    let volume = object.try_parse::<VineyardVolume>().ok();
    let volume = volume.and_then(|resource| Volume::try_from(resource).ok());
    volume.map_or_else(Known::default, |volume| Known {
        doomed: match volume.phase {
            Phase::Deleting => volume.layers.into_keys().collect(),
            _ => BTreeSet::new(),
        },
        booked: Some((volume.id, volume.booked)),
    })
}

/// Watches the volumes in `namespace` until nobody wants to know any more.
pub(super) async fn follow(client: Client, namespace: String, seen: watch::Sender<Seen>) {
    let kind = ApiResource::erase::<VineyardVolume>(&());
    // One that cannot be read must not end the watch of the others.
    let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &kind);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => seen.send_modify(|seen| seen.learn(event)),
            Err(error) => {
                tracing::warn!(%error, "the watch of volumes broke; it is tried again");
                // Who waits looks for themselves.
                seen.send_modify(|seen| {
                    seen.revision += 1;
                    seen.every();
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Layer;
    use crate::volume::catalog::conformance;

    fn object(name: &str, phase: Phase, node: &str) -> DynamicObject {
        let mut volume = conformance::volume(name);
        volume.phase = phase;
        let layer = Layer {
            boot_id: "one".into(),
            epoch: 1,
            context: None,
        };
        volume.layers.insert(NodeId::parse(node).unwrap(), layer);
        let resource = serde_json::to_value(VineyardVolume::from(volume)).unwrap();
        serde_json::from_value(resource).unwrap()
    }

    fn names(seen: &Seen, node: &str) -> Option<Vec<String>> {
        let doomed = seen.doomed(&NodeId::parse(node).unwrap())?;
        Some(doomed.iter().map(|id| id.as_str().to_owned()).collect())
    }

    #[test]
    fn nothing_is_known_before_everything_was_listed() {
        let mut seen = Seen::default();
        seen.learn(watcher::Event::Init);
        seen.learn(watcher::Event::InitApply(object(
            "a",
            Phase::Deleting,
            "n1",
        )));
        assert_eq!(names(&seen, "n1"), None);
        seen.learn(watcher::Event::InitDone);
        assert_eq!(names(&seen, "n1").unwrap(), ["a"]);
        // The next list is the whole truth.
        seen.learn(watcher::Event::Init);
        assert_eq!(names(&seen, "n1").unwrap(), ["a"]);
        seen.learn(watcher::Event::InitDone);
        assert!(names(&seen, "n1").unwrap().is_empty());
    }

    #[test]
    fn a_volume_is_doomed_from_its_mark_until_it_is_gone_and_only_where_it_has_memory() {
        let mut seen = Seen::default();
        seen.learn(watcher::Event::InitDone);
        seen.learn(watcher::Event::Apply(object("a", Phase::Resident, "n1")));
        assert!(names(&seen, "n1").unwrap().is_empty());
        seen.learn(watcher::Event::Apply(object("a", Phase::Deleting, "n1")));
        assert_eq!(names(&seen, "n1").unwrap(), ["a"]);
        assert!(names(&seen, "n2").unwrap().is_empty());
        seen.learn(watcher::Event::Delete(object("a", Phase::Deleting, "n1")));
        assert!(names(&seen, "n1").unwrap().is_empty());
    }

    #[test]
    fn a_booking_is_elsewhere_when_its_volume_is_or_is_gone_and_not_when_nobody_can_tell() {
        let [a, b] = ["a", "b"].map(|node| NodeId::parse(node).unwrap());
        let mut seen = Seen::default();
        assert!(!seen.is_booked_elsewhere("v", &a));
        seen.learn(watcher::Event::InitDone);
        assert!(seen.is_booked_elsewhere("v", &a));
        let booked = object("v", Phase::Booked, "n1");
        seen.learn(watcher::Event::Apply(booked.clone()));
        assert!(!seen.is_booked_elsewhere("v", &a) && seen.is_booked_elsewhere("v", &b));
        let mut damaged = booked.clone();
        damaged.data["status"]["layers"] = serde_json::json!("?");
        seen.learn(watcher::Event::Apply(damaged));
        assert!(!seen.is_booked_elsewhere("v", &b));
        seen.learn(watcher::Event::Delete(booked));
        assert!(seen.is_booked_elsewhere("v", &a));
    }

    #[test]
    fn who_waits_for_one_volume_is_not_woken_by_another() {
        let mut seen = Seen::default();
        let (a, b) = (VolumeId::of_name("a"), VolumeId::of_name("b"));
        seen.learn(watcher::Event::InitDone);
        let before = seen.revision();
        assert_eq!(seen.changed(Some(&a)), before);
        seen.learn(watcher::Event::Apply(object("b", Phase::Resident, "n1")));
        assert_eq!(seen.changed(Some(&a)), before);
        assert!(seen.changed(Some(&b)) > before && seen.changed(None) > before);
        let before = seen.revision();
        seen.learn(watcher::Event::Delete(object("a", Phase::Resident, "n1")));
        assert!(seen.changed(Some(&a)) > before);
        // A list may have missed anything.
        let before = seen.revision();
        seen.learn(watcher::Event::InitDone);
        assert!(seen.changed(Some(&b)) > before);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        let one = VolumeId::of_name("one");
        for number in 0..=REMEMBERED {
            seen.revision += 1;
            seen.change(format!("v{number}"), None);
        }
        assert!(seen.each.is_empty());
        assert_eq!(seen.changed(Some(&one)), seen.revision());
    }

    #[test]
    fn a_record_that_cannot_be_read_dooms_nobody() {
        let mut seen = Seen::default();
        seen.learn(watcher::Event::InitDone);
        let mut damaged = object("a", Phase::Deleting, "n1");
        damaged.data["status"]["layers"] = serde_json::json!("?");
        seen.learn(watcher::Event::Apply(damaged));
        assert!(names(&seen, "n1").unwrap().is_empty());
    }
}
