//! What a node says about itself: what it can do, and how its memory stands.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vineyard_charge::probe::{Answer, Capabilities};

use crate::bytes::Bytes;

/// As the node saw itself last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeReport {
    /// Where it serves health and metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// Bytes in use on the volumes here, on whatever bill.
    pub(crate) charged: Bytes,
    /// What of it is on the retainer's bill.
    pub(crate) retained: Bytes,
    /// Bytes on a wrong bill, until they are handed over.
    pub(crate) pending: Bytes,
    /// The retainer's memory request; none: there is no retainer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retainer: Option<RetainerReport>,
    /// What the kernel and the privileges here allow, by trying.
    pub(crate) capabilities: Vec<CapabilityReport>,
}

/// What the retainer may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RetainerReport {
    /// What was asked for.
    pub(crate) requested: Bytes,
    /// What of it is granted.
    pub(crate) allocated: Bytes,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapabilityReport {
    /// Its name, stable for programs.
    pub(crate) name: String,
    /// Whether it works.
    pub(crate) works: Works,
    /// What was found.
    pub(crate) found: String,
}

/// Whether something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Works {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// It could not be tried.
    Unknown,
}

impl NodeReport {
    /// What does not work here.
    pub(crate) fn missing(&self) -> Vec<&str> {
        let missing = self.capabilities.iter().filter(|it| it.works == Works::No);
        missing.map(|it| it.name.as_str()).collect()
    }

    /// Whether `self` says something else than `other` that is worth a write; a hundredth of the `budget` is.
    pub(crate) fn differs_from(&self, other: &Self, budget: Bytes) -> bool {
        let far =
            |a: Bytes, b: Bytes| a.0.abs_diff(b.0) > budget.0 / 100 || (a.0 == 0) != (b.0 == 0);
        self.endpoint != other.endpoint
            || self.capabilities != other.capabilities
            || self.retainer != other.retainer
            || far(self.charged, other.charged)
            || far(self.retained, other.retained)
            || far(self.pending, other.pending)
    }
}

/// Tries what this node can do. Blocking.
pub(crate) fn probed() -> Vec<CapabilityReport> {
    let tried = Capabilities::probe(None).0.into_iter();
    tried
        .map(|it| CapabilityReport {
            name: it.name.into(),
            works: match it.answer {
                Answer::Yes => Works::Yes,
                Answer::No => Works::No,
                Answer::Unknown => Works::Unknown,
            },
            found: it.found,
        })
        .collect()
}
