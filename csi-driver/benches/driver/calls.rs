//! The driver as a process, and calls to it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use vineyard_proto::csi::controller_client::ControllerClient;
use vineyard_proto::csi::identity_client::IdentityClient;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use vineyard_proto::csi::*;

/// Volumes of each kind of call.
pub(crate) const VOLUMES: usize = 100;

/// Callers at the same time.
pub(crate) const CALLERS: usize = 8;

/// A driver over a folder.
pub(crate) struct Calls {
    folder: PathBuf,
    driver: Child,
    channel: Channel,
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeMultiWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn create_request(number: usize) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: format!("pvc-{number}"),
        capacity_range: Some(CapacityRange {
            required_bytes: 1 << 20,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

impl Calls {
    pub(crate) async fn start(folder: &Path) -> Self {
        for name in ["kubelet/pods", "kubelet/staging", "cgroups"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let built = env!("CARGO_BIN_EXE_vineyard-csi").into();
        let driver = std::env::var_os("VINEYARD_DRIVER").unwrap_or(built);
        let mut command = Command::new(driver);
        command.args(["standalone", "--node-id", "bench", "--budget", "1GiB"]);
        for (flag, name) in [
            ("--endpoint", "csi.sock"),
            ("--catalog", "catalog"),
            ("--layers", "layers"),
            ("--kubelet-dir", "kubelet"),
            ("--run-dir", "run"),
            ("--cgroup-root", "cgroups"),
        ] {
            command.arg(flag).arg(folder.join(name));
        }
        let log = File::create(folder.join("log")).unwrap();
        let socket = format!("unix:{}", folder.join("csi.sock").display());
        let calls = Self {
            folder: folder.to_owned(),
            channel: Endpoint::from_shared(socket).unwrap().connect_lazy(),
            driver: command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap(),
        };
        for _ in 0..6_000 {
            let mut identity = IdentityClient::new(calls.channel.clone());
            if identity.probe(ProbeRequest {}).await.is_ok() {
                return calls;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = fs::read_to_string(folder.join("log")).unwrap();
        panic!("the driver does not serve: {log}");
    }

    /// Resident MiB.
    pub(crate) fn memory(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.driver.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kibibytes: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes / 1024.0
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    fn staging(&self, number: usize) -> PathBuf {
        self.folder.join("kubelet/staging").join(number.to_string())
    }

    fn target(&self, number: usize) -> PathBuf {
        let pod = format!("00000000-0000-4000-8000-{number:012x}");
        let volumes = self.folder.join("kubelet/pods").join(pod);
        volumes.join("volumes/kubernetes.io~csi/pvc/mount")
    }

    pub(crate) async fn probe(&mut self) {
        let mut identity = IdentityClient::new(self.channel.clone());
        identity.probe(ProbeRequest {}).await.unwrap();
    }

    pub(crate) async fn create(&self, number: usize) {
        let request = create_request(number);
        self.controller().create_volume(request).await.unwrap();
    }

    /// Time until all are created.
    pub(crate) async fn create_together(&self, numbers: std::ops::Range<usize>) -> Duration {
        let begin = Instant::now();
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (numbers, mut controller) = (numbers.clone(), self.controller());
                tokio::spawn(async move {
                    for number in numbers.skip(caller).step_by(CALLERS) {
                        controller
                            .create_volume(create_request(number))
                            .await
                            .unwrap();
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        begin.elapsed()
    }

    pub(crate) async fn delete(&self, number: usize) {
        let request = DeleteVolumeRequest {
            volume_id: format!("pvc-{number}"),
            ..Default::default()
        };
        self.controller().delete_volume(request).await.unwrap();
    }

    pub(crate) async fn stage(&self, number: usize) {
        let staging = self.staging(number);
        fs::create_dir_all(&staging).unwrap();
        let request = NodeStageVolumeRequest {
            volume_id: format!("pvc-{number}"),
            staging_target_path: text(&staging),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node().node_stage_volume(request).await.unwrap();
    }

    pub(crate) async fn publish(&self, number: usize) {
        let target = self.target(number);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let request = NodePublishVolumeRequest {
            volume_id: format!("pvc-{number}"),
            staging_target_path: text(&self.staging(number)),
            target_path: text(&target),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node().node_publish_volume(request).await.unwrap();
    }

    pub(crate) async fn unpublish(&self, number: usize) {
        let request = NodeUnpublishVolumeRequest {
            volume_id: format!("pvc-{number}"),
            target_path: text(&self.target(number)),
        };
        self.node().node_unpublish_volume(request).await.unwrap();
    }

    pub(crate) async fn unstage(&self, number: usize) {
        let request = NodeUnstageVolumeRequest {
            volume_id: format!("pvc-{number}"),
            staging_target_path: text(&self.staging(number)),
        };
        self.node().node_unstage_volume(request).await.unwrap();
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let ours: Vec<_> = points
            .map(Path::new)
            .filter(|it| it.starts_with(&self.folder))
            .collect();
        for point in ours.iter().rev() {
            let _ = nix::mount::umount2(*point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
