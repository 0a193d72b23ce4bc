//! The memory of a volume, as the bill sees it: here, of which size, about to go, gone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;
use vineyard_store::Options;

use super::size::LayerSize;
use super::{Account, Accounts, Bills, Error, Inner, STOP, account_path, record};
use crate::bytes::Bytes;
use crate::failpoint::fail_point;
use crate::volume::{PodUid, VolumeId};

impl Bills {
    /// Every volume that is here has been named: forgets the others, and begins to look.
    pub(crate) async fn start(&self) {
        let strangers: Vec<_> = {
            let all = self.inner.accounts();
            let strange = all.volumes.iter().filter(|(_, it)| it.is_untouched());
            strange.map(|(id, _)| id.clone()).collect()
        };
        for id in strangers {
            self.dropped(&id).await;
        }
        // A kill came between a pod's last unpublish and the end of its record.
        let gone: Vec<_> = {
            let all = self.inner.accounts();
            let has_nothing = |uid: &&PodUid| !all.volumes.values().any(|it| it.has(uid));
            all.leaving.keys().filter(has_nothing).cloned().collect()
        };
        for uid in gone {
            if let Err(error) = self.inner.forget(&uid) {
                tracing::warn!(pod.uid = %uid, %error, "the record of a pod that has left stays");
            }
        }
        tokio::spawn(self.clone().watch());
    }

    /// The volume's memory is here, with these publications: after a restart of the driver, or because it was just made.
    ///
    /// # Errors
    /// When nothing is on record.
    pub(crate) async fn resident(
        &self,
        id: &VolumeId,
        tenants: Vec<(PathBuf, Option<PodUid>, bool)>,
    ) -> Result<(), Error> {
        {
            let mut all = self.inner.accounts();
            let account = all.volumes.entry(id.clone()).or_default();
            for (path, uid, writable) in tenants {
                account.publish(&path, uid, writable);
            }
            account.unhalt();
            account.ask(0);
        }
        self.inner.record(id)?;
        fail_point!("resident.recorded");
        self.inner.kick(id);
        Ok(())
    }

    /// The same, unless that is known already: whoever made the memory may not have heard that it is on record.
    ///
    /// # Errors
    /// Those of [`resident`](Self::resident).
    pub(crate) async fn ensure_resident(&self, id: &VolumeId) -> Result<(), Error> {
        let is_known = {
            let all = self.inner.accounts();
            all.volumes.get(id).is_some_and(|it| !it.is_halted())
        };
        match is_known {
            true => Ok(()),
            false => self.resident(id, Vec::new()).await,
        }
    }

    /// Makes the store's directories in new memory that nobody has seen, on the retainer's bill when there is one.
    ///
    /// # Errors
    /// When the memory cannot be written to.
    pub(crate) async fn furnish(&self, id: &VolumeId) -> Result<(), Error> {
        if !self.inner.settings.furnish {
            return Ok(());
        }
        let (layer, engine) = (self.inner.layer(id), self.inner.engine.clone());
        let furnish = move || {
            // While the retainer is away it is the driver's own page, until the first run over the volume.
            let payer = engine.and_then(|engine| engine.payer().ok());
            let create = true;
            vineyard_store::Volume::open(&layer, Options { payer, create }).map(drop)
        };
        let furnished = spawn_blocking(furnish).await;
        Ok(furnished.map_err(|panic| Error::Inside(panic.to_string()))??)
    }

    /// Gives the volume's memory here this capacity, and at least so many inodes.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn fit(
        &self,
        id: &VolumeId,
        capacity: Bytes,
        inodes: u64,
    ) -> Result<(), Error> {
        let size = self.inner.size(id);
        let fitted = spawn_blocking(move || size.fit(capacity, inodes)).await;
        Ok(fitted.map_err(|panic| Error::Inside(panic.to_string()))??)
    }

    /// The volume's memory is about to be unmounted: nobody touches it from now on.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody does not stop in time.
    pub(crate) async fn halt(&self, id: &VolumeId) -> Result<(), Error> {
        if let Some(account) = self.inner.accounts().volumes.get_mut(id) {
            account.halt();
        }
        let is_free = |all: &Accounts| all.volumes.get(id).is_none_or(Account::is_free);
        match self.inner.until(STOP, is_free).await {
            true => Ok(()),
            false => Err(Error::Busy(id.clone())),
        }
    }

    /// The memory was not unmounted after all.
    pub(crate) fn resume(&self, id: &VolumeId) {
        if let Some(account) = self.inner.accounts().volumes.get_mut(id) {
            account.unhalt();
        }
        self.inner.kick(id);
    }

    /// The volume's memory is gone, and every bill with it.
    pub(crate) async fn dropped(&self, id: &VolumeId) {
        self.inner.sizes().remove(id);
        let known = self.inner.accounts().volumes.remove(id).is_some();
        if !known {
            return;
        }
        self.inner.changed.send_replace(());
        let forgotten = record::remove(&account_path(&self.inner.settings.records, id));
        let asked = self.inner.settle_request(&[]).await;
        if let Err(error) = forgotten.map_err(Error::from).and(asked) {
            tracing::warn!(volume.id = %id, %error, "the retainer's request is not lowered yet");
        }
    }
}

impl Inner {
    pub(super) fn sizes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Arc<LayerSize>>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn size(&self, id: &VolumeId) -> Arc<LayerSize> {
        let mut sizes = self.sizes();
        let size = sizes
            .entry(id.clone())
            .or_insert_with(|| Arc::new(LayerSize::new(Arc::clone(&self.mounter), self.layer(id))));
        Arc::clone(size)
    }
}
