//! What the connections of all pods share.

use std::io;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{Billing, BillingError, Claims};
use crate::bill::grants::Granter;
use crate::volume::PodUid;
use std::sync::Arc;

/// Surveys that are under way at the same time on this node; each keeps a processor busy.
const SURVEYS: usize = 2;

/// See the module.
#[derive(Debug)]
pub(crate) struct Service {
    /// Who was granted what.
    pub(crate) granter: Granter,
    /// Who may write what.
    pub(crate) claims: Claims,
    /// Who is charged for what.
    pub(crate) billing: Arc<dyn Billing>,
    /// How long a hello, the rest of a frame and the reading of a reply may take.
    pub(crate) patience: Duration,
    surveys: Semaphore,
}

/// Why a pod's leaving is not on record.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaveError {
    /// The record of its grants.
    #[error("the record of grants: {0}")]
    Book(#[from] io::Error),
    /// The bill.
    #[error(transparent)]
    Billing(#[from] BillingError),
}

impl Service {
    /// A service of these.
    pub(crate) fn new(
        granter: Granter,
        claims: Claims,
        billing: Arc<dyn Billing>,
        patience: Duration,
    ) -> Self {
        Self {
            granter,
            claims,
            billing,
            patience,
            surveys: Semaphore::new(SURVEYS),
        }
    }

    /// The right to survey.
    pub(super) fn surveys(&self) -> &Semaphore {
        &self.surveys
    }

    /// The pod leaves: recorded first, then the bill raises the retainer's request.
    ///
    /// # Errors
    /// When one of them is not on record.
    pub(super) async fn leave(&self, pod: &PodUid) -> Result<(), LeaveError> {
        let at_most = self.granter.leave(pod)?;
        Ok(self.billing.leaving(pod, at_most).await?)
    }
}
