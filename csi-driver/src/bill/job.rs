//! The worker of one volume: runs the hand-over when something calls for it, and again as long as something is left.
//!
//! What it does is not recorded but found: a restarted driver surveys every volume, and what is on a wrong bill is the job.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use vineyard_charge::CgroupId;

use super::Inner;
use super::account::{Next, Running};
use super::engine::{Engine, Report, Task, Trouble};
use crate::bytes::Bytes;
use crate::edge::chain;
use crate::failpoint::fail_point;
use crate::report::{Reason, Subject};
use crate::volume::{PodUid, VolumeId};

/// The longest pause while the retainer is away: it may be back any moment.
const AWAY: Duration = Duration::from_secs(5);

/// How long an owner that does not stay is believed not to.
const FRESH: Duration = Duration::from_millis(200);

impl Inner {
    /// Sees to it that somebody looks after the volume.
    pub(super) fn kick(self: &Arc<Self>, id: &VolumeId) {
        let Some(engine) = self.engine.clone() else {
            return;
        };
        let is_idle = self.accounts().volumes.get_mut(id).is_some_and(|account| {
            !matches!(account.next(), Next::Rest)
                && !std::mem::replace(&mut account.has_worker, true)
        });
        self.changed.send_replace(());
        if is_idle {
            tokio::spawn(Arc::clone(self).work(engine, id.clone()));
        }
    }

    async fn work(self: Arc<Self>, engine: Arc<dyn Engine>, id: VolumeId) {
        let mut changed = self.changed.subscribe();
        let mut again_at = None;
        loop {
            changed.mark_unchanged();
            let pause = match self.next(&id) {
                None => return,
                Some(pause) => pause,
            };
            let now = Instant::now();
            let at = *again_at.get_or_insert(now + pause);
            if !pause.is_zero() && now < at {
                tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    _ = changed.changed() => {}
                }
                continue;
            }
            again_at = None;
            self.run(&engine, &id).await;
        }
    }

    /// How long the worker pauses before the next run; `None` when it is not needed any more.
    fn next(&self, id: &VolumeId) -> Option<Duration> {
        let mut all = self.accounts();
        let account = all.volumes.get_mut(id)?;
        match account.next() {
            Next::Run => Some(Duration::ZERO),
            Next::Again { failures } => {
                let longest = match account.trouble() {
                    Some(_) => self.settings.longest_pause.min(AWAY),
                    None => self.settings.longest_pause,
                };
                let doubled = 1_u32 << failures.saturating_sub(1).min(16);
                Some(self.settings.pause.saturating_mul(doubled).min(longest))
            }
            Next::Rest => {
                account.has_worker = false;
                None
            }
        }
    }

    /// One run, unless the volume is about to go.
    async fn run(self: &Arc<Self>, engine: &Arc<dyn Engine>, id: &VolumeId) {
        let Ok(_permit) = self.runs.acquire().await else {
            return;
        };
        let begun = self
            .accounts()
            .volumes
            .get_mut(id)
            .and_then(super::Account::begin);
        let Some(running) = begun else {
            return;
        };
        let begin = Instant::now();
        let (inner, engine) = (Arc::clone(self), Arc::clone(engine));
        let (its_id, its_run) = (id.clone(), running.clone());
        let ended =
            spawn_blocking(move || inner.hand_over(&*engine, &its_id, &its_run, begin)).await;
        let ended = ended.unwrap_or_else(|panic| Err(Trouble::Inside(panic.to_string())));
        self.finish(id, ended, begin.elapsed()).await;
    }

    /// The run itself. Blocking.
    fn hand_over(
        self: &Arc<Self>,
        engine: &dyn Engine,
        id: &VolumeId,
        running: &Running,
        begin: Instant,
    ) -> Result<(Report, u64), Trouble> {
        let layer = self.layer(id);
        let stays = Stays {
            inner: Arc::clone(self),
            id: id.clone(),
            seen: Mutex::default(),
        };
        let size = self.size(id);
        let report = engine.run(&Task {
            layer: &layer,
            stays: &|owner| stays.stays(owner),
            exclusive: running.exclusive,
            slack: &*size,
            progress: &running.progress,
        });
        size.settle();
        let report = report?;
        fail_point!("bill.moved");
        let mut wrong =
            report.bytes_of(|owner| !report.retainer.contains(&owner) && !stays.stays(owner));
        wrong += if self.is_published(id) {
            report.outcome.unfreed
        } else {
            // Nobody else can be charged for what nobody sees.
            report.outcome.unseen + report.outcome.unreached
        };
        tracing::debug!(volume.id = %id, moved = report.outcome.moved, wrong, seconds = begin.elapsed().as_secs_f64(), "surveyed");
        Ok((report, wrong))
    }

    fn is_published(&self, id: &VolumeId) -> bool {
        let all = self.accounts();
        all.volumes
            .get(id)
            .is_some_and(|account| account.tenants().next().is_some())
    }

    async fn finish(
        self: &Arc<Self>,
        id: &VolumeId,
        ended: Result<(Report, u64), Trouble>,
        took: Duration,
    ) {
        fail_point!("bill.ended");
        let used = self.used(id).await.unwrap_or_default();
        if let Ok((report, _)) = &ended {
            self.moved
                .fetch_add(report.outcome.moved, Ordering::Relaxed);
        }
        let seconds = took.as_secs_f64();
        match &ended {
            Ok((report, wrong)) if *wrong > 0 => {
                let first = report.outcome.left.first();
                tracing::warn!(volume.id = %id, moved = report.outcome.moved, left = wrong, ?first, seconds, "bytes stay on a wrong bill for now");
                let why = first.map_or_else(String::new, |left| format!(": {}", left.reason));
                let left = Bytes(*wrong);
                let note =
                    format!("{left} stay on the bill of a pod that has left, or on nobody's{why}");
                self.say(id, Reason::HandOverUnfinished, note);
            }
            Ok((report, _)) if report.outcome.moved > 0 => {
                tracing::info!(volume.id = %id, moved = report.outcome.moved, seconds, "handed over to the retainer");
            }
            Ok(_) => {}
            Err(trouble) => {
                tracing::warn!(volume.id = %id, %trouble, seconds, "the hand-over waits");
                self.say(id, Reason::RetainerAway, chain(trouble));
            }
        }
        if let Some(account) = self.accounts().volumes.get_mut(id) {
            let wrong = ended.as_ref().map_or(0, |(_, wrong)| *wrong);
            let ended = ended.map(|(report, _)| (report, used));
            account.finish(ended.map_err(|trouble| trouble.to_string()), wrong, took);
        }
        self.changed.send_replace(());
        if let Err(error) = self.settle_request(&[id]).await {
            tracing::warn!(volume.id = %id, %error, "the retainer's request is not what it should be");
        }
    }

    fn say(&self, id: &VolumeId, reason: Reason, note: String) {
        let about = [Subject::Volume(id.clone())];
        self.settings.events.publish(reason, &about, note);
    }

    /// The owners that rightly pay for bytes of the volume, but for the retainer.
    fn staying(&self, id: &VolumeId) -> Staying {
        let (staying, going, nameless) = {
            let all = self.accounts();
            let Some(account) = all.volumes.get(id) else {
                return Staying::default();
            };
            let leaves = |uid: &PodUid| all.leaving.contains_key(uid);
            let staying: Vec<_> = account.staying(leaves).cloned().collect();
            let named = account.tenants().filter_map(|it| it.uid.clone());
            let going: Vec<_> = named.filter(|uid| !staying.contains(uid)).collect();
            (staying, going, account.has_nameless())
        };
        let owners = |uids: &[PodUid]| -> HashSet<CgroupId> {
            uids.iter().flat_map(|uid| self.pods.subtree(uid)).collect()
        };
        Staying {
            owners: owners(&staying),
            movable: nameless.then(|| &owners(&going) | &self.pods.above()),
        }
    }
}

/// Who rightly pays for bytes of a volume, but for the retainer.
#[derive(Default)]
struct Staying {
    owners: HashSet<CgroupId>,
    /// While a pod has the volume whose cgroup nobody knows: those that are certainly not its own, and no others, do not stay.
    movable: Option<HashSet<CgroupId>>,
}

impl Staying {
    fn contains(&self, owner: CgroupId) -> bool {
        let is_unknown = |movable: &HashSet<_>| !movable.contains(&owner);
        self.owners.contains(&owner) || self.movable.as_ref().is_some_and(is_unknown)
    }
}

/// Answers whether an owner stays, for as long as a run goes on: containers and pods come meanwhile.
struct Stays {
    inner: Arc<Inner>,
    id: VolumeId,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    staying: Staying,
    refused: HashSet<CgroupId>,
    refreshed: Option<Instant>,
}

impl Stays {
    fn stays(&self, owner: CgroupId) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.staying.contains(owner) {
            return true;
        }
        let is_fresh = seen.refreshed.is_some_and(|at| at.elapsed() < FRESH);
        if is_fresh && seen.refused.contains(&owner) {
            return false;
        }
        seen.staying = self.inner.staying(&self.id);
        seen.refreshed = Some(Instant::now());
        seen.refused.clear();
        let stays = seen.staying.contains(owner);
        if !stays {
            seen.refused.insert(owner);
        }
        stays
    }
}
