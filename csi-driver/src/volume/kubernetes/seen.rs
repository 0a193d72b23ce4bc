//! What a watch of the volumes has seen: what changed when, and which volumes are being deleted. It costs one request, however many
//! volumes there are and however often they change; it may be late, and is never the last word.

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
    /// The nodes that have memory of volumes that are being deleted. None: not everything was seen yet.
    doomed: Option<BTreeMap<VolumeId, BTreeSet<NodeId>>>,
    /// The same while everything is being listed.
    listing: BTreeMap<VolumeId, BTreeSet<NodeId>>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            revision: 1,
            all: 1,
            each: HashMap::new(),
            doomed: None,
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
        let here = self.doomed.as_ref()?.iter();
        let here = here.filter(|(_, nodes)| nodes.contains(node));
        Some(here.map(|(id, _)| id.clone()).collect())
    }

    fn learn(&mut self, event: watcher::Event<DynamicObject>) {
        self.revision += 1;
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => self.listing.extend(doomed(object)),
            watcher::Event::InitDone => {
                self.doomed = Some(std::mem::take(&mut self.listing));
                self.every();
            }
            watcher::Event::Apply(object) => self.change(object.name_any(), doomed(object)),
            watcher::Event::Delete(object) => self.change(object.name_any(), None),
        }
    }

    fn change(&mut self, name: String, doomed: Option<(VolumeId, BTreeSet<NodeId>)>) {
        if let Some(known) = &mut self.doomed {
            known.retain(|id, _| id.as_str() != name);
            known.extend(doomed);
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

/// The nodes that have memory of a volume that is being deleted. What cannot be read is left alone.
fn doomed(object: DynamicObject) -> Option<(VolumeId, BTreeSet<NodeId>)> {
    let resource: VineyardVolume = object.try_parse().ok()?;
    let volume = Volume::try_from(resource).ok()?;
    let is_doomed = volume.phase == Phase::Deleting;
    is_doomed.then(|| (volume.id, volume.layers.into_keys().collect()))
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
