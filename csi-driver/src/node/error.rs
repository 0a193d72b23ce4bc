//! Why a call of the Node service fails, and the gRPC code that makes kubelet do the right thing about it.
//!
//! Kubelet takes ABORTED, UNAVAILABLE, RESOURCE_EXHAUSTED, CANCELLED and DEADLINE_EXCEEDED for "uncertain": it calls again and cleans
//! up with NodeUnstage. Anything else is final: nothing was done.

use std::path::PathBuf;

use tonic::{Code, Status};

use crate::bill;
use crate::bytes::Bytes;
use crate::clone;
use crate::edge::chain;
use crate::mount;
use crate::validation::Invalid;
use crate::volume::{AccessMode, NodeId, PodReference, VolumeId, catalog};

/// Why a call of the Node service fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The request itself is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No such volume.
    #[error("volume {0:?} does not exist")]
    Unknown(String),
    /// Another operation has the volume.
    #[error("an operation on volume {0} is under way")]
    Busy(VolumeId),
    /// Its memory is known to be gone.
    #[error(
        "the content of volume {id} is lost: {reason}; delete the volume, or let its class begin anew (onLoss: recreate)"
    )]
    Lost {
        /// Which.
        id: VolumeId,
        /// How that is known.
        reason: String,
    },
    /// Its memory is on another node.
    #[error(
        "the memory of volume {id} is on node {home}, where {publications} pods use it; it cannot be moved yet"
    )]
    Elsewhere {
        /// Which.
        id: VolumeId,
        /// Where.
        home: NodeId,
        /// Pods there.
        publications: usize,
    },
    /// It is a clone, and what is to be copied is on another node.
    #[error(
        "volume {id} is a clone of {of}, and is copied on node {home}, where the memory of that is"
    )]
    SourceElsewhere {
        /// Which.
        id: VolumeId,
        /// What is to be copied.
        of: VolumeId,
        /// Where that is.
        home: NodeId,
    },
    /// It is a clone, and its content is under way.
    #[error("volume {id} is being copied from {of}: {percent} %")]
    Filling {
        /// Which.
        id: VolumeId,
        /// What is copied.
        of: VolumeId,
        /// How far it is.
        percent: u64,
    },
    /// It is a clone, and its content could not be copied.
    #[error("fill volume {id}: {source}")]
    Copy {
        /// Which.
        id: VolumeId,
        /// Why.
        source: clone::Error,
    },
    /// What others wait for, too.
    #[error(transparent)]
    Shared(std::sync::Arc<Error>),
    /// It has no memory yet, or may begin anew.
    #[error("volume {0} has no memory on this node: it must be staged first")]
    NotResident(VolumeId),
    /// Kubelet skipped a step, or the node was restarted since.
    #[error("volume {id} is not staged at {} in this boot of the node", path.display())]
    NotStaged {
        /// Which.
        id: VolumeId,
        /// Where it should be.
        path: PathBuf,
    },
    /// No staging path, although we stage.
    #[error("staging_target_path is missing")]
    NoStagingPath,
    /// The place has the volume under other conditions.
    #[error("volume {id} is at {} already, under other conditions", path.display())]
    Incompatible {
        /// Which.
        id: VolumeId,
        /// Where.
        path: PathBuf,
    },
    /// Single writer.
    #[error("volume {id} is published at {}, and a single writer uses it", path.display())]
    Exclusive {
        /// Which.
        id: VolumeId,
        /// Where.
        path: PathBuf,
    },
    /// The volume was not created for this mode.
    #[error("volume {id} was not created for {mode:?}")]
    Exceeds {
        /// Which.
        id: VolumeId,
        /// What was asked for.
        mode: AccessMode,
    },
    /// The node that was chosen for the first stage is not the one that is booked, and is full.
    #[error(
        "{capacity} for volume {id} do not fit into what is left of node {node}'s budget: {free}"
    )]
    NoRoom {
        /// Which.
        id: VolumeId,
        /// How large.
        capacity: Bytes,
        /// Where.
        node: NodeId,
        /// What is left.
        free: Bytes,
    },
    /// More than ControllerExpandVolume booked.
    #[error("volume {id} has {capacity}, not {required} bytes: expand it at the controller first")]
    NotBooked {
        /// Which.
        id: VolumeId,
        /// What it has.
        capacity: Bytes,
        /// What was asked for.
        required: u64,
    },
    /// The range is no range.
    #[error(transparent)]
    Range(#[from] crate::volume::RangeError),
    /// Nothing of this volume is there.
    #[error("volume {id} is not at {}", path.display())]
    NotThere {
        /// Which.
        id: VolumeId,
        /// Where it should be.
        path: PathBuf,
    },
    /// The record.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// The bill.
    #[error(transparent)]
    Bill(#[from] bill::Error),
    /// It would write, and nothing pays for it.
    #[error(
        "pod {pod} would write volume {id} and has no sidecar that pays for it: it was made while the webhook of vineyard.io was away, \
         before its claim, or with vineyard.io/inject: disabled. Delete it: its successor is injected; pods that a controller owns are \
         deleted by themselves. Or mount the claim with readOnly: true"
    )]
    NoSidecar {
        /// What.
        id: VolumeId,
        /// Who.
        pod: PodReference,
    },
    /// Kubelet does not say whose the volume is.
    #[error(
        "the publish request names no pod: the CSIDriver object of vineyard.io needs podInfoOnMount: true"
    )]
    NoPod,
    /// Nobody knows whether it has a sidecar.
    #[error("look at pod {pod}: {reason}")]
    Unsure {
        /// Who.
        pod: PodReference,
        /// Why.
        reason: String,
    },
    /// A pod's sockets volume.
    #[error(transparent)]
    Sockets(#[from] crate::sockets::Error),
    /// A bug.
    #[error("the call failed inside: {0}")]
    Inside(String),
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        let code = match error {
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Unknown(_) | Error::NotThere { .. } => Code::NotFound,
            Error::Busy(_) => Code::Aborted,
            // Final: calling again does not bring it back, and nothing of it is left to be unstaged.
            Error::Lost { .. } => Code::DataLoss,
            // The last pod may leave any moment, and then it can be moved: kubelet should ask again.
            Error::Elsewhere { .. } | Error::SourceElsewhere { .. } => Code::Aborted,
            // It goes on; the next call joins it.
            Error::Filling { .. } => Code::Aborted,
            Error::Copy { source, .. } => match source {
                // The clone is expanded, or memory becomes free.
                clone::Error::Full(_) | clone::Error::NoInodes { .. } => Code::ResourceExhausted,
                // The retainer comes back.
                clone::Error::Payer(_) => Code::Unavailable,
                // The next call begins anew.
                clone::Error::Leased { .. } | clone::Error::Stopped => Code::Aborted,
                // Somebody must change the source.
                clone::Error::TooDeep { .. } => Code::FailedPrecondition,
                clone::Error::System { .. } => Code::Internal,
            },
            Error::Shared(error) => return Self::from(&**error),
            Error::NotResident(_) | Error::NotStaged { .. } | Error::NoStagingPath => {
                Code::FailedPrecondition
            }
            Error::Incompatible { .. } => Code::AlreadyExists,
            Error::Exclusive { .. } | Error::Exceeds { .. } => Code::FailedPrecondition,
            // Volumes go, and then there is room.
            Error::NoRoom { .. } => Code::ResourceExhausted,
            Error::NotBooked { .. } | Error::Range(_) => Code::OutOfRange,
            Error::Catalog(error) => catalog_code(error),
            Error::Mount(error) => mount_code(error),
            Error::Bill(error) => match error {
                // It lets go between two steps; the next call finds it free.
                bill::Error::Busy(_) => Code::Aborted,
                // Memory is not used without anybody knowing who is billed.
                _ => Code::Internal,
            },
            // Final: nothing was done, and a pod cannot be changed.
            Error::NoSidecar { .. } | Error::NoPod => Code::FailedPrecondition,
            Error::Unsure { .. } => Code::Unavailable,
            Error::Sockets(error) => error.code(mount_code),
            Error::Inside(_) => Code::Internal,
        };
        Status::new(code, chain(error))
    }
}

fn mount_code(error: &mount::Error) -> Code {
    match error {
        // It goes on in the kernel; the next call finds out.
        mount::Error::Hanging { .. } => Code::Aborted,
        // Somebody must take that away first.
        mount::Error::Foreign { .. } => Code::FailedPrecondition,
        // More were taken off than ever belong there; the next call goes on.
        mount::Error::Stacked { .. } => Code::Aborted,
        mount::Error::System { .. } | mount::Error::Malformed(_) => Code::Internal,
    }
}

/// The code of the catalog's errors, for both services.
pub(crate) fn catalog_code(error: &catalog::Error) -> Code {
    match error {
        catalog::Error::NotFound(_) => Code::NotFound,
        // Others were faster, again and again.
        catalog::Error::Conflict(_) | catalog::Error::AlreadyExists(_) => Code::Aborted,
        // Never guessed around: somebody must look at the record.
        catalog::Error::Corrupt { .. } => Code::Internal,
        catalog::Error::Storage { .. } => Code::Internal,
        catalog::Error::NoRoom { .. } => Code::ResourceExhausted,
    }
}
