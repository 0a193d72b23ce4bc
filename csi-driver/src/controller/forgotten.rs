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

    /// The volume is staged and not published. Returns whether it was for longer than the grace.
    pub(super) fn is_staged(&self, id: &VolumeId) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let since = since.entry(id.clone()).or_insert_with(Instant::now);
        since.elapsed() >= self.grace
    }

    /// It is not any more.
    pub(super) fn forget(&self, id: &VolumeId) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.remove(id);
    }
}
