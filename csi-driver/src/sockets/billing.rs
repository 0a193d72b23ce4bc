//! What a pod's requests need from the bill.

use std::fmt;
use std::os::fd::OwnedFd;

use tonic::async_trait;
use vineyard_charge::{Extent, ReserveError};

use crate::bytes::Bytes;
use crate::volume::PodUid;

/// Why the bill did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BillingError {
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
}

/// The bill of this node, as far as pods may ask about their own.
#[async_trait]
pub(crate) trait Billing: Send + Sync + fmt::Debug {
    /// Bytes charged to the pod's subtree on its volumes. Never less than the truth: pages that no path reaches (a
    /// client's reserved stock, removed but mapped objects) count as this pod's unless they are known to be another's.
    ///
    /// # Errors
    /// When it cannot be measured.
    async fn measure(&self, pod: &PodUid) -> Result<Bytes, BillingError>;

    /// Has the retainer allocate extents of files, which have been found to be on volumes that the pod may write. All
    /// or nothing.
    ///
    /// # Errors
    /// [`ReserveError::Full`] with the numbers when they do not fit under the retainer's allocated request; a limit of 0
    /// bytes says that there is no retainer.
    async fn reserve_retained(
        &self,
        pod: &PodUid,
        files: Vec<(OwnedFd, Extent)>,
    ) -> Result<(), ReserveError>;

    /// The pod is about to leave with at most `at_most` bytes that were granted to it: the retainer's request covers
    /// them and that is on record when this returns, well within a second. Called again with other totals.
    ///
    /// # Errors
    /// When it is not on record.
    async fn leaving(&self, pod: &PodUid, at_most: Bytes) -> Result<(), BillingError>;

    /// The pod does not leave after all. Called for pods that never said they would, too.
    ///
    /// # Errors
    /// When that is not on record.
    async fn returned(&self, pod: &PodUid) -> Result<(), BillingError>;
}
