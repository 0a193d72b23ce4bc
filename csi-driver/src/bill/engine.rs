//! What moves a charge, as the jobs see it. Tests of the jobs have their own.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use vineyard_charge::recharge::Slack;
use vineyard_charge::{CgroupId, Payer};

use super::handover::{HandOver, HandOverError, Outcome, Progress};
use super::retainer::{self, Retainer};

/// One run over one volume.
pub(crate) struct Task<'a> {
    /// The mount point of the volume's memory.
    pub(crate) layer: &'a Path,
    /// Owners that rightly pay, but for the retainer. May change its mind while the run goes on.
    pub(crate) stays: &'a (dyn Fn(CgroupId) -> bool + Sync),
    /// Nobody but this driver can write to the volume.
    pub(crate) exclusive: bool,
    /// Room beyond its capacity for a moment.
    pub(crate) slack: &'a dyn Slack,
    /// How far it is, and what stops it.
    pub(crate) progress: &'a Progress,
}

impl fmt::Debug for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("layer", &self.layer)
            .field("exclusive", &self.exclusive)
            .finish_non_exhaustive()
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// By a survey.
    pub(crate) outcome: Outcome,
    /// The cgroups that the retainer was billed by then.
    pub(crate) retainer: Vec<CgroupId>,
}

impl Report {
    /// Bytes on the retainer's bill.
    pub(crate) fn retained(&self) -> u64 {
        self.bytes_of(|owner| self.retainer.contains(&owner))
    }

    /// Bytes of the owners that `which` chooses.
    pub(crate) fn bytes_of(&self, which: impl Fn(CgroupId) -> bool) -> u64 {
        let billed = self.outcome.billed.iter();
        let chosen = billed.filter(|(owner, _)| which(**owner));
        chosen.map(|(_, bytes)| bytes).sum()
    }
}

/// Why a run came to nothing. It may be tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Trouble {
    /// Nobody can be billed.
    #[error(transparent)]
    Retainer(#[from] retainer::Error),
    /// It began, and ended early.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// A bug.
    #[error("the hand-over failed inside: {0}")]
    Inside(String),
}

/// Moves charges to the retainer. Blocking.
pub(crate) trait Engine: Send + Sync + fmt::Debug {
    /// Has the retainer take over whatever of the volume is on a wrong bill.
    ///
    /// # Errors
    /// When the retainer is away, or nobody can say who is charged. What moved before that has moved.
    fn run(&self, task: &Task<'_>) -> Result<Report, Trouble>;

    /// The retainer as a payer of new bytes.
    ///
    /// # Errors
    /// When it is away.
    fn payer(&self) -> Result<Arc<dyn Payer>, Trouble>;

    /// The cgroups that the retainer is billed by now.
    ///
    /// # Errors
    /// When it is away.
    fn owners(&self) -> Result<Vec<CgroupId>, Trouble>;
}

/// The real one.
#[derive(Debug)]
pub(crate) struct RetainerEngine {
    /// Moves charges.
    pub(crate) moving: Retainer,
    /// Reserves for pods that wait: another connection, so that they do not wait for gigabytes to move.
    pub(crate) reserving: Retainer,
}

impl Engine for RetainerEngine {
    fn run(&self, task: &Task<'_>) -> Result<Report, Trouble> {
        let payer = self.moving.payer()?;
        let retainer = self.owners()?;
        let hand_over = HandOver {
            layer: task.layer,
            stays: task.stays,
            payer: &*payer,
            payer_owners: &retainer,
            exclusive: task.exclusive,
            slack: task.slack,
            progress: task.progress,
            until: None,
        };
        let outcome = hand_over.run()?;
        Ok(Report { outcome, retainer })
    }

    fn payer(&self) -> Result<Arc<dyn Payer>, Trouble> {
        Ok(self.reserving.payer()?)
    }

    fn owners(&self) -> Result<Vec<CgroupId>, Trouble> {
        Ok(self.moving.owners()?)
    }
}
