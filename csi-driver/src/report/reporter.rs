//! Writes what this node sees into the records: who is billed for its volumes, and how the node itself stands.
//!
//! Only differences that are worth it are written, each by compare-and-swap, and never within a call: a record that cannot be written is
//! written at the next look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vineyard_proto::admin::{Bills as View, VolumeBill, share, volume_bill::State};

use crate::bill;
use crate::bytes::Bytes;
use crate::node::Node;
use crate::volume::{
    Bill, HandOver, NodeReport, Payer, Phase, RetainerReport, Usage, Volume, VolumeId, catalog,
    probed, rfc3339,
};

/// Looks at the bills of a node again and again.
#[derive(Debug)]
pub(crate) struct Reporter {
    node: Arc<Node>,
    period: Duration,
    endpoint: Option<String>,
    /// What the records say, as far as this process knows.
    written: BTreeMap<VolumeId, Usage>,
    told: Option<NodeReport>,
}

/// Why something is not written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Bills(#[from] bill::Error),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
}

impl Reporter {
    /// Of `node`, which serves its health at `endpoint`; looks every `period`.
    pub(crate) fn new(node: Arc<Node>, period: Duration, endpoint: Option<String>) -> Self {
        Self {
            node,
            period,
            endpoint,
            written: BTreeMap::new(),
            told: None,
        }
    }

    /// Never ends.
    pub(crate) async fn run(mut self) {
        let capabilities = tokio::task::spawn_blocking(probed).await;
        let capabilities = capabilities.unwrap_or_default();
        loop {
            let report = NodeReport {
                endpoint: self.endpoint.clone(),
                capabilities: capabilities.clone(),
                ..NodeReport::default()
            };
            if let Err(error) = self.look(report).await {
                tracing::warn!(%error, "what this node sees is not written into the records");
            }
            tokio::time::sleep(self.period).await;
        }
    }

    async fn look(&mut self, mut report: NodeReport) -> Result<(), Error> {
        let view = self.node.bills.views(false).await?;
        let mut seen = BTreeMap::new();
        for bill in &view.volumes {
            let Some(id) = VolumeId::parse(&bill.volume_id) else {
                continue;
            };
            let capacity = Bytes(bill.capacity_bytes);
            let usage = usage(bill);
            let known = self.written.get(&id);
            let written = match known.filter(|known| !usage.differs_from(known, capacity)) {
                Some(known) => known.clone(),
                None => match self.write(&id, usage).await {
                    Ok(written) => written,
                    // The others and the node are told of all the same, and this one at the next look.
                    Err(error) => {
                        tracing::warn!(volume.id = %id, %error, "who is billed for a volume is not in its record");
                        continue;
                    }
                },
            };
            seen.insert(id, written);
        }
        self.written = seen;
        sum(&mut report, &view);
        let told = self.told.as_ref();
        if told.is_none_or(|told| report.differs_from(told, self.node.budget)) {
            let (catalog, name) = (&self.node.catalog, &self.node.id);
            catalog.report(name, report.clone()).await?;
            self.told = Some(report);
        }
        Ok(())
    }

    /// Returns what the record says then.
    async fn write(&self, id: &VolumeId, usage: Usage) -> Result<Usage, catalog::Error> {
        let edit = |latest: &mut Volume| -> Result<(), catalog::Error> {
            let is_here =
                latest.phase == Phase::Resident && latest.home.as_ref() == Some(&self.node.id);
            let before = latest.usage.clone();
            let is_news = before
                .as_ref()
                .is_none_or(|before| usage.differs_from(before, latest.capacity));
            if is_here && is_news {
                let before = before.unwrap_or_default();
                latest.usage = Some(with_names(usage.clone(), &before, latest));
            }
            Ok(())
        };
        match catalog::change(&*self.node.catalog, id, edit).await {
            Ok(volume) => Ok(volume.usage.unwrap_or_default()),
            // Deleted meanwhile.
            Err(catalog::Error::NotFound(_)) => Ok(usage),
            Err(error) => Err(error),
        }
    }
}

/// A volume's bill as its record has it. Pods are known by their uids only.
fn usage(bill: &VolumeBill) -> Usage {
    let mut billed: BTreeMap<(Payer, Option<String>), u64> = BTreeMap::new();
    for share in &bill.shares {
        let whom = match share.payer() {
            share::Payer::Pod => (Payer::Pod, Some(share.name.clone())),
            share::Payer::Retainer => (Payer::Retainer, None),
            share::Payer::Other => (Payer::Other, None),
        };
        *billed.entry(whom).or_default() += share.bytes;
    }
    if bill.unseen_bytes > 0 {
        billed.insert((Payer::Unknown, None), bill.unseen_bytes);
    }
    let mut billed: Vec<_> = billed
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|((payer, uid), bytes)| Bill {
            payer,
            uid,
            bytes: Bytes(bytes),
            ..Bill::default()
        })
        .collect();
    billed.sort_by_key(|bill| std::cmp::Reverse(bill.bytes));
    Usage {
        used: Bytes(bill.used_bytes),
        billed,
        pending: Bytes(bill.pending_bytes),
        hand_over: match bill.state() {
            State::Unknown => HandOver::Unknown,
            State::Settled => HandOver::Settled,
            State::Due => HandOver::Due,
            State::Running => HandOver::Running,
            State::Waiting => HandOver::Waiting,
        },
        trouble: Some(bill.trouble.clone()).filter(|trouble| !trouble.is_empty()),
        observed_at: rfc3339(SystemTime::now()),
    }
}

/// Names the pods: those that have the volume, and those that were named before and may have left.
fn with_names(mut usage: Usage, before: &Usage, volume: &Volume) -> Usage {
    for bill in &mut usage.billed {
        let pods = volume.publications.iter();
        let mut pods = pods.filter_map(|it| it.pod.as_ref());
        let pod = pods.find(|pod| Some(&pod.uid) == bill.uid.as_ref());
        let known = before.billed.iter().find(|it| it.uid == bill.uid);
        (bill.namespace, bill.name) = match (pod, known) {
            (Some(pod), _) => (Some(pod.namespace.clone()), Some(pod.name.clone())),
            (None, Some(known)) => (known.namespace.clone(), known.name.clone()),
            (None, None) => (None, None),
        };
    }
    usage
}

fn sum(report: &mut NodeReport, view: &View) {
    let all = |of: fn(&VolumeBill) -> u64| Bytes(view.volumes.iter().map(of).sum());
    report.charged = all(|volume| volume.used_bytes);
    report.retained = all(|volume| volume.retained_bytes);
    report.pending = all(|volume| volume.pending_bytes);
    report.retainer = view.has_retainer.then_some(RetainerReport {
        requested: Bytes(view.requested_bytes),
        allocated: Bytes(view.allocated_bytes),
    });
}
