//! Why a call of the Controller service fails, and the gRPC code that makes the CSI sidecars do the right thing about it.
//!
//! external-provisioner parks a claim "in background" on ABORTED, UNAVAILABLE, CANCELLED and DEADLINE_EXCEEDED from CreateVolume: it then
//! believes that a volume may be on its way to the node that it chose. On RESOURCE_EXHAUSTED it lets the scheduler choose again.
//! external-resizer takes INVALID_ARGUMENT, OUT_OF_RANGE and NOT_FOUND for "infeasible".

use tonic::{Code, Status};

use crate::bytes::Bytes;
use crate::edge::chain;
use crate::node;
use crate::validation::Invalid;
use crate::volume::{ParameterError, RangeError, VolumeId, catalog};

/// Why a call of the Controller service fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The request itself is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A parameter of a class is wrong.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// A source of content that is no volume.
    #[error("volume_content_source is no volume: only volumes can be cloned")]
    Source,
    /// The volume to be cloned does not exist.
    #[error("volume_content_source: volume {0:?} does not exist")]
    NoSource(String),
    /// The volume to be cloned has no content that could be.
    #[error("volume_content_source: volume {id} cannot be cloned: {reason}")]
    Unclonable {
        /// Which.
        id: VolumeId,
        /// Why.
        reason: String,
    },
    /// Clones are not filled yet.
    #[error("volume {id} is not copied yet to its clones: {clones}")]
    Cloned {
        /// Which.
        id: VolumeId,
        /// Which they are.
        clones: String,
    },
    /// No volume can have that size.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// No such volume.
    #[error("volume {0:?} does not exist")]
    Unknown(String),
    /// Another operation has the volume.
    #[error("an operation on volume {0} is under way")]
    Busy(VolumeId),
    /// The name is taken by a volume that is not what was asked for.
    #[error("volume {id} exists already, with other {what}")]
    Incompatible {
        /// Which.
        id: VolumeId,
        /// What differs.
        what: &'static str,
    },
    /// Nowhere where it may be is room.
    #[error(
        "{capacity} do not fit: {nodes} nodes match, the most that one of them has left is {free}"
    )]
    NoRoom {
        /// How large.
        capacity: Bytes,
        /// How many could have it.
        nodes: usize,
        /// The most that one has left.
        free: Bytes,
    },
    /// Pods have it mounted.
    #[error("volume {id} is in use: {publications} publications, {stagings} stagings")]
    InUse {
        /// Which.
        id: VolumeId,
        /// Where it is published.
        publications: usize,
        /// Where it is staged.
        stagings: usize,
    },
    /// Nodes did not drop its memory in time.
    #[error("volume {id} is being deleted; its memory is still on {nodes}")]
    Dropping {
        /// Which.
        id: VolumeId,
        /// Where.
        nodes: String,
    },
    /// Not a token of ours.
    #[error("starting_token {0:?} is none that ListVolumes gave")]
    Token(String),
    /// Less than no entries.
    #[error("max_entries {0} is negative")]
    Entries(i32),
    /// The record.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        let code = match error {
            Error::Invalid(_) | Error::Parameter(_) | Error::Source => Code::InvalidArgument,
            Error::NoSource(_) => Code::NotFound,
            // What the specification wants for every source that exists and does not do: take another one, or none.
            Error::Unclonable { .. } => Code::InvalidArgument,
            // Their first stage, or their deletion, ends it.
            Error::Cloned { .. } => Code::FailedPrecondition,
            // A negative number is no range at all.
            Error::Range(RangeError::Negative) => Code::InvalidArgument,
            Error::Range(_) => Code::OutOfRange,
            Error::Unknown(_) => Code::NotFound,
            // The other operation was for the same volume, so whatever it made is found by the retry.
            Error::Busy(_) => Code::Aborted,
            Error::Incompatible { .. } => Code::AlreadyExists,
            // The scheduler chooses another node.
            Error::NoRoom { .. } => Code::ResourceExhausted,
            Error::InUse { .. } => Code::FailedPrecondition,
            // It goes on; the next call finds it done.
            Error::Dropping { .. } => Code::Aborted,
            // What the specification wants, so that the caller begins anew without a token.
            Error::Token(_) => Code::Aborted,
            Error::Entries(_) => Code::InvalidArgument,
            Error::Catalog(error) => node::catalog_code(error),
        };
        Status::new(code, chain(error))
    }
}
