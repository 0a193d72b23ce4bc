//! A clone is on the retainer's bill, page by page: driver and retainer are processes in cgroups of their own. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a test: what cannot be unwrapped is a failure"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use vineyard_charge::cgroup::Hierarchy;
use vineyard_charge::cgroup::control::ControlledCgroup;
use vineyard_charge::survey::{Ledger, Surveyor};
use vineyard_proto::csi::controller_client::ControllerClient;
use vineyard_proto::csi::node_client::NodeClient;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use vineyard_proto::csi::*;

const MIB: i64 = 1 << 20;

/// A driver and its retainer.
struct Node {
    folder: tempfile::TempDir,
    processes: Vec<Child>,
    cgroups: Vec<ControlledCgroup>,
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::SingleNodeWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

impl Node {
    fn new() -> Option<Self> {
        if let Err(error) = Surveyor::open() {
            eprintln!("skipped: {error}");
            return None;
        }
        let hierarchy = Hierarchy::detect().unwrap();
        let mut cgroups = Vec::new();
        for part in ["retainer", "driver"] {
            let name = format!("vineyard-test-clone-{}-{part}", std::process::id());
            match ControlledCgroup::create(&hierarchy.mount, &name) {
                Ok(made) => cgroups.push(made),
                Err(error) => {
                    eprintln!("skipped: {error}");
                    return None;
                }
            }
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["kubelet", "cgroups"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Some(Self {
            folder,
            processes: Vec::new(),
            cgroups,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spawn(&mut self, cgroup: usize, command: &mut Command) {
        let child = command.stdin(Stdio::null()).env("RUST_LOG", "warn").spawn();
        let child = child.unwrap();
        self.cgroups[cgroup].join(child.id()).unwrap();
        self.processes.push(child);
    }

    fn start_retainer(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vineyard-csi"));
        command
            .args(["retainer", "--listen"])
            .arg(self.at("retainer.sock"));
        self.spawn(0, &mut command);
    }

    async fn start_driver(&mut self) -> Channel {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vineyard-csi"));
        command.args(["standalone", "--node-id", "clone", "--budget", "256MiB"]);
        for (flag, name) in [
            ("--endpoint", "csi.sock"),
            ("--catalog", "catalog"),
            ("--layers", "layers"),
            ("--kubelet-dir", "kubelet"),
            ("--run-dir", "run"),
            ("--cgroup-root", "cgroups"),
            ("--retainer", "retainer.sock"),
        ] {
            command.arg(flag).arg(self.at(name));
        }
        self.spawn(1, &mut command);
        let socket = format!("unix:{}", self.at("csi.sock").display());
        for _ in 0..6_000 {
            let endpoint = Endpoint::from_shared(socket.clone()).unwrap();
            if let Ok(channel) = endpoint.connect().await {
                return channel;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the driver does not serve");
    }

    /// Until it is certain, as kubelet does.
    async fn stage(&self, channel: &Channel, name: &str, tries: u32) -> Result<(), Status> {
        let staging = self.at("kubelet").join(name);
        fs::create_dir_all(&staging).unwrap();
        let mut answer = Ok(());
        for _ in 0..tries {
            let request = NodeStageVolumeRequest {
                volume_id: name.into(),
                staging_target_path: staging.to_str().unwrap().into(),
                volume_capability: Some(capability()),
                ..Default::default()
            };
            let mut node = NodeClient::new(channel.clone());
            answer = node.node_stage_volume(request).await.map(drop);
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        answer
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let points: Vec<_> = points
            .map(Path::new)
            .filter(|it| it.starts_with(self.folder.path()))
            .collect();
        for point in points.iter().rev() {
            let _ = umount2(*point, MntFlags::MNT_DETACH);
        }
        while let Some(cgroup) = self.cgroups.pop() {
            if let Err(error) = cgroup.remove() {
                eprintln!("left behind: {error}");
            }
        }
    }
}

async fn create(channel: &Channel, name: &str, source: Option<&str>) {
    let volume = |id: &str| volume_content_source::VolumeSource {
        volume_id: id.to_owned(),
    };
    let request = CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange {
            required_bytes: 64 * MIB,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability()],
        volume_content_source: source.map(|id| VolumeContentSource {
            r#type: Some(volume_content_source::Type::Volume(volume(id))),
        }),
        ..Default::default()
    };
    let mut controller = ControllerClient::new(channel.clone());
    controller.create_volume(request).await.unwrap();
}

fn fill(layer: &Path) {
    let objects = layer.join(".vineyard/objects");
    fs::create_dir_all(&objects).unwrap();
    for (number, size) in (0..300)
        .map(|it| (it, 1_000))
        .chain([(300, 9 << 20), (301, 70_000)])
    {
        let path = objects.join(format!("{number:026}.raw"));
        fs::write(&path, vec![7; size]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    }
    fs::write(layer.join("plain"), vec![1; 5_000_000]).unwrap();
}

async fn play(mut node: Node) {
    node.start_retainer();
    let channel = node.start_driver().await;
    create(&channel, "source", None).await;
    node.stage(&channel, "source", 50).await.unwrap();
    fill(&node.at("layers/source"));
    create(&channel, "clone", Some("source")).await;
    // Nobody can be billed: nothing is copied, and nothing is left of it.
    let mut retainer = node.processes.remove(0);
    retainer.kill().unwrap();
    retainer.wait().unwrap();
    let away = node.stage(&channel, "clone", 1).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable, "{away:?}");
    assert!(!node.at("layers/clone").exists());
    node.start_retainer();
    node.stage(&channel, "clone", 200).await.unwrap();
    let clone = node.at("layers/clone");
    let ledger = Ledger::of(&clone).unwrap();
    let owners = node.cgroups[0].memory().unwrap().subtree().unwrap();
    assert!(ledger.tree.present > 15 << 20, "{ledger:?}");
    assert_eq!(ledger.billed(&owners), ledger.tree.present, "{ledger:?}");
    assert_eq!((ledger.tree.unseen, ledger.unreached), (0, 0), "{ledger:?}");
    assert_eq!(fs::read(clone.join("plain")).unwrap(), vec![1; 5_000_000]);
    let driver = node.cgroups[1].memory().unwrap().subtree().unwrap();
    assert_eq!(ledger.billed(&driver), 0);
}

#[test]
fn every_page_of_a_clone_is_on_the_retainers_bill() {
    // A thread has mounts of its own, and its children have them, too.
    let played = std::thread::spawn(|| {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS) {
            eprintln!("skipped: no mount namespace of our own: {errno}");
            return;
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let Some(node) = Node::new() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(play(node));
    });
    played.join().unwrap();
}
