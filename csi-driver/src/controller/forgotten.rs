//! Stagings that nobody undoes any more.
//!
//! A kubelet that is killed after NodeUnpublishVolume and before NodeUnstageVolume does not know the volume when it is back
//! (kubernetes/kubernetes#85476), and a volume that stays staged would never be deleted. A staging is a line in the record
//! and holds no memory, and Kubernetes deletes no volume whose claim a pod uses: so one without a publication keeps a volume
//! only for as long as a kubelet that lives needs to come and undo it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::volume::VolumeId;

/// Since when DeleteVolume has found volumes staged, and published nowhere.
#[derive(Debug)]
pub(crate) struct Forgotten {
    grace: Duration,
    since: Mutex<HashMap<VolumeId, Instant>>,
}

impl Forgotten {
    /// A kubelet that lives comes within `grace`.
    pub(crate) fn after(grace: Duration) -> Self {
        Self {
            grace,
            since: Mutex::default(),
        }
    }

    /// Whether so many stagings and publications keep the volume from being deleted.
    pub(super) fn is_in_use(&self, id: &VolumeId, stagings: usize, publications: usize) -> bool {
        if stagings == 0 || publications > 0 {
            self.forget(id);
            return publications > 0;
        }
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let since = since.entry(id.clone()).or_insert_with(Instant::now);
        since.elapsed() < self.grace
    }

    /// The volume is gone, or not like this any more.
    pub(super) fn forget(&self, id: &VolumeId) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.remove(id);
    }
}
