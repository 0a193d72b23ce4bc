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
mod hold;
mod job;
mod memory;
mod metrics;
mod pods;
mod publication;
mod record;
mod request;
mod retainer;
mod size;
mod total;
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

use account::{Account, Use};
pub(crate) use book::{Book, PodBill};
pub(crate) use engine::{Engine, RetainerEngine};
pub(crate) use grants::WritableClaim;
pub(crate) use hold::Hold;
pub(crate) use metrics::BillMetrics;
pub(crate) use pods::Pods;
pub(crate) use record::RecordError;
pub(crate) use request::{FileRequest, RequestError, RetainerRequest, State};
#[cfg(feature = "kubernetes")]
pub(crate) use request::{KubernetesRequest, Place};
pub(crate) use retainer::Retainer;

use size::LayerSize;

use crate::bytes::Bytes;
use crate::mount::{self, Mounter};
use crate::report::Events;
use crate::volume::{PodUid, VolumeId};

/// How long a run may take to stop, before whoever wants the volume is told to come again.
const STOP: Duration = Duration::from_secs(10);

/// How long who leaves waits until the scheduler knows, once it is on record: a pod has few seconds to end.
const HEARD: Duration = Duration::from_millis(700);

/// How long new bytes wait for memory to be allocated to the retainer: kubelet takes a second or two.
const GRANTED: Duration = Duration::from_secs(8);

/// Why the bill did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// Somebody does not let go of the volume yet.
    #[error("volume {0} is being handed over or swept, and that does not stop yet")]
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
    /// Where users are told what happened.
    pub(crate) events: Events,
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
    /// One at a time waits for room.
    covering: tokio::sync::Mutex<()>,
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
    /// When the directory cannot be used. A record that is broken stands for nothing: the first survey finds what it said.
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
                covering: tokio::sync::Mutex::default(),
                moved: AtomicU64::new(0),
            }),
        })
    }
}

impl Bills {
    /// What can be retained on this node at most, where that is less than somebody may wish.
    pub(crate) fn bound(&self) -> Option<Bytes> {
        self.inner.request.bound()
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
