//! The numbers behind `/metrics`, in the Prometheus text format.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::bill::Bill;
use crate::verb::Verb;

/// How a request ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are label values")]
pub(crate) enum Outcome {
    /// Done.
    ok,
    /// It did not fit.
    full,
    /// Refused for any other reason.
    refused,
}

/// Why a connection ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are label values")]
pub(crate) enum Ended {
    /// The client closed it.
    closed,
    /// It sent what is no frame or no request.
    malformed,
    /// It did not finish a frame, say hello or read its replies in time.
    slow,
    /// It had to be sent away after a refusal.
    refused,
    /// Too many connections.
    limit,
    /// The socket broke.
    broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: Verb,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    reason: Ended,
}

/// Counters of this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    ended: Family<EndLabels, Counter>,
    connections: Gauge,
    reserved: Counter,
    pulled: Counter,
    given_back: Counter,
    reconciled: Counter,
    retained: Counter,
    large: Histogram,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Fresh counters; the state of `bill` is read whenever somebody asks.
    pub(crate) fn new(bill: &Arc<Bill>) -> Self {
        let requests = Family::default();
        let ended = Family::default();
        let connections: Gauge = Gauge::default();
        let [reserved, pulled, given_back, reconciled, retained]: [Counter; 5] = Default::default();
        let large = Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]);

        let mut registry = Registry::with_prefix("vineyard_sidecar");
        registry.register("requests", "Requests answered", requests.clone());
        registry.register("connections_ended", "Connections that ended", ended.clone());
        registry.register("connections", "Clients connected now", connections.clone());
        for (name, help, counter) in [
            ("reserved", "Bytes reserved", &reserved),
            ("pulled", "Bytes whose charge was pulled", &pulled),
            ("given_back", "Bytes that clients gave back", &given_back),
            (
                "reconciled",
                "Bytes found free that nobody gave back",
                &reconciled,
            ),
            (
                "retained",
                "Bytes that the retainer reserved, because the allowance did not cover them",
                &retained,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
        }
        registry.register_with_unit(
            "large_request",
            "Time that requests of 1 MiB and more took",
            Unit::Seconds,
            large.clone(),
        );
        registry.register_collector(Box::new(BillState(Arc::clone(bill))));
        Self {
            registry: Arc::new(registry),
            requests,
            ended,
            connections,
            reserved,
            pulled,
            given_back,
            reconciled,
            retained,
            large,
        }
    }

    /// Everything, as text.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(4096);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn request(&self, verb: Verb, outcome: Outcome) {
        let labels = RequestLabels { verb, outcome };
        self.requests.get_or_create(&labels).inc();
    }

    /// One more client, until the result is dropped.
    pub(crate) fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    /// A connection ended.
    pub(crate) fn ended(&self, reason: Ended) {
        self.ended.get_or_create(&EndLabels { reason }).inc();
    }

    pub(crate) fn reserved(&self, bytes: u64) {
        self.reserved.inc_by(bytes);
    }

    pub(crate) fn pulled(&self, bytes: u64) {
        self.pulled.inc_by(bytes);
    }

    pub(crate) fn given_back(&self, bytes: u64) {
        self.given_back.inc_by(bytes);
    }

    pub(crate) fn reconciled(&self, bytes: u64) {
        self.reconciled.inc_by(bytes);
    }

    pub(crate) fn retained(&self, bytes: u64) {
        self.retained.inc_by(bytes);
    }

    pub(crate) fn large(&self, took: Duration) {
        self.large.observe(took.as_secs_f64());
    }
}

/// A client that is connected.
#[derive(Debug)]
#[must_use]
pub(crate) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The grants, read when asked for.
#[derive(Debug)]
struct BillState(Arc<Bill>);

impl Collector for BillState {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let usage = self.0.usage();
        for (name, help, bytes) in [
            (
                "allowance",
                "Bytes that this pod may add to its bill",
                usage.allowance,
            ),
            (
                "spent",
                "Bytes of the allowance that are spent",
                usage.spent,
            ),
            (
                "carried",
                "The part of spent that earlier containers of the pod may be charged for",
                usage.carried,
            ),
        ] {
            let gauge = ConstGauge::<u64>::new(bytes);
            let unit = Some(&Unit::Bytes);
            let metric = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
