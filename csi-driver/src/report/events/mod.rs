//! Events: what has happened to a pod, a claim, a volume or a node, said where its owner looks.
//!
//! Whoever publishes one hands it over and goes on. A task writes it into Kubernetes; without Kubernetes it is kept for the web page
//! only. The same event again is counted instead of repeated, and nobody gets more than a few at a time.

#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(feature = "kubernetes")]
mod limit;
mod reason;
mod recent;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::mpsc;

#[cfg(feature = "kubernetes")]
pub(crate) use kubernetes::Recorder;
pub(crate) use reason::Reason;
pub(crate) use recent::Seen;

use crate::volume::{NodeId, PodReference, PodUid, VolumeId};
use recent::Recent;

/// Events that wait to be written. A storm must not cost memory.
#[cfg(feature = "kubernetes")]
const QUEUE: usize = 256;

/// What an event is about. It is written on each of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// A volume: on its `VineyardVolume`, and on the claim that it was made for.
    Volume(VolumeId),
    /// A pod whose name is known.
    Pod(PodReference),
    /// A pod that has a volume published: the volume's record knows its name.
    PodOf {
        /// Which.
        pod: PodUid,
        /// What it has.
        volume: VolumeId,
    },
    /// A node.
    Node(NodeId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Pod(pod) => write!(f, "pod {pod}"),
            Self::PodOf { pod, .. } => write!(f, "pod {pod}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// One event on its way.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    /// What has happened.
    pub(crate) reason: Reason,
    /// What it is about.
    pub(crate) subjects: Vec<Subject>,
    /// The sentence that people read.
    pub(crate) note: String,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Outcome {
    /// It is in Kubernetes.
    Written,
    /// There were too many of them, or it was said a moment ago.
    Suppressed,
    /// Kubernetes did not take it.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

/// Counts events by what became of them. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Counts(Family<Labels, Counter>);

impl Default for Counts {
    /// All at zero, and there to be scraped.
    fn default() -> Self {
        let family = Family::default();
        for outcome in [Outcome::Written, Outcome::Suppressed, Outcome::Failed] {
            drop(family.get_or_create(&Labels { outcome }));
        }
        Self(family)
    }
}

impl Counts {
    /// The metric, for a registry.
    pub(crate) fn family(&self) -> impl prometheus_client::registry::Metric + use<> {
        self.0.clone()
    }
    #[cfg(test)]
    fn get(&self, outcome: Outcome) -> u64 {
        self.0.get_or_create(&Labels { outcome }).get()
    }

    fn add(&self, outcome: Outcome) {
        self.0.get_or_create(&Labels { outcome }).inc();
    }
}

/// Where events are published. Cheap to clone; the default one has nobody that listens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    queue: Option<mpsc::Sender<Notice>>,
    recent: Arc<Mutex<Recent>>,
    counts: Counts,
}

impl Events {
    /// Events that are kept for the web page, and written by nobody.
    pub(crate) fn unwritten(counts: Counts) -> Self {
        Self {
            counts,
            ..Self::default()
        }
    }

    /// Events that `recorder` writes. Must be called within a runtime.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn written_by(recorder: Recorder, counts: Counts) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(recorder.run(waiting, counts.clone()));
        Self {
            queue: Some(queue),
            counts,
            ..Self::default()
        }
    }

    /// Publishes an event about each of `subjects`. Never waits, never fails.
    pub(crate) fn publish(&self, reason: Reason, subjects: &[Subject], note: impl Into<String>) {
        let notice = Notice {
            reason,
            subjects: subjects.to_vec(),
            note: note.into(),
        };
        tracing::debug!(reason = reason.as_str(), note = notice.note, "event");
        self.recent().add(&notice, SystemTime::now());
        if let Some(queue) = &self.queue
            && queue.try_send(notice).is_err()
        {
            self.counts.add(Outcome::Suppressed);
        }
    }

    /// The last ones, the newest first.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.recent().newest_first()
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        // A list of sentences: whatever is in it is fit to be shown.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_neither_waits_nor_fails_when_nobody_takes_them() {
        let (queue, _waiting) = mpsc::channel(1);
        let events = Events {
            queue: Some(queue),
            ..Events::default()
        };
        let volume = Subject::Volume(VolumeId::of_name("a"));
        for _ in 0..3 {
            events.publish(Reason::VolumeLost, std::slice::from_ref(&volume), "gone");
        }
        assert_eq!(events.counts.get(Outcome::Suppressed), 2);
        let seen = events.seen();
        assert_eq!((seen.len(), seen[0].count), (1, 3));
        assert_eq!(seen[0].about, "volume a");
    }
}
