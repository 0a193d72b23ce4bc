//! What kubelet and the provisioner know of volumes and pods, and the calls that they repeat until they are answered.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use vineyard_proto::csi::controller_client::ControllerClient;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use vineyard_proto::csi::*;

use crate::chance::Chance;
use crate::driver::Driver;

/// More than ever helps.
const TRIES: usize = 200;

struct Claim {
    capacity: i64,
    /// What pods wrote, none before the first pod.
    content: Option<String>,
    staged: bool,
    /// Its memory was there when the node was restarted.
    lost: bool,
    pods: Vec<String>,
}

/// Kubelet, and the driver that it talks to.
pub(crate) struct Kubelet {
    folder: PathBuf,
    driver: Driver,
    chance: Chance,
    claims: BTreeMap<String, Claim>,
    next: u32,
}

fn capability() -> Option<VolumeCapability> {
    Some(VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeMultiWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    })
}

impl Kubelet {
    pub(crate) fn new(folder: &Path, chance: Chance) -> Self {
        Self {
            folder: folder.to_owned(),
            driver: Driver::new(folder),
            chance,
            claims: BTreeMap::new(),
            next: 0,
        }
    }

    fn staging(&self, name: &str) -> PathBuf {
        self.folder
            .join("kubelet")
            .join(format!("{name}-globalmount"))
    }

    fn target(&self, pod: &str) -> PathBuf {
        self.folder.join("kubelet/pods").join(pod)
    }

    fn text(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }

    /// Calls until there is an answer, as kubelet does: the driver may be killed at any moment, and even an answered call may be repeated.
    async fn call<T, F>(&mut self, call: impl Fn(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        for _ in 0..TRIES {
            let channel = self.driver.connect().await;
            let answer = match self.chance.below(4) {
                // Killed during the call, wherever it is then.
                0 => {
                    let moment = Duration::from_micros(self.chance.below(6_000));
                    let answer = tokio::time::timeout(moment, call(channel)).await.ok();
                    self.driver.kill();
                    answer
                }
                _ => Some(call(channel).await),
            };
            match answer {
                None => continue,
                Some(Err(status))
                    if matches!(
                        status.code(),
                        Code::Aborted | Code::Unavailable | Code::Unknown | Code::Cancelled
                    ) =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                // The answer was lost on its way.
                Some(_) if self.chance.below(8) == 0 => {}
                Some(answer) => return answer.map(Response::into_inner),
            }
        }
        panic!("no answer in {TRIES} tries: {}", self.driver.log());
    }

    fn complain(&self, what: &str, status: &Status) -> ! {
        panic!("{what}: {status:?}\n{}", self.driver.log())
    }

    pub(crate) async fn provision(&mut self) {
        self.next += 1;
        let name = format!("pvc-{}", self.next);
        let mebibytes = i64::try_from(self.chance.below(4)).unwrap() + 1;
        let request = CreateVolumeRequest {
            name: name.clone(),
            capacity_range: Some(CapacityRange {
                required_bytes: mebibytes << 20,
                limit_bytes: 0,
            }),
            volume_capabilities: capability().into_iter().collect(),
            ..Default::default()
        };
        let booked: i64 = self.claims.values().map(|claim| claim.capacity).sum();
        let fits = booked + (mebibytes << 20) <= 16 << 20;
        let create = |channel| {
            let request = request.clone();
            async move { ControllerClient::new(channel).create_volume(request).await }
        };
        match self.call(create).await {
            Ok(response) => {
                assert!(fits, "more is booked than the budget");
                let capacity = response.volume.unwrap().capacity_bytes;
                assert_eq!(capacity, mebibytes << 20);
                let claim = Claim {
                    capacity,
                    content: None,
                    staged: false,
                    lost: false,
                    pods: Vec::new(),
                };
                self.claims.insert(name, claim);
            }
            Err(status) if status.code() == Code::ResourceExhausted => assert!(!fits),
            Err(status) => self.complain("CreateVolume", &status),
        }
    }

    fn any_claim(&mut self) -> Option<String> {
        let place = self.chance.place(self.claims.len())?;
        self.claims.keys().nth(place).cloned()
    }

    pub(crate) async fn start_pod(&mut self) {
        let Some(name) = self.any_claim() else { return };
        self.next += 1;
        let pod = format!("pod-{}", self.next);
        if !self.stage(&name).await {
            return;
        }
        self.publish(&name, &pod).await;
        let file = self.target(&pod).join("content");
        let claim = self.claims.get_mut(&name).unwrap();
        claim.pods.push(pod.clone());
        match &claim.content {
            Some(content) => assert_eq!(fs::read_to_string(&file).unwrap(), *content),
            None => {
                assert!(!file.exists());
                fs::write(&file, &pod).unwrap();
                claim.content = Some(pod);
            }
        }
    }

    /// Whether the volume is staged: a lost one must not be.
    async fn stage(&mut self, name: &str) -> bool {
        let path = self.staging(name);
        fs::create_dir_all(&path).unwrap();
        let request = NodeStageVolumeRequest {
            volume_id: name.to_owned(),
            staging_target_path: Self::text(&path),
            volume_capability: capability(),
            ..Default::default()
        };
        let stage = |channel| {
            let request = request.clone();
            async move { NodeClient::new(channel).node_stage_volume(request).await }
        };
        let answer = self.call(stage).await;
        let claim = self.claims.get_mut(name).unwrap();
        match answer {
            Ok(_) => {
                assert!(
                    !claim.lost,
                    "{name} was lost and is presented as if it were not"
                );
                claim.staged = true;
                true
            }
            Err(status) if status.code() == Code::DataLoss => {
                assert!(
                    claim.lost,
                    "{name} was not lost: {status:?}\n{}",
                    self.driver.log()
                );
                false
            }
            Err(status) => self.complain("NodeStageVolume", &status),
        }
    }

    async fn publish(&mut self, name: &str, pod: &str) {
        let request = NodePublishVolumeRequest {
            volume_id: name.to_owned(),
            staging_target_path: Self::text(&self.staging(name)),
            target_path: Self::text(&self.target(pod)),
            volume_capability: capability(),
            ..Default::default()
        };
        let publish = |channel| {
            let request = request.clone();
            async move { NodeClient::new(channel).node_publish_volume(request).await }
        };
        if let Err(status) = self.call(publish).await {
            self.complain("NodePublishVolume", &status);
        }
        let target = self.target(pod);
        let mounted = self
            .driver
            .mounts()
            .iter()
            .filter(|point| **point == target)
            .count();
        assert_eq!(mounted, 1, "{}", target.display());
    }

    pub(crate) async fn stop_pod(&mut self) {
        let Some(name) = self.any_claim() else { return };
        let Some(place) = self.chance.place(self.claims[&name].pods.len()) else {
            return;
        };
        let pod = self.claims.get_mut(&name).unwrap().pods.remove(place);
        self.unpublish(&name, &pod).await;
        if self.claims[&name].pods.is_empty() {
            self.unstage(&name).await;
        }
    }

    async fn unpublish(&mut self, name: &str, pod: &str) {
        let request = NodeUnpublishVolumeRequest {
            volume_id: name.to_owned(),
            target_path: Self::text(&self.target(pod)),
        };
        let unpublish = |channel| {
            let request = request.clone();
            async move {
                NodeClient::new(channel)
                    .node_unpublish_volume(request)
                    .await
            }
        };
        if let Err(status) = self.call(unpublish).await {
            self.complain("NodeUnpublishVolume", &status);
        }
        assert!(!self.target(pod).exists());
    }

    async fn unstage(&mut self, name: &str) {
        let path = self.staging(name);
        let request = NodeUnstageVolumeRequest {
            volume_id: name.to_owned(),
            staging_target_path: Self::text(&path),
        };
        let unstage = |channel| {
            let request = request.clone();
            async move { NodeClient::new(channel).node_unstage_volume(request).await }
        };
        if let Err(status) = self.call(unstage).await {
            self.complain("NodeUnstageVolume", &status);
        }
        self.claims.get_mut(name).unwrap().staged = false;
        // Kubelet's own directory; this fails when anything is mounted there.
        if path.exists() {
            fs::remove_dir(&path).unwrap();
        }
    }

    pub(crate) async fn expand(&mut self) {
        let Some(name) = self.any_claim() else { return };
        let booked: i64 = self.claims.values().map(|claim| claim.capacity).sum();
        let claim = &self.claims[&name];
        let required_bytes = claim.capacity + (1 << 20);
        let capacity_range = Some(CapacityRange {
            required_bytes,
            limit_bytes: 0,
        });
        let request = ControllerExpandVolumeRequest {
            volume_id: name.clone(),
            capacity_range,
            ..Default::default()
        };
        let pod = claim.pods.first().cloned().filter(|_| !claim.lost);
        let expand = |channel| {
            let request = request.clone();
            async move {
                ControllerClient::new(channel)
                    .controller_expand_volume(request)
                    .await
            }
        };
        match self.call(expand).await {
            Ok(response) => assert_eq!(response.capacity_bytes, required_bytes),
            Err(status) if status.code() == Code::ResourceExhausted => {
                assert!(booked + (1 << 20) > 16 << 20);
                return;
            }
            Err(status) => self.complain("ControllerExpandVolume", &status),
        }
        self.claims.get_mut(&name).unwrap().capacity = required_bytes;
        let Some(pod) = pod else { return };
        let request = NodeExpandVolumeRequest {
            volume_id: name,
            volume_path: Self::text(&self.target(&pod)),
            capacity_range,
            ..Default::default()
        };
        let expand = |channel| {
            let request = request.clone();
            async move { NodeClient::new(channel).node_expand_volume(request).await }
        };
        if let Err(status) = self.call(expand).await {
            self.complain("NodeExpandVolume", &status);
        }
        let stat = nix::sys::statvfs::statvfs(&self.target(&pod)).unwrap();
        assert_eq!(
            i64::try_from(stat.blocks() * stat.fragment_size()).unwrap(),
            required_bytes
        );
    }

    pub(crate) async fn stats(&mut self) {
        let Some(name) = self.any_claim() else { return };
        let Some(pod) = self.claims[&name].pods.first().cloned() else {
            return;
        };
        let lost = self.claims[&name].lost;
        let request = NodeGetVolumeStatsRequest {
            volume_id: name,
            volume_path: Self::text(&self.target(&pod)),
            ..Default::default()
        };
        let stats = |channel| {
            let request = request.clone();
            async move {
                NodeClient::new(channel)
                    .node_get_volume_stats(request)
                    .await
            }
        };
        match self.call(stats).await {
            Ok(response) => assert!(!lost && response.usage.len() == 2),
            Err(status) if status.code() == Code::NotFound => assert!(lost),
            Err(status) => self.complain("NodeGetVolumeStats", &status),
        }
    }

    pub(crate) async fn delete_unused(&mut self) {
        let Some(name) = self.any_claim() else { return };
        let claim = &self.claims[&name];
        if claim.pods.is_empty() && !claim.staged {
            self.delete(&name).await;
        }
    }

    async fn delete(&mut self, name: &str) {
        let request = DeleteVolumeRequest {
            volume_id: name.to_owned(),
            ..Default::default()
        };
        let delete = |channel| {
            let request = request.clone();
            async move { ControllerClient::new(channel).delete_volume(request).await }
        };
        if let Err(status) = self.call(delete).await {
            self.complain("DeleteVolume", &status);
        }
        self.claims.remove(name);
    }

    pub(crate) fn kill_driver(&mut self) {
        self.driver.kill();
    }

    /// A restarted kubelet stages and publishes again what its pods have.
    pub(crate) async fn restart(&mut self) {
        for (name, pods) in self.pods() {
            if !self.claims[&name].lost && self.stage(&name).await {
                for pod in pods {
                    self.publish(&name, &pod).await;
                }
            }
        }
    }

    fn pods(&self) -> Vec<(String, Vec<String>)> {
        let with_pods = self
            .claims
            .iter()
            .filter(|(_, claim)| !claim.pods.is_empty());
        with_pods
            .map(|(name, claim)| (name.clone(), claim.pods.clone()))
            .collect()
    }

    /// Memory and mounts are gone, directories and records are not.
    pub(crate) async fn reboot(&mut self) {
        self.driver.reboot();
        for claim in self.claims.values_mut() {
            claim.lost |= claim.content.is_some();
        }
    }

    /// Every pod sees what was written.
    pub(crate) fn check_content(&self) {
        for claim in self.claims.values().filter(|claim| !claim.lost) {
            for pod in &claim.pods {
                let content = fs::read_to_string(self.target(pod).join("content")).unwrap();
                assert_eq!(Some(content), claim.content);
            }
        }
    }

    pub(crate) async fn clean_up(&mut self) {
        self.check_content();
        for (name, pods) in self.pods() {
            for pod in pods {
                self.unpublish(&name, &pod).await;
            }
        }
        let names: Vec<_> = self.claims.keys().cloned().collect();
        for name in names {
            self.unstage(&name).await;
            self.delete(&name).await;
        }
    }

    /// No mount, no directory, no record.
    pub(crate) fn assert_nothing_is_left(&self) {
        assert_eq!(self.driver.mounts(), Vec::<PathBuf>::new());
        for folder in ["layers", "kubelet/pods"] {
            let left: Vec<_> = fs::read_dir(self.folder.join(folder)).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let catalog = fs::read_dir(self.folder.join("catalog")).unwrap();
        let records: Vec<_> = catalog
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_str().is_some_and(|name| name.ends_with(".json")))
            .collect();
        assert!(records.is_empty(), "{records:?}");
    }
}
