//! Writes events into Kubernetes (events.k8s.io/v1).

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::Api;
use kube::runtime::events::{self, Event, EventType, Reporter};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::mpsc;

use super::limit::Limit;
use super::{Counts, Notice, Outcome, Reason, Subject};
use crate::resources::VineyardVolume;
use crate::volume::{ClaimReference, NodeId, PodReference, Volume, VolumeId};

/// How long Kubernetes may take for one event: others wait behind it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most bytes that Kubernetes takes for a note.
const NOTE: usize = 1024;

/// A reason and an object, so far as the limit tells them apart.
type Said = (Reason, [String; 3]);

/// Writes one event after the other.
pub(crate) struct Recorder {
    recorder: events::Recorder,
    volumes: Api<VineyardVolume>,
    limit: Limit<Said>,
}

impl Recorder {
    /// Of the component `controller` (a qualified name); records are in `namespace`.
    pub(crate) fn new(client: Client, namespace: &str, controller: &str) -> Self {
        Self {
            recorder: events::Recorder::new(client.clone(), Reporter::from(controller)),
            volumes: Api::namespaced(client, namespace),
            limit: Limit::new(),
        }
    }

    /// Writes what comes, until nobody can send any more.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Notice>, counts: Counts) {
        while let Some(notice) = waiting.recv().await {
            for subject in &notice.subjects {
                let found = tokio::time::timeout(PATIENCE, self.references(subject)).await;
                let Ok(Ok(references)) = found else {
                    tracing::debug!(%subject, "an event is about something that cannot be found");
                    counts.add(Outcome::Failed);
                    continue;
                };
                for reference in references {
                    counts.add(self.write(&notice, &reference).await);
                }
            }
        }
    }

    async fn write(&mut self, notice: &Notice, object: &ObjectReference) -> Outcome {
        let said = (notice.reason, place(object));
        if !self.limit.allows(said, Instant::now()) {
            return Outcome::Suppressed;
        }
        let event = Event {
            type_: match notice.reason.is_warning() {
                true => EventType::Warning,
                false => EventType::Normal,
            },
            reason: notice.reason.as_str().into(),
            note: Some(shortened(&notice.note).into()),
            action: notice.reason.action().into(),
            secondary: None,
        };
        let written = self.recorder.publish(&event, object);
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(())) => Outcome::Written,
            Ok(Err(error)) => {
                tracing::debug!(reason = event.reason, %error, "an event is not written");
                Outcome::Failed
            }
            Err(_) => Outcome::Failed,
        }
    }

    /// The objects that an event on `subject` is written on.
    async fn references(&self, subject: &Subject) -> Result<Vec<ObjectReference>, kube::Error> {
        Ok(match subject {
            Subject::Pod(pod) => vec![pod_object(pod)],
            Subject::Node(node) => vec![node_object(node)],
            Subject::Volume(id) => {
                let found = self.volumes.get_opt(id.as_str()).await?;
                found.into_iter().flat_map(volume_objects).collect()
            }
            Subject::PodOf { pod, volume } => {
                let found = self.volume(volume).await?;
                let its = found.into_iter().flat_map(|it| it.publications);
                let its = its.filter_map(|it| it.pod);
                its.filter(|it| it.uid == pod.as_str())
                    .take(1)
                    .map(|it| pod_object(&it))
                    .collect()
            }
        })
    }

    async fn volume(&self, id: &VolumeId) -> Result<Option<Volume>, kube::Error> {
        let found = self.volumes.get_opt(id.as_str()).await?;
        Ok(found.and_then(|found| Volume::try_from(found).ok()))
    }
}

fn volume_objects(resource: VineyardVolume) -> Vec<ObjectReference> {
    let mut objects = vec![resource.object_ref(&())];
    let name = resource.name_any();
    match Volume::try_from(resource) {
        Ok(volume) => objects.extend(volume.claim.as_ref().map(claim_object)),
        Err(reason) => tracing::debug!(name, reason, "a record cannot be read"),
    }
    objects
}

fn pod_object(pod: &PodReference) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..Default::default()
    }
}

fn claim_object(claim: &ClaimReference) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: Some(claim.namespace.clone()),
        name: Some(claim.name.clone()),
        uid: claim.uid.clone(),
        ..Default::default()
    }
}

fn node_object(node: &NodeId) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.as_str().into()),
        // As kubelet does it: this is where `kubectl describe node` looks.
        uid: Some(node.as_str().into()),
        ..Default::default()
    }
}

fn place(object: &ObjectReference) -> [String; 3] {
    let parts = [&object.kind, &object.namespace, &object.name];
    parts.map(|part| part.clone().unwrap_or_default())
}

/// As much of a note as Kubernetes takes.
fn shortened(note: &str) -> &str {
    let ends = (0..=NOTE.min(note.len())).rev();
    let mut ends = ends.filter(|end| note.is_char_boundary(*end));
    &note[..ends.next().unwrap_or(0)]
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
