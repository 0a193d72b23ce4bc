//! The driver as a process, and calls to it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use vineyard_charge::cgroup::control::ControlledCgroup;
use vineyard_proto::csi::controller_client::ControllerClient;
use vineyard_proto::csi::identity_client::IdentityClient;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use vineyard_proto::csi::*;

use crate::process::Process;

/// Volumes of each kind of call.
pub(crate) const VOLUMES: usize = 100;

/// Callers at the same time.
pub(crate) const CALLERS: usize = 8;

/// A driver over a folder.
pub(crate) struct Calls {
    folder: PathBuf,
    driver: Process,
    channel: Channel,
}

/// What a driver needs to bill anybody.
pub(crate) struct Billing<'a> {
    /// The cgroup that it runs in.
    pub(crate) cgroup: &'a ControlledCgroup,
    /// Where the pods' cgroups are.
    pub(crate) pods: &'a Path,
    /// The retainer's socket.
    pub(crate) retainer: &'a Path,
}

/// The driver that was built with the benchmark, or another one.
pub(crate) fn program() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_vineyard-csi").into();
    std::env::var_os("VINEYARD_DRIVER").unwrap_or(built).into()
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

fn create_request(number: usize, bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: format!("pvc-{number}"),
        capacity_range: Some(CapacityRange {
            required_bytes: bytes,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

/// Each volume has a pod of its own.
pub(crate) fn pod_uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

fn sockets_id(number: usize) -> String {
    // As long as kubelet's: "csi-" and a SHA-256.
    format!("csi-{number:064x}")
}

impl Calls {
    /// Starts a driver. Without a retainer it bills nobody.
    pub(crate) async fn start(folder: &Path, billing: Option<&Billing<'_>>) -> Self {
        for name in ["kubelet/pods", "kubelet/staging", "cgroups"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let at = |name: &str| folder.join(name);
        let (endpoint, catalog, layers) = (at("csi.sock"), at("catalog"), at("layers"));
        let (kubelet, run, nobody) = (at("kubelet"), at("run"), at("cgroups"));
        let mut arguments: Vec<&OsStr> = ["standalone", "--node-id", "bench", "--budget", "8GiB"]
            .map(OsStr::new)
            .into();
        for (flag, path) in [
            ("--endpoint", &endpoint),
            ("--catalog", &catalog),
            ("--layers", &layers),
            ("--kubelet-dir", &kubelet),
            ("--run-dir", &run),
        ] {
            arguments.extend([OsStr::new(flag), path.as_os_str()]);
        }
        let pods = billing.map_or(nobody.as_path(), |it| it.pods);
        arguments.extend([OsStr::new("--cgroup-root"), pods.as_os_str()]);
        if let Some(billing) = billing {
            arguments.extend([OsStr::new("--retainer"), billing.retainer.as_os_str()]);
            // However long it takes, the call waits for all of it.
            arguments.extend(["--hand-over-patience", "600000"].map(OsStr::new));
        }
        let cgroup = billing.map(|it| it.cgroup);
        let socket = format!("unix:{}", endpoint.display());
        let calls = Self {
            folder: folder.to_owned(),
            channel: Endpoint::from_shared(socket).unwrap().connect_lazy(),
            driver: Process::start(&program(), &arguments, &at("log"), cgroup),
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

    /// Where the memory of a volume is mounted.
    pub(crate) fn layer(&self, number: usize) -> PathBuf {
        self.folder.join("layers").join(format!("pvc-{number}"))
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.folder.join("run/admin.sock")
    }

    pub(crate) fn driver(&self) -> &Process {
        &self.driver
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

    /// Where the pod has its volume.
    pub(crate) fn target(&self, number: usize) -> PathBuf {
        self.mount_of(number, "pvc")
    }

    fn mount_of(&self, number: usize, volume: &str) -> PathBuf {
        let volumes = self.folder.join("kubelet/pods").join(pod_uid(number));
        volumes
            .join("volumes/kubernetes.io~csi")
            .join(volume)
            .join("mount")
    }

    pub(crate) async fn probe(&mut self) {
        let mut identity = IdentityClient::new(self.channel.clone());
        identity.probe(ProbeRequest {}).await.unwrap();
    }

    /// A volume of 1 MiB.
    pub(crate) async fn create(&self, number: usize) {
        self.create_of(number, 1 << 20).await;
    }

    pub(crate) async fn create_of(&self, number: usize, bytes: i64) {
        let request = create_request(number, bytes);
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
                            .create_volume(create_request(number, 1 << 20))
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

    /// Publishes the sockets of the pod. Returns a path to them that is short enough for a socket, as a container's is.
    pub(crate) async fn publish_sockets(&self, number: usize) -> PathBuf {
        let target = self.mount_of(number, "sockets");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let ephemeral = ("csi.storage.k8s.io/ephemeral", "true");
        let request = NodePublishVolumeRequest {
            volume_id: sockets_id(number),
            target_path: text(&target),
            volume_capability: Some(capability()),
            volume_context: [ephemeral]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            ..Default::default()
        };
        self.node().node_publish_volume(request).await.unwrap();
        let short = self.folder.join(format!("pod-{number}"));
        symlink(&target, &short).unwrap();
        short
    }

    pub(crate) async fn unpublish(&self, number: usize) {
        self.unpublish_at(format!("pvc-{number}"), &self.target(number))
            .await;
    }

    pub(crate) async fn unpublish_sockets(&self, number: usize) {
        self.unpublish_at(sockets_id(number), &self.mount_of(number, "sockets"))
            .await;
    }

    async fn unpublish_at(&self, volume_id: String, target: &Path) {
        let request = NodeUnpublishVolumeRequest {
            volume_id,
            target_path: text(target),
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
        self.driver.end();
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
