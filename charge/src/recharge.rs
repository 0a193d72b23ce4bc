//! Moves the bill of bytes that exist already to another payer.
//!
//! Large files are *pulled*: the payer has the kernel move 2 MiB regions in place, mappings stay valid. Small files are
//! *copied* into a file that the payer reserved, which then takes the place of the old one. What happened is what a
//! survey says afterwards, never what a call returned.

mod attributes;
mod large;
mod lease;
mod punch;
mod scratch;
mod small;

pub use large::{Large, Leftover, Moved, Slack};
pub(crate) use punch::{allocated, punch, restore_times};
pub(crate) use scratch::Scratch;
pub(crate) use small::{BATCH, Check, Original};
pub use small::{Copied, Replace};

use std::io;
use std::os::fd::BorrowedFd;

use crate::cgroup::CgroupId;
use crate::payer::ReserveError;
use crate::survey::SurveyError;

/// Up to this size copying is faster than pulling, and a pull would round the bill up to 2 MiB for a moment.
/// Measured: `docs/design/charging.md`.
pub const SMALL: u64 = 256 << 10;

/// Whether nobody can write to the file through a descriptor or a mapping that exists now.
pub(crate) fn nobody_writes(file: BorrowedFd<'_>) -> bool {
    lease::Lease::take(file).is_ok_and(|lease| lease.is_held())
}

/// Why a charge was not moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RechargeError {
    /// The payer has no room, refuses or is away.
    #[error(transparent)]
    Payer(#[from] ReserveError),
    /// Nobody can say who is charged.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// Not a regular file, or one with several names that a copy would tear apart.
    #[error("a file of this kind is not re-charged: {0}")]
    Unsuitable(&'static str),
    /// Somebody writes to the file, or did while it was copied. It is as they left it.
    #[error("somebody writes to the file")]
    Changed,
    /// Somebody has the file open or mapped, so that a copy would not take its bytes off the old bill.
    #[error("somebody views the file")]
    Viewed,
    /// The pages that the payer reserved are charged to somebody else: it is not in the pod that it should be in.
    #[error("what the payer reserved is charged to {0}")]
    Misbilled(CgroupId),
    /// A system call failed.
    #[error("recharge: {0}")]
    Io(#[from] io::Error),
}
