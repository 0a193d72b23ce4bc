use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Condvar;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tempfile::TempDir;
use vineyard_charge::{CgroupId, Extent, Payer, ReserveError};

use super::*;
use crate::bill::engine::{Report, Task, Trouble};
use crate::bill::handover::Outcome;
use crate::mount::Tmpfs;
use crate::mount::fake::FakeMounter;

pub(super) const MIB: u64 = 1 << 20;
/// Whom the engine bills.
pub(super) const RETAINER: CgroupId = CgroupId(7);
/// More than any test needs; whoever waits so long has failed.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// The bills of a node without a retainer, over a test's folder.
pub(crate) fn unbilled(folder: &Path, boot_id: &str, mounter: &Arc<dyn Mounter>) -> Bills {
    open(folder, boot_id, mounter, None, 1 << 40)
}

fn open(
    folder: &Path,
    boot_id: &str,
    mounter: &Arc<dyn Mounter>,
    engine: Option<Arc<dyn Engine>>,
    budget: u64,
) -> Bills {
    let records = folder.join("bill");
    fs::create_dir_all(&records).unwrap();
    let request = FileRequest::open(records.join("request.json"), boot_id, Bytes(budget));
    let pods = Pods::new(Some(folder.join("cgroups"))).unwrap();
    let pods = pods.lingering(LONG);
    let settings = Settings {
        layers: folder.join("layers"),
        records,
        boot_id: boot_id.to_owned(),
        join: Duration::from_millis(200),
        look: Duration::from_millis(10),
        survey: Duration::from_millis(10),
        pause: Duration::from_millis(10),
        longest_pause: Duration::from_millis(20),
        chunk: Bytes(MIB),
        runs: 2,
        furnish: false,
        events: crate::report::Events::default(),
    };
    Bills::open(
        settings,
        Arc::new(pods),
        engine,
        Arc::new(request.unwrap()),
        Arc::clone(mounter),
    )
    .unwrap()
}

type Layers = HashMap<PathBuf, BTreeMap<CgroupId, u64>>;

/// `owner` has so many bytes more.
fn add(all: &Mutex<Layers>, mounter: &FakeMounter, layer: &Path, owner: CgroupId, bytes: u64) {
    let mut all = all.lock().unwrap();
    let owners = all.entry(layer.to_owned()).or_default();
    *owners.entry(owner).or_default() += bytes;
    mounter.fill(layer, owners.values().sum());
}

/// Bytes by owner, of each layer; runs move them as the real engine would.
#[derive(Debug, Default)]
pub(super) struct FakeEngine {
    bytes: Arc<Mutex<Layers>>,
    mounter: Arc<FakeMounter>,
    /// Another retainer than [`RETAINER`].
    pub(super) other: Mutex<Option<CgroupId>>,
    /// The retainer does not answer.
    pub(super) away: AtomicBool,
    /// Runs wait.
    held: Mutex<bool>,
    released: Condvar,
    pub(super) runs: AtomicUsize,
    /// So many bytes of the next run were looked at when they were to be freed.
    pub(super) unfreed: AtomicU64,
    /// What the last run was told about writers.
    pub(super) exclusive: AtomicBool,
}

impl FakeEngine {
    fn retainer(&self) -> CgroupId {
        self.other.lock().unwrap().unwrap_or(RETAINER)
    }

    pub(super) fn hold(&self, hold: bool) {
        *self.held.lock().unwrap() = hold;
        self.released.notify_all();
    }
}

impl Engine for FakeEngine {
    fn run(&self, task: &Task<'_>) -> Result<Report, Trouble> {
        self.exclusive.store(task.exclusive, Ordering::SeqCst);
        self.runs.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.lock().unwrap();
        while *held && !task.progress.is_stopped() {
            let step = Duration::from_millis(2);
            held = self.released.wait_timeout(held, step).unwrap().0;
        }
        drop(held);
        if self.away.load(Ordering::SeqCst) {
            return Err(Trouble::Inside("the retainer is away".into()));
        }
        let mut outcome = Outcome::default();
        let mut bytes = self.bytes.lock().unwrap();
        let owners = bytes.entry(task.layer.to_owned()).or_default();
        if task.progress.is_stopped() {
            outcome.interrupted = true;
        } else {
            let retainer = self.retainer();
            let wrong = |owner: &CgroupId| *owner != retainer && !(task.stays)(*owner);
            let movers: Vec<_> = owners.keys().copied().filter(wrong).collect();
            for owner in movers {
                let moved = owners.remove(&owner).unwrap();
                *owners.entry(retainer).or_default() += moved;
                outcome.moved += moved;
            }
        }
        outcome.billed = owners.clone();
        outcome.unfreed = self.unfreed.swap(0, Ordering::SeqCst);
        outcome.unseen = outcome.unfreed;
        let retainer = vec![self.retainer()];
        Ok(Report { outcome, retainer })
    }

    fn payer(&self) -> Result<Arc<dyn Payer>, Trouble> {
        Ok(Arc::new(FakePayer {
            bytes: Arc::clone(&self.bytes),
            mounter: Arc::clone(&self.mounter),
            owner: self.retainer(),
        }))
    }

    fn owners(&self) -> Result<Vec<CgroupId>, Trouble> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(Trouble::Inside("the retainer is away".into())),
            false => Ok(vec![self.retainer()]),
        }
    }
}

#[derive(Debug)]
struct FakePayer {
    bytes: Arc<Mutex<Layers>>,
    mounter: Arc<FakeMounter>,
    owner: CgroupId,
}

impl Payer for FakePayer {
    fn reserve(
        &self,
        extents: &[(std::os::fd::BorrowedFd<'_>, Extent)],
    ) -> Result<(), ReserveError> {
        for (file, extent) in extents {
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            let path = fs::read_link(link).unwrap();
            let layer = path.parent().unwrap();
            add(&self.bytes, &self.mounter, layer, self.owner, extent.length);
        }
        Ok(())
    }

    fn pull(&self, _: std::os::fd::BorrowedFd<'_>, _: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        Ok(Vec::new())
    }

    fn give_back(&self, _: u64) {}
}

/// A node with pods and volumes.
pub(super) struct Stage {
    pub(super) folder: TempDir,
    mounter: Arc<FakeMounter>,
    pub(super) engine: Arc<FakeEngine>,
    pub(super) bills: Bills,
    budget: u64,
}

impl Stage {
    pub(super) fn new(budget: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("cgroups")).unwrap();
        let mounter = Arc::new(FakeMounter::default());
        let engine = Arc::new(FakeEngine {
            mounter: Arc::clone(&mounter),
            ..FakeEngine::default()
        });
        let bills = unbilled(folder.path(), "boot", &(mounter.clone() as _));
        let mut stage = Self {
            folder,
            mounter,
            engine,
            bills,
            budget,
        };
        stage.restart();
        stage
    }

    /// Another driver, over the same records.
    pub(super) fn restart(&mut self) {
        let engine = Arc::clone(&self.engine) as Arc<dyn Engine>;
        let mounter = self.mounter.clone() as _;
        self.bills = open(
            self.folder.path(),
            "boot",
            &mounter,
            Some(engine),
            self.budget,
        );
    }

    pub(super) async fn volume(&self, name: &str) -> VolumeId {
        let id = VolumeId::of_name(name);
        let layer = self.layer(&id);
        fs::create_dir_all(&layer).unwrap();
        let options = Tmpfs {
            source: format!("vineyard:{id}@1"),
            size: Bytes(64 * MIB),
            inodes: 1000,
            context: None,
        };
        self.mounter.mount_tmpfs(&layer, &options).unwrap();
        self.bills.resident(&id, Vec::new()).await.unwrap();
        id
    }

    pub(super) fn layer(&self, id: &VolumeId) -> PathBuf {
        self.folder.path().join("layers").join(id.as_str())
    }

    /// A pod's cgroup, and a container in it; the id of the latter.
    pub(super) fn pod(&self, uid: &str) -> (PodUid, CgroupId) {
        use std::os::unix::fs::MetadataExt;
        let container = self.cgroup(uid).join("container");
        fs::create_dir_all(&container).unwrap();
        let owner = CgroupId(fs::metadata(container).unwrap().ino());
        (PodUid::parse(uid).unwrap(), owner)
    }

    /// The id of the cgroup that pods are in.
    pub(super) fn above(&self) -> CgroupId {
        use std::os::unix::fs::MetadataExt;
        let class = self.folder.path().join("cgroups/kubepods/burstable");
        CgroupId(fs::metadata(class).unwrap().ino())
    }

    /// The pod's container is gone, and another one is there.
    pub(super) fn restart_container(&self, uid: &PodUid) {
        let pod = self.cgroup(uid.as_str());
        fs::create_dir(pod.join("another")).unwrap();
        fs::remove_dir(pod.join("container")).unwrap();
    }

    /// A volume, and a pod that has put so many bytes into it.
    pub(super) async fn filled(&self, bytes: u64) -> (VolumeId, PodUid, CgroupId) {
        let id = self.volume("a").await;
        let (pod, owner) = self.pod("1");
        self.publish(&pod, &id).await;
        self.put(&id, owner, bytes);
        (id, pod, owner)
    }

    fn cgroup(&self, uid: &str) -> PathBuf {
        let class = self.folder.path().join("cgroups/kubepods/burstable");
        class.join(format!("pod{uid}"))
    }

    /// What the kernel says is charged to the pod of any tmpfs.
    pub(super) fn says_shmem(&self, uid: &PodUid, bytes: u64) {
        let stat = self.cgroup(uid.as_str()).join("memory.stat");
        fs::write(stat, format!("shmem {bytes}\n")).unwrap();
    }

    pub(super) fn remove_cgroup(&self, uid: &PodUid) {
        fs::remove_dir_all(self.cgroup(uid.as_str())).unwrap();
    }

    pub(super) fn target(&self, uid: &PodUid, id: &VolumeId) -> PathBuf {
        let pods = self.folder.path().join("kubelet/pods");
        pods.join(format!("{uid}/volumes/csi/{id}/mount"))
    }

    pub(super) async fn publish(&self, uid: &PodUid, id: &VolumeId) {
        let target = self.target(uid, id);
        let published = self.bills.published(id, &target, Some(uid.clone()), true);
        published.await.unwrap();
    }

    /// The pod's unpublish, as the node calls it. Returns how long it took.
    pub(super) async fn unpublish(&self, uid: &PodUid, id: &VolumeId) -> Duration {
        let (begin, target) = (Instant::now(), self.target(uid, id));
        self.bills.before_unpublish(id, &target).await;
        self.bills.after_unpublish(id, &target).await;
        begin.elapsed()
    }

    /// `owner` allocates bytes of the volume.
    pub(super) fn put(&self, id: &VolumeId, owner: CgroupId, bytes: u64) {
        let (all, layer) = (&self.engine.bytes, self.layer(id));
        add(all, &self.mounter, &layer, owner, bytes);
    }

    /// Somebody removes all of it.
    pub(super) fn clear(&self, id: &VolumeId) {
        self.engine.bytes.lock().unwrap().remove(&self.layer(id));
        self.mounter.fill(&self.layer(id), 0);
    }

    pub(super) fn billed(&self, id: &VolumeId, owner: CgroupId) -> u64 {
        let all = self.engine.bytes.lock().unwrap();
        let owners = all.get(&self.layer(id));
        owners
            .and_then(|it| it.get(&owner).copied())
            .unwrap_or_default()
    }

    pub(super) fn desired(&self) -> u64 {
        self.bills.inner.request.desired().0
    }

    /// What the watch does, when surveys are due.
    pub(super) async fn look(&self) {
        tokio::time::sleep(2 * self.bills.inner.settings.survey).await;
        self.bills.inner.look().await;
    }

    /// Waits until `done`.
    pub(super) async fn eventually(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < LONG, "never: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until nothing is under way or left of the volume.
    pub(super) async fn settled(&self, id: &VolumeId) {
        self.eventually("settled", |stage| {
            let all = stage.bills.inner.accounts();
            let account = all.volumes.get(id).unwrap();
            !account.is_due() && account.sums().1 == 0 && account.trouble().is_none()
        })
        .await;
    }
}
