//! What nobody needs any more goes: objects past their time to live, trash that nobody maps, and what processes that died have left
//! in a volume. Pods do that too, each with what is its own to ask about; this is for what they leave.
//!
//! The tree is hostile: a volume gets a bounded time, again and again, and no more than a part of a processor.

mod counts;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use vineyard_store::{Error, Options, SweepLimits, SweepReport, Volume};

use crate::bill::{Bills, Hold};
use crate::volume::VolumeId;

use counts::Outcome;
pub(crate) use counts::SweepMetrics;

/// The longest in one volume for each kind of leftover.
const TIME: Duration = Duration::from_secs(5);

/// How much longer than it took a pause is: at most a twentieth of a processor.
const SPARING: u32 = 20;

/// Sweeps the volumes of this node.
#[derive(Debug)]
pub(crate) struct Sweeper {
    /// Knows which volumes are here, and when they must be let go of.
    pub(crate) bills: Bills,
    /// Between two sweeps of a volume.
    pub(crate) period: Duration,
    /// How long trash stays for whoever may use its memory again.
    pub(crate) rest: Duration,
    /// Counts what goes.
    pub(crate) metrics: SweepMetrics,
}

/// What is known of a volume from its last sweep.
#[derive(Debug)]
struct Last {
    due: Instant,
    /// What was wrong; said once.
    trouble: Option<String>,
}

impl Sweeper {
    /// Sweeps one volume after the other, again and again. Never ends.
    pub(crate) async fn run(self) {
        let mut known = BTreeMap::<VolumeId, Last>::new();
        loop {
            tokio::time::sleep(self.period).await;
            let here = self.bills.here();
            known.retain(|id, _| here.contains(id));
            for id in here {
                let last = known.remove(&id);
                let is_due = last.as_ref().is_none_or(|it| it.due <= Instant::now());
                let next = match is_due {
                    true => self.sweep(&id, last.and_then(|it| it.trouble)).await,
                    false => last,
                };
                known.extend(next.map(|next| (id, next)));
            }
        }
    }

    /// One volume, unless it is about to go.
    async fn sweep(&self, id: &VolumeId, known: Option<String>) -> Option<Last> {
        let hold = self.bills.hold(id)?;
        let (begin, rest) = (Instant::now(), self.rest);
        let swept = spawn_blocking(move || sweep(&hold, rest)).await;
        let took = begin.elapsed();
        let (report, ended) = match swept {
            Ok(swept) => swept,
            Err(panic) => (SweepReport::default(), Err(panic.to_string())),
        };
        self.metrics.removed(&report);
        let SweepReport {
            expired,
            trash,
            mapped,
            unnamed,
            litter,
        } = report;
        if expired + trash + unnamed + litter > 0 {
            let seconds = took.as_secs_f64();
            tracing::info!(volume.id = %id, expired, trash, in_use = mapped, unnamed, litter, seconds, "swept");
        }
        let (outcome, trouble) = match ended {
            Ok(true) => (Outcome::Whole, None),
            Ok(false) => (Outcome::CutShort, None),
            Err(trouble) => (Outcome::Failed, Some(trouble)),
        };
        self.metrics.ended(outcome);
        if let Some(error) = &trouble
            && known != trouble
        {
            tracing::warn!(volume.id = %id, error, "not everything in a volume can be swept");
        }
        Some(Last {
            due: Instant::now() + took.saturating_mul(SPARING),
            trouble,
        })
    }
}

/// Sweeps what is held. Blocking.
fn sweep(hold: &Hold, rest: Duration) -> (SweepReport, Result<bool, String>) {
    let mut report = SweepReport::default();
    let limits = SweepLimits {
        time: TIME,
        stop: hold.stop(),
        rest,
    };
    // Whoever removed the store's own directories has nothing to be swept.
    let options = Options {
        payer: None,
        create: false,
    };
    let ended = match Volume::open(&hold.layer(), options) {
        Err(Error::NotAVolume { .. }) => Ok(true),
        Err(error) => Err(error.to_string()),
        Ok(volume) => {
            let swept = volume.sweep_within(&limits, &mut report);
            swept.map_err(|error| error.to_string())
        }
    };
    (report, ended)
}
