use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tonic::Code;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode as WireMode, AccessType, MountVolume};
use vineyard_proto::csi::{CapacityRange, VolumeCapability};

mod clones;
mod deletion;
mod several_nodes;
mod sidecars;
mod uncertain;

use super::*;
use crate::mount::Tmpfs;
use crate::mount::fake::FakeMounter;
use crate::report::Reason;
use crate::volume::catalog::{change, conformance};
use crate::volume::{FileCatalog, OnLoss, Phase, Volume};

/// A node whose driver and kernel can be restarted.
struct Bench {
    folder: TempDir,
    catalog: Arc<dyn Catalog>,
    node: Node,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let catalog: Arc<dyn Catalog> =
            Arc::new(FileCatalog::open(&folder.path().join("catalog")).unwrap());
        fs::create_dir_all(folder.path().join("kubelet/pods")).unwrap();
        fs::create_dir_all(folder.path().join("layers")).unwrap();
        let node = start(
            folder.path(),
            &catalog,
            "boot-1",
            Arc::new(FakeMounter::default()),
        );
        Self {
            folder,
            catalog,
            node,
        }
    }

    /// Another process, over the same mounts.
    fn restart_driver(&mut self) {
        let mounter = Arc::clone(&self.node.mounter);
        self.node = start(
            self.folder.path(),
            &self.catalog,
            &self.node.boot_id,
            mounter,
        );
    }

    /// Another boot: no mounts.
    fn reboot(&mut self, boot: &str) {
        self.node = start(
            self.folder.path(),
            &self.catalog,
            boot,
            Arc::new(FakeMounter::default()),
        );
    }

    async fn volume(&self, name: &str) -> Volume {
        self.catalog
            .create(conformance::volume(name))
            .await
            .unwrap()
            .volume
    }

    async fn read(&self, name: &str) -> Volume {
        self.catalog
            .get(&VolumeId::of_name(name))
            .await
            .unwrap()
            .volume
    }

    fn path(&self, name: &str) -> String {
        format!(
            "{}/kubelet/{name}",
            self.folder.path().canonicalize().unwrap().display()
        )
    }

    fn mounts(&self, path: &str) -> Vec<Mount> {
        let mut mounts = self.node.mounter.mounts().unwrap();
        mounts.retain(|mount| mount.point == Path::new(path));
        mounts
    }

    async fn stage(&self, name: &str) -> Result<(), Error> {
        let request = NodeStageVolumeRequest {
            volume_id: name.into(),
            staging_target_path: self.path("staging"),
            volume_capability: Some(capability(&[])),
            ..Default::default()
        };
        self.node.stage(request).await.map(drop)
    }

    fn publish_request(&self, name: &str, target: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: name.into(),
            staging_target_path: self.path("staging"),
            target_path: self.path(target),
            volume_capability: Some(capability(&[])),
            ..Default::default()
        }
    }

    async fn publish(&self, name: &str, target: &str) -> Result<(), Error> {
        self.node
            .publish(self.publish_request(name, target))
            .await
            .map(drop)
    }

    async fn unpublish(&self, name: &str, target: &str) -> Result<(), Error> {
        let (volume_id, target_path) = (name.into(), self.path(target));
        let request = NodeUnpublishVolumeRequest {
            volume_id,
            target_path,
        };
        self.node.unpublish(request).await.map(drop)
    }

    async fn unstage(&self, name: &str) -> Result<(), Error> {
        let (volume_id, staging_target_path) = (name.into(), self.path("staging"));
        let request = NodeUnstageVolumeRequest {
            volume_id,
            staging_target_path,
        };
        self.node.unstage(request).await.map(drop)
    }
}

fn start(folder: &Path, catalog: &Arc<dyn Catalog>, boot: &str, mounter: Arc<dyn Mounter>) -> Node {
    let folder = folder.canonicalize().unwrap();
    let bills = crate::bill::tests::unbilled(&folder, boot, &mounter);
    Node {
        id: NodeId::parse("a").unwrap(),
        pool: "default".into(),
        boot_id: boot.into(),
        budget: Bytes(1 << 20),
        layers: folder.join("layers"),
        targets: Targets::new(&[folder.join("kubelet")]),
        catalog: Arc::clone(catalog),
        mounter,
        locks: KeyedLock::default(),
        clones: Arc::new(Clones::new(std::time::Duration::from_secs(60))),
        bills,
        sockets: None,
        sidecars: None,
        events: crate::report::Events::default(),
    }
}

fn capability(flags: &[&str]) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(WireMode {
            mode: Mode::SingleNodeWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Default::default()
        })),
    }
}

/// The code; every status says something and carries no details.
fn code(error: &Error) -> Code {
    let status = Status::from(error);
    assert!(!status.message().is_empty() && status.details().is_empty());
    status.code()
}

#[tokio::test]
async fn every_call_may_be_repeated_and_by_another_process_too() {
    let mut bench = Bench::new();
    bench.volume("v").await;
    for _ in 0..2 {
        bench.stage("v").await.unwrap();
        bench.restart_driver();
    }
    for _ in 0..2 {
        bench.publish("v", "pods/p").await.unwrap();
        bench.restart_driver();
        bench.node.reconcile().await.unwrap();
    }
    assert_eq!(bench.mounts(&bench.path("pods/p")).len(), 1);
    // Else kubelet would never unstage it.
    assert_eq!(bench.mounts(&bench.path("staging")).len(), 0);
    let volume = bench.read("v").await;
    assert_eq!(
        (
            volume.stagings.len(),
            volume.publications.len(),
            volume.epoch
        ),
        (1, 1, 1)
    );
    for _ in 0..2 {
        bench.unpublish("v", "pods/p").await.unwrap();
        bench.restart_driver();
    }
    for _ in 0..2 {
        bench.unstage("v").await.unwrap();
    }
    assert!(!Path::new(&bench.path("pods/p")).exists());
    let volume = bench.read("v").await;
    assert_eq!(volume.users(|_| true), (0, 0));
    // The memory stays for the next pod.
    assert_eq!(volume.phase, Phase::Resident);
    assert_eq!(bench.node.mounter.mounts().unwrap().len(), 1);
}

#[tokio::test]
async fn a_reboot_loses_the_content_and_says_so() {
    let mut bench = Bench::new();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    bench.publish("v", "pods/p").await.unwrap();
    bench.reboot("boot-2");
    // Kubelet may come before the records are compared.
    assert_eq!(
        code(&bench.publish("v", "pods/p").await.unwrap_err()),
        Code::DataLoss
    );
    bench.node.reconcile().await.unwrap();
    assert!(matches!(bench.read("v").await.phase, Phase::Lost { .. }));
    let error = bench.stage("v").await.unwrap_err();
    assert_eq!(code(&error), Code::DataLoss);
    assert!(error.to_string().contains("restarted"), "{error}");
    bench.unpublish("v", "pods/p").await.unwrap();
    bench.unstage("v").await.unwrap();
    assert!(bench.node.mounter.mounts().unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_that_had_a_volume_when_it_was_lost_is_told_so() {
    let mut bench = Bench::new();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    let mut request = bench.publish_request("v", "pods/p");
    let said = [("namespace", "team"), ("name", "reader"), ("uid", "u")];
    let said = said.map(|(key, value)| (format!("csi.storage.k8s.io/pod.{key}"), value.into()));
    request.volume_context = said.into();
    bench.node.publish(request).await.unwrap();
    bench.reboot("boot-2");
    bench.node.reconcile().await.unwrap();
    let seen = bench.node.events.seen();
    let about: Vec<_> = seen
        .iter()
        .map(|it| (it.reason, it.about.as_str()))
        .collect();
    let volume = VolumeId::of_name("v");
    let expected = format!("volume {volume}, pod team/reader");
    assert_eq!(about, [(Reason::VolumeLost, expected.as_str())]);
}

#[tokio::test]
async fn memory_that_somebody_unmounted_is_lost_and_not_made_again() {
    let bench = Bench::new();
    let id = bench.volume("v").await.id;
    bench.stage("v").await.unwrap();
    bench
        .node
        .mounter
        .unmount(&bench.node.layer_path(&id))
        .unwrap();
    assert_eq!(code(&bench.stage("v").await.unwrap_err()), Code::DataLoss);
    assert_eq!(
        code(&bench.publish("v", "pods/p").await.unwrap_err()),
        Code::DataLoss
    );
}

#[tokio::test]
async fn a_class_may_let_a_lost_volume_begin_anew() {
    let mut bench = Bench::new();
    let id = bench.volume("v").await.id;
    bench.stage("v").await.unwrap();
    change::<Error>(&*bench.catalog, &id, |volume| {
        volume.parameters.on_loss = OnLoss::Recreate;
        Ok(())
    })
    .await
    .unwrap();
    for (boot, reconciled) in [("boot-2", true), ("boot-3", false)] {
        bench.reboot(boot);
        if reconciled {
            bench.node.reconcile().await.unwrap();
        }
        // Kubelet does not always stage again after a reboot.
        for _ in 0..2 {
            bench.publish("v", "pods/p").await.unwrap();
            bench.stage("v").await.unwrap();
        }
        assert_eq!(bench.mounts(&bench.path("pods/p")).len(), 1);
    }
    let volume = bench.read("v").await;
    assert_eq!(
        (volume.epoch, volume.generation, volume.phase),
        (3, 3, Phase::Resident)
    );
    bench.unpublish("v", "pods/p").await.unwrap();
    bench.unstage("v").await.unwrap();
    assert_eq!(bench.read("v").await.users(|_| true), (0, 0));
}

#[tokio::test]
async fn what_was_never_staged_cannot_be_published() {
    let bench = Bench::new();
    let id = bench.volume("v").await.id;
    let publish = || async { code(&bench.publish("v", "pods/p").await.unwrap_err()) };
    assert_eq!(publish().await, Code::FailedPrecondition);
    change::<Error>(&*bench.catalog, &id, |volume| {
        volume.parameters.on_loss = OnLoss::Recreate;
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(publish().await, Code::FailedPrecondition);
    assert!(bench.node.mounter.mounts().unwrap().is_empty());
}

#[tokio::test]
async fn the_same_target_under_other_conditions_is_refused() {
    let bench = Bench::new();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    bench.publish("v", "pods/p").await.unwrap();
    let read_only = NodePublishVolumeRequest {
        readonly: true,
        ..bench.publish_request("v", "pods/p")
    };
    assert_eq!(
        code(&bench.node.publish(read_only).await.unwrap_err()),
        Code::AlreadyExists
    );
    assert!(!bench.mounts(&bench.path("pods/p"))[0].flags().read_only);
    let read_only = NodePublishVolumeRequest {
        readonly: true,
        ..bench.publish_request("v", "pods/q")
    };
    bench.node.publish(read_only).await.unwrap();
    assert!(bench.mounts(&bench.path("pods/q"))[0].flags().read_only);
    let other = NodeStageVolumeRequest {
        volume_id: "v".into(),
        staging_target_path: bench.path("staging"),
        volume_capability: Some(capability(&["noexec"])),
        ..Default::default()
    };
    assert_eq!(
        code(&bench.node.stage(other).await.unwrap_err()),
        Code::AlreadyExists
    );
}

#[tokio::test]
async fn a_second_operation_on_a_volume_is_aborted() {
    let bench = Bench::new();
    let id = bench.volume("v").await.id;
    let _held = bench.node.locks.try_lock(&id).unwrap();
    assert_eq!(code(&bench.stage("v").await.unwrap_err()), Code::Aborted);
    assert_eq!(
        code(&bench.publish("v", "pods/p").await.unwrap_err()),
        Code::Aborted
    );
    assert_eq!(
        code(&bench.unpublish("v", "pods/p").await.unwrap_err()),
        Code::Aborted
    );
    assert_eq!(code(&bench.unstage("v").await.unwrap_err()), Code::Aborted);
}

#[tokio::test]
async fn unknown_volumes_are_gone_already_or_not_found() {
    let bench = Bench::new();
    for name in ["nobody", "Not an id: ../../x"] {
        bench.unpublish(name, "pods/p").await.unwrap();
        bench.unstage(name).await.unwrap();
        assert_eq!(code(&bench.stage(name).await.unwrap_err()), Code::NotFound);
        assert_eq!(
            code(&bench.publish(name, "pods/p").await.unwrap_err()),
            Code::NotFound
        );
    }
}

#[tokio::test]
async fn a_target_that_holds_another_mount_is_left_alone() {
    let bench = Bench::new();
    bench.volume("v").await;
    bench.volume("w").await;
    bench.stage("v").await.unwrap();
    bench.publish("v", "pods/p").await.unwrap();
    // Another volume's call for the same place.
    assert_eq!(
        code(&bench.unpublish("w", "pods/p").await.unwrap_err()),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(&bench.unpublish("unknown", "pods/p").await.unwrap_err()),
        Code::FailedPrecondition
    );
    assert_eq!(bench.mounts(&bench.path("pods/p")).len(), 1);
}

#[tokio::test]
async fn a_publication_that_cannot_be_mounted_is_not_recorded() {
    let bench = Bench::new();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    fs::write(bench.path("pods/file"), "x").unwrap();
    assert_eq!(
        code(&bench.publish("v", "pods/file").await.unwrap_err()),
        Code::Internal
    );
    assert_eq!(
        code(&bench.publish("v", "missing/parent/p").await.unwrap_err()),
        Code::Internal
    );
    assert!(bench.read("v").await.publications.is_empty());
}

#[tokio::test]
async fn a_volume_of_another_node_is_not_made_here() {
    let mut bench = Bench::new();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    bench.node.id = NodeId::parse("b").unwrap();
    let error = bench.stage("v").await.unwrap_err();
    assert_eq!(code(&error), Code::Aborted);
    assert!(error.to_string().contains("node a"), "{error}");
}

#[tokio::test]
async fn another_nodes_budget_is_kept() {
    let mut bench = Bench::new();
    bench.volume("v").await;
    bench.node.id = NodeId::parse("b").unwrap();
    bench.node.budget = Bytes(4095);
    assert_eq!(
        code(&bench.stage("v").await.unwrap_err()),
        Code::ResourceExhausted
    );
    bench.node.budget = Bytes(4096);
    bench.stage("v").await.unwrap();
    assert_eq!(bench.read("v").await.booked.as_str(), "b");
}

#[tokio::test]
async fn memory_without_a_record_is_dropped_at_the_start_and_no_other() {
    let bench = Bench::new();
    bench.volume("v").await;
    bench.volume("w").await;
    bench.stage("v").await.unwrap();
    // A crash between the mount and its record, and one between the record's end and the unmount.
    for name in ["w", "gone"] {
        let path = bench.node.layer_path(&VolumeId::of_name(name));
        fs::create_dir(&path).unwrap();
        let source = format!("vineyard:{name}@1");
        let options = Tmpfs {
            source,
            size: Bytes(4096),
            inodes: 9,
            context: None,
        };
        bench.node.mounter.mount_tmpfs(&path, &options).unwrap();
    }
    bench.node.reconcile().await.unwrap();
    let left: Vec<_> = fs::read_dir(&bench.node.layers)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(left, ["v"]);
    bench.publish("v", "pods/p").await.unwrap();
}

#[tokio::test]
async fn a_deleted_volume_is_dropped_and_never_staged_again() {
    let bench = Bench::new();
    let id = bench.volume("v").await.id;
    bench.stage("v").await.unwrap();
    bench.unstage("v").await.unwrap();
    change::<Error>(&*bench.catalog, &id, |volume| {
        volume.phase = Phase::Deleting;
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(code(&bench.stage("v").await.unwrap_err()), Code::NotFound);
    bench.node.drop_deleted().await.unwrap();
    assert!(bench.read("v").await.layers.is_empty());
    assert!(bench.node.mounter.mounts().unwrap().is_empty());
}

#[tokio::test]
async fn an_expanded_volume_grows_where_it_is_mounted() {
    let bench = Bench::new();
    let id = bench.volume("v").await.id;
    bench.stage("v").await.unwrap();
    bench.publish("v", "pods/p").await.unwrap();
    let expand = |required_bytes| {
        bench.node.expand(NodeExpandVolumeRequest {
            volume_id: "v".into(),
            volume_path: bench.path("pods/p"),
            capacity_range: Some(CapacityRange {
                required_bytes,
                limit_bytes: 0,
            }),
            ..Default::default()
        })
    };
    assert_eq!(code(&expand(8192).await.unwrap_err()), Code::OutOfRange);
    change::<Error>(&*bench.catalog, &id, |volume| {
        volume.capacity = Bytes(8192);
        Ok(())
    })
    .await
    .unwrap();
    for _ in 0..2 {
        assert_eq!(expand(8192).await.unwrap().capacity_bytes, 8192);
    }
    let stats = NodeGetVolumeStatsRequest {
        volume_id: "v".into(),
        volume_path: bench.path("pods/p"),
        ..Default::default()
    };
    let usage = bench.node.stats(stats.clone()).await.unwrap().usage;
    assert_eq!((usage[0].total, usage[0].used, usage.len()), (8192, 0, 2));
    let elsewhere = NodeGetVolumeStatsRequest {
        volume_path: bench.path("pods/q"),
        ..stats
    };
    assert_eq!(
        code(&bench.node.stats(elsewhere).await.unwrap_err()),
        Code::NotFound
    );
}

#[tokio::test]
async fn paths_outside_of_kubelets_directory_change_nothing() {
    let bench = Bench::new();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    for target in ["../layers/v", "pods/../../layers/v", ""] {
        let error = bench.unpublish("v", target).await.unwrap_err();
        assert_eq!(code(&error), Code::InvalidArgument, "{target}");
        assert_eq!(
            code(&bench.publish("v", target).await.unwrap_err()),
            Code::InvalidArgument
        );
    }
    assert_eq!(bench.node.mounter.mounts().unwrap().len(), 1);
}
