//! Random schedules: claims come and go, pods with several of them too, kubelet restarts, the node reboots.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use tonic::Code;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};

/// Steps of one schedule.
const STEPS: u64 = 24;

/// What the driver offers: see its flags.
const BUDGET: i64 = 16 << 20;

const MIB: i64 = 1 << 20;

#[derive(Debug, Default)]
struct Claim {
    capacity: i64,
    /// It begins anew when its memory is gone.
    recreate: bool,
    /// What pods wrote, none before the first pod that may write.
    content: Option<String>,
    staged: bool,
    /// What its content is copied from at its first stage.
    source: Option<String>,
    /// It has memory, or had some that is lost.
    resident: bool,
    lost: bool,
}

#[derive(Clone, Debug)]
struct Mount {
    claim: String,
    read_only: bool,
    /// In this boot of the node.
    published: bool,
}

/// The model, and what it is held against.
struct Schedule {
    kubelet: Kubelet,
    chance: Chance,
    claims: BTreeMap<String, Claim>,
    pods: BTreeMap<String, Vec<Mount>>,
    next: u32,
}

/// Plays the schedule of a seed in `folder`. Returns how often the driver died at which fail point.
pub(crate) async fn play(seed: u64, folder: &Path) -> BTreeMap<String, u64> {
    let mut chance = Chance::new(seed);
    let mut schedule = Schedule {
        kubelet: Kubelet::new(folder, chance.fork(), Kills::AtRandom),
        claims: BTreeMap::new(),
        pods: BTreeMap::new(),
        next: 0,
        chance,
    };
    for _ in 0..STEPS {
        schedule.step().await;
    }
    schedule.clean_up().await;
    schedule.kubelet.driver.assert_nothing_is_left().await;
    std::mem::take(&mut schedule.kubelet.driver.deaths)
}

impl Schedule {
    async fn step(&mut self) {
        match self.chance.below(20) {
            0..=2 => self.provision().await,
            3 => self.clone_any().await,
            4..=9 => self.start_pod().await,
            10..=12 => self.stop_pod().await,
            13 => self.expand().await,
            14 => self.stats().await,
            15 => self.delete_unused().await,
            16 => self.restart_kubelet().await,
            17 => self.modify().await,
            18 => self.kubelet.driver.kill(),
            _ if self.chance.below(3) == 0 => self.reboot(),
            _ => self.check_content(),
        }
    }

    fn booked(&self) -> i64 {
        self.claims.values().map(|claim| claim.capacity).sum()
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    async fn provision(&mut self) {
        let name = format!("pvc-{}", self.number());
        let capacity = (i64::try_from(self.chance.below(4)).unwrap() + 1) * MIB;
        let recreate = self.chance.below(3) == 0;
        let parameters: &[_] = if recreate {
            &[("onLoss", "recreate")]
        } else {
            &[]
        };
        let fits = self.booked() + capacity <= BUDGET;
        match self.kubelet.create(&name, capacity, parameters).await {
            Ok(volume) => {
                assert!(fits, "more is booked than the budget");
                assert_eq!(volume.capacity_bytes, capacity);
                let claim = Claim {
                    capacity,
                    recreate,
                    ..Claim::default()
                };
                self.claims.insert(name, claim);
            }
            Err(status) if status.code() == Code::ResourceExhausted => assert!(!fits),
            Err(status) => self.kubelet.complain("CreateVolume", &status),
        }
    }

    /// A clone of a claim that has content to be copied, or had some.
    async fn clone_any(&mut self) {
        let Some(source) = self.any_claim().filter(|name| self.claims[name].resident) else {
            return;
        };
        let name = format!("pvc-{}", self.number());
        let capacity = self.claims[&source].capacity;
        let fits = self.booked() + capacity <= BUDGET;
        match self.kubelet.clone_of(&source, &name, capacity).await {
            Ok(volume) => {
                assert!(fits && !self.claims[&source].lost, "{name} of {source}");
                assert_eq!(volume.capacity_bytes, capacity);
                let claim = Claim {
                    capacity,
                    source: Some(source),
                    ..Claim::default()
                };
                self.claims.insert(name, claim);
            }
            Err(status) if status.code() == Code::ResourceExhausted => assert!(!fits),
            Err(status) if status.code() == Code::InvalidArgument => {
                assert!(self.claims[&source].lost, "{status:?}");
            }
            Err(status) => self.kubelet.complain("CreateVolume", &status),
        }
    }

    /// Whether clones of it are still to be filled.
    fn is_pinned(&self, name: &str) -> bool {
        let mut claims = self.claims.values();
        claims.any(|claim| {
            let is_source = claim.source.as_deref() == Some(name);
            is_source && !claim.resident && !claim.lost
        })
    }

    fn any_claim(&mut self) -> Option<String> {
        let place = self.chance.place(self.claims.len())?;
        self.claims.keys().nth(place).cloned()
    }

    fn any_pod(&mut self) -> Option<String> {
        let place = self.chance.place(self.pods.len())?;
        self.pods.keys().nth(place).cloned()
    }

    /// A pod of up to three claims. One that cannot have them all is taken away again.
    async fn start_pod(&mut self) {
        let mut mounts: Vec<Mount> = Vec::new();
        for _ in 0..=self.chance.below(3) {
            let Some(claim) = self.any_claim() else {
                return;
            };
            if mounts.iter().all(|mount| mount.claim != claim) {
                let read_only = self.chance.below(4) == 0;
                let published = false;
                mounts.push(Mount {
                    claim,
                    read_only,
                    published,
                });
            }
        }
        let number = self.number();
        let pod = Kubelet::pod_uid(number);
        self.pods.insert(pod.clone(), mounts);
        if !self.mount_all(&pod).await {
            self.remove_pod(&pod).await;
        }
    }

    /// What kubelet does for a new pod, and again after its restart. Whether the pod has all of its claims.
    async fn mount_all(&mut self, pod: &str) -> bool {
        let mut all = true;
        if self.chance.below(2) == 0 {
            self.kubelet.publish_sockets(pod).await;
        }
        for place in 0..self.pods[pod].len() {
            let mount = self.pods[pod][place].clone();
            let there = self.stage(&mount.claim).await;
            if there {
                let published = self
                    .kubelet
                    .publish(&mount.claim, pod, mount.read_only)
                    .await;
                if let Err(status) = published {
                    self.kubelet.complain("NodePublishVolume", &status);
                }
                self.pods.get_mut(pod).unwrap()[place].published = true;
                self.use_it(pod, &mount);
            }
            all &= there;
        }
        all
    }

    /// Whether the volume is staged: a lost one must not be, and one that begins anew is empty.
    async fn stage(&mut self, name: &str) -> bool {
        let answer = self.kubelet.stage(name).await;
        let source = self.claims[name].source.as_ref();
        let copied = source.and_then(|source| self.claims.get(source)?.content.clone());
        let claim = self.claims.get_mut(name).unwrap();
        match answer {
            Ok(()) => {
                if claim.source.is_some() && !claim.resident && !claim.lost {
                    claim.content = copied;
                }
                if claim.lost {
                    assert!(
                        claim.recreate,
                        "{name} is lost and presented as if it were not"
                    );
                    claim.content = None;
                }
                (claim.staged, claim.resident, claim.lost) = (true, true, false);
                true
            }
            Err(status) if status.code() == Code::DataLoss && claim.lost && !claim.recreate => {
                false
            }
            Err(status) => self.kubelet.complain("NodeStageVolume", &status),
        }
    }

    fn use_it(&mut self, pod: &str, mount: &Mount) {
        let file = self.kubelet.target(pod, &mount.claim).join("content");
        let claim = self.claims.get_mut(&mount.claim).unwrap();
        match &claim.content {
            Some(content) => assert_eq!(fs::read_to_string(&file).unwrap(), *content),
            None => assert!(!file.exists()),
        }
        if mount.read_only {
            let error = fs::write(&file, pod).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        } else if claim.content.is_none() {
            fs::write(&file, pod).unwrap();
            claim.content = Some(pod.to_owned());
        }
    }

    async fn stop_pod(&mut self) {
        if let Some(pod) = self.any_pod() {
            self.remove_pod(&pod).await;
        }
    }

    async fn remove_pod(&mut self, pod: &str) {
        let sockets_last = self.chance.below(2) == 0;
        if !sockets_last {
            self.kubelet.unpublish_sockets(pod).await;
        }
        // Also what was never mounted: kubelet may not know.
        for mount in self.pods.remove(pod).unwrap() {
            self.kubelet.unpublish(&mount.claim, pod).await;
            let mut others = self.pods.values().flatten();
            if others.all(|other| other.claim != mount.claim) {
                self.unstage(&mount.claim).await;
            }
        }
        if sockets_last {
            self.kubelet.unpublish_sockets(pod).await;
        }
    }

    async fn unstage(&mut self, name: &str) {
        self.kubelet.unstage(name).await;
        self.claims.get_mut(name).unwrap().staged = false;
    }

    async fn expand(&mut self) {
        let Some(name) = self.any_claim() else { return };
        let bytes = self.claims[&name].capacity + MIB;
        let fits = self.booked() + MIB <= BUDGET;
        match self.kubelet.book(&name, bytes).await {
            Ok(booked) => assert!(fits && booked == bytes),
            Err(status) if status.code() == Code::ResourceExhausted => {
                assert!(!fits);
                return;
            }
            Err(status) => self.kubelet.complain("ControllerExpandVolume", &status),
        }
        self.claims.get_mut(&name).unwrap().capacity = bytes;
        if let Some(pod) = self.pod_with(&name) {
            self.kubelet.grow(&name, &pod, bytes).await;
        }
    }

    /// A pod that has the claim mounted in this boot.
    fn pod_with(&self, name: &str) -> Option<String> {
        let has = |mount: &Mount| mount.claim == name && mount.published;
        let pod = self.pods.iter().find(|(_, mounts)| mounts.iter().any(has));
        pod.map(|(pod, _)| pod.clone())
    }

    async fn stats(&mut self) {
        let Some(pod) = self.any_pod() else { return };
        for mount in self.pods[&pod].clone() {
            match self.kubelet.stats(&mount.claim, &pod).await {
                Ok(usage) => {
                    let total = self.claims[&mount.claim].capacity;
                    assert!(mount.published && usage.len() == 2 && usage[0].total == total);
                }
                Err(status) if status.code() == Code::NotFound => assert!(!mount.published),
                Err(status) => self.kubelet.complain("NodeGetVolumeStats", &status),
            }
        }
    }

    async fn modify(&mut self) {
        let Some(name) = self.any_claim() else { return };
        let recreate = !self.claims[&name].recreate;
        let on_loss = if recreate { "recreate" } else { "fail" };
        self.kubelet.modify(&name, on_loss).await;
        self.claims.get_mut(&name).unwrap().recreate = recreate;
    }

    async fn delete_unused(&mut self) {
        let Some(name) = self.any_claim() else { return };
        let mut mounts = self.pods.values().flatten();
        if !self.claims[&name].staged && mounts.all(|mount| mount.claim != name) {
            if self.is_pinned(&name) {
                let refused = self.kubelet.try_delete(&name).await.unwrap_err();
                assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
                return;
            }
            self.kubelet.delete(&name).await;
            self.claims.remove(&name);
        }
    }

    /// Stages and publishes again what its pods have; after a reboot that is everything.
    async fn restart_kubelet(&mut self) {
        for pod in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.mount_all(&pod).await;
        }
    }

    /// Memory and mounts are gone, directories and records are not.
    fn reboot(&mut self) {
        self.kubelet.driver.reboot();
        for claim in self.claims.values_mut() {
            claim.lost |= claim.resident;
        }
        // What was to be copied is gone, too.
        for claim in self.claims.values_mut() {
            claim.lost |= claim.source.is_some();
        }
        for mount in self.pods.values_mut().flatten() {
            mount.published = false;
        }
    }

    /// Every pod sees what was written.
    fn check_content(&self) {
        for (pod, mounts) in &self.pods {
            for mount in mounts.iter().filter(|mount| mount.published) {
                let file = self.kubelet.target(pod, &mount.claim).join("content");
                let content = fs::read_to_string(file).ok();
                assert_eq!(content, self.claims[&mount.claim].content);
            }
        }
    }

    async fn clean_up(&mut self) {
        self.check_content();
        for pod in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.remove_pod(&pod).await;
        }
        let mut names: Vec<_> = self.claims.keys().cloned().collect();
        // Clones are younger than their sources.
        names.sort_by_key(|name| Reverse(name["pvc-".len()..].parse::<u32>().unwrap()));
        for name in names {
            self.unstage(&name).await;
            self.kubelet.delete(&name).await;
        }
    }
}
