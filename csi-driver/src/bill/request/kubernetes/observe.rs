//! What a pod says about its memory request: asked for, allocated, and what kubelet answers. No I/O.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;

use crate::bytes::Bytes;
use crate::webhook::quantity;

/// The container whose request is changed; a pod with a single container may call it otherwise.
const CONTAINER: &str = "retainer";

/// What kubelet answers to a changed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing yet, or all is done.
    Silence,
    /// It has no room now, and tries again by itself.
    Deferred(String),
    /// It never will.
    Infeasible(String),
}

/// A retainer's pod, as far as its request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observation {
    pub(super) uid: String,
    pub(super) name: String,
    /// The container with the request.
    pub(super) container: String,
    /// What its spec asks for.
    pub(super) request: Bytes,
    /// What kubelet has allocated, as its status says.
    allocated: Bytes,
    /// Whether the status is about this spec; `None` where nobody says.
    is_current: Option<bool>,
    pub(super) answer: Answer,
}

impl Observation {
    /// Reads a pod. `None` when it has no container that could be the retainer.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let container = match &spec.containers[..] {
            [only] => only,
            several => several.iter().find(|it| it.name == CONTAINER)?,
        };
        let status = pod.status.as_ref();
        let statuses = status.and_then(|it| it.container_statuses.as_deref());
        let its = statuses
            .unwrap_or_default()
            .iter()
            .find(|it| it.name == container.name);
        let (generation, observed) = (
            pod.metadata.generation,
            status.and_then(|it| it.observed_generation),
        );
        let is_current = match (generation, observed) {
            (Some(generation), Some(observed)) => Some(observed >= generation),
            _ => None,
        };
        let conditions = status.and_then(|it| it.conditions.as_deref());
        Some(Self {
            uid: pod.uid()?,
            name: pod.name_any(),
            container: container.name.clone(),
            request: request(container),
            allocated: its.and_then(allocated).unwrap_or_default(),
            is_current,
            answer: answer(conditions.unwrap_or_default(), generation),
        })
    }

    /// What is surely allocated, when `before` surely was. A status may be older than the spec; then what is asked for now and what
    /// was known before are bounds.
    pub(super) fn surely_allocated(&self, before: Option<Bytes>) -> Bytes {
        let stated = self.allocated.min(self.request);
        let is_certain = self.is_current.unwrap_or(self.allocated == self.request);
        match before {
            Some(before) if !is_certain => before.min(stated),
            _ => stated,
        }
    }
}

/// Whether a pod can be the retainer that is billed from now on.
pub(super) fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn request(container: &Container) -> Bytes {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|it| it.requests.as_ref());
    let memory = requests.and_then(|it| it.get("memory"));
    memory
        .and_then(|it| quantity::bytes(&it.0))
        .unwrap_or_default()
}

fn allocated(status: &ContainerStatus) -> Option<Bytes> {
    // Before Kubernetes 1.35 the former is not everywhere.
    let effective = || status.resources.as_ref()?.requests.as_ref();
    let allocated = status.allocated_resources.as_ref().or_else(effective)?;
    quantity::bytes(&allocated.get("memory")?.0)
}

fn answer(conditions: &[PodCondition], generation: Option<i64>) -> Answer {
    let pending = conditions
        .iter()
        .find(|it| it.type_ == "PodResizePending" && it.status == "True");
    let Some(pending) = pending else {
        return Answer::Silence;
    };
    // An answer to what was asked for before.
    if let (Some(observed), Some(generation)) = (pending.observed_generation, generation)
        && observed < generation
    {
        return Answer::Silence;
    }
    let message = pending.message.clone().unwrap_or_default();
    match pending.reason.as_deref() {
        Some("Infeasible") => Answer::Infeasible(message),
        _ => Answer::Deferred(message),
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
