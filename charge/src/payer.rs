//! The payer: allocates pages on descriptors that it is handed, so that the kernel bills the payer's own cgroup.
//!
//! A payer knows no paths. [`Payer`] is the border: in process it is `OwnPayer`, over a socket `RemotePayer`.

mod connection;
mod fill;
mod own;
mod probe;
mod remote;
mod room;

pub(crate) use fill::free;
pub use own::OwnPayer;
pub use remote::RemotePayer;

use std::fmt;
use std::os::fd::BorrowedFd;

use vineyard_proto::payer as wire;

/// A range of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// What ran out when a reserve was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The bytes that this pod may add.
    Allowance,
    /// A cgroup limit, of the payer or of an ancestor.
    Cgroup,
    /// The volume's capacity (`ENOSPC`).
    Volume,
}

/// A reserve that did not fit. Nothing of it stays allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes that would have been granted.
    pub free: u64,
    /// What ran out.
    pub limit: Limit,
    /// The size of `limit` in bytes, 0 if unknown.
    pub limit_bytes: u64,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.limit {
            Limit::Allowance => "the allowance of this pod",
            Limit::Cgroup => "the memory limit of the payer's cgroup",
            Limit::Volume => "the capacity of the volume",
        };
        write!(f, "asked for {} bytes, {} free", self.asked, self.free)?;
        if self.limit_bytes > 0 {
            write!(f, " of {}", self.limit_bytes)?;
        }
        write!(f, " ({limit})")
    }
}

impl From<&wire::Full> for Full {
    fn from(full: &wire::Full) -> Self {
        let limit = match full.limit() {
            wire::full::Limit::Allowance => Limit::Allowance,
            wire::full::Limit::Volume => Limit::Volume,
            wire::full::Limit::Cgroup | wire::full::Limit::Unspecified => Limit::Cgroup,
        };
        Self {
            asked: full.asked_bytes,
            free: full.free_bytes,
            limit,
            limit_bytes: full.limit_bytes,
        }
    }
}

impl From<Full> for wire::Full {
    fn from(full: Full) -> Self {
        let limit = match full.limit {
            Limit::Allowance => wire::full::Limit::Allowance,
            Limit::Cgroup => wire::full::Limit::Cgroup,
            Limit::Volume => wire::full::Limit::Volume,
        };
        Self {
            asked_bytes: full.asked,
            free_bytes: full.free,
            limit: limit.into(),
            limit_bytes: full.limit_bytes,
        }
    }
}

/// Why a payer did not reserve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// Not enough room; undone.
    #[error("{0}")]
    Full(Full),
    /// The payer does not accept this descriptor or range.
    #[error("payer refused: {message}")]
    Refused {
        /// What the payer said.
        message: String,
    },
    /// The payer is not there (any more).
    #[error("payer unreachable: {0}")]
    Unreachable(std::io::Error),
    /// The system call failed.
    #[error("reserve: {0}")]
    Io(#[from] std::io::Error),
}

/// Whoever is billed.
pub trait Payer: Send + Sync + fmt::Debug {
    /// Allocates every page of every extent, all or nothing, without changing any file's size.
    ///
    /// Extents start at a multiple of the page size and are *fresh*: nothing is allocated there yet, so that an undo
    /// may free all of it. Bytes that do exist are kept, even then. Set a large file's final size first: whole 2 MiB
    /// regions that begin below it are allocated about four times as fast as others.
    ///
    /// # Errors
    /// [`ReserveError::Full`] when it does not fit, with everything undone. Nobody is ever OOM-killed for it.
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError>;

    /// Moves the charge of resident 2 MiB regions of `file` to this payer. Returns the offsets that the kernel refused;
    /// only a survey says what really moved.
    ///
    /// # Errors
    /// When the payer refuses the descriptor or is unreachable.
    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError>;

    /// Tells the payer that `bytes` that it had reserved are free again.
    fn give_back(&self, bytes: u64);
}
