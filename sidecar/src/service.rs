//! What all connections share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use vineyard_charge::Payer;

use crate::bill::Bill;
use crate::metrics::Metrics;
use crate::volumes::Volumes;

/// A client that died frees its files a moment after its socket is closed.
const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// Others may remove what was billed here without any client of ours being involved.
const SETTLE_EVERY: Duration = Duration::from_secs(30);

/// What no client may exceed.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Connections of all clients.
    pub(crate) connections: usize,
    /// Connections of the clients of one uid.
    pub(crate) connections_per_uid: usize,
    /// How long a frame, the first hello and the reading of a reply may take.
    pub(crate) patience: Duration,
    /// Bytes that one client may hold as its stock.
    pub(crate) stock: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) bill: Arc<Bill>,
    pub(crate) payer: Box<dyn Payer>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// Permits for large requests.
    pub(crate) large: Semaphore,
    /// Permits for closing what may be slow to close.
    pub(crate) closing: Semaphore,
    /// Wakes [`Service::settle`]: somebody may have left bytes counted that are free.
    pub(crate) settle: Notify,
}

impl Service {
    /// Reconciles the bill after clients have gone, and now and then. Never ends.
    pub(crate) async fn settle(self: Arc<Self>) {
        loop {
            if timeout(SETTLE_EVERY, self.settle.notified()).await.is_ok() {
                sleep(SETTLE_AFTER).await;
            }
            let freed = self.bill.reconcile();
            if freed > 0 {
                self.metrics.reconciled(freed);
                tracing::info!(bytes = freed, "bytes that nobody gave back are free again");
            }
        }
    }
}
