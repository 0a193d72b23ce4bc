//! The node driver, as the sidecar needs it: grants, measurements, devices, the retainer, and a farewell.
//!
//! Nothing here keeps the event loop waiting: what needs an answer is awaited by the one connection that needs it, and
//! more is asked for before it is needed. While the driver is away, what is granted goes on.

mod link;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use vineyard_charge::descriptor::Device;
use vineyard_charge::{Full, Limit};
use vineyard_proto::node::reply::Body as Reply;
use vineyard_proto::node::request::Body as Ask;
use vineyard_proto::node::{self, GetDevices, Grant, Leaving, Measure, Refused, Welcome, refused};
use vineyard_proto::payer::{self, Reserve, Reserved};

use self::link::{Link, Owner};
use crate::bill::Bill;
use crate::grants::{Claim, DriverGrants, Grants, Short};
use crate::verb::refuse;
use crate::volumes::Volumes;

pub(crate) use self::link::Away;

/// A measurement is as good as new for so long: the driver reads every page for one.
const FRESH: Duration = Duration::from_secs(1);

/// The list of devices is as good as new for so long.
const FRESH_DEVICES: Duration = Duration::from_millis(100);

/// As long as this process lives: whoever ends it decides how long that is.
const LEAVING: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(crate) struct Driver {
    state: Arc<State>,
    link: Link,
    patience: Duration,
    measured: Mutex<Option<Instant>>,
    listed: Mutex<Option<Instant>>,
    ahead: AtomicBool,
}

#[derive(Debug)]
struct State {
    grants: Arc<DriverGrants>,
    volumes: Arc<Volumes>,
    leaving: AtomicBool,
    known: watch::Sender<bool>,
}

/// What came of claiming bytes.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// They are granted, or there is nobody to grant anything.
    Granted(Claim),
    /// The allowance does not cover them: the retainer must.
    Overflow,
    /// The driver does not answer, or refuses.
    Away(String),
}

impl Driver {
    /// Connects to the driver that listens at `path`; requests wait for it for at most `patience`.
    pub(crate) fn start(
        path: PathBuf,
        grants: Arc<DriverGrants>,
        volumes: Arc<Volumes>,
        patience: Duration,
    ) -> Self {
        let state = Arc::new(State {
            grants,
            volumes,
            leaving: AtomicBool::new(false),
            known: watch::Sender::new(false),
        });
        let link = Link::start(path, Arc::clone(&state) as Arc<dyn Owner>);
        Self {
            state,
            link,
            patience,
            measured: Mutex::default(),
            listed: Mutex::default(),
            ahead: AtomicBool::new(false),
        }
    }

    /// Waits until the driver has said what this pod may do, for at most our patience.
    pub(crate) async fn known(&self) -> bool {
        let mut known = self.state.known.subscribe();
        let known = known.wait_for(|known| *known);
        timeout(self.patience, known).await.is_ok()
    }

    /// Claims bytes that a request will spend.
    pub(crate) async fn claim(self: &Arc<Self>, bill: &Bill, bytes: u64) -> Claimed {
        let grants = &self.state.grants;
        if let Ok(claim) = grants.claim(bytes) {
            self.ask_ahead();
            return Claimed::Granted(claim);
        }
        if !self.known().await {
            return Claimed::Away("the node driver has not been there yet".into());
        }
        if self.state.volumes.devices().is_empty() {
            // Its volumes were published after this sidecar started, and its allowance depends on them.
            self.refresh().await;
        }
        // What clients left without a word is found without asking anybody.
        bill.reconcile();
        let begun = Instant::now();
        let mut is_measured = false;
        loop {
            match grants.claim(bytes) {
                Ok(claim) => return Claimed::Granted(claim),
                Err(Short::Ask { total }) => {
                    let left = self.patience.saturating_sub(begun.elapsed());
                    if let Err(reason) = self.grant(total, left).await {
                        return Claimed::Away(reason);
                    }
                }
                Err(Short::Beyond) if is_measured || grants.usage().spent == 0 => {
                    return Claimed::Overflow;
                }
                Err(Short::Beyond) => {
                    is_measured = true;
                    let left = self.patience.saturating_sub(begun.elapsed());
                    if let Err(away) = self.measure(bill, left).await {
                        return Claimed::Away(away.to_string());
                    }
                }
            }
        }
    }

    /// Asks for a total to be granted. `Ok` also when it is not: the allowance is known better then.
    async fn grant(&self, total: u64, patience: Duration) -> Result<(), String> {
        let ask = Ask::Grant(Grant { total_bytes: total });
        match self.ask(ask, patience).await {
            Ok(Reply::Granted(granted)) => {
                let grants = &self.state.grants;
                grants.granted(granted.total_bytes, granted.allowance_bytes);
                Ok(())
            }
            Ok(Reply::Full(full)) => {
                self.state.grants.at_most(full.limit_bytes);
                // Whoever asks again must not be told to ask again.
                match full.limit_bytes < total {
                    true => Ok(()),
                    false => Err("the node driver grants nothing".into()),
                }
            }
            Ok(other) => Err(unexpected(other)),
            Err(away) => Err(away.to_string()),
        }
    }

    /// Asks for the next chunk before anybody needs it, once at a time.
    fn ask_ahead(self: &Arc<Self>) {
        let Some(total) = self.state.grants.ahead() else {
            return;
        };
        if self.ahead.swap(true, Ordering::Relaxed) {
            return;
        }
        let driver = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(reason) = driver.grant(total, driver.patience).await {
                tracing::debug!(reason, "nothing is granted ahead");
            }
            driver.ahead.store(false, Ordering::Relaxed);
        });
    }

    /// Has the driver measure what is charged to this pod, and lowers what is spent to it. Unless that was done just now.
    ///
    /// # Errors
    /// When the driver is away. That it cannot measure is none.
    pub(crate) async fn measure(&self, bill: &Bill, patience: Duration) -> Result<(), Away> {
        // Somebody else's measurement is as good.
        let mut measured = timeout(patience, self.measured.lock())
            .await
            .map_err(|_| Away(patience))?;
        if measured.is_some_and(|last| last.elapsed() < FRESH) {
            return Ok(());
        }
        let mark = bill.mark();
        match self.ask(Ask::Measure(Measure {}), patience).await? {
            Reply::Measured(charged) => {
                let freed = bill.measured(mark, charged.charged_bytes);
                tracing::debug!(charged = charged.charged_bytes, freed, "measured");
            }
            other => tracing::debug!(reason = unexpected(other), "not measured"),
        }
        *measured = Some(Instant::now());
        Ok(())
    }

    /// Asks for the devices of this pod's volumes again. Unless that was done just now.
    pub(crate) async fn refresh(&self) {
        let mut listed = self.listed.lock().await;
        if listed.is_some_and(|last| last.elapsed() < FRESH_DEVICES) {
            return;
        }
        let ask = Ask::GetDevices(GetDevices {});
        match self.ask(ask, self.patience).await {
            Ok(Reply::Devices(answer)) => {
                self.state.volumes.replace(devices(&answer.devices));
                self.state.grants.at_most(answer.allowance_bytes);
            }
            Ok(other) => tracing::debug!(reason = unexpected(other), "no devices"),
            Err(error) => tracing::debug!(%error, "no devices"),
        }
        *listed = Some(Instant::now());
    }

    /// Has the retainer reserve what the allowance does not cover.
    pub(crate) async fn reserve(
        &self,
        ask: Reserve,
        bytes: u64,
        descriptors: Arc<Vec<OwnedFd>>,
    ) -> payer::reply::Body {
        use payer::refused::Reason;
        let ask = Ask::Reserve(ask);
        match self.link.ask(ask, descriptors, self.patience).await {
            Ok(Reply::Reserved(_)) => payer::reply::Body::Reserved(Reserved {}),
            Ok(Reply::Full(full)) if full.limit() != payer::full::Limit::Allowance => {
                payer::reply::Body::Full(full)
            }
            // Nor has the retainer room for it, whose figures say nothing to a client.
            Ok(Reply::Full(full)) => {
                let usage = self.state.grants.usage();
                let full = Full {
                    asked: bytes,
                    free: usage.free().max(full.free_bytes),
                    limit: Limit::Allowance,
                    limit_bytes: usage.allowance,
                };
                payer::reply::Body::Full(full.into())
            }
            Ok(Reply::Refused(Refused { reason, message })) => {
                let reason = match refused::Reason::try_from(reason) {
                    Ok(refused::Reason::Descriptor) => Reason::Descriptor,
                    Ok(refused::Reason::Range) => Reason::Range,
                    Ok(refused::Reason::Internal) => Reason::Internal,
                    _ => Reason::Busy,
                };
                refuse(reason, message)
            }
            Ok(other) => refuse(Reason::Internal, unexpected(other)),
            Err(away) => refuse(Reason::Busy, away.to_string()),
        }
    }

    /// Tells the driver that this sidecar leaves, and returns when that is on record.
    pub(crate) async fn leave(&self) {
        self.state.leaving.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let spent_bytes = self.state.grants.usage().spent;
        let ask = Ask::Leaving(Leaving { spent_bytes });
        match self.ask(ask, LEAVING).await {
            Ok(Reply::Left(_)) => {
                let seconds = begun.elapsed().as_secs_f32();
                tracing::info!(seconds, "the node driver knows that this pod leaves");
            }
            Ok(other) => tracing::warn!(reason = unexpected(other), "the farewell is refused"),
            Err(error) => tracing::warn!(%error, "no farewell"),
        }
    }

    async fn ask(&self, ask: Ask, patience: Duration) -> Result<Reply, Away> {
        self.link.ask(ask, Arc::default(), patience).await
    }
}

impl Owner for State {
    fn hello(&self) -> (u64, bool) {
        (self.grants.total(), self.leaving.load(Ordering::Relaxed))
    }

    fn welcome(&self, welcome: Welcome) {
        let Welcome {
            granted_bytes,
            allowance_bytes,
            chunk_bytes,
            ..
        } = welcome;
        self.grants
            .welcome(granted_bytes, allowance_bytes, chunk_bytes);
        self.volumes.replace(devices(&welcome.devices));
        self.known.send_replace(true);
    }
}

fn devices(listed: &[node::Device]) -> Vec<Device> {
    let device = |device: &node::Device| Device {
        major: device.major,
        minor: device.minor,
    };
    listed.iter().map(device).collect()
}

fn unexpected(reply: Reply) -> String {
    match reply {
        Reply::Refused(refused) => format!("the node driver refuses: {}", refused.message),
        other => format!("the node driver answers {other:?}"),
    }
}
