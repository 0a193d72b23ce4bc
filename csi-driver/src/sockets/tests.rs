use std::os::unix::net::UnixStream;
use std::time::Duration;

use tempfile::TempDir;
use tonic::async_trait;
use vineyard_charge::{Extent, ReserveError};

use super::*;
use crate::bill::grants::{Granter, StandaloneRule};
use crate::mount::fake::FakeMounter;
use crate::validation::Targets;
use crate::volume::{FileCatalog, NodeId};

/// Remembers who leaves.
#[derive(Debug, Default)]
struct Notes(std::sync::Mutex<Vec<(PodUid, Bytes)>>);

#[async_trait]
impl Billing for Notes {
    async fn measure(&self, _: &PodUid) -> Result<Bytes, BillingError> {
        Ok(Bytes(0))
    }

    async fn reserve_retained(
        &self,
        _: &PodUid,
        _: Vec<(std::os::fd::OwnedFd, Extent)>,
    ) -> Result<(), ReserveError> {
        Ok(())
    }

    async fn leaving(&self, pod: &PodUid, at_most: Bytes) -> Result<(), BillingError> {
        self.0.lock().unwrap().push((pod.clone(), at_most));
        Ok(())
    }

    async fn returned(&self, _: &PodUid) -> Result<(), BillingError> {
        Ok(())
    }
}

struct Bench {
    folder: TempDir,
    mounter: Arc<FakeMounter>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for pod in ["one", "two"] {
            fs::create_dir_all(folder.path().join("kubelet/pods").join(pod)).unwrap();
        }
        Self {
            folder,
            mounter: Arc::default(),
        }
    }

    /// Another process, over the same mounts.
    fn sockets(&self, boot_id: &str) -> Sockets {
        let folder = self.folder.path().canonicalize().unwrap();
        let run = RunDirectory::open(&folder.join("run")).unwrap();
        let granter = Granter {
            book: Arc::new(Book::open(&run.book(), boot_id).unwrap()),
            rule: Box::new(StandaloneRule),
            chunk: Bytes(64),
        };
        let claims = Claims {
            node: NodeId::parse("a").unwrap(),
            boot_id: boot_id.into(),
            layers: folder.join("layers"),
            targets: Targets::new(&[folder.join("kubelet")]),
            catalog: Arc::new(FileCatalog::open(&folder.join("catalog")).unwrap()),
            mounter: Arc::clone(&self.mounter) as Arc<dyn Mounter>,
        };
        let patience = Duration::from_secs(5);
        let service = Service::new(granter, claims, Arc::new(Notes::default()), patience);
        Sockets::new(run, service)
    }

    /// No mounts, and nothing in memory.
    fn reboot(&mut self) {
        self.mounter = Arc::default();
        for pod in fs::read_dir(self.folder.path().join("run/pods")).unwrap() {
            let path = pod.unwrap().path();
            fs::remove_dir_all(&path).unwrap();
            fs::create_dir(path).unwrap();
        }
    }

    fn publish(&self, volume_id: &str, pod: &str) -> Publish {
        let folder = self.folder.path().canonicalize().unwrap();
        Publish {
            volume_id: volume_id.into(),
            target: folder.join("kubelet/pods").join(pod).join("mount"),
            pod: PodUid::parse(pod).unwrap(),
            writes: None,
            context: None,
        }
    }
}

/// Whether somebody serves the volume.
fn is_served(sockets: &Sockets, volume_id: &str) -> bool {
    UnixStream::connect(sockets.run.pod(volume_id).join("driver/driver.sock")).is_ok()
}

#[tokio::test]
async fn publish_twice_mounts_and_listens_once_and_unpublish_takes_all_of_it_away() {
    let bench = Bench::new();
    let sockets = bench.sockets("boot-1");
    let publish = bench.publish("csi-1", "one");
    for _ in 0..2 {
        sockets.publish(publish.clone()).await.unwrap();
        assert_eq!(bench.mounter.mounts().unwrap().len(), 2);
    }
    assert!(is_served(&sockets, "csi-1"));
    assert!(sockets.is_at("csi-1", &publish.target).await.unwrap());
    assert!(!sockets.is_at("csi-2", &publish.target).await.unwrap());
    for expected in [true, false] {
        let was_ours = sockets.unpublish("csi-1", &publish.target).await.unwrap();
        assert_eq!(was_ours, expected);
    }
    assert_eq!(bench.mounter.mounts().unwrap(), Vec::new());
    assert_eq!(sockets.book().all(), Vec::new());
    assert!(!publish.target.exists());
}

#[tokio::test]
async fn a_restarted_driver_listens_again_and_another_boot_forgets() {
    let mut bench = Bench::new();
    let publish = bench.publish("csi-1", "one");
    let first = bench.sockets("boot-1");
    first.publish(publish.clone()).await.unwrap();
    drop(first);
    let second = bench.sockets("boot-1");
    second.resume().await;
    assert!(is_served(&second, "csi-1"));
    drop(second);
    bench.reboot();
    let third = bench.sockets("boot-2");
    third.resume().await;
    assert_eq!(third.book().all(), Vec::new());
    assert!(fs::read_dir(third.run.pods()).unwrap().next().is_none());
    // Kubelet publishes it again, or takes it away.
    assert!(!third.unpublish("csi-1", &publish.target).await.unwrap());
    third.publish(publish).await.unwrap();
    assert!(is_served(&third, "csi-1"));
}

#[tokio::test]
async fn a_pod_has_one_sockets_volume_and_a_volume_one_pod() {
    let bench = Bench::new();
    let sockets = bench.sockets("boot-1");
    let publish = bench.publish("csi-1", "one");
    sockets.publish(publish.clone()).await.unwrap();
    let second = sockets.publish(bench.publish("csi-2", "one")).await;
    assert!(matches!(second, Err(Error::Second { .. })));
    let other = sockets.publish(bench.publish("csi-1", "two")).await;
    assert!(matches!(other, Err(Error::Incompatible { .. })));
    let writes = Some(Bytes(1));
    let changed = sockets.publish(Publish { writes, ..publish }).await;
    assert!(matches!(changed, Err(Error::Incompatible { .. })));
}

#[tokio::test]
async fn what_is_no_sockets_volume_is_left_alone() {
    let bench = Bench::new();
    let sockets = bench.sockets("boot-1");
    let target = bench.publish("pvc-1", "one").target;
    assert!(!sockets.unpublish("pvc-1", &target).await.unwrap());
}

#[tokio::test]
async fn a_listener_that_ends_has_closed_everything() {
    let bench = Bench::new();
    let sockets = bench.sockets("boot-1");
    let publish = bench.publish("csi-1", "one");
    sockets.publish(publish.clone()).await.unwrap();
    let socket = sockets.run.pod("csi-1").join("driver/driver.sock");
    let connected = UnixStream::connect(socket).unwrap();
    sockets.unpublish("csi-1", &publish.target).await.unwrap();
    let mut end = [0; 1];
    let closed = match std::io::Read::read(&mut &connected, &mut end) {
        Ok(read) => read == 0,
        // So says the kernel where the listener went before it had accepted.
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(closed);
}
