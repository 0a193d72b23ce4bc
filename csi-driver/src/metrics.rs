//! The numbers behind `/metrics`, in the OpenMetrics text format.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use crate::bill::{BillMetrics, Bills};
use crate::report::events;
use crate::sweep::SweepMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    rpc: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    rpc: &'static str,
}

#[cfg(feature = "kubernetes")]
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    outcome: &'static str,
}

/// Counters of this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    calls: Family<Call, Counter>,
    seconds: Family<Rpc, Histogram>,
    #[cfg(feature = "kubernetes")]
    reviews: Family<Review, Counter>,
    bills: BillMetrics,
    events: events::Counts,
    sweeps: SweepMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// From a bind mount to what a caller waits for at most.
const BOUNDS: [f64; 11] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, 60.0,
];

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Self {
        let mut all = Registry::default();
        let bills = BillMetrics::default();
        let sweeps = SweepMetrics::default();
        let of_volumes = all.sub_registry_with_prefix("vineyard");
        of_volumes.register_collector(Box::new(bills.clone()));
        sweeps.register(of_volumes);
        let registry = all.sub_registry_with_prefix("vineyard_csi");
        let calls = Family::<Call, Counter>::default();
        registry.register("calls", "CSI calls answered, by gRPC code", calls.clone());
        let seconds = Family::<Rpc, Histogram>::new_with_constructor(|| Histogram::new(BOUNDS));
        registry.register_with_unit("call", "Time to the answer", Unit::Seconds, seconds.clone());
        let events = events::Counts::default();
        registry.register(
            "events",
            "Events published, by what became of them",
            events.family(),
        );
        #[cfg(feature = "kubernetes")]
        let reviews = Family::<Review, Counter>::default();
        #[cfg(feature = "kubernetes")]
        registry.register(
            "reviews",
            "Pods that the webhook was asked about",
            reviews.clone(),
        );
        Self {
            #[cfg(feature = "kubernetes")]
            reviews,
            registry: Arc::new(all),
            calls,
            seconds,
            bills,
            events,
            sweeps,
        }
    }

    /// Counts events.
    pub(crate) fn events(&self) -> events::Counts {
        self.events.clone()
    }

    /// The counters of sweeps.
    pub(crate) fn sweeps(&self) -> SweepMetrics {
        self.sweeps.clone()
    }

    /// Shows these bills from now on.
    pub(crate) fn show(&self, bills: Bills) {
        self.bills.show(bills);
    }

    /// Counts one call.
    pub(crate) fn answered(&self, rpc: &'static str, code: Code, seconds: f64) {
        let code = code_name(code);
        self.calls.get_or_create(&Call { rpc, code }).inc();
        self.seconds.get_or_create(&Rpc { rpc }).observe(seconds);
    }

    /// Counts one review of a pod.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn reviewed(&self, outcome: &'static str) {
        self.reviews.get_or_create(&Review { outcome }).inc();
    }

    /// Everything, for a scraper. Blocking: sizes of volumes and cgroups of pods are looked at.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The names of the gRPC specification.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
