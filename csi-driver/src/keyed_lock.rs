//! One operation per volume at a time. A second one is refused, not queued: the caller retries anyway.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::volume::VolumeId;

/// The volumes that an operation is under way for.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyedLock {
    held: Arc<Mutex<HashSet<VolumeId>>>,
}

/// Releases its volume when dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    held: Arc<Mutex<HashSet<VolumeId>>>,
    id: VolumeId,
}

impl KeyedLock {
    /// Takes the volume, or `None` when an operation has it.
    pub(crate) fn try_lock(&self, id: &VolumeId) -> Option<Guard> {
        // A set of ids is whole after any panic.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(id.clone()).then(|| Guard {
            held: Arc::clone(&self.held),
            id: id.clone(),
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_operation_on_the_same_volume_is_refused_until_the_first_ends() {
        let locks = KeyedLock::default();
        let (one, two) = (VolumeId::of_name("one"), VolumeId::of_name("two"));
        let first = locks.try_lock(&one).unwrap();
        assert!(locks.try_lock(&one).is_none());
        assert!(locks.try_lock(&two).is_some());
        drop(first);
        assert!(locks.try_lock(&one).is_some());
    }
}
