//! The bills as operators see them: over the admin socket and as metrics.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::task::spawn_blocking;
use vineyard_charge::CgroupId;
use vineyard_charge::survey::{Ledger, SurveyError};
use vineyard_proto::admin::{
    Bills as View, LeavingPod, Left as LeftView, Share, Tenant as TenantView, VolumeBill,
    share::Payer, volume_bill::State,
};

use super::account::{Account, Next};
use super::{Accounts, Bills, Error, Inner};
use crate::volume::{PodUid, VolumeId};

/// Who is charged how much, and where the unknown owners are.
struct Found {
    owners: BTreeMap<CgroupId, u64>,
    paths: HashMap<CgroupId, String>,
    unseen: u64,
    is_new: bool,
}

impl Bills {
    /// Everything that is known. With `survey` every volume is looked at now, page by page.
    ///
    /// # Errors
    /// When a volume cannot be surveyed.
    pub(crate) async fn views(&self, survey: bool) -> Result<View, Error> {
        let inner = Arc::clone(&self.inner);
        let view = spawn_blocking(move || inner.view(survey)).await;
        view.map_err(|panic| Error::Inside(panic.to_string()))?
    }
}

impl Inner {
    /// Blocking.
    pub(super) fn view(&self, survey: bool) -> Result<View, Error> {
        let ids: Vec<_> = self.accounts().volumes.keys().cloned().collect();
        let mut volumes = Vec::new();
        for id in &ids {
            // Deleted meanwhile.
            if let Some(volume) = self.volume(id, survey)? {
                volumes.push(volume);
            }
        }
        let leaving = self.accounts().leaving.clone();
        Ok(View {
            volumes,
            has_retainer: self.engine.is_some(),
            request_trouble: self.request.standing().trouble(),
            requested_bytes: self.request.desired().0,
            allocated_bytes: self.request.allocated().0,
            leaving: leaving
                .into_iter()
                .map(|(uid, at_most)| LeavingPod {
                    pod_uid: uid.as_str().to_owned(),
                    at_most_bytes: at_most.0,
                })
                .collect(),
        })
    }

    fn volume(&self, id: &VolumeId, survey: bool) -> Result<Option<VolumeBill>, Error> {
        let Ok(usage) = self.mounter.usage(&self.layer(id)) else {
            return Ok(None);
        };
        let found = match survey {
            true => Some(self.survey(id)?),
            false => None,
        };
        let (uids, retainer) = {
            let all = self.accounts();
            let Some(account) = all.volumes.get(id) else {
                return Ok(None);
            };
            let uids: Vec<_> = account.tenants().filter_map(|it| it.uid.clone()).collect();
            let report = account.report().map(|(report, _)| report);
            (uids, report.map(|it| it.retainer.clone()))
        };
        let mut pods = HashMap::new();
        for uid in uids {
            let owners = self.pods.subtree(&uid);
            pods.extend(owners.into_iter().map(|owner| (owner, uid.clone())));
        }
        let retainer = retainer.unwrap_or_default();
        let all = self.accounts();
        let Some(account) = all.volumes.get(id) else {
            return Ok(None);
        };
        let found = found.or_else(|| last(account));
        let (retained, pending, expected) = account.sums();
        let running = account.running();
        let progress = running.map(|it| &it.progress);
        let age = match &found {
            Some(found) if found.is_new => Some(0),
            found => found.as_ref().and(account.age()).map(millis),
        };
        Ok(Some(VolumeBill {
            volume_id: id.as_str().to_owned(),
            capacity_bytes: usage.bytes,
            used_bytes: usage.bytes.saturating_sub(usage.free_bytes),
            unseen_bytes: found.as_ref().map_or(0, |it| it.unseen),
            shares: found.map_or_else(Vec::new, |it| shares(&it, &retainer, &pods)),
            retained_bytes: retained,
            pending_bytes: pending,
            expected_bytes: expected,
            state: self.state(account).into(),
            total_bytes: progress.map_or(0, |it| it.total()),
            seen_bytes: progress.map_or(0, |it| it.seen()),
            moved_bytes: progress.map_or(0, |it| it.moved()),
            trouble: account.trouble().unwrap_or_default().to_owned(),
            left: left(account),
            age_milliseconds: age,
            tenants: tenants(account, &all),
        }))
    }

    fn state(&self, account: &Account) -> State {
        if self.engine.is_none() {
            return State::Unknown;
        }
        if account.running().is_some() {
            return State::Running;
        }
        match account.next() {
            Next::Again { .. } => State::Waiting,
            Next::Run => State::Due,
            Next::Rest if account.is_due() || account.report().is_none() => State::Due,
            Next::Rest => State::Settled,
        }
    }

    fn survey(&self, id: &VolumeId) -> Result<Found, Error> {
        let layer = self.layer(id);
        // Opened first: a volume that is being deleted is an error here and not a ledger of the directory below it.
        let root = File::open(&layer).map_err(SurveyError::from)?;
        nix::sys::statfs::fstatfs(root.as_fd())
            .map_err(|errno| Error::Survey(std::io::Error::from(errno).into()))?;
        let ledger = Ledger::of(&layer)?;
        let named = ledger.bills.iter().filter_map(|bill| {
            let path = bill.path.as_ref()?;
            Some((bill.owner, format!("/{}", path.display())))
        });
        Ok(Found {
            paths: named.collect(),
            unseen: ledger.tree.unseen + ledger.unreached,
            owners: ledger.tree.owners,
            is_new: true,
        })
    }
}

fn last(account: &Account) -> Option<Found> {
    let (report, _) = account.report()?;
    Some(Found {
        owners: report.outcome.billed.clone(),
        paths: HashMap::new(),
        unseen: report.outcome.unseen + report.outcome.unreached,
        is_new: false,
    })
}

/// Pods and the retainer as one each, others by cgroup; largest first.
fn shares(found: &Found, retainer: &[CgroupId], pods: &HashMap<CgroupId, PodUid>) -> Vec<Share> {
    let mut sums: BTreeMap<(i32, String, u64), u64> = BTreeMap::new();
    for (owner, bytes) in &found.owners {
        let key = if retainer.contains(owner) {
            (Payer::Retainer.into(), String::new(), 0)
        } else if let Some(uid) = pods.get(owner) {
            (Payer::Pod.into(), uid.as_str().to_owned(), 0)
        } else {
            let path = found.paths.get(owner).cloned().unwrap_or_default();
            (Payer::Other.into(), path, owner.0)
        };
        *sums.entry(key).or_default() += bytes;
    }
    let mut shares: Vec<_> = sums
        .into_iter()
        .map(|((payer, name, cgroup), bytes)| Share {
            payer,
            name,
            cgroup,
            bytes,
        })
        .collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

fn left(account: &Account) -> Vec<LeftView> {
    let report = account.report();
    let left = report.map_or(&[][..], |(report, _)| &report.outcome.left);
    left.iter()
        .map(|left| LeftView {
            path: left
                .path
                .as_ref()
                .map_or_else(String::new, |path| path.display().to_string()),
            bytes: left.bytes,
            cgroup: left.owner.map_or(0, |owner| owner.0),
            reason: left.reason.clone(),
        })
        .collect()
}

fn tenants(account: &Account, all: &Accounts) -> Vec<TenantView> {
    let leaves = |uid: &PodUid| all.leaving.contains_key(uid);
    account
        .tenants()
        .map(|tenant| TenantView {
            pod_uid: tenant
                .uid
                .as_ref()
                .map_or_else(String::new, |uid| uid.as_str().to_owned()),
            writable: tenant.writable,
            leaves: tenant.departing || tenant.uid.as_ref().is_some_and(leaves),
        })
        .collect()
}

fn millis(age: std::time::Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
