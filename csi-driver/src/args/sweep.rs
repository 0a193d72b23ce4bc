//! Flags of the sweeps, and what is built from them.

use std::time::Duration;

use clap::Args as Flags;

use crate::bill::Bills;
use crate::metrics::Metrics;
use crate::sweep::Sweeper;

/// When what nobody needs any more goes.
#[derive(Debug, Flags)]
pub(super) struct SweepFlags {
    /// Between two sweeps of a volume, in milliseconds; more when they take long. 0: never.
    #[arg(
        long,
        env = "VINEYARD_SWEEP_PERIOD",
        value_name = "MILLISECONDS",
        default_value_t = 30_000
    )]
    sweep_period: u64,

    /// How long the trash keeps a removed object for whoever may use its memory again, in milliseconds.
    #[arg(
        long,
        env = "VINEYARD_SWEEP_REST",
        value_name = "MILLISECONDS",
        default_value_t = 60_000
    )]
    sweep_rest: u64,
}

impl SweepFlags {
    /// Who sweeps, if anybody does.
    pub(super) fn build(self, bills: &Bills, metrics: &Metrics) -> Option<Sweeper> {
        let Self {
            sweep_period,
            sweep_rest,
        } = self;
        (sweep_period > 0).then(|| Sweeper {
            bills: bills.clone(),
            period: Duration::from_millis(sweep_period),
            rest: Duration::from_millis(sweep_rest),
            metrics: metrics.sweeps(),
        })
    }
}
