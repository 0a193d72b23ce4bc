//! The sockets volume of each pod: a small tmpfs that kubelet mounts into the pod, whose path is the pod's identity.
//! `driver/` has the driver's socket, `pod/` is for the sidecar's. `docs/design/sockets.md` has the protocol.
//!
//! The record of the pod's grants is written first and removed last, so whatever is found without one is what a kill left,
//! and a restarted driver listens again wherever there is one.

mod answer;
mod billing;
mod claims;
mod connection;
mod directory;
mod error;
mod listener;
mod service;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use crate::bill::{Book, PodBill};
use crate::bytes::Bytes;
use crate::failpoint::fail_point;
use crate::keyed_lock::{Guard, KeyedLock};
use crate::mount::{self, Flags, Mount, Mounter, Tmpfs};
use crate::volume::{PodUid, VolumeId};

pub(crate) use billing::{Billing, BillingError};
pub(crate) use claims::{Claims, volume_of};
pub(crate) use directory::RunDirectory;
pub(crate) use error::Error;
use listener::Listener;
pub(crate) use service::Service;

/// What a sockets volume holds at most: a few sockets. Its pages are on the bill of whoever writes them.
const SIZE: Bytes = Bytes(256 << 10);
const INODES: u64 = 64;

/// The sockets volumes of this node.
#[derive(Debug)]
pub(crate) struct Sockets {
    run: RunDirectory,
    boot_id: String,
    mounter: Arc<dyn Mounter>,
    service: Arc<Service>,
    locks: KeyedLock,
    listeners: std::sync::Mutex<HashMap<PodUid, Listener>>,
}

/// What NodePublishVolume says about a sockets volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    /// `volume_id`, which kubelet makes from the pod's uid and the volume's name.
    pub(crate) volume_id: String,
    /// `target_path`, resolved.
    pub(crate) target: PathBuf,
    /// The pod that the target path belongs to.
    pub(crate) pod: PodUid,
    /// Attribute `vineyard.io/writes`.
    pub(crate) writes: Option<Bytes>,
    /// SELinux context.
    pub(crate) context: Option<String>,
}

impl Sockets {
    /// Serves below `run`.
    pub(crate) fn new(run: RunDirectory, service: Service) -> Self {
        Self {
            run,
            boot_id: service.claims.boot_id.clone(),
            mounter: Arc::clone(&service.claims.mounter),
            service: Arc::new(service),
            locks: KeyedLock::default(),
            listeners: std::sync::Mutex::default(),
        }
    }

    fn book(&self) -> &Book {
        &self.service.granter.book
    }

    fn lock(&self, volume_id: &str) -> Result<Guard, Error> {
        // Kubelet's ids of inline volumes are longer than a volume's of ours: hashed, they cannot meet.
        let locked = self.locks.try_lock(&VolumeId::of_name(volume_id));
        locked.ok_or_else(|| Error::Busy(volume_id.to_owned()))
    }

    /// Makes the volume and shows it at its target. May be repeated.
    ///
    /// # Errors
    /// [`Error`]; what was done of it is taken back by `unpublish`.
    pub(crate) async fn publish(&self, publish: Publish) -> Result<(), Error> {
        let _guard = self.lock(&publish.volume_id)?;
        self.record(&publish)?;
        fail_point!("sockets.recorded");
        let Publish {
            volume_id,
            target,
            pod,
            context,
            ..
        } = publish;
        self.stand(&volume_id, context).await?;
        fail_point!("sockets.standing");
        self.listen(&pod, &volume_id).await?;
        fail_point!("sockets.listening");
        let (ours, root) = (mount_of(&volume_id), self.run.pod(&volume_id));
        let flags = Flags {
            no_exec: true,
            ..Flags::default()
        };
        self.blocking(move |mounter| {
            mount::ensure_bound(mounter, ours, &root, &target, flags).map_err(Error::from)
        })
        .await
    }

    fn record(&self, publish: &Publish) -> Result<(), Error> {
        let incompatible = || Error::Incompatible {
            volume_id: publish.volume_id.clone(),
            path: publish.target.clone(),
        };
        for bill in self.book().all() {
            let same_volume = bill.sockets_volume == publish.volume_id;
            let same_pod = bill.pod_uid == publish.pod;
            let same = bill.target == publish.target && bill.writes == publish.writes;
            match (same_volume, same_pod) {
                (true, true) if same => return Ok(()),
                (true, _) => return Err(incompatible()),
                (false, true) => {
                    return Err(Error::Second {
                        pod: bill.pod_uid,
                        volume_id: bill.sockets_volume,
                    });
                }
                (false, false) => {}
            }
        }
        let bill = PodBill {
            pod_uid: publish.pod.clone(),
            boot_id: self.boot_id.clone(),
            sockets_volume: publish.volume_id.clone(),
            target: publish.target.clone(),
            writes: publish.writes,
            allowance: None,
            granted: Bytes(0),
            leaving: None,
        };
        self.book().add(bill).map_err(|source| Error::Book {
            pod: publish.pod.clone(),
            source,
        })
    }

    /// Makes the file system of a sockets volume.
    async fn stand(&self, volume_id: &str, context: Option<String>) -> Result<(), Error> {
        let (ours, root) = (mount_of(volume_id), self.run.pod(volume_id));
        let options = Tmpfs {
            source: source(volume_id),
            size: SIZE,
            inodes: INODES,
            context,
        };
        let volume_id = volume_id.to_owned();
        self.blocking(move |mounter| {
            let system = |doing| {
                let volume_id = volume_id.clone();
                move |source| Error::System {
                    doing,
                    volume_id,
                    source,
                }
            };
            if !mount::at(mounter, &root)?.is_some_and(|mount| ours(&mount)) {
                fs::create_dir_all(&root).map_err(system("make the directory"))?;
                mounter.mount_tmpfs(&root, &options)?;
                fail_point!("sockets.mounted");
            }
            directory::furnish(&root).map_err(system("make the directories"))
        })
        .await
    }

    /// Serves the pod, unless it is served already.
    async fn listen(&self, pod: &PodUid, volume_id: &str) -> Result<(), Error> {
        if self.listeners().contains_key(pod) {
            return Ok(());
        }
        let root = self.run.pod(volume_id);
        let failed = |source| Error::System {
            doing: "listen on the socket",
            volume_id: volume_id.to_owned(),
            source,
        };
        let listener = directory::listen(&root).map_err(failed)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        let listener = Listener::start(listener, pod.clone(), Arc::clone(&self.service));
        self.listeners().insert(pod.clone(), listener);
        Ok(())
    }

    /// Takes a sockets volume away. Returns whether it is one: nothing is done to anything else. May be repeated.
    ///
    /// # Errors
    /// [`Error`]; then the record stays, and the next call goes on.
    pub(crate) async fn unpublish(&self, volume_id: &str, target: &Path) -> Result<bool, Error> {
        let mut all = self.book().all().into_iter();
        let bill = all.find(|bill| bill.sockets_volume == volume_id);
        if bill.is_none() && !self.is_at(volume_id, target).await? {
            return Ok(false);
        }
        let _guard = self.lock(volume_id)?;
        let (ours, at) = (mount_of(volume_id), target.to_owned());
        self.blocking(move |mounter| {
            mount::ensure_unmounted(mounter, ours, &at).map_err(Error::from)
        })
        .await?;
        fail_point!("sockets.hidden");
        match bill {
            // One more place where it was shown.
            Some(bill) if bill.target != target => {}
            Some(bill) => {
                self.farewell(&bill).await;
                fail_point!("sockets.told");
                self.clear(&bill.pod_uid, volume_id).await?;
                fail_point!("sockets.cleared");
                let pod = bill.pod_uid;
                self.book()
                    .remove(&pod)
                    .map_err(|source| Error::Book { pod, source })?;
            }
            None => self.unmount(volume_id).await?,
        }
        Ok(true)
    }

    /// Whether this sockets volume is mounted there.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub(crate) async fn is_at(&self, volume_id: &str, path: &Path) -> Result<bool, Error> {
        let (ours, at) = (mount_of(volume_id), path.to_owned());
        self.blocking(move |mounter| Ok(mount::at(mounter, &at)?.is_some_and(|mount| ours(&mount))))
            .await
    }

    /// A sidecar that died without a word leaves now: what was granted to it may still be charged to its pod.
    async fn farewell(&self, bill: &PodBill) {
        if bill.leaving.is_some() || bill.granted == Bytes(0) {
            return;
        }
        let pod = &bill.pod_uid;
        // Without a volume it holds nothing.
        if matches!(self.service.claims.of(pod).await, Ok(claims) if claims.is_empty()) {
            return;
        }
        if let Err(error) = self.service.leave(pod).await {
            tracing::warn!(pod.uid = %pod, %error, "the bill does not know that a pod leaves");
        }
    }

    /// Ends the listener and everything that is connected, then the file system: it is busy as long as one of them is open.
    async fn clear(&self, pod: &PodUid, volume_id: &str) -> Result<(), Error> {
        let listener = self.listeners().remove(pod);
        if let Some(listener) = listener {
            listener.end().await;
        }
        self.unmount(volume_id).await
    }

    async fn unmount(&self, volume_id: &str) -> Result<(), Error> {
        let (ours, root) = (mount_of(volume_id), self.run.pod(volume_id));
        self.blocking(move |mounter| {
            mount::ensure_unmounted(mounter, ours, &root).map_err(Error::from)
        })
        .await
    }

    /// Listens again for every pod that is on record, and drops what no record knows. Before any call is served.
    ///
    /// One pod's trouble is logged and does not stop the others.
    pub(crate) async fn resume(&self) {
        let bills = self.book().all();
        for bill in &bills {
            let (pod, volume_id) = (&bill.pod_uid, &bill.sockets_volume);
            if let Err(error) = self.resume_one(bill).await {
                tracing::warn!(pod.uid = %pod, volume.id = volume_id, %error, "a pod's socket is not served");
            }
        }
        let known: Vec<PathBuf> = bills
            .iter()
            .map(|bill| self.run.pod(&bill.sockets_volume))
            .collect();
        let entries = fs::read_dir(self.run.pods())
            .into_iter()
            .flatten()
            .flatten();
        for stale in entries.map(|entry| entry.path()) {
            if known.contains(&stale) {
                continue;
            }
            let at = stale.clone();
            let any = |mount: &Mount| is_sockets(mount);
            let dropped = self.blocking(move |mounter| {
                mount::ensure_unmounted(mounter, any, &at).map_err(Error::from)
            });
            if let Err(error) = dropped.await {
                tracing::warn!(path = %stale.display(), %error, "what a pod left stays");
            }
        }
    }

    async fn resume_one(&self, bill: &PodBill) -> Result<(), Error> {
        let root = self.run.pod(&bill.sockets_volume);
        let standing = self.is_at(&bill.sockets_volume, &root).await?;
        // Without it, publish was killed early and kubelet calls again, or unpublish late and it does so, too.
        if standing {
            self.stand(&bill.sockets_volume, None).await?;
            self.listen(&bill.pod_uid, &bill.sockets_volume).await?;
        }
        Ok(())
    }

    /// Runs mount calls off the executor.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Mounter) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mounter = Arc::clone(&self.mounter);
        let result = tokio::task::spawn_blocking(move || work(&*mounter)).await;
        result.map_err(|panic| Error::Inside(panic.to_string()))?
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, Listener>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Before the key of a sockets volume in the source of its mount.
const SOURCE: &str = "vineyard-sockets:";

fn source(volume_id: &str) -> String {
    format!("{SOURCE}{}", directory::key(volume_id))
}

/// Recognises the mounts of a sockets volume.
fn mount_of(volume_id: &str) -> impl Fn(&Mount) -> bool + Clone + Send + 'static {
    let source = source(volume_id);
    move |mount| mount.fs_type == "tmpfs" && mount.source == *source
}

fn is_sockets(mount: &Mount) -> bool {
    let source = mount.source.to_str();
    mount.fs_type == "tmpfs" && source.is_some_and(|it| it.starts_with(SOURCE))
}
