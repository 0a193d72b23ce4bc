//! What the home of a volume saw of its memory when it looked last: how much is used, and who is billed for it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// What is in use, and on whose bill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    /// Bytes in use.
    pub(crate) used: Bytes,
    /// Who is billed, as the last survey found it; largest first.
    #[serde(default)]
    pub(crate) billed: Vec<Bill>,
    /// Bytes on a wrong bill, until they are handed over.
    #[serde(default)]
    pub(crate) pending: Bytes,
    /// Whether every byte is where it belongs.
    #[serde(default)]
    pub(crate) hand_over: HandOver,
    /// Why the last hand-over came to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<String>,
    /// When that was.
    #[serde(default)]
    pub(crate) observed_at: String,
}

/// What one payer is billed for a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bill {
    /// What kind of payer it is.
    pub(crate) payer: Payer,
    /// A pod's namespace, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// A pod's name, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// A pod's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<String>,
    /// How much.
    pub(crate) bytes: Bytes,
}

/// Who pays.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub(crate) enum Payer {
    /// A pod that has the volume.
    Pod,
    /// The retainer of the node.
    Retainer,
    /// Another cgroup: it does not pay rightly.
    Other,
    /// Nobody can tell.
    #[default]
    Unknown,
}

/// Whether every byte is on a right bill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum HandOver {
    /// Nobody has looked, or nobody hands anything over.
    #[default]
    Unknown,
    /// Every byte is.
    Settled,
    /// A look is due.
    Due,
    /// A hand-over is under way.
    Running,
    /// Something is left, and will be tried again.
    Waiting,
}

/// What a difference must be worth to be written down: a hundredth of the capacity, and at least this.
const WORTH: u64 = 1 << 20;

impl Usage {
    /// Whether `self` says something else than `other` that is worth a write.
    pub(crate) fn differs_from(&self, other: &Self, capacity: Bytes) -> bool {
        let worth = (capacity.0 / 100).max(WORTH);
        let far = |a: Bytes, b: Bytes| a.0.abs_diff(b.0) >= worth || (a.0 == 0) != (b.0 == 0);
        let whom = |it: &Self| {
            let mut payers: Vec<_> = it.billed.iter().map(Bill::whom).collect();
            payers.sort();
            payers
        };
        let billed = |bill: &Bill| {
            let same = other.billed.iter().find(|it| it.whom() == bill.whom());
            same.map_or(Bytes(0), |it| it.bytes)
        };
        far(self.used, other.used)
            || far(self.pending, other.pending)
            || self.hand_over != other.hand_over
            || self.trouble != other.trouble
            || whom(self) != whom(other)
            || self.billed.iter().any(|bill| far(bill.bytes, billed(bill)))
    }
}

impl Bill {
    fn whom(&self) -> (Payer, Option<String>) {
        (self.payer, self.uid.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(used: u64, pod: &str, billed: u64) -> Usage {
        Usage {
            used: Bytes(used),
            billed: vec![Bill {
                payer: Payer::Pod,
                uid: Some(pod.into()),
                bytes: Bytes(billed),
                ..Bill::default()
            }],
            ..Usage::default()
        }
    }

    #[test]
    fn a_few_pages_are_not_worth_a_write_and_another_payer_is() {
        let capacity = Bytes(1 << 30);
        let before = usage(100 << 20, "a", 100 << 20);
        assert!(
            !usage((100 << 20) + 4096, "a", (100 << 20) + 4096).differs_from(&before, capacity)
        );
        assert!(usage(120 << 20, "a", 100 << 20).differs_from(&before, capacity));
        assert!(usage(100 << 20, "a", 80 << 20).differs_from(&before, capacity));
        assert!(usage(100 << 20, "b", 100 << 20).differs_from(&before, capacity));
        let settled = Usage {
            hand_over: HandOver::Settled,
            ..before.clone()
        };
        assert!(settled.differs_from(&before, capacity));
        assert!(usage(4096, "a", 0).differs_from(&usage(0, "a", 0), capacity));
    }
}
