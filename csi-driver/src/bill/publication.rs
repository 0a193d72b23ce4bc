//! Pods come and go.

use std::path::Path;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{Accounts, Bills, Error};
use crate::failpoint::fail_point;
use crate::report::{Reason, Subject};
use crate::volume::{PodUid, VolumeId};

impl Bills {
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
        fail_point!("unpublish.departed");
        if is_settled || self.inner.engine.is_none() {
            return;
        }
        let is_done = |all: &Accounts| {
            let account = all.volumes.get(id);
            account.is_none_or(|it| it.is_done(ticket))
        };
        if !self.inner.until(self.inner.settings.join, is_done).await {
            tracing::warn!(volume.id = %id, path = %path.display(), "unpublished before its bytes were handed over; they follow");
            let note =
                "a pod has left before its bytes were handed over to the retainer; they follow";
            let about = [Subject::Volume(id.clone())];
            let events = &self.inner.settings.events;
            events.publish(Reason::HandOverUnfinished, &about, note);
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
        let look = spawn_blocking(move || (pods.owes_nothing(&uid), pods.subtree(&uid)));
        let Ok((true, own)) = look.await else {
            return false;
        };
        // The kernel sums up now and then: what a survey has found may be missing in its sum.
        let all = self.inner.accounts();
        let report = all.volumes.get(id).and_then(|it| it.report());
        report.is_none_or(|(report, _)| report.bytes_of(|owner| own.contains(&owner)) == 0)
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
}
