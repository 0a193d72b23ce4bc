//! The bills as gauges, from the last survey of each volume.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use vineyard_proto::admin::{Bills as View, Share, VolumeBill, share::Payer};

use super::{Bills, State};

/// Tells a scraper about the bills, once there are any. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct BillMetrics {
    bills: Arc<OnceLock<Bills>>,
}

impl BillMetrics {
    /// Tells about these from now on.
    pub(crate) fn show(&self, bills: Bills) {
        // Set once: a process has one node.
        let _ = self.bills.set(bills);
    }
}

/// How a gauge comes out of a volume's bill.
type OfVolume = (&'static str, &'static str, fn(&VolumeBill) -> u64);

const OF_VOLUMES: [OfVolume; 6] = [
    ("volume_capacity", "Capacity of a volume here", |it| {
        it.capacity_bytes
    }),
    ("volume_used", "Bytes of a volume that are in use", |it| {
        it.used_bytes
    }),
    ("retained", "Bytes on the retainer's bill", |it| {
        it.retained_bytes
    }),
    (
        "pending",
        "Bytes on a wrong bill, until handed over",
        |it| it.pending_bytes,
    ),
    (
        "expected",
        "Bytes that may turn out to be on a wrong bill",
        |it| it.expected_bytes,
    ),
    ("unseen", "Bytes whose owner nobody can tell", |it| {
        it.unseen_bytes
    }),
];

/// How a gauge comes out of the whole.
type OfNode = (&'static str, &'static str, fn(&View) -> u64);

const OF_NODE: [OfNode; 2] = [
    (
        "retainer_requested",
        "Memory asked for the retainer",
        |it| it.requested_bytes,
    ),
    ("retainer_allocated", "What of it is granted", |it| {
        it.allocated_bytes
    }),
];

impl Collector for BillMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(bills) = self.bills.get() else {
            return Ok(());
        };
        let view = bills.inner.view(false).map_err(|error| {
            tracing::warn!(%error, "the bills cannot be shown");
            fmt::Error
        })?;
        let mut family = encoder.encode_descriptor(
            "billed",
            "Bytes of a volume by who is billed, at its last survey",
            Some(&Unit::Bytes),
            MetricType::Gauge,
        )?;
        for volume in &view.volumes {
            for (owner, bytes) in by_owner(&volume.shares) {
                let labels = [
                    ("volume", volume.volume_id.as_str()),
                    ("owner", owner.as_str()),
                ];
                ConstGauge::new(signed(bytes)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in OF_VOLUMES {
            let mut family =
                encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            for volume in &view.volumes {
                let labels = [("volume", volume.volume_id.as_str())];
                ConstGauge::new(signed(value(volume))).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in OF_NODE {
            let gauge =
                encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
            ConstGauge::new(signed(value(&view))).encode(gauge)?;
        }
        let mut family = encoder.encode_descriptor(
            "retainer_request_state",
            "1 for how the request of the retainer stands, 0 for all else",
            None,
            MetricType::Gauge,
        )?;
        let standing = bills.inner.request.standing();
        for state in State::ALL {
            let labels = [("state", state.label())];
            let is_it = i64::from(state == standing.state);
            ConstGauge::new(is_it).encode(family.encode_family(&labels)?)?;
        }
        let leaving = encoder.encode_descriptor(
            "leaving_pods",
            "Pods that have said that they leave",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(signed(view.leaving.len() as u64)).encode(leaving)?;
        let moved = encoder.encode_descriptor(
            "handed_over",
            "Bytes that the retainer took over since this process began",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        ConstCounter::new(bills.inner.moved.load(Ordering::Relaxed)).encode(moved)
    }
}

/// Owners that are no pod's are one: their number has no bound.
fn by_owner(shares: &[Share]) -> Vec<(String, u64)> {
    let mut other = 0;
    let mut named = Vec::new();
    for share in shares {
        match share.payer() {
            Payer::Retainer => named.push(("retainer".to_owned(), share.bytes)),
            Payer::Pod => named.push((format!("pod {}", share.name), share.bytes)),
            Payer::Other => other += share.bytes,
        }
    }
    if other > 0 {
        named.push(("other".to_owned(), other));
    }
    named
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
