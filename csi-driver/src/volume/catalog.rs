//! Where records are kept. One trait, so that files and Kubernetes resources obey the same rules.

use std::fmt;
use std::time::SystemTime;

use tonic::async_trait;

use super::listing::{Listing, Tombstone};
use super::{NodeId, NodeReport, Volume, VolumeId};
use crate::bytes::Bytes;

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
    /// More than the node's budget would be booked on it.
    #[error("node {node} has {free} of its budget left")]
    NoRoom {
        /// Which node.
        node: NodeId,
        /// What it has left.
        free: Bytes,
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

impl Error {
    /// Whether the change may be on record all the same: the answer was lost, or cannot be read. Whoever has done something for it must leave
    /// that, and look again.
    pub(crate) fn is_uncertain(&self) -> bool {
        matches!(self, Self::Storage { .. } | Self::Corrupt { .. })
    }
}

/// Keeps records. Every change is a compare-and-swap; a change that returned is durable.
#[async_trait]
pub(crate) trait Catalog: Send + Sync + fmt::Debug {
    /// Reads one record.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what fails below.
    async fn get(&self, id: &VolumeId) -> Result<Stored, Error>;

    /// Reads everything at one moment. Records that cannot be read are named in it, and do not hide the others.
    ///
    /// # Errors
    /// What fails below.
    async fn list(&self) -> Result<Listing, Error>;

    /// Replaces the record that has this version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], or what fails below.
    async fn update(&self, version: &ResourceVersion, volume: Volume) -> Result<Stored, Error>;

    /// Adds a record (no version) or replaces the one that has this version, only if everything that is then booked on
    /// `volume.booked` fits into `budget`. Whoever does this at the same time, the sum is never more. What was booked there
    /// before may stay, although a budget was made smaller.
    ///
    /// # Errors
    /// [`Error::NoRoom`]; [`Error::AlreadyExists`] for a record that is new but is there; [`Error::Corrupt`] when there is a
    /// record that may have booked there, too; else those of [`update`](Self::update).
    async fn book(
        &self,
        version: Option<&ResourceVersion>,
        volume: Volume,
        budget: Bytes,
    ) -> Result<Stored, Error>;

    /// Removes the record that has this version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], or what fails below.
    async fn delete(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error>;

    /// Removes the record that has this version; the layers that it still has become tombstones of their nodes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], or what fails below.
    async fn bury(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error>;

    /// Says that a node lives, in this boot, and returns what it still has to drop. Tombstones of its other boots are
    /// forgotten: that memory is gone.
    ///
    /// # Errors
    /// What fails below.
    async fn beat(&self, node: &NodeId, boot_id: &str) -> Result<Vec<Tombstone>, Error>;

    /// Writes down what a node says about itself. It has said before that it lives.
    ///
    /// # Errors
    /// What fails below.
    async fn report(&self, node: &NodeId, report: NodeReport) -> Result<(), Error>;

    /// Forgets a tombstone of a node: the memory is dropped.
    ///
    /// # Errors
    /// What fails below.
    async fn dropped(&self, node: &NodeId, tombstone: &Tombstone) -> Result<(), Error>;

    /// Adds a record, however large it is.
    #[cfg(test)]
    async fn create(&self, volume: Volume) -> Result<Stored, Error> {
        self.book(None, volume, Bytes(u64::MAX)).await
    }

    /// Returns when something may have changed since `seen`, of `only` if one is named, and at the latest after a few seconds.
    async fn changed(&self, only: Option<&VolumeId>, seen: Revision) -> Revision;

    /// The volumes that are being deleted and still have memory on `node`, as far as is known without asking: to learn of another one is a
    /// change. So whoever drops their memory looks at their records first.
    ///
    /// # Errors
    /// What fails below.
    async fn doomed(&self, node: &NodeId) -> Result<Vec<VolumeId>, Error> {
        let volumes = self.list().await?.volumes.into_iter();
        let doomed = volumes.filter(|stored| stored.volume.is_doomed_on(node));
        Ok(doomed.map(|stored| stored.volume.id).collect())
    }
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
    edit: impl FnMut(&mut Volume) -> Result<(), E>,
) -> Result<Volume, E> {
    change_within(catalog, id, None, edit).await
}

/// The same for an edit that books more, or elsewhere: `budget` is that of the node that it books on.
///
/// # Errors
/// Those of [`change`] and of [`Catalog::book`].
pub(crate) async fn change_booking<E: From<Error>>(
    catalog: &dyn Catalog,
    id: &VolumeId,
    budget: Bytes,
    edit: impl FnMut(&mut Volume) -> Result<(), E>,
) -> Result<Volume, E> {
    change_within(catalog, id, Some(budget), edit).await
}

async fn change_within<E: From<Error>>(
    catalog: &dyn Catalog,
    id: &VolumeId,
    budget: Option<Bytes>,
    mut edit: impl FnMut(&mut Volume) -> Result<(), E>,
) -> Result<Volume, E> {
    for _ in 0..TRIES {
        let stored = catalog.get(id).await?;
        let mut next = stored.volume.clone();
        edit(&mut next)?;
        if next == stored.volume {
            return Ok(next);
        }
        next.refresh_conditions(SystemTime::now());
        let swapped = match budget {
            Some(budget) => catalog.book(Some(&stored.version), next, budget).await,
            None => catalog.update(&stored.version, next).await,
        };
        match swapped {
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
