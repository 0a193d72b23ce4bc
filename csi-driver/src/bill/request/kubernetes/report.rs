//! Says how the retainer's request stands: in the node's resource, which the webhook and the controller read, in the log, and as
//! events on the pod.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Known, Place};
use crate::bill::request::{Standing, State};
use crate::bytes::Bytes;
use crate::report::{Reason, Subject};
use crate::resources::{RetainerStatus, VineyardNode};

/// Between two reports.
const PACE: Duration = Duration::from_secs(1);

/// How long something that passes by itself may last before it is said.
const GRACE: Duration = Duration::from_secs(10);

/// How long the API server may take for a report.
const ANSWER: Duration = Duration::from_secs(10);

struct Narrator {
    place: Place,
    nodes: Api<VineyardNode>,
    /// What the node's resource says.
    written: Option<RetainerStatus>,
    /// What was said last.
    said: State,
    /// The last state, and since when it lasts.
    state: State,
    since: Instant,
}

/// Reports until nobody asks any more.
pub(super) async fn run(
    place: Place,
    mut wanted: watch::Receiver<Bytes>,
    mut known: watch::Receiver<Known>,
) {
    let mut narrator = Narrator {
        nodes: Api::namespaced(place.client.clone(), &place.namespace),
        place,
        written: None,
        said: State::Allocated,
        state: State::Asked,
        since: Instant::now(),
    };
    loop {
        tokio::select! {
            changed = known.changed() => if changed.is_err() { return },
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(GRACE) => {}
        }
        tokio::time::sleep(PACE).await;
        let (sum, now) = (
            *wanted.borrow_and_update(),
            known.borrow_and_update().clone(),
        );
        narrator.write(sum, &now).await;
        narrator.say(&now);
    }
}

impl Narrator {
    /// Writes it into the node's resource.
    async fn write(&mut self, wanted: Bytes, now: &Known) {
        let status = RetainerStatus {
            requested: wanted,
            allocated: now.allocated,
            state: now.standing.state,
            message: now.standing.message.clone(),
        };
        if self.written.as_ref() == Some(&status) {
            return;
        }
        let patch = Patch::Merge(json!({"status": {"retainer": &status}}));
        let plain = PatchParams::default();
        let writing = self.nodes.patch(self.place.node.as_str(), &plain, &patch);
        match timeout(ANSWER, writing).await {
            Ok(Ok(_)) => self.written = Some(status),
            // At the start of the driver it need not be there yet.
            Ok(Err(error)) => tracing::debug!(%error, "the node's resource"),
            Err(_) => tracing::debug!("no answer about the node's resource"),
        }
    }

    /// Says it to people, once for as long as it lasts.
    fn say(&mut self, now: &Known) {
        let Standing { state, message } = &now.standing;
        if *state != self.state {
            (self.state, self.since) = (*state, Instant::now());
        }
        let is_due = match state {
            State::Asked => false,
            State::Allocated | State::Infeasible | State::Refused => true,
            State::Deferred | State::Unheard | State::Absent => self.since.elapsed() >= GRACE,
        };
        if !is_due || self.said == *state {
            return;
        }
        self.said = *state;
        let (reason, note) = said(*state, message, now.allocated);
        match state {
            State::Allocated => tracing::info!("{note}"),
            _ => tracing::warn!(state = state.label(), "{note}"),
        }
        let mut subjects = vec![Subject::Node(self.place.node.clone())];
        subjects.extend(now.pod.clone().map(Subject::Pod));
        self.place.events.publish(reason, &subjects, note);
    }
}

/// The reason and the text of an event.
fn said(state: State, message: &str, allocated: Bytes) -> (Reason, String) {
    let fixed = |why: &str| {
        format!(
            "{why}: its request stays what it was created with, so this node offers no more than {allocated} to volumes. {message}"
        )
    };
    match state {
        State::Allocated | State::Asked => (
            Reason::RetainedBytesAllocated,
            "the retainer's request is what this node retains".to_owned(),
        ),
        State::Deferred => (
            Reason::RetainedBytesDeferred,
            format!(
                "the node has no room for all that it retains, only for {allocated}; pods cannot add to it. {message}"
            ),
        ),
        State::Infeasible => (
            Reason::RetainerNotResizable,
            fixed("kubelet does not resize the retainer"),
        ),
        State::Refused => (
            Reason::RetainerNotResizable,
            fixed("the API server does not resize the retainer"),
        ),
        State::Unheard => (
            Reason::RetainerNotResized,
            format!("the API server does not hear what this node retains. {message}"),
        ),
        State::Absent => (
            Reason::RetainerMissing,
            "no pod of the retainer is on this node: what it retains is counted by nobody"
                .to_owned(),
        ),
    }
}
