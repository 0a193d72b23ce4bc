//! What the retainer's pod requests, so that the scheduler counts the bytes that it is billed for.
//!
//! Sums are absolute: to ask again is harmless, and whoever asks last is right. A hand-over never waits for an answer, because the
//! bytes exist already; new bytes on the retainer's bill do.

#[cfg(feature = "kubernetes")]
mod kubernetes;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::async_trait;

use super::record;
use crate::bytes::Bytes;

#[cfg(feature = "kubernetes")]
pub(crate) use kubernetes::{KubernetesRequest, Place};

/// Why a request is not recorded.
#[derive(Debug, thiserror::Error)]
#[error("ask for memory for the retainer: {0}")]
pub(crate) struct RequestError(#[from] pub(crate) record::RecordError);

/// The memory request of the retainer's pod.
#[async_trait]
pub(crate) trait RetainerRequest: Send + Sync + std::fmt::Debug {
    /// Asks for `total` in all. When it returns, that is on record.
    ///
    /// # Errors
    /// When it is not; what was asked before still holds.
    async fn set(&self, total: Bytes) -> Result<(), RequestError>;

    /// What was asked for last.
    fn desired(&self) -> Bytes;

    /// What of it is granted: the node counts it, whether or not it is used yet.
    fn allocated(&self) -> Bytes;

    /// Waits until whoever counts memory has heard what was asked for last, for at most `patience`. Returns whether they have.
    async fn heard(&self, _patience: Duration) -> bool {
        true
    }

    /// Waits until `total` is granted, for at most `patience` and not longer than there is hope. Returns whether it is.
    async fn granted(&self, total: Bytes, _patience: Duration) -> bool {
        self.allocated() >= total
    }

    /// How what was asked for last stands.
    fn standing(&self) -> Standing {
        Standing::default()
    }

    /// What can be granted at most, where a request cannot be changed: the node must not offer more to volumes.
    fn bound(&self) -> Option<Bytes> {
        None
    }
}

/// How a request stands.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
pub(crate) enum State {
    /// All of it is allocated.
    #[default]
    Allocated,
    /// Asked for, and not answered yet.
    Asked,
    /// Counted by the scheduler, but kubelet has no room for it now.
    Deferred,
    /// Kubelet never resizes this pod: what is allocated to it is all that there is.
    Infeasible,
    /// The API server does not resize pods, or not this one: what is allocated to it is all that there is.
    Refused,
    /// The API server does not answer.
    Unheard,
    /// This node has no retainer.
    Absent,
}

impl State {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Allocated,
        Self::Asked,
        Self::Deferred,
        Self::Infeasible,
        Self::Refused,
        Self::Unheard,
        Self::Absent,
    ];

    /// Whether asking for more is in vain, because a request cannot be changed here.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn is_fixed(self) -> bool {
        matches!(self, Self::Infeasible | Self::Refused)
    }

    /// As metrics have it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Allocated => "allocated",
            Self::Asked => "asked",
            Self::Deferred => "deferred",
            Self::Infeasible => "infeasible",
            Self::Refused => "refused",
            Self::Unheard => "unheard",
            Self::Absent => "absent",
        }
    }
}

/// How a request stands, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// In one word.
    pub(crate) state: State,
    /// What Kubernetes says about it; may be empty.
    pub(crate) message: String,
}

impl Standing {
    /// What is wrong, in one line; empty when nothing is, or nothing is known yet.
    pub(crate) fn trouble(&self) -> String {
        match (self.state, self.message.as_str()) {
            (State::Allocated | State::Asked, _) => String::new(),
            (state, "") => state.label().to_owned(),
            (state, message) => format!("{}: {message}", state.label()),
        }
    }
}

/// A request without Kubernetes: a file, granted as far as the node's budget goes.
#[derive(Debug)]
pub(crate) struct FileRequest {
    path: PathBuf,
    boot_id: String,
    budget: Bytes,
    desired: Mutex<Bytes>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    boot_id: String,
    desired: Bytes,
}

impl FileRequest {
    /// The request in the file `path`, of this boot of a node that offers `budget` to volumes.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(crate) fn open(
        path: PathBuf,
        boot_id: &str,
        budget: Bytes,
    ) -> Result<Self, record::RecordError> {
        let found: Option<Document> = record::read(&path)?;
        // The memory of another boot is gone, and what was asked for it with it.
        let desired = found
            .filter(|document| document.boot_id == boot_id)
            .map_or(Bytes(0), |document| document.desired);
        Ok(Self {
            path,
            boot_id: boot_id.to_owned(),
            budget,
            desired: Mutex::new(desired),
        })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Bytes> {
        // A number is whole after any panic.
        self.desired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl RetainerRequest for FileRequest {
    async fn set(&self, total: Bytes) -> Result<(), RequestError> {
        let mut desired = self.held();
        if *desired == total {
            return Ok(());
        }
        // A few bytes on a tmpfs: not worth another thread.
        if total == Bytes(0) {
            // As if nothing was ever asked for, also for whoever looks what an uninstalled driver left.
            record::remove(&self.path)?;
        } else {
            let document = Document {
                boot_id: self.boot_id.clone(),
                desired: total,
            };
            record::write(&self.path, &document)?;
        }
        *desired = total;
        Ok(())
    }

    fn desired(&self) -> Bytes {
        *self.held()
    }

    fn allocated(&self) -> Bytes {
        self.desired().min(self.budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_absolute_and_survives_the_driver_but_not_the_boot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("request.json");
        let open = |boot| FileRequest::open(path.clone(), boot, Bytes(100)).unwrap();
        let request = open("one");
        assert_eq!(request.allocated(), Bytes(0));
        request.set(Bytes(70)).await.unwrap();
        request.set(Bytes(70)).await.unwrap();
        assert_eq!(open("one").desired(), Bytes(70));
        request.set(Bytes(40)).await.unwrap();
        assert_eq!(open("one").desired(), Bytes(40));
        assert_eq!(open("two").desired(), Bytes(0));
        request.set(Bytes(0)).await.unwrap();
        assert_eq!(open("one").desired(), Bytes(0));
        assert!(!path.exists(), "a record of nothing");
    }

    #[tokio::test]
    async fn no_more_is_granted_than_the_node_offers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("request.json");
        let request = FileRequest::open(path, "one", Bytes(100)).unwrap();
        request.set(Bytes(170)).await.unwrap();
        assert_eq!(request.desired(), Bytes(170));
        assert_eq!(request.allocated(), Bytes(100));
    }

    #[tokio::test]
    async fn a_request_that_cannot_be_recorded_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/request.json");
        let request = FileRequest::open(path, "one", Bytes(100)).unwrap();
        assert!(request.set(Bytes(70)).await.is_err());
        assert_eq!(request.desired(), Bytes(0));
    }
}
