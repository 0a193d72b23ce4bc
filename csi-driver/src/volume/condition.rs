//! Conditions of a volume: what its phase and its use mean, in the form that `kubectl wait` and people know.
//!
//! They follow from the record, and are made anew with every change of it; only the time of the last turn is kept.

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::timestamp::rfc3339;
use super::usage::HandOver;
use super::{Phase, Volume};
use crate::bytes::Bytes;

/// One thing that is true of a volume, or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub(crate) kind: ConditionKind,
    /// Whether it is.
    pub(crate) status: ConditionStatus,
    /// Why, for programs.
    pub(crate) reason: String,
    /// Why, for people.
    #[serde(default)]
    pub(crate) message: String,
    /// When the status turned last.
    pub(crate) last_transition_time: String,
}

/// What is said about every volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum ConditionKind {
    /// Its memory is at its home.
    Resident,
    /// Every byte of it is billed to a live pod, or to the retainer.
    Billed,
    /// Nine tenths of its capacity are in use.
    CapacityPressure,
}

/// Whether something is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum ConditionStatus {
    /// It is.
    True,
    /// It is not.
    False,
    /// Nobody can tell.
    Unknown,
}

use ConditionStatus::{False, True, Unknown};

impl Volume {
    /// Makes the conditions what the record says. `now` is when those that turn turned.
    pub(crate) fn refresh_conditions(&mut self, now: SystemTime) {
        let before = std::mem::take(&mut self.conditions);
        let said = |kind| before.iter().find(|it| it.kind == kind);
        let fresh = [
            (ConditionKind::Resident, self.resident()),
            (
                ConditionKind::Billed,
                self.billed(said(ConditionKind::Billed)),
            ),
            (ConditionKind::CapacityPressure, self.pressure()),
        ];
        let conditions = fresh.map(|(kind, (status, reason, message))| {
            let last = said(kind).filter(|it| it.status == status);
            Condition {
                kind,
                status,
                reason: reason.to_owned(),
                message,
                last_transition_time: last
                    .map_or_else(|| rfc3339(now), |it| it.last_transition_time.clone()),
            }
        });
        self.conditions = conditions.into();
    }

    fn resident(&self) -> (ConditionStatus, &'static str, String) {
        let home = self.home.as_ref().map_or("", |home| home.as_str());
        match &self.phase {
            Phase::Booked => (False, "Booked", "no pod has used it yet".into()),
            Phase::Resident => (True, "Resident", format!("its memory is on node {home}")),
            Phase::Moving { to } => (True, "Moving", format!("it moves from {home} to {to}")),
            Phase::Unreachable => (Unknown, "Unreachable", format!("node {home} is silent")),
            Phase::Lost { reason } => (False, "Lost", reason.clone()),
            Phase::Deleting => (False, "Deleting", "its memory is being dropped".into()),
        }
    }

    fn billed(&self, before: Option<&Condition>) -> (ConditionStatus, &'static str, String) {
        let Some(usage) = self
            .usage
            .as_ref()
            .filter(|_| self.phase == Phase::Resident)
        else {
            return (Unknown, "NotSurveyed", "nobody has looked yet".into());
        };
        if usage.pending > Bytes(0) {
            let why = usage.trouble.as_deref().unwrap_or("they are handed over");
            let message = format!("{} are on a wrong bill: {why}", usage.pending.rounded());
            return (False, "HandOverUnfinished", message);
        }
        let settled = "every byte is billed to a live pod or to the retainer";
        match usage.hand_over {
            HandOver::Settled => (True, "Settled", settled.into()),
            HandOver::Waiting => {
                let why = usage.trouble.clone().unwrap_or_default();
                (False, "HandOverWaits", why)
            }
            // About to be looked at again: until then, what was found last holds.
            HandOver::Due | HandOver::Running if before.is_some_and(|it| it.status == True) => {
                (True, "Settled", settled.into())
            }
            HandOver::Due | HandOver::Running => {
                (Unknown, "NotSurveyed", "a survey is under way".into())
            }
            HandOver::Unknown => (
                Unknown,
                "NotSurveyed",
                "no retainer, or nobody has looked yet".into(),
            ),
        }
    }

    fn pressure(&self) -> (ConditionStatus, &'static str, String) {
        let used = self.usage.as_ref().map_or(Bytes(0), |usage| usage.used);
        let message = format!("{} of {} in use", used.rounded(), self.capacity.rounded());
        match used.0 / 9 >= self.capacity.0 / 10 {
            true if used.0 > 0 => (True, "AlmostFull", message),
            _ => (False, "Room", message),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::usage::Usage;
    use super::*;
    use crate::volume::catalog::conformance::volume;
    use crate::volume::{Layer, NodeId};

    fn said(volume: &Volume) -> Vec<(ConditionStatus, &str, &str)> {
        let all = volume.conditions.iter();
        all.map(|it| {
            (
                it.status,
                it.reason.as_str(),
                it.last_transition_time.as_str(),
            )
        })
        .collect()
    }

    #[test]
    fn conditions_follow_the_record_and_keep_the_time_of_their_last_turn() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let (zero, one) = ("1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z");
        let mut volume = volume("a");
        volume.capacity = Bytes(100 << 20);
        volume.refresh_conditions(at(0));
        let booked = [
            (False, "Booked", zero),
            (Unknown, "NotSurveyed", zero),
            (False, "Room", zero),
        ];
        assert_eq!(said(&volume), booked);
        let layer = Layer {
            boot_id: "boot".into(),
            epoch: 1,
            context: None,
        };
        volume.settle(&NodeId::parse("n").unwrap(), 1, layer);
        volume.usage = Some(Usage {
            used: Bytes(95 << 20),
            hand_over: HandOver::Settled,
            ..Usage::default()
        });
        volume.refresh_conditions(at(1));
        let full = [
            (True, "Resident", one),
            (True, "Settled", one),
            (True, "AlmostFull", one),
        ];
        assert_eq!(said(&volume), full);
        if let Some(usage) = &mut volume.usage {
            (usage.pending, usage.used) = (Bytes(4096), Bytes(1 << 20));
        }
        volume.refresh_conditions(at(2));
        let two = "1970-01-01T00:00:02Z";
        let wrong = [
            (True, "Resident", one),
            (False, "HandOverUnfinished", two),
            (False, "Room", two),
        ];
        assert_eq!(said(&volume), wrong);
        volume.lose("rebooted");
        volume.refresh_conditions(at(3));
        let three = "1970-01-01T00:00:03Z";
        let lost = [
            (False, "Lost", three),
            (Unknown, "NotSurveyed", three),
            (False, "Room", two),
        ];
        assert_eq!(said(&volume), lost);
    }

    #[test]
    fn a_survey_that_is_due_does_not_unsettle_a_bill() {
        let mut volume = volume("a");
        volume.phase = Phase::Resident;
        for (hand_over, status) in [
            (HandOver::Due, Unknown),
            (HandOver::Settled, True),
            (HandOver::Running, True),
            (HandOver::Waiting, False),
            (HandOver::Running, Unknown),
        ] {
            volume.usage = Some(Usage {
                hand_over,
                ..Usage::default()
            });
            volume.refresh_conditions(UNIX_EPOCH);
            assert_eq!(said(&volume)[1].0, status, "{hand_over:?}");
        }
    }
}
