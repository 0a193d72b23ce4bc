//! What the retainer must be able to hold: summed up, on record, and asked for.

use std::sync::Arc;
use std::time::Instant;

use vineyard_charge::{Full, Limit, PAGE, ReserveError};

use super::account::Account;
use super::{AccountRecord, Bills, Error, GRANTED, Inner, RecordError, account_path, record};
use crate::bytes::Bytes;
use crate::volume::VolumeId;

impl Inner {
    /// Writes down what the request is made for.
    pub(super) fn record(&self, id: &VolumeId) -> Result<(), RecordError> {
        let Some((retained, pending, expected)) =
            self.accounts().volumes.get(id).map(Account::sums)
        else {
            return Ok(());
        };
        let record = AccountRecord {
            boot_id: self.settings.boot_id.clone(),
            volume: id.clone(),
            retained: Bytes(retained),
            pending: Bytes(pending),
            expected: Bytes(expected),
        };
        record::write(&account_path(&self.settings.records, id), &record)
    }

    /// Records these accounts, sums up what the retainer must be able to hold, and asks for it.
    pub(super) async fn settle_request(&self, ids: &[&VolumeId]) -> Result<(), Error> {
        if self.engine.is_none() {
            return Ok(());
        }
        let _turn = self.asking.lock().await;
        for id in ids {
            self.record(id)?;
        }
        let total = self.wanted().await;
        let ahead = {
            let mut all = self.accounts();
            if all.volumes.is_empty() {
                // Nobody is left who could need it.
                (all.ahead, all.ahead_since) = (0, None);
            }
            all.ahead
        };
        Ok(self.request.set(Bytes(total.saturating_add(ahead))).await?)
    }

    /// What the retainer must be able to hold.
    pub(super) async fn wanted(&self) -> u64 {
        // The use is read after the accounts: bytes whose reserve ends in between count as being reserved, never as neither.
        let accounts: Vec<_> = {
            let all = self.accounts();
            let each = all.volumes.iter();
            each.map(|(id, it)| (id.clone(), it.held(), it.reserving()))
                .collect()
        };
        let mut total: u64 = 0;
        for (id, held, reserving) in accounts {
            // Unknown use bounds nothing: rather too much is asked for than too little.
            let used = self.used(&id).await.map_or(u64::MAX, |it| it.bytes);
            total = total
                .saturating_add(held.min(used))
                .saturating_add(reserving);
        }
        total
    }
}

/// Bytes that are counted as being reserved on the retainer's bill, until it is known whether they are.
#[derive(Debug)]
pub(super) struct Reserving {
    inner: Arc<Inner>,
    shares: Vec<(VolumeId, u64)>,
    is_done: bool,
}

impl Reserving {
    /// They are.
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        let mut all = self.inner.accounts();
        for (id, bytes) in &self.shares {
            if let Some(account) = all.volumes.get_mut(id) {
                account.reserved(*bytes, self.is_done);
            }
        }
    }
}

impl Bills {
    /// Makes room under the retainer's request for bytes that are about to be reserved.
    ///
    /// # Errors
    /// [`ReserveError::Full`] when they do not fit under what is allocated to the retainer.
    pub(super) async fn cover(
        &self,
        shares: Vec<(VolumeId, u64)>,
    ) -> Result<Reserving, ReserveError> {
        let inner = &self.inner;
        let asked: u64 = shares.iter().map(|(_, bytes)| bytes).sum();
        // Whoever comes later does not take the room that this one waits for.
        let _first = inner.covering.lock().await;
        // Nobody else sums up or asks between the look and what it leads to.
        let turn = inner.asking.lock().await;
        for (id, bytes) in &shares {
            if let Some(account) = inner.accounts().volumes.get_mut(id) {
                account.reserve(*bytes);
            }
        }
        let reserving = Reserving {
            inner: Arc::clone(inner),
            shares,
            is_done: false,
        };
        let mut total = inner.wanted().await;
        let chunk = inner.settings.chunk.0.max(PAGE);
        // Asked for before the room is used up, so that few have to wait.
        let is_covered = total <= inner.request.allocated().0;
        if !is_covered || total.saturating_add(chunk / 2) > inner.request.desired().0 {
            let raised = total.saturating_add(chunk).next_multiple_of(chunk);
            inner
                .request
                .set(Bytes(raised))
                .await
                .map_err(|error| ReserveError::Refused {
                    message: error.to_string(),
                })?;
            let mut all = inner.accounts();
            (all.ahead, all.ahead_since) = (raised - total, Some(Instant::now()));
        }
        let mut allocated = inner.request.allocated().0;
        if total > allocated {
            // Who leaves must be able to ask meanwhile.
            drop(turn);
            inner.request.granted(Bytes(total), GRANTED).await;
            let _turn = inner.asking.lock().await;
            total = inner.wanted().await;
            allocated = inner.request.allocated().0;
        }
        if total <= allocated {
            return Ok(reserving);
        }
        Err(ReserveError::Full(Full {
            asked,
            free: allocated.saturating_sub(total - asked),
            limit: Limit::Allowance,
            limit_bytes: allocated,
        }))
    }
}
