//! What a pod's requests need from the bill.

use std::fmt;
use std::os::fd::OwnedFd;

use tonic::async_trait;
use vineyard_charge::{Extent, Full, Limit, ReserveError};

use crate::bytes::Bytes;
use crate::volume::PodUid;

/// Why the bill did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BillingError {
    /// This driver cannot do it.
    #[error("this driver does not {0}")]
    Unavailable(&'static str),
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
    /// [`ReserveError::Full`] with the numbers when they do not fit under the retainer's allocated request.
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

/// A node without a retainer: nothing can be measured, and no bytes but a pod's own can be reserved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unbilled;

#[async_trait]
impl Billing for Unbilled {
    async fn measure(&self, _: &PodUid) -> Result<Bytes, BillingError> {
        Err(BillingError::Unavailable("measure bills"))
    }

    async fn reserve_retained(
        &self,
        _: &PodUid,
        files: Vec<(OwnedFd, Extent)>,
    ) -> Result<(), ReserveError> {
        Err(ReserveError::Full(Full {
            asked: files.iter().map(|(_, extent)| extent.length).sum(),
            free: 0,
            limit: Limit::Allowance,
            limit_bytes: 0,
        }))
    }

    async fn leaving(&self, _: &PodUid, _: Bytes) -> Result<(), BillingError> {
        Ok(())
    }

    async fn returned(&self, _: &PodUid) -> Result<(), BillingError> {
        Ok(())
    }
}
