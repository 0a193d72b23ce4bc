//! Bytes that the node driver grants in chunks, and what is claimed of them.
//!
//! A request first *claims* its bytes, which may wait for the driver; once claimed they are granted for sure, and the draw
//! never waits. What was granted before this process started counts as spent until it is measured.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DrawError, Grants, Usage};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct DriverGrants {
    ledger: Mutex<Ledger>,
}

#[derive(Clone, Debug, Default)]
struct Ledger {
    /// The driver has said something.
    known: bool,
    allowance: u64,
    granted: u64,
    chunk: u64,
    spent: u64,
    carried: u64,
    /// Bytes that requests are about to spend.
    claimed: u64,
}

impl Ledger {
    fn taken(&self) -> u64 {
        self.spent.saturating_add(self.claimed)
    }
}

/// Bytes that one request will spend. Dropped, they are free again.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    of: Option<(Arc<DriverGrants>, u64)>,
}

/// What to do about bytes that are not granted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// Ask the driver for so much in all.
    Ask {
        /// The total.
        total: u64,
    },
    /// The allowance does not cover them.
    Beyond,
}

impl DriverGrants {
    /// The driver says what is granted. What it granted before this process started is spent until it is measured.
    pub(crate) fn welcome(&self, granted: u64, allowance: u64, chunk: u64) {
        let mut ledger = self.ledger();
        if !ledger.known {
            ledger.known = true;
            ledger.spent = granted;
            ledger.carried = granted;
        }
        ledger.granted = ledger.granted.max(granted);
        ledger.allowance = allowance.max(ledger.granted);
        ledger.chunk = chunk;
    }

    /// The driver has granted so much in all.
    pub(crate) fn granted(&self, total: u64, allowance: u64) {
        let mut ledger = self.ledger();
        ledger.granted = ledger.granted.max(total);
        ledger.allowance = allowance.max(ledger.granted);
    }

    /// The driver grants no more than this.
    pub(crate) fn at_most(&self, allowance: u64) {
        let mut ledger = self.ledger();
        ledger.allowance = allowance.max(ledger.granted);
    }

    /// All that was granted, as far as this process knows.
    pub(crate) fn total(&self) -> u64 {
        self.ledger().granted
    }

    /// Claims bytes that are granted, or says what is to be done.
    ///
    /// # Errors
    /// [`Short`].
    pub(crate) fn claim(self: &Arc<Self>, bytes: u64) -> Result<Claim, Short> {
        let mut ledger = self.ledger();
        let total = ledger.taken().saturating_add(bytes);
        if total > ledger.granted {
            return Err(match total > ledger.allowance {
                true => Short::Beyond,
                false => Short::Ask { total },
            });
        }
        ledger.claimed += bytes;
        Ok(Claim {
            of: Some((Arc::clone(self), bytes)),
        })
    }

    /// The total to ask for ahead of need: half a chunk before what is granted is gone.
    pub(crate) fn ahead(&self) -> Option<u64> {
        let ledger = self.ledger();
        let left = ledger.granted.saturating_sub(ledger.taken());
        let low = ledger.known && left < ledger.chunk / 2 && ledger.granted < ledger.allowance;
        low.then_some(ledger.granted + 1)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Spends exactly what was claimed. `false`: nothing was, the grants have to be asked.
    pub(crate) fn spend(&mut self) -> bool {
        let Some((grants, bytes)) = self.of.take() else {
            return false;
        };
        let mut ledger = grants.ledger();
        ledger.claimed = ledger.claimed.saturating_sub(bytes);
        ledger.spent = ledger.spent.saturating_add(bytes);
        true
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((grants, bytes)) = self.of.take() {
            let mut ledger = grants.ledger();
            ledger.claimed = ledger.claimed.saturating_sub(bytes);
        }
    }
}

impl Grants for DriverGrants {
    fn draw(&self, bytes: u64) -> Result<(), DrawError> {
        let mut ledger = self.ledger();
        let free = ledger.granted.saturating_sub(ledger.taken());
        if bytes > free {
            return Err(DrawError::Full {
                free,
                allowance: ledger.allowance,
            });
        }
        ledger.spent += bytes;
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        let mut ledger = self.ledger();
        ledger.spent = ledger.spent.saturating_sub(bytes);
        ledger.carried = ledger.carried.min(ledger.spent);
    }

    fn usage(&self) -> Usage {
        let ledger = self.ledger();
        Usage {
            allowance: ledger.allowance,
            spent: ledger.spent,
            carried: ledger.carried,
        }
    }

    /// The driver does.
    fn remembers(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(granted: u64, allowance: u64) -> Arc<DriverGrants> {
        let grants = Arc::new(DriverGrants::default());
        grants.welcome(granted, allowance, 64);
        grants
    }

    #[test]
    fn what_was_granted_to_an_earlier_sidecar_is_spent_until_it_is_measured() {
        let grants = grants(100, 200);
        assert_eq!(grants.usage().spent, 100);
        assert_eq!(grants.claim(10).unwrap_err(), Short::Ask { total: 110 });
        grants.give_back(40);
        let _claim = grants.claim(40).unwrap();
        assert_eq!(grants.claim(1).unwrap_err(), Short::Ask { total: 101 });
        assert_eq!(grants.claim(101).unwrap_err(), Short::Beyond);
    }

    #[test]
    fn a_claim_is_spent_or_free_again_and_never_both() {
        let grants = grants(0, 200);
        grants.granted(100, 200);
        let mut claim = grants.claim(60).unwrap();
        assert!(grants.draw(41).is_err());
        assert!(claim.spend() && !claim.spend());
        drop(claim);
        assert_eq!(grants.usage().spent, 60);
        drop(grants.claim(40).unwrap());
        assert_eq!(grants.usage().spent, 60);
        assert!(grants.claim(40).is_ok());
    }

    #[test]
    fn a_driver_that_comes_back_takes_nothing_away() {
        let grants = grants(0, 200);
        grants.granted(100, 200);
        assert!(grants.claim(60).unwrap().spend());
        grants.welcome(64, 200, 64);
        assert_eq!((grants.total(), grants.usage().spent), (100, 60));
    }

    #[test]
    fn more_is_asked_for_before_it_is_needed_and_not_beyond_the_allowance() {
        let grants = grants(0, 100);
        assert_eq!(grants.ahead(), Some(1));
        grants.granted(64, 100);
        assert_eq!(grants.ahead(), None);
        let _claim = grants.claim(40).unwrap();
        assert_eq!(grants.ahead(), Some(65));
        grants.granted(100, 100);
        assert_eq!(grants.ahead(), None);
    }
}
