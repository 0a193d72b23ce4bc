//! What all connections share.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use vineyard_charge::Payer;
use vineyard_charge::descriptor::{self, Access, DescriptorRefused, Device};

use crate::bill::Bill;
use crate::driver::{Claimed, Driver};
use crate::grants::Claim;
use crate::metrics::Metrics;
use crate::verb::{self, Ask};
use crate::volumes::Volumes;

/// A client that died frees its files a moment after its socket is closed.
const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// Others may remove what was billed here without any client of ours being involved.
const SETTLE_EVERY: Duration = Duration::from_secs(30);

/// How long the first measurement may take before it is asked for again.
const MEASURE: Duration = Duration::from_secs(60);

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
    /// Whoever grants, unless the command line does.
    pub(crate) driver: Option<Arc<Driver>>,
    /// Permits for large requests.
    pub(crate) large: Semaphore,
    /// Permits for requests that wait for the driver with their descriptors in hand.
    pub(crate) overflow: Semaphore,
    /// Permits for requests that wait for the driver's list of devices.
    pub(crate) refreshing: Semaphore,
    /// Permits for closing what may be slow to close.
    pub(crate) closing: Semaphore,
    /// Wakes [`Service::settle`]: somebody may have left bytes counted that are free.
    pub(crate) settle: Notify,
}

impl Service {
    /// Claims what a request will draw, which may have to wait for the driver.
    pub(crate) async fn claim(&self, ask: Option<&Ask>) -> Claimed {
        let Some(driver) = &self.driver else {
            return Claimed::Granted(Claim::default());
        };
        match ask {
            Some(Ask::Hello(_)) => {
                // How large a stock may be depends on what the driver says. Clients need no stock, so one that is away
                // does not keep them out.
                driver.known().await;
                Claimed::Granted(Claim::default())
            }
            Some(Ask::Reserve(ask)) => match verb::reserve_bytes(ask) {
                Some(bytes) if bytes > 0 => driver.claim(&self.bill, bytes).await,
                // To be refused.
                _ => Claimed::Granted(Claim::default()),
            },
            Some(Ask::Pull(ask)) => match verb::pull_bytes(ask) {
                Some(bytes) if bytes > 0 => match driver.claim(&self.bill, bytes).await {
                    // The retainer pulls for itself.
                    Claimed::Overflow => Claimed::Granted(Claim::default()),
                    claimed => claimed,
                },
                _ => Claimed::Granted(Claim::default()),
            },
            _ => Claimed::Granted(Claim::default()),
        }
    }

    /// Whether files that were refused are on volumes that the driver knows by now. Asks it at most for a few at a time.
    pub(crate) async fn learns(&self, refused: &[OwnedFd]) -> bool {
        let (Some(driver), Ok(_few)) = (&self.driver, self.refreshing.try_acquire()) else {
            return false;
        };
        let strange = |devices: &[Device]| {
            refused.iter().any(|file| {
                let checked = descriptor::check(file.as_fd(), devices, Access::Pull);
                matches!(checked, Err(DescriptorRefused::Foreign { .. }))
            })
        };
        if !strange(&self.volumes.devices()) {
            return false;
        }
        driver.refresh().await;
        !strange(&self.volumes.devices())
    }

    /// Learns what is charged to this pod from the driver as soon as that is there: until then everything that it granted
    /// to an earlier sidecar counts as spent.
    pub(crate) async fn measure_first(self: Arc<Self>) {
        let Some(driver) = &self.driver else { return };
        while !driver.known().await {}
        while self.bill.usage().spent > 0 && driver.measure(&self.bill, MEASURE).await.is_err() {}
    }

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
