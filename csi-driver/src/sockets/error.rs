//! Why a sockets volume is not published.

use std::io;
use std::path::PathBuf;

use tonic::Code;

use crate::mount;
use crate::validation::Invalid;
use crate::volume::PodUid;

/// Why a call about a sockets volume fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The request itself is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Inline volumes are for pods, and pods are known by kubelet's directories.
    #[error("target_path {} is not in a pod's directory: pods/<uid>/volumes/…", path.display())]
    NoPod {
        /// Where it should be mounted.
        path: PathBuf,
    },
    /// An attribute that no sockets volume has.
    #[error("attribute {key}: {reason}")]
    Attribute {
        /// Which.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This driver was started without a run directory.
    #[error("this node serves no sockets volumes")]
    NotServed,
    /// Another operation has the volume.
    #[error("an operation on sockets volume {0} is under way")]
    Busy(String),
    /// A pod has one of them.
    #[error("pod {pod} has another sockets volume: {volume_id}")]
    Second {
        /// The pod.
        pod: PodUid,
        /// What it has.
        volume_id: String,
    },
    /// The volume is somewhere else, or there under other conditions.
    #[error("sockets volume {volume_id} is at {} already, under other conditions", path.display())]
    Incompatible {
        /// Which.
        volume_id: String,
        /// Where.
        path: PathBuf,
    },
    /// The record of grants.
    #[error("the record of pod {pod}: {source}")]
    Book {
        /// Whose.
        pod: PodUid,
        /// What the file system says.
        source: io::Error,
    },
    /// The directories and the socket.
    #[error("{doing} of sockets volume {volume_id}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Which.
        volume_id: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The mount.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// A bug.
    #[error("the call failed inside: {0}")]
    Inside(String),
}

impl Error {
    /// The gRPC code; `mount` is that of mounts.
    pub(crate) fn code(&self, mount: impl FnOnce(&mount::Error) -> Code) -> Code {
        match self {
            Self::Invalid(_) | Self::NoPod { .. } | Self::Attribute { .. } => Code::InvalidArgument,
            Self::NotServed | Self::Second { .. } => Code::FailedPrecondition,
            Self::Busy(_) => Code::Aborted,
            Self::Incompatible { .. } => Code::AlreadyExists,
            // The run directory is ours alone; the next call may find room in it.
            Self::Book { .. } | Self::System { .. } | Self::Inside(_) => Code::Internal,
            Self::Mount(error) => mount(error),
        }
    }
}
