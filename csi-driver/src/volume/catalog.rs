//! Where records are kept. One trait, so that files and Kubernetes resources obey the same rules.

use std::fmt;

use tonic::async_trait;

use super::{Volume, VolumeId};

/// Version of a record: opaque, different after every change, never used again for the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceVersion(pub(crate) String);

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// What it said.
    pub(crate) volume: Volume,
    /// The version that said so.
    pub(crate) version: ResourceVersion,
}

/// Counts changes of the whole catalog, as far as its reader can see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revision(pub(crate) u128);

/// Why the catalog did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// No such volume.
    #[error("volume {0} does not exist")]
    NotFound(VolumeId),
    /// There is one with this id.
    #[error("volume {0} exists already")]
    AlreadyExists(VolumeId),
    /// Somebody else changed it since it was read.
    #[error("volume {0} was changed meanwhile")]
    Conflict(VolumeId),
    /// The record cannot be read; nothing is guessed from it.
    #[error("record {path}: {reason}")]
    Corrupt {
        /// Where it is.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// What it is stored in fails.
    #[error("{doing}: {source}")]
    Storage {
        /// What was tried.
        doing: String,
        /// What came of it.
        source: std::io::Error,
    },
}

/// Keeps records. Every change is a compare-and-swap; a change that returned is durable.
#[async_trait]
pub(crate) trait Catalog: Send + Sync + fmt::Debug {
    /// Reads one record.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what fails below.
    async fn get(&self, id: &VolumeId) -> Result<Stored, Error>;

    /// Reads all records, sorted by id.
    ///
    /// # Errors
    /// What fails below; never a part of them.
    async fn list(&self) -> Result<Vec<Stored>, Error>;

    /// Adds a record.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], or what fails below.
    async fn create(&self, volume: Volume) -> Result<Stored, Error>;

    /// Replaces the record that has this version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], or what fails below.
    async fn update(&self, version: &ResourceVersion, volume: Volume) -> Result<Stored, Error>;

    /// Removes the record that has this version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], or what fails below.
    async fn delete(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error>;

    /// Returns when something may have changed since `seen`, and at the latest after a few seconds.
    async fn changed(&self, seen: Revision) -> Revision;
}

/// Tries of a change before the caller is told to come again.
const TRIES: usize = 16;

/// Reads, edits and swaps a record until nobody else was faster. An edit that changes nothing writes nothing.
///
/// # Errors
/// What `edit` returns, or the catalog's error; [`Error::Conflict`] when others were faster too often.
pub(crate) async fn change<E: From<Error>>(
    catalog: &dyn Catalog,
    id: &VolumeId,
    mut edit: impl FnMut(&mut Volume) -> Result<(), E>,
) -> Result<Volume, E> {
    for _ in 0..TRIES {
        let stored = catalog.get(id).await?;
        let mut next = stored.volume.clone();
        edit(&mut next)?;
        if next == stored.volume {
            return Ok(next);
        }
        match catalog.update(&stored.version, next).await {
            Ok(stored) => return Ok(stored.volume),
            Err(Error::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Conflict(id.clone()).into())
}

#[cfg(test)]
#[path = "catalog_conformance.rs"]
pub(crate) mod conformance;
