//! Who is billed for the bytes of the volumes on this node, and how the bill changes hands.
//!
//! One rule decides everything: what is on a volume and charged neither to the retainer nor to a pod that is alive, has the
//! volume published and does not leave, goes to the retainer. Events only say when to look: a pod leaves, is unpublished, or its
//! cgroup is gone. `docs/design/bill.md` says the rest.

mod account;
pub(crate) mod admin;
mod ask;
pub(crate) mod book;
mod engine;
mod fill;
pub(crate) mod grants;
mod handover;
mod job;
mod metrics;
mod pods;
mod record;
mod request;
mod retainer;
mod size;
mod views;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::sync::watch::Sender;
use vineyard_store::Options;

use account::{Account, Use};
pub(crate) use book::{Book, PodBill};
pub(crate) use engine::{Engine, RetainerEngine};
pub(crate) use grants::WritableClaim;
pub(crate) use metrics::BillMetrics;
pub(crate) use pods::Pods;
pub(crate) use record::RecordError;
pub(crate) use request::{FileRequest, RequestError, RetainerRequest};
pub(crate) use retainer::Retainer;

use size::LayerSize;

use crate::bytes::Bytes;
use crate::mount::{self, Mounter};
use crate::volume::{PodUid, VolumeId};

/// How long a run may take to stop, before whoever wants the volume is told to come again.
const STOP: Duration = Duration::from_secs(10);

/// Why the bill did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// A run does not let go of the volume yet.
    #[error("the bill of volume {0} is being handed over, and does not stop yet")]
    Busy(VolumeId),
    /// Nothing is on record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The request was not made.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Nobody can say who is charged.
    #[error("measure: {0}")]
    Survey(#[from] vineyard_charge::survey::SurveyError),
    /// The directories of the store cannot be made.
    #[error(transparent)]
    Store(#[from] vineyard_store::Error),
    /// The volume's memory cannot be looked at.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// A bug.
    #[error("the bill failed inside: {0}")]
    Inside(String),
}

/// Where and how often.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Directory of the volumes' own mounts.
    pub(crate) layers: PathBuf,
    /// Directory of the records; made, private to root.
    pub(crate) records: PathBuf,
    /// This boot of the node.
    pub(crate) boot_id: String,
    /// The longest that an unpublish waits for a hand-over.
    pub(crate) join: Duration,
    /// Between two looks at the pods' cgroups.
    pub(crate) look: Duration,
    /// Between two surveys of a volume whose use changes; more when they are expensive.
    pub(crate) survey: Duration,
    /// After a run that left something; doubled with each one in a row.
    pub(crate) pause: Duration,
    /// The longest pause.
    pub(crate) longest_pause: Duration,
    /// What the retainer's request is raised by, ahead of need.
    pub(crate) chunk: Bytes,
    /// Runs at the same time.
    pub(crate) runs: usize,
    /// New memory gets the directories of the store.
    pub(crate) furnish: bool,
}

/// The bills of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Bills {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    pods: Arc<Pods>,
    /// None: no retainer, and so nothing ever changes hands.
    engine: Option<Arc<dyn Engine>>,
    request: Arc<dyn RetainerRequest>,
    mounter: Arc<dyn Mounter>,
    accounts: Mutex<Accounts>,
    sizes: Mutex<BTreeMap<VolumeId, Arc<LayerSize>>>,
    /// Something in them changed.
    changed: Sender<()>,
    /// One at a time sums up and asks.
    asking: tokio::sync::Mutex<()>,
    runs: Arc<Semaphore>,
    /// Bytes that were handed over since this process began.
    moved: AtomicU64,
}

/// What is known now. Small enough to be locked for every look.
#[derive(Debug, Default)]
struct Accounts {
    volumes: BTreeMap<VolumeId, Account>,
    /// Pods that said they leave, and what was granted to them.
    leaving: BTreeMap<PodUid, Bytes>,
    /// Bytes that the request is ahead of need, and since when nobody needed more.
    ahead: u64,
    ahead_since: Option<Instant>,
}

/// A pod that leaves, on record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LeavingRecord {
    boot_id: String,
    pod_uid: PodUid,
    at_most: Bytes,
}

/// A volume's account, on record: what the request was made for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AccountRecord {
    boot_id: String,
    volume: VolumeId,
    retained: Bytes,
    pending: Bytes,
    expected: Bytes,
}

impl Bills {
    /// Opens the records, and forgets those of other boots.
    ///
    /// # Errors
    /// When they cannot be read: nothing is guessed about who owes what.
    pub(crate) fn open(
        settings: Settings,
        pods: Arc<Pods>,
        engine: Option<Arc<dyn Engine>>,
        request: Arc<dyn RetainerRequest>,
        mounter: Arc<dyn Mounter>,
    ) -> Result<Self, RecordError> {
        let mut all = Accounts::default();
        for directory in [volumes(&settings.records), leaving(&settings.records)] {
            let made = fs::DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&directory);
            made.map_err(|source| RecordError::Io {
                doing: "make",
                path: directory.clone(),
                source,
            })?;
        }
        for record in record::read_all::<LeavingRecord>(&leaving(&settings.records))? {
            if record.boot_id == settings.boot_id {
                all.leaving.insert(record.pod_uid, record.at_most);
            } else {
                record::remove(&leaving_path(&settings.records, &record.pod_uid))?;
            }
        }
        for record in record::read_all::<AccountRecord>(&volumes(&settings.records))? {
            if record.boot_id == settings.boot_id {
                let (retained, pending, expected) =
                    (record.retained.0, record.pending.0, record.expected.0);
                let account = Account::resumed(retained, pending, expected);
                all.volumes.insert(record.volume, account);
            } else {
                record::remove(&account_path(&settings.records, &record.volume))?;
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                runs: Arc::new(Semaphore::new(settings.runs)),
                settings,
                pods,
                engine,
                request,
                mounter,
                accounts: Mutex::new(all),
                sizes: Mutex::default(),
                changed: Sender::new(()),
                asking: tokio::sync::Mutex::default(),
                moved: AtomicU64::new(0),
            }),
        })
    }

    /// Every volume that is here has been named: forgets the others, and begins to look.
    pub(crate) async fn start(&self) {
        let strangers: Vec<_> = {
            let all = self.inner.accounts();
            let strange = all.volumes.iter().filter(|(_, it)| it.is_untouched());
            strange.map(|(id, _)| id.clone()).collect()
        };
        for id in strangers {
            self.dropped(&id).await;
        }
        tokio::spawn(self.clone().watch());
    }

    /// The volume's memory is here, with these publications: after a restart of the driver, or because it was just made.
    ///
    /// # Errors
    /// When nothing is on record.
    pub(crate) async fn resident(
        &self,
        id: &VolumeId,
        tenants: Vec<(PathBuf, Option<PodUid>, bool)>,
    ) -> Result<(), Error> {
        {
            let mut all = self.inner.accounts();
            let account = all.volumes.entry(id.clone()).or_default();
            for (path, uid, writable) in tenants {
                account.publish(&path, uid, writable);
            }
            account.unhalt();
            account.ask(0);
        }
        self.inner.record(id)?;
        self.inner.kick(id);
        Ok(())
    }

    /// Makes the store's directories in new memory that nobody has seen, on the retainer's bill when there is one.
    ///
    /// # Errors
    /// When the memory cannot be written to.
    pub(crate) async fn furnish(&self, id: &VolumeId) -> Result<(), Error> {
        if !self.inner.settings.furnish {
            return Ok(());
        }
        let (layer, engine) = (self.inner.layer(id), self.inner.engine.clone());
        let furnish = move || {
            // While the retainer is away it is the driver's own page, until the first run over the volume.
            let payer = engine.and_then(|engine| engine.payer().ok());
            let create = true;
            vineyard_store::Volume::open(&layer, Options { payer, create }).map(drop)
        };
        let furnished = tokio::task::spawn_blocking(furnish).await;
        Ok(furnished.map_err(|panic| Error::Inside(panic.to_string()))??)
    }

    /// Gives the volume's memory here this capacity, and at least so many inodes.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn fit(
        &self,
        id: &VolumeId,
        capacity: Bytes,
        inodes: u64,
    ) -> Result<(), Error> {
        let size = self.inner.size(id);
        let fitted = tokio::task::spawn_blocking(move || size.fit(capacity, inodes)).await;
        Ok(fitted.map_err(|panic| Error::Inside(panic.to_string()))??)
    }

    /// A pod gets the volume at `path`: before it is mounted there.
    ///
    /// # Errors
    /// [`Error::Busy`] when a run counts on nobody writing and does not stop in time; the publication counts all the same.
    pub(crate) async fn published(
        &self,
        id: &VolumeId,
        path: &Path,
        uid: Option<PodUid>,
        writable: bool,
    ) -> Result<(), Error> {
        let exclusive = {
            let mut all = self.inner.accounts();
            let account = all.volumes.entry(id.clone()).or_default();
            account.publish(path, uid, writable);
            let exclusive = account.running().filter(|it| writable && it.exclusive);
            if let Some(running) = exclusive {
                running.progress.stop();
            }
            exclusive.is_some()
        };
        if exclusive {
            self.inner.stopped(id, |running| running.exclusive).await?;
        }
        Ok(())
    }

    /// NodeUnpublishVolume was called: has the pod's bytes handed over, and waits for that as long as it may.
    pub(crate) async fn before_unpublish(&self, id: &VolumeId, path: &Path) {
        let Some(used) = self.inner.used(id).await else {
            return;
        };
        let owes_nothing = self.owes_nothing(id, path).await;
        let (ticket, is_settled) = {
            let mut all = self.inner.accounts();
            let Accounts {
                volumes, leaving, ..
            } = &mut *all;
            let Some(account) = volumes.get_mut(id) else {
                return;
            };
            let uid = account.tenant(path).and_then(|it| it.uid.clone());
            let Some(is_news) = account.depart(path, owes_nothing) else {
                return;
            };
            if owes_nothing {
                return;
            }
            let was_leaving = uid.is_some_and(|uid| leaving.contains_key(&uid));
            let is_settled = was_leaving && account.is_settled(used);
            // What a pod has said is counted already; of any other it is only known that it has no more than there is.
            let expected = match is_news && !was_leaving {
                true => account.unretained(used.bytes),
                false => 0,
            };
            (account.ask(expected), is_settled)
        };
        if let Err(error) = self.inner.settle_request(&[id]).await {
            tracing::warn!(volume.id = %id, %error, "the retainer's request does not cover a pod that is unpublished");
        }
        self.inner.kick(id);
        if is_settled || self.inner.engine.is_none() {
            return;
        }
        let is_done = |all: &Accounts| {
            let account = all.volumes.get(id);
            account.is_none_or(|it| it.is_done(ticket) || it.has_nameless())
        };
        if !self.inner.until(self.inner.settings.join, is_done).await {
            tracing::warn!(volume.id = %id, path = %path.display(), "unpublished before its bytes were handed over; they follow");
        }
    }

    /// Whether the pod at `path` has nothing to hand over, which a million objects need not be looked at for.
    async fn owes_nothing(&self, id: &VolumeId, path: &Path) -> bool {
        let uid = {
            let all = self.inner.accounts();
            let tenant = all.volumes.get(id).and_then(|it| it.tenant(path));
            tenant.and_then(|it| it.uid.clone())
        };
        let Some(uid) = uid else {
            return false;
        };
        let pods = Arc::clone(&self.inner.pods);
        let look = tokio::task::spawn_blocking(move || pods.owes_nothing(&uid));
        look.await.unwrap_or(false)
    }

    /// The volume is not mounted at `path` any more.
    pub(crate) async fn after_unpublish(&self, id: &VolumeId, path: &Path) {
        let gone = {
            let mut all = self.inner.accounts();
            let Some(account) = all.volumes.get_mut(id) else {
                return;
            };
            let Some(tenant) = account.unpublish(path) else {
                return;
            };
            // It may have written until a moment ago; and perhaps nobody else may write now, and then more can be moved.
            if !tenant.owes_nothing || account.has_left() {
                account.ask(0);
            }
            let uid = tenant.uid;
            uid.filter(|uid| !all.volumes.values().any(|account| account.has(uid)))
        };
        if let Some(uid) = gone
            && let Err(error) = self.inner.forget(&uid)
        {
            tracing::warn!(pod.uid = %uid, %error, "the record of a pod that has left stays");
        }
        self.inner.kick(id);
    }

    /// The volume's memory is about to be unmounted: no run touches it from now on.
    ///
    /// # Errors
    /// [`Error::Busy`] when one does not stop in time.
    pub(crate) async fn halt(&self, id: &VolumeId) -> Result<(), Error> {
        if let Some(account) = self.inner.accounts().volumes.get_mut(id) {
            account.halt();
        }
        self.inner.stopped(id, |_| true).await
    }

    /// The memory was not unmounted after all.
    pub(crate) fn resume(&self, id: &VolumeId) {
        if let Some(account) = self.inner.accounts().volumes.get_mut(id) {
            account.unhalt();
        }
        self.inner.kick(id);
    }

    /// The volume's memory is gone, and every bill with it.
    pub(crate) async fn dropped(&self, id: &VolumeId) {
        self.inner.sizes().remove(id);
        let known = self.inner.accounts().volumes.remove(id).is_some();
        if !known {
            return;
        }
        self.inner.changed.send_replace(());
        let forgotten = record::remove(&account_path(&self.inner.settings.records, id));
        let asked = self.inner.settle_request(&[]).await;
        if let Err(error) = forgotten.map_err(Error::from).and(asked) {
            tracing::warn!(volume.id = %id, %error, "the retainer's request is not lowered yet");
        }
    }
}

impl Inner {
    /// Forgets that a pod leaves. Returns whether it did.
    fn forget(&self, pod: &PodUid) -> Result<bool, RecordError> {
        record::remove(&leaving_path(&self.settings.records, pod))?;
        Ok(self.accounts().leaving.remove(pod).is_some())
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        // Its parts are changed one by one and stand for themselves; a survey rights them after any panic.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sizes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Arc<LayerSize>>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self, id: &VolumeId) -> Arc<LayerSize> {
        let mut sizes = self.sizes();
        let size = sizes
            .entry(id.clone())
            .or_insert_with(|| Arc::new(LayerSize::new(Arc::clone(&self.mounter), self.layer(id))));
        Arc::clone(size)
    }

    fn layer(&self, id: &VolumeId) -> PathBuf {
        self.settings.layers.join(id.as_str())
    }

    /// How much the volume uses; `None` when it is not there.
    async fn used(&self, id: &VolumeId) -> Option<Use> {
        let (mounter, layer) = (Arc::clone(&self.mounter), self.layer(id));
        let usage = tokio::task::spawn_blocking(move || mounter.usage(&layer)).await;
        let usage = usage.ok()?.ok()?;
        Some(Use {
            bytes: usage.bytes.saturating_sub(usage.free_bytes),
            inodes: usage.inodes.saturating_sub(usage.free_inodes),
        })
    }

    /// Waits until `done`, at most for `patience`. Returns whether it is.
    async fn until(&self, patience: Duration, done: impl Fn(&Accounts) -> bool) -> bool {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !done(&self.accounts()) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(patience, waiting).await.is_ok()
    }

    /// Waits until no run of this kind is under way.
    async fn stopped(
        &self,
        id: &VolumeId,
        kind: impl Fn(&account::Running) -> bool,
    ) -> Result<(), Error> {
        let is_free = |all: &Accounts| {
            let running = all.volumes.get(id).and_then(Account::running);
            !running.is_some_and(&kind)
        };
        match self.until(STOP, is_free).await {
            true => Ok(()),
            false => Err(Error::Busy(id.clone())),
        }
    }

    /// Writes down what the request is made for.
    fn record(&self, id: &VolumeId) -> Result<(), RecordError> {
        let Some((retained, pending, expected)) =
            self.accounts().volumes.get(id).map(Account::sums)
        else {
            return Ok(());
        };
        let record = AccountRecord {
            boot_id: self.settings.boot_id.clone(),
            volume: id.clone(),
            retained: Bytes(retained),
            pending: Bytes(pending),
            expected: Bytes(expected),
        };
        record::write(&account_path(&self.settings.records, id), &record)
    }

    /// Records these accounts, sums up what the retainer must be able to hold, and asks for it.
    async fn settle_request(&self, ids: &[&VolumeId]) -> Result<(), Error> {
        if self.engine.is_none() {
            return Ok(());
        }
        let _turn = self.asking.lock().await;
        for id in ids {
            self.record(id)?;
        }
        let total = self.wanted().await;
        let ahead = self.accounts().ahead;
        Ok(self.request.set(Bytes(total.saturating_add(ahead))).await?)
    }

    /// What the retainer must be able to hold.
    async fn wanted(&self) -> u64 {
        let ids: Vec<_> = self.accounts().volumes.keys().cloned().collect();
        let mut total: u64 = 0;
        for id in ids {
            let used = self.used(&id).await.map_or(0, |it| it.bytes);
            let all = self.accounts();
            let wanted = all.volumes.get(&id).map_or(0, |it| it.wanted(used));
            total = total.saturating_add(wanted);
        }
        total
    }
}

fn volumes(records: &Path) -> PathBuf {
    records.join("volumes")
}

fn leaving(records: &Path) -> PathBuf {
    records.join("leaving")
}

fn account_path(records: &Path, id: &VolumeId) -> PathBuf {
    volumes(records).join(format!("{id}.json"))
}

fn leaving_path(records: &Path, uid: &PodUid) -> PathBuf {
    leaving(records).join(format!("{uid}.json"))
}

#[cfg(test)]
pub(crate) mod tests;
