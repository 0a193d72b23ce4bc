//! The size of a volume's tmpfs: its capacity, and what is lent on top of it for a moment while a charge moves.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vineyard_charge::PAGE;
use vineyard_charge::recharge::Slack;

use crate::bytes::Bytes;
use crate::mount::{Error, Mounter};

/// Everybody who changes the size of one layer takes turns here, so that a loan and an expansion do not undo each other.
#[derive(Debug)]
pub(crate) struct LayerSize {
    mounter: Arc<dyn Mounter>,
    layer: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is booked, once somebody has said so.
    capacity: Option<u64>,
    /// What is lent on top of it.
    lent: u64,
}

impl LayerSize {
    /// Of the tmpfs that is mounted on `layer`.
    pub(crate) fn new(mounter: Arc<dyn Mounter>, layer: PathBuf) -> Self {
        Self {
            mounter,
            layer,
            state: Mutex::default(),
        }
    }

    /// Gives it this capacity, and at least so many inodes. What a driver that was killed had lent is taken back; what is in use stays.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn fit(&self, capacity: Bytes, inodes: u64) -> Result<(), Error> {
        let mut state = self.state();
        state.capacity = Some(capacity.0);
        self.apply(&state, inodes)
    }

    /// Nothing is lent any more: takes back what could not be taken back before.
    pub(crate) fn settle(&self) {
        let mut state = self.state();
        state.lent = 0;
        if let Err(error) = self.apply(&state, 0) {
            tracing::warn!(layer = %self.layer.display(), %error, "a volume does not have the size that is booked");
        }
    }

    fn apply(&self, state: &State, inodes: u64) -> Result<(), Error> {
        let Some(capacity) = state.capacity else {
            return Ok(());
        };
        let usage = self.mounter.usage(&self.layer)?;
        let in_use = usage.bytes.saturating_sub(usage.free_bytes);
        let wanted = capacity.saturating_add(state.lent).max(in_use);
        if usage.bytes == wanted && usage.inodes >= inodes {
            return Ok(());
        }
        let inodes = inodes.max(usage.inodes);
        self.mounter
            .resize_tmpfs(&self.layer, Bytes(wanted), inodes)
    }

    fn lend_or_take(&self, change: impl FnOnce(u64) -> u64) -> Result<(), Error> {
        let mut state = self.state();
        let usage = self.mounter.usage(&self.layer)?;
        let before = state.lent;
        let base = usage.bytes.saturating_sub(before);
        let lent = change(before).next_multiple_of(PAGE);
        let size = Bytes(base.saturating_add(lent));
        self.mounter.resize_tmpfs(&self.layer, size, usage.inodes)?;
        state.lent = lent;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Two numbers, each changed after the kernel agreed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slack for LayerSize {
    fn lend(&self, bytes: u64) -> io::Result<()> {
        self.lend_or_take(|lent| lent.saturating_add(bytes))
            .map_err(io::Error::other)
    }

    fn take_back(&self, bytes: u64) {
        // A writer may have used it meanwhile; then it is taken back when the run has ended.
        if let Err(error) = self.lend_or_take(|lent| lent.saturating_sub(bytes)) {
            tracing::debug!(layer = %self.layer.display(), %error, "lent bytes are in use");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Tmpfs;
    use crate::mount::fake::FakeMounter;

    const MIB: u64 = 1 << 20;

    fn sized(bytes: u64) -> (tempfile::TempDir, Arc<FakeMounter>, LayerSize) {
        let folder = tempfile::tempdir().unwrap();
        let mounter = Arc::new(FakeMounter::default());
        let options = Tmpfs {
            source: "vineyard:a@1".into(),
            size: Bytes(bytes),
            inodes: 100,
            context: None,
        };
        mounter.mount_tmpfs(folder.path(), &options).unwrap();
        let size = LayerSize::new(mounter.clone(), folder.path().to_owned());
        (folder, mounter, size)
    }

    #[test]
    fn an_expansion_between_a_loan_and_its_return_keeps_both() {
        let (folder, mounter, size) = sized(8 * MIB);
        let bytes = || mounter.usage(folder.path()).unwrap().bytes;
        size.fit(Bytes(8 * MIB), 100).unwrap();
        size.lend(2 * MIB).unwrap();
        assert_eq!(bytes(), 10 * MIB);
        size.fit(Bytes(16 * MIB), 200).unwrap();
        assert_eq!(bytes(), 18 * MIB);
        size.take_back(2 * MIB);
        assert_eq!(bytes(), 16 * MIB);
        assert_eq!(mounter.usage(folder.path()).unwrap().inodes, 200);
    }

    #[test]
    fn what_a_killed_driver_had_lent_is_taken_back_and_what_is_in_use_stays() {
        let (folder, mounter, size) = sized(10 * MIB);
        let bytes = || mounter.usage(folder.path()).unwrap().bytes;
        mounter.fill(folder.path(), 9 * MIB);
        size.fit(Bytes(8 * MIB), 0).unwrap();
        assert_eq!(bytes(), 9 * MIB);
        mounter.fill(folder.path(), MIB);
        size.settle();
        assert_eq!(bytes(), 8 * MIB);
    }
}
