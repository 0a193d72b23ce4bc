//! What a pod may ask about its own bill, by way of its sockets.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tonic::async_trait;
use vineyard_charge::survey::{Surveyor, survey_tree};
use vineyard_charge::{Extent, Full, Limit, PAGE, ReserveError};

use super::{Bills, Error, HEARD, LeavingRecord, leaving_path, record};
use crate::bytes::Bytes;
use crate::edge::chain;
use crate::report::{Reason, Subject};
use crate::sockets::{Billing, BillingError};
use crate::volume::{PodUid, VolumeId};

#[async_trait]
impl Billing for Bills {
    async fn measure(&self, pod: &PodUid) -> Result<Bytes, BillingError> {
        Ok(self.charged(pod).await?)
    }

    async fn reserve_retained(
        &self,
        pod: &PodUid,
        files: Vec<(OwnedFd, Extent)>,
    ) -> Result<(), ReserveError> {
        let ids = self.volumes_of(pod);
        let reserved = self.reserve(pod, files).await;
        if let Err(ReserveError::Full(full)) = &reserved {
            self.say_full(pod, ids, full);
        }
        reserved
    }

    async fn leaving(&self, pod: &PodUid, at_most: Bytes) -> Result<(), BillingError> {
        Ok(self.leaves(pod, at_most).await?)
    }

    async fn returned(&self, pod: &PodUid) -> Result<(), BillingError> {
        Ok(self.stays(pod)?)
    }
}

impl From<Error> for BillingError {
    fn from(error: Error) -> Self {
        Self::Failed(chain(&error))
    }
}

impl Bills {
    /// Tells the owners of a pod and of its volumes that something did not fit.
    fn say_full(&self, pod: &PodUid, ids: Vec<VolumeId>, full: &Full) {
        let note = match (full.limit, full.limit_bytes) {
            (Limit::Allowance, 0) => {
                "the pod's allowance is spent, and there is no retainer".into()
            }
            (Limit::Allowance, limit) => format!(
                "{} more were asked for: the pod's allowance is spent, and of {} for the retainer {} are left",
                Bytes(full.asked),
                Bytes(limit),
                Bytes(full.free)
            ),
            (Limit::Cgroup | Limit::Volume, _) => full.to_string(),
        };
        for volume in ids {
            let on_pod = Subject::PodOf {
                pod: pod.clone(),
                volume: volume.clone(),
            };
            let about = [on_pod, Subject::Volume(volume)];
            let events = &self.inner.settings.events;
            events.publish(Reason::StoreFull, &about, note.clone());
        }
    }

    /// Bytes charged to the pod's subtree on its volumes. Never less than the truth: pages that no path reaches count as this pod's.
    ///
    /// # Errors
    /// When a volume of it cannot be surveyed.
    async fn charged(&self, pod: &PodUid) -> Result<Bytes, Error> {
        let mut sum: u64 = 0;
        for id in self.volumes_of(pod) {
            let (inner, uid) = (Arc::clone(&self.inner), pod.clone());
            let survey = move || -> Result<u64, Error> {
                let layer = inner.layer(&id);
                let root = std::fs::File::open(&layer)
                    .map_err(vineyard_charge::survey::SurveyError::from)?;
                let tree = survey_tree(&mut Surveyor::open()?, root.as_fd())?;
                let owners = inner.pods.subtree(&uid);
                if owners.is_empty() {
                    // Whoever asks is alive, so this is the wrong place to look, and 0 would be a lie.
                    return Err(Error::Inside(format!("no cgroup of pod {uid} is found")));
                }
                let charged = tree
                    .owners
                    .iter()
                    .filter(|(owner, _)| owners.contains(owner));
                let charged: u64 = charged.map(|(_, bytes)| bytes).sum();
                let usage = inner.mounter.usage(&layer)?;
                let used = usage.bytes.saturating_sub(usage.free_bytes);
                Ok(charged + used.saturating_sub(tree.present))
            };
            let surveyed = spawn_blocking(survey).await;
            sum += surveyed.map_err(|panic| Error::Inside(panic.to_string()))??;
        }
        Ok(Bytes(sum))
    }

    /// The pod is about to leave with at most `at_most` bytes that were granted to it. When this returns, the retainer's request covers
    /// them and that is on record; the hand-over has begun.
    ///
    /// # Errors
    /// When it is not on record.
    async fn leaves(&self, pod: &PodUid, at_most: Bytes) -> Result<(), Error> {
        let settings = &self.inner.settings;
        let record = LeavingRecord {
            boot_id: settings.boot_id.clone(),
            pod_uid: pod.clone(),
            at_most,
        };
        record::write(&leaving_path(&settings.records, pod), &record)?;
        let before = self.inner.accounts().leaving.insert(pod.clone(), at_most);
        let ids = self.volumes_of(pod);
        let mut used = HashMap::new();
        for id in &ids {
            used.insert(id, self.inner.used(id).await.unwrap_or_default().bytes);
        }
        for id in &ids {
            let mut all = self.inner.accounts();
            let Some(account) = all.volumes.get_mut(id) else {
                continue;
            };
            let used = used.get(id).copied().unwrap_or_default();
            // Said again, only what is new of it. Alone, it has all there is, ordinary files too.
            let expected = match (before, account.is_only(pod)) {
                (None, true) => account.unretained(used),
                (None, false) => at_most.0.min(account.unretained(used)),
                (Some(before), _) => at_most.0.saturating_sub(before.0),
            };
            account.ask(expected);
        }
        self.inner
            .settle_request(&ids.iter().collect::<Vec<_>>())
            .await?;
        for id in &ids {
            self.inner.kick(id);
        }
        if !self.inner.request.heard(HEARD).await {
            let standing = self.inner.request.standing();
            tracing::warn!(pod.uid = %pod, state = standing.state.label(), "the scheduler does not know yet what a pod leaves behind");
        }
        tracing::info!(pod.uid = %pod, at_most = %at_most, volumes = ids.len(), "a pod leaves");
        Ok(())
    }

    /// The pod does not leave after all. What has moved stays with the retainer.
    ///
    /// # Errors
    /// When that is not on record.
    fn stays(&self, pod: &PodUid) -> Result<(), Error> {
        if !self.inner.forget(pod)? {
            return Ok(());
        }
        let ids = self.volumes_of(pod);
        for id in &ids {
            if let Some(account) = self.inner.accounts().volumes.get_mut(id) {
                account.ask(0);
            }
            self.inner.kick(id);
        }
        tracing::info!(pod.uid = %pod, "a pod does not leave after all");
        Ok(())
    }

    /// Has the retainer allocate extents of files on volumes that the pod may write. All or nothing.
    ///
    /// # Errors
    /// [`ReserveError::Full`] when they do not fit under what is allocated to the retainer.
    async fn reserve(
        &self,
        pod: &PodUid,
        files: Vec<(OwnedFd, Extent)>,
    ) -> Result<(), ReserveError> {
        let Some(engine) = self.inner.engine.clone() else {
            // Nobody here has room for more than the pods themselves may add.
            return Err(ReserveError::Full(Full {
                asked: files.iter().map(|(_, extent)| extent.length).sum(),
                free: 0,
                limit: Limit::Allowance,
                limit_bytes: 0,
            }));
        };
        let shares = self.shares(pod, &files)?;
        let reserving = self.cover(shares).await?;
        let reserve = move || -> Result<(), ReserveError> {
            let payer = engine
                .payer()
                .map_err(|trouble| refused(&trouble.to_string()))?;
            let extents: Vec<_> = files
                .iter()
                .map(|(file, extent)| (file.as_fd(), *extent))
                .collect();
            payer.reserve(&extents)?;
            // Here, because the caller may be gone by now.
            reserving.done();
            Ok(())
        };
        let reserved = spawn_blocking(reserve).await;
        reserved.unwrap_or_else(|panic| Err(refused(&panic.to_string())))
    }

    /// How the extents are spread over the pod's volumes.
    fn shares(
        &self,
        pod: &PodUid,
        files: &[(OwnedFd, Extent)],
    ) -> Result<Vec<(VolumeId, u64)>, ReserveError> {
        let mut devices = HashMap::new();
        for id in self.volumes_of(pod) {
            let device = std::fs::metadata(self.inner.layer(&id))?.dev();
            devices.insert(device, (id, 0));
        }
        for (file, extent) in files {
            let device = nix::sys::stat::fstat(file)
                .map_err(std::io::Error::from)?
                .st_dev;
            let (_, bytes) = devices
                .get_mut(&device)
                .ok_or_else(|| refused("the file is on no volume of this pod"))?;
            *bytes += extent.length.next_multiple_of(PAGE);
        }
        let shares = devices.into_values().filter(|(_, bytes)| *bytes > 0);
        Ok(shares.collect())
    }

    /// The volumes that a pod has here.
    fn volumes_of(&self, pod: &PodUid) -> Vec<VolumeId> {
        let all = self.inner.accounts();
        let its = all.volumes.iter().filter(|(_, account)| account.has(pod));
        its.map(|(id, _)| id.clone()).collect()
    }
}

fn refused(message: &str) -> ReserveError {
    ReserveError::Refused {
        message: message.to_owned(),
    }
}
