//! How much a pod may add to its own bill, and how it gets that in chunks.
//!
//! Grants are absolute totals: repeated, they grant nothing twice, and what is recorded is at least what anybody was
//! told.

use std::fmt;
use std::io;

use tonic::async_trait;

use super::{Book, PodBill};
use crate::bytes::Bytes;
use crate::volume::{PodUid, VolumeId};

/// A volume that a pod has published for writing, and what else there is to know when its allowance is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WritableClaim {
    /// The volume.
    pub(crate) id: VolumeId,
    /// What is booked for it.
    pub(crate) capacity: Bytes,
    /// It holds nothing but what the driver made in it, and no other pod has it published.
    pub(crate) is_fresh: bool,
    /// Other pods that have it published now.
    pub(crate) others: Vec<PodUid>,
}

/// Decides what a pod may add to its bill. Asked once a pod, when its sidecar says hello.
#[async_trait]
pub(crate) trait AllowanceRule: Send + Sync + fmt::Debug {
    /// The allowance of the pod with this record and these claims; `None` while that cannot be said, because none is
    /// published yet.
    async fn allowance(&self, bill: &PodBill, claims: &[WritableClaim]) -> Option<Bytes>;
}

/// The rule without Kubernetes: what the sockets volume says, else the capacity of volumes that this pod alone fills.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StandaloneRule;

#[async_trait]
impl AllowanceRule for StandaloneRule {
    async fn allowance(&self, bill: &PodBill, claims: &[WritableClaim]) -> Option<Bytes> {
        if claims.is_empty() {
            return None;
        }
        let fresh = claims.iter().filter(|claim| claim.is_fresh);
        Some(bill.writes.unwrap_or_else(|| booked(fresh)))
    }
}

fn booked<'a>(claims: impl Iterator<Item = &'a WritableClaim>) -> Bytes {
    Bytes(claims.fold(0, |sum: u64, claim| sum.saturating_add(claim.capacity.0)))
}

/// What came of asking for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granting {
    /// So much is granted in all now.
    Granted(Bytes),
    /// The allowance does not cover it; nothing has changed.
    Full {
        /// What could still be granted.
        free: Bytes,
        /// The allowance.
        allowance: Bytes,
    },
}

/// Grants on the book, by a rule.
#[derive(Debug)]
pub(crate) struct Granter {
    /// Where they are recorded.
    pub(crate) book: std::sync::Arc<Book>,
    /// Who may have how much.
    pub(crate) rule: Box<dyn AllowanceRule>,
    /// Grants are rounded up to a multiple of this.
    pub(crate) chunk: Bytes,
}

impl Granter {
    /// Decides the allowance of a pod if it is not decided yet, and returns the record.
    ///
    /// Never more than what is booked for the pod's claims, less what pods that share one of them may have.
    ///
    /// # Errors
    /// `NotFound` when the pod has no record, or what the file system says.
    pub(crate) async fn decide(
        &self,
        pod: &PodUid,
        claims: &[WritableClaim],
    ) -> io::Result<PodBill> {
        let bill = self.book.get(pod).ok_or(io::ErrorKind::NotFound)?;
        if bill.allowance.is_some() {
            return Ok(bill);
        }
        let Some(wanted) = self.rule.allowance(&bill, claims).await else {
            return Ok(bill);
        };
        self.book.change(pod, |bill, all| {
            let others = claims.iter().flat_map(|claim| &claim.others);
            let mut others: Vec<&PodUid> = others.filter(|other| *other != pod).collect();
            others.sort_unstable();
            others.dedup();
            let taken = others
                .iter()
                .filter_map(|other| all.get(other)?.allowance)
                .fold(0_u64, |sum, bytes| sum.saturating_add(bytes.0));
            let most = booked(claims.iter()).0.saturating_sub(taken);
            bill.allowance.get_or_insert(Bytes(wanted.0.min(most)));
        })
    }

    /// Grants at least `total` bytes in all, or nothing.
    ///
    /// # Errors
    /// As [`decide`](Self::decide).
    pub(crate) fn grant(&self, pod: &PodUid, total: Bytes) -> io::Result<Granting> {
        let mut full = None;
        let bill = self.book.change(pod, |bill, _| {
            let allowance = bill.allowance.unwrap_or_default();
            if total > allowance {
                let free = Bytes(allowance.0.saturating_sub(bill.granted.0));
                full = Some(Granting::Full { free, allowance });
                return;
            }
            let chunk = self.chunk.0.max(1);
            let rounded = Bytes(total.0.div_ceil(chunk).saturating_mul(chunk));
            bill.granted = bill.granted.max(rounded.min(allowance));
        })?;
        Ok(full.unwrap_or(Granting::Granted(bill.granted)))
    }

    /// A sidecar says hello, and what it was granted, which a lost book may not know of.
    ///
    /// # Errors
    /// As [`decide`](Self::decide).
    pub(crate) fn readmit(
        &self,
        pod: &PodUid,
        granted: Bytes,
        leaving: bool,
    ) -> io::Result<PodBill> {
        self.book.change(pod, |bill, _| {
            let allowance = bill.allowance.unwrap_or_default();
            bill.granted = bill.granted.max(granted.min(allowance));
            if !leaving {
                bill.leaving = None;
            }
        })
    }

    /// The sidecar leaves. Returns the most that is charged to the pod by way of grants, whatever the sidecar says.
    ///
    /// # Errors
    /// As [`decide`](Self::decide).
    pub(crate) fn leave(&self, pod: &PodUid) -> io::Result<Bytes> {
        let bill = self
            .book
            .change(pod, |bill, _| bill.leaving = Some(bill.granted))?;
        Ok(bill.granted)
    }
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
