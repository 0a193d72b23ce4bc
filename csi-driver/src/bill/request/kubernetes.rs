//! The request of the retainer's pod in Kubernetes: resized in place, so that the pod and what it is billed for stay.
//!
//! What is asked for is on record in a file first, as without Kubernetes. A task of its own then sees to it that the pod's spec says
//! so, whatever becomes of the pod, of the API server or of this process, and knows what kubelet has allocated.
//! `docs/design/retainer.md` §7 says what each answer leads to.

mod follow;
mod observe;
mod report;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::async_trait;

use super::super::record::RecordError;
use super::{FileRequest, RequestError, RetainerRequest, Standing, State};
use crate::bytes::Bytes;
use crate::report::Events;
use crate::volume::{NodeId, PodReference};

/// Which pod it is about.
#[derive(Clone)]
pub(crate) struct Place {
    /// The API server.
    pub(crate) client: Client,
    /// The namespace of the driver.
    pub(crate) namespace: String,
    /// The node of the pod.
    pub(crate) node: NodeId,
    /// What the node offers to volumes: it never retains more, and the API server refuses what no node has.
    pub(crate) budget: Bytes,
    /// Where people are told.
    pub(crate) events: Events,
    /// What the retainer's own process needs: the pod requests this and what is asked for.
    pub(crate) overhead: Bytes,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("namespace", &self.namespace)
            .field("node", &self.node)
            .field("overhead", &self.overhead)
            .finish_non_exhaustive()
    }
}

/// What is known of the pod's request. Sums are without what the process itself needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    pod: Option<PodReference>,
    /// What its spec asks for.
    heard: Option<Bytes>,
    /// What of it is surely allocated.
    allocated: Bytes,
    standing: Standing,
}

/// The request of a node's retainer in Kubernetes.
#[derive(Debug)]
pub(crate) struct KubernetesRequest {
    record: FileRequest,
    budget: Bytes,
    wanted: watch::Sender<Bytes>,
    known: watch::Receiver<Known>,
    /// Ends with this.
    _following: JoinSet<()>,
}

impl KubernetesRequest {
    /// The request of the retainer at `place`, on record in the file `path` for this boot. Must be called within a runtime.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(crate) fn open(place: Place, path: PathBuf, boot_id: &str) -> Result<Self, RecordError> {
        let record = FileRequest::open(path, boot_id, Bytes(u64::MAX))?;
        let budget = place.budget;
        let (wanted, asked) = watch::channel(record.desired().min(budget));
        let unknown = Known {
            standing: Standing {
                state: State::Asked,
                message: String::new(),
            },
            ..Known::default()
        };
        let (learned, known) = watch::channel(unknown);
        let mut following = JoinSet::new();
        following.spawn(report::run(place.clone(), asked.clone(), known.clone()));
        following.spawn(follow::run(place, asked, learned));
        Ok(Self {
            record,
            budget,
            wanted,
            known,
            _following: following,
        })
    }

    /// What of it the pod is to request.
    fn asked(&self) -> Bytes {
        self.desired().min(self.budget)
    }

    /// Waits until one of both is true, for at most `patience`. Returns whether it is the first.
    async fn until(
        &self,
        patience: Duration,
        done: impl Fn(&Known) -> bool,
        in_vain: impl Fn(&Known) -> bool,
    ) -> bool {
        let mut known = self.known.clone();
        let waiting = known.wait_for(|known| done(known) || in_vain(known));
        match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(known)) => done(&known),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

#[async_trait]
impl RetainerRequest for KubernetesRequest {
    async fn set(&self, total: Bytes) -> Result<(), RequestError> {
        self.record.set(total).await?;
        let asked = self.asked();
        self.wanted
            .send_if_modified(|wanted| std::mem::replace(wanted, asked) != asked);
        Ok(())
    }

    fn desired(&self) -> Bytes {
        self.record.desired()
    }

    fn allocated(&self) -> Bytes {
        // What is not asked for any more is about to go.
        self.known.borrow().allocated.min(self.desired())
    }

    async fn heard(&self, patience: Duration) -> bool {
        let asked = self.asked();
        let is_heard = |known: &Known| known.heard.is_some_and(|heard| heard >= asked);
        let in_vain = |known: &Known| {
            let state = known.standing.state;
            state.is_fixed() || matches!(state, State::Unheard | State::Absent)
        };
        self.until(patience, is_heard, in_vain).await
    }

    async fn granted(&self, total: Bytes, patience: Duration) -> bool {
        let is_granted = |known: &Known| known.allocated.min(self.desired()) >= total;
        let in_vain = |known: &Known| match known.standing.state {
            State::Deferred => known.heard.is_some_and(|heard| heard >= self.asked()),
            State::Infeasible | State::Refused | State::Absent => true,
            State::Allocated | State::Asked | State::Unheard => false,
        };
        self.until(patience, is_granted, in_vain).await
    }

    fn standing(&self) -> Standing {
        self.known.borrow().standing.clone()
    }

    fn bound(&self) -> Option<Bytes> {
        let known = self.known.borrow();
        let is_fixed = known.standing.state.is_fixed();
        is_fixed.then_some(known.allocated)
    }
}
