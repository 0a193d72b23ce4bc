//! What can go wrong in a store.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use vineyard_charge::{Full, ReserveError};

/// Why an operation of the store failed. Nothing of a failed `put` remains.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such name or object.
    #[error("{key} not found")]
    NotFound {
        /// The name or id.
        key: String,
    },
    /// The name exists, its object is gone.
    #[error("{key} is lost: its name points to an object that is gone")]
    Lost {
        /// The name.
        key: String,
    },
    /// The name is taken and `overwrite` was false, or it is a directory.
    #[error("{name} exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// A path of the volume is neither a name of it nor a plain file.
    #[error("{key} is not a name of this volume: {why}")]
    Foreign {
        /// The path.
        key: String,
        /// What it is.
        why: &'static str,
    },
    /// Not enough room. Everything that was reserved for the operation is free again.
    #[error("volume full: {full}; {space}")]
    Full {
        /// What was asked and what ran out.
        full: Full,
        /// What holds the space.
        space: Box<crate::usage::Space>,
    },
    /// The time is over.
    #[error("timeout: {what}")]
    Timeout {
        /// What was waited for.
        what: String,
    },
    /// The directory holds no volume.
    #[error("{} is not a volume: {why}", path.display())]
    NotAVolume {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The volume was written by a newer version of the format.
    #[error("the volume's format is {found:?}, this program reads version 1")]
    Format {
        /// The content of `.vineyard/format`.
        found: String,
    },
    /// The name breaks a rule.
    #[error("invalid name {name:?}: {why}")]
    InvalidName {
        /// The name.
        name: String,
        /// The rule.
        why: &'static str,
    },
    /// The volume is mounted or opened read-only.
    #[error("the volume is read-only")]
    ReadOnly,
    /// The content does not keep the rules of its kind.
    #[error("{key}: {why}")]
    Corrupt {
        /// The object or name.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Sealing a file that has pages which were never allocated.
    #[error("the object has holes: {allocated} of {len} bytes are allocated")]
    Holes {
        /// Allocated bytes.
        allocated: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The producer of a stream reported a failure.
    #[error("the producer of stream {stream} failed: {message}")]
    StreamFailed {
        /// The stream.
        stream: String,
        /// What the producer said.
        message: String,
    },
    /// The payer refused or is gone.
    #[error(transparent)]
    Payer(ReserveError),
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// What it was about, relative to the volume's root where possible.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<String>, errno: Errno) -> Self {
        if errno == Errno::EROFS {
            return Self::ReadOnly;
        }
        Self::Io {
            path: path.into(),
            source: errno.into(),
        }
    }

    pub(crate) fn not_found(key: impl Into<String>) -> Self {
        Self::NotFound { key: key.into() }
    }

    pub(crate) fn corrupt(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt {
            key: key.into(),
            why: why.into(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::NotFound { .. } | Error::Lost { .. } => io::ErrorKind::NotFound,
            Error::Exists { .. } => io::ErrorKind::AlreadyExists,
            Error::Full { .. } => io::ErrorKind::StorageFull,
            Error::Timeout { .. } => io::ErrorKind::TimedOut,
            Error::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            Error::InvalidName { .. } => io::ErrorKind::InvalidInput,
            Error::Corrupt { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
