//! What sweeps came to, for `/metrics`.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use vineyard_store::SweepReport;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Removed {
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    result: Outcome,
}

/// How a sweep of one volume ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    /// It has seen everything.
    Whole,
    /// Its time was over, or the volume is about to go.
    CutShort,
    /// Something could not be removed or read.
    Failed,
}

/// Counters since this process began. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct SweepMetrics {
    removed: Family<Removed, Counter>,
    ended: Family<Ended, Counter>,
}

impl SweepMetrics {
    /// Shows them.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "swept",
            "Things that sweeps removed from volumes, by why they were not needed",
            self.removed.clone(),
        );
        registry.register(
            "sweeps",
            "Sweeps of one volume, by how they ended",
            self.ended.clone(),
        );
    }

    /// Counts what a sweep has removed.
    pub(super) fn removed(&self, report: &SweepReport) {
        for (why, count) in [
            ("expired", report.expired),
            ("trash", report.trash),
            ("unnamed", report.unnamed),
            ("litter", report.litter),
        ] {
            self.removed.get_or_create(&Removed { why }).inc_by(count);
        }
    }

    /// Counts a sweep.
    pub(super) fn ended(&self, result: Outcome) {
        self.ended.get_or_create(&Ended { result }).inc();
    }
}
