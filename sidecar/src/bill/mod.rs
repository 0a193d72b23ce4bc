//! The bill of this pod: draws on the grants, corrected by what the kernel says is really charged.
//!
//! Clients die without saying what they freed, and other pods remove objects that were billed here. So `spent` only
//! ever is an upper bound, which [`Bill::reconcile`] lowers to what can be measured. It is sound for every
//! interleaving because
//! - bytes that are being allocated count on top of a measurement (`in_flight`), and
//! - a correction may concern bytes whose `GiveBack` is still under way: as many given-back bytes are ignored later
//!   (`corrected`), which errs to the safe side until the next measurement.
//!
//! `docs/design/payer.md` §4 has the argument.

mod gauge;

pub(crate) use gauge::{Gauge, KernelGauge};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vineyard_charge::{Full, Limit};

use crate::grants::{Claim, DrawError, Grants, Usage};

/// See the module.
#[derive(Debug)]
pub(crate) struct Bill {
    grants: Arc<dyn Grants>,
    gauge: Box<dyn Gauge>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Bytes that are drawn but perhaps not yet allocated.
    in_flight: u64,
    /// Bytes that a `GiveBack` may name although they are not spent: a measurement has returned them, or they never were.
    corrected: u64,
    /// All bytes that were ever drawn.
    drawn: u64,
}

/// A moment before a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    drawn: u64,
    in_flight: u64,
}

/// Why nothing was drawn.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The allowance is spent.
    Full(Full),
    /// The grants failed.
    Failed(DrawError),
}

impl Bill {
    /// A bill on `grants`, corrected by `gauge`.
    pub(crate) fn new(grants: Arc<dyn Grants>, gauge: Box<dyn Gauge>) -> Self {
        Self {
            grants,
            gauge,
            open: Mutex::default(),
        }
    }

    /// Takes `bytes` from the allowance, for an allocation that ends with [`Draw::keep`] or is undone. A `claim` on as many
    /// bytes is spent, instead of asking the grants.
    ///
    /// # Errors
    /// When they do not fit even after reconciling, or the grants failed.
    pub(crate) fn draw(self: &Arc<Self>, bytes: u64, claim: &mut Claim) -> Result<Draw, Refusal> {
        let mut open = self.open();
        let usage = self.grants.usage();
        let floor = self.gauge.at_least(usage.allowance.saturating_sub(bytes));
        let left = usage.allowance.saturating_sub(floor);
        if bytes > left {
            return Err(Refusal::Full(full(bytes, left.min(usage.free()), usage)));
        }
        let drawn = match claim.spend() {
            true => Ok(()),
            false => self.grants.draw(bytes).or_else(|_| {
                self.reconcile_locked(&mut open);
                self.grants.draw(bytes)
            }),
        };
        match drawn {
            Ok(()) => {
                open.in_flight = open.in_flight.saturating_add(bytes);
                open.drawn = open.drawn.saturating_add(bytes);
                Ok(Draw {
                    bill: Arc::clone(self),
                    bytes,
                    kept: 0,
                })
            }
            Err(DrawError::Full { free, .. }) => {
                Err(Refusal::Full(full(bytes, free.min(left), usage)))
            }
            Err(error) => Err(Refusal::Failed(error)),
        }
    }

    /// A client says that `bytes` are free again. Returns whether a measurement should follow.
    pub(crate) fn give_back(&self, bytes: u64) -> bool {
        let mut open = self.open();
        let known = bytes.min(open.corrected);
        open.corrected -= known;
        self.grants.give_back(bytes - known);
        known > 0
    }

    /// A client was served `bytes` that are on somebody else's bill: when it gives them back, nothing is free here.
    pub(crate) fn elsewhere(&self, bytes: u64) {
        let mut open = self.open();
        open.corrected = open.corrected.saturating_add(bytes);
    }

    /// A client reconnects that holds `bytes` from before a restart: they count again unless the grants remember them.
    pub(crate) fn readmit(&self, bytes: u64) {
        let _open = self.open();
        if !self.grants.remembers() {
            let counted = bytes.min(self.grants.usage().free());
            // Nothing is recorded by grants that do not remember, and it fits: this cannot fail.
            let _ = self.grants.draw(counted);
        }
    }

    /// Lowers what is spent to what can at most be charged, and returns the bytes that this freed.
    pub(crate) fn reconcile(&self) -> u64 {
        self.reconcile_locked(&mut self.open())
    }

    fn reconcile_locked(&self, open: &mut Open) -> u64 {
        // The measurement comes first: what is freed after it only makes it an overestimate.
        let usage = self.grants.usage();
        let Some(charged) = self.gauge.at_most(usage.carried) else {
            return 0;
        };
        let in_flight = open.in_flight;
        self.lower(open, charged.saturating_add(in_flight))
    }

    /// What is to be remembered before somebody else measures, which takes a while.
    pub(crate) fn mark(&self) -> Mark {
        let open = self.open();
        Mark {
            drawn: open.drawn,
            in_flight: open.in_flight,
        }
    }

    /// Somebody has found at some time since `mark` that at most `charged` bytes are charged. What was being allocated then
    /// and what was drawn since counts on top. Returns the bytes that this freed.
    pub(crate) fn measured(&self, mark: Mark, charged: u64) -> u64 {
        let mut open = self.open();
        let since = open.drawn.saturating_sub(mark.drawn);
        let most = charged.saturating_add(mark.in_flight).saturating_add(since);
        self.lower(&mut open, most)
    }

    fn lower(&self, open: &mut Open, most: u64) -> u64 {
        let leaked = self.grants.usage().spent.saturating_sub(most);
        if leaked > 0 {
            open.corrected = open.corrected.saturating_add(leaked);
            self.grants.give_back(leaked);
        }
        leaked
    }

    /// The present state of the grants.
    pub(crate) fn usage(&self) -> Usage {
        self.grants.usage()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn full(asked: u64, free: u64, usage: Usage) -> Full {
    Full {
        asked,
        free,
        limit: Limit::Allowance,
        limit_bytes: usage.allowance,
    }
}

/// Bytes that are drawn while they are being allocated. Dropped, it returns what was not kept.
#[derive(Debug)]
#[must_use]
pub(crate) struct Draw {
    bill: Arc<Bill>,
    bytes: u64,
    kept: u64,
}

impl Draw {
    /// `bytes` of it are allocated now and stay on the bill.
    pub(crate) fn keep(mut self, bytes: u64) {
        self.kept = bytes.min(self.bytes);
    }
}

impl Drop for Draw {
    fn drop(&mut self) {
        let mut open = self.bill.open();
        open.in_flight = open.in_flight.saturating_sub(self.bytes);
        self.bill.grants.give_back(self.bytes - self.kept);
    }
}

#[cfg(test)]
mod driver_model;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
