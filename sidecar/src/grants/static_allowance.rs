//! A fixed number of bytes, given on the command line.
//!
//! With a state file the record on disk is always at least what is spent: it runs ahead by up to one chunk, so that a
//! small reserve does not cost a write. After a crash the difference counts as spent until the bill is reconciled.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::state_file::{Record, StateFile};
use super::{DrawError, Grants, Usage};

/// See the module.
#[derive(Debug)]
pub(crate) struct StaticAllowance {
    allowance: u64,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    spent: u64,
    carried: u64,
    log: Option<Log>,
}

#[derive(Debug)]
struct Log {
    file: StateFile,
    /// `spent` is what the file says.
    record: Record,
    chunk: u64,
    /// The allowance: running ahead beyond it would be pointless.
    most: u64,
}

/// Where this process runs: what makes an older record applicable.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Identity of this boot of the kernel.
    pub(crate) boot_id: String,
    /// Inode of this process' memory cgroup, 0 if unknown.
    pub(crate) cgroup: u64,
}

impl StaticAllowance {
    /// `allowance` bytes, forgotten at exit.
    pub(crate) fn new(allowance: u64) -> Self {
        Self {
            allowance,
            ledger: Mutex::new(Ledger {
                spent: 0,
                carried: 0,
                log: None,
            }),
        }
    }

    /// `allowance` bytes, of which those that `file` records are spent. Records are written ahead in steps of `chunk`
    /// bytes. A record that cannot be understood counts as all spent: reconciling finds out what really is.
    ///
    /// # Errors
    /// When the file can be neither read nor replaced.
    pub(crate) fn recorded(
        allowance: u64,
        file: StateFile,
        chunk: u64,
        place: Place,
    ) -> io::Result<Self> {
        let (spent, carried) = match file.read() {
            Ok(Some(old)) if old.boot_id != place.boot_id => (0, 0),
            Ok(Some(old)) if old.cgroup == place.cgroup && place.cgroup != 0 => {
                (old.spent, old.carried)
            }
            Ok(Some(old)) => (old.spent, old.spent),
            Ok(None) => (0, 0),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => (allowance, allowance),
            Err(error) => return Err(error),
        };
        let record = Record {
            boot_id: place.boot_id,
            cgroup: place.cgroup,
            spent,
            carried,
        };
        file.write(&record)?;
        Ok(Self {
            allowance,
            ledger: Mutex::new(Ledger {
                spent,
                carried,
                log: Some(Log {
                    file,
                    record,
                    chunk: chunk.max(1),
                    most: allowance,
                }),
            }),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Makes the record cover `spent`, or lets it come down when it is two chunks too high.
    fn follow(&mut self, spent: u64, carried: u64) -> io::Result<()> {
        let high = self.record.spent.saturating_sub(spent) >= self.chunk.saturating_mul(2);
        if spent > self.record.spent || high {
            let ahead = spent.div_ceil(self.chunk).saturating_mul(self.chunk);
            self.put(ahead.min(self.most).max(spent), carried)?;
        }
        Ok(())
    }

    fn put(&mut self, spent: u64, carried: u64) -> io::Result<()> {
        let next = Record {
            spent,
            carried,
            ..self.record.clone()
        };
        self.file.write(&next)?;
        self.record = next;
        Ok(())
    }
}

impl Grants for StaticAllowance {
    fn draw(&self, bytes: u64) -> Result<(), DrawError> {
        let mut ledger = self.ledger();
        let free = self.allowance.saturating_sub(ledger.spent);
        if bytes > free {
            return Err(DrawError::Full {
                free,
                allowance: self.allowance,
            });
        }
        let (spent, carried) = (ledger.spent + bytes, ledger.carried);
        if let Some(log) = &mut ledger.log {
            log.follow(spent, carried).map_err(DrawError::Unrecorded)?;
        }
        ledger.spent = spent;
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        let mut ledger = self.ledger();
        ledger.spent = ledger.spent.saturating_sub(bytes);
        ledger.carried = ledger.carried.min(ledger.spent);
        let (spent, carried) = (ledger.spent, ledger.carried);
        if let Some(log) = &mut ledger.log
            && let Err(error) = log.follow(spent, carried)
        {
            // The old record is higher, so nothing can be spent twice.
            tracing::debug!(%error, "the record of the allowance stays too high");
        }
    }

    fn usage(&self) -> Usage {
        let ledger = self.ledger();
        Usage {
            allowance: self.allowance,
            spent: ledger.spent,
            carried: ledger.carried,
        }
    }

    fn remembers(&self) -> bool {
        self.ledger().log.is_some()
    }
}

impl Drop for StaticAllowance {
    /// An orderly exit records the exact number.
    fn drop(&mut self) {
        let mut ledger = self.ledger();
        let (spent, carried) = (ledger.spent, ledger.carried);
        if let Some(log) = &mut ledger.log
            && let Err(error) = log.put(spent, carried)
        {
            tracing::warn!(%error, "the record of the allowance stays too high");
        }
    }
}

#[cfg(test)]
mod tests;
