//! Where the right to add bytes to this pod's bill comes from.
//!
//! [`Grants`] is the border: a [`StaticAllowance`] comes from the command line, [`DriverGrants`] from the node driver.
//! Whoever implements it keeps `spent` an upper bound of the truth across its own restarts, so that nothing is
//! spent twice; `docs/design/payer.md` §4 has the rule.

mod driver;
mod state_file;
mod static_allowance;

pub(crate) use driver::{Claim, DriverGrants, Short};
pub(crate) use state_file::StateFile;
pub(crate) use static_allowance::{Place, StaticAllowance};

use std::io;

/// What was granted and what is gone of it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// What this pod may add to its bill.
    pub(crate) allowance: u64,
    /// What it has added and not given back: never less than the truth.
    pub(crate) spent: u64,
    /// The part of `spent` that may be charged to cgroups of earlier containers of this pod.
    pub(crate) carried: u64,
}

impl Usage {
    /// Bytes that may still be drawn.
    pub(crate) fn free(&self) -> u64 {
        self.allowance.saturating_sub(self.spent)
    }
}

/// Why nothing was drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DrawError {
    /// The allowance does not cover it.
    #[error("{free} bytes of the allowance of {allowance} are left")]
    Full {
        /// Bytes left.
        free: u64,
        /// The whole allowance in bytes.
        allowance: u64,
    },
    /// It could not be recorded, so a restart would spend it twice.
    #[error("cannot record the draw: {0}")]
    Unrecorded(#[source] io::Error),
}

/// A source of grants. Calls are short: they may write one small file, and never wait for a client.
pub(crate) trait Grants: Send + Sync + std::fmt::Debug {
    /// Takes `bytes` from the allowance, all or nothing.
    ///
    /// # Errors
    /// When the allowance does not cover them or the draw cannot be recorded.
    fn draw(&self, bytes: u64) -> Result<(), DrawError>;

    /// Returns `bytes` to the allowance; what exceeds the spent bytes is ignored.
    fn give_back(&self, bytes: u64);

    /// The present state.
    fn usage(&self) -> Usage;

    /// Whether what was spent survives a restart of this process.
    fn remembers(&self) -> bool;
}
