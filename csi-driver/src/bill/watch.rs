//! What no call tells: pods whose cgroup is gone, volumes whose use changes, and a request that is higher than it must be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vineyard_charge::CgroupId;

use super::{Bills, Inner};
use crate::volume::PodUid;

/// How much longer than the last one a pause between two surveys of a volume is: at most a twentieth of a processor.
const SPARING: u32 = 20;

/// How long the request stays ahead of need when nobody needs more.
const AHEAD: Duration = Duration::from_secs(60);

/// Between two looks at who the retainer is: when its pod is gone, nobody is billed for what it held until the next one is noticed.
const GLANCE: Duration = Duration::from_secs(1);

impl Bills {
    /// Looks again and again, and at once when another pod is the retainer. Never ends.
    pub(crate) async fn watch(self) {
        let mut known = None;
        loop {
            let next = Instant::now() + self.inner.settings.look;
            while Instant::now() < next && !self.inner.is_of_another(&mut known).await {
                let left = next.saturating_duration_since(Instant::now());
                tokio::time::sleep(left.min(GLANCE)).await;
            }
            self.inner.look().await;
        }
    }
}

impl Inner {
    pub(super) async fn look(self: &Arc<Self>) {
        if self.engine.is_none() {
            return;
        }
        let alive = self.alive().await;
        let retainer = self.retainer().await;
        let ids: Vec<_> = self.accounts().volumes.keys().cloned().collect();
        for id in &ids {
            let Some(used) = self.used(id).await else {
                continue;
            };
            if let Some(account) = self.accounts().volumes.get_mut(id) {
                let mut has_lost = account.look(|uid| alive.get(uid).copied().unwrap_or(false));
                // Another pod is the retainer now: what the old one held is on a wrong bill.
                has_lost |= retainer
                    .as_ref()
                    .is_some_and(|it| account.is_of_another(it));
                let pause = self.settings.survey.max(account.took() * SPARING);
                if has_lost {
                    account.ask(account.unretained(used.bytes));
                } else if account.is_stale(used, pause) {
                    account.ask(0);
                }
            }
            self.kick(id);
        }
        {
            let mut all = self.accounts();
            if all.ahead_since.is_some_and(|at| at.elapsed() > AHEAD) {
                (all.ahead, all.ahead_since) = (0, None);
            }
        }
        self.forget_strangers();
        if let Err(error) = self.settle_request(&[]).await {
            tracing::warn!(%error, "the retainer's request is not what it should be");
        }
    }

    /// Whether the retainer is another pod than the one that was known.
    async fn is_of_another(&self, known: &mut Option<Vec<CgroupId>>) -> bool {
        let Some(now) = self.retainer().await else {
            return false;
        };
        let before = known.replace(now.clone());
        before.is_some_and(|before| !before.iter().any(|owner| now.contains(owner)))
    }

    /// The cgroups of the retainer; `None` while it is away.
    async fn retainer(&self) -> Option<Vec<CgroupId>> {
        let engine = self.engine.clone()?;
        let look = tokio::task::spawn_blocking(move || engine.owners().ok());
        look.await.ok().flatten()
    }

    /// Forgets who leaves and has no volume here any more.
    fn forget_strangers(&self) {
        let strangers: Vec<PodUid> = {
            let all = self.accounts();
            let has_one = |uid: &PodUid| all.volumes.values().any(|account| account.has(uid));
            let leaving = all.leaving.keys().filter(|uid| !has_one(uid));
            leaving.cloned().collect()
        };
        for uid in strangers {
            if let Err(error) = self.forget(&uid) {
                tracing::warn!(pod.uid = %uid, %error, "the record of a pod that has left stays");
            }
        }
    }

    /// Which of the pods that have a volume here have a cgroup.
    async fn alive(self: &Arc<Self>) -> BTreeMap<PodUid, bool> {
        let uids: Vec<PodUid> = {
            let all = self.accounts();
            let tenants = all.volumes.values().flat_map(super::Account::tenants);
            tenants.filter_map(|tenant| tenant.uid.clone()).collect()
        };
        let pods = Arc::clone(&self.pods);
        let look = move || {
            pods.keep_only(&uids);
            // Looked at whole, so that containers are known before they are gone.
            uids.into_iter()
                .map(|uid| {
                    let is_alive = !pods.subtree(&uid).is_empty();
                    (uid, is_alive)
                })
                .collect()
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }
}
