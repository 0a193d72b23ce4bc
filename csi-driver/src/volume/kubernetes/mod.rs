//! The catalog in Kubernetes: one custom resource a volume, with `resourceVersion` as its version, and one a node.

mod access;
mod ledger;
mod seen;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::async_trait;

use self::access::{code, corrupt, part, refused, storage};
use self::ledger::Ledger;
use self::seen::Seen;
use super::catalog::{Catalog, Error, ResourceVersion, Revision, Stored};
use super::listing::{Corrupt, Listing, Tombstone};
use super::{NodeId, NodeReport, Volume, VolumeId};
use crate::bytes::Bytes;
use crate::resources::VineyardVolume;

/// How long who waits for a change waits at most: a watch may have missed it.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Between two looks at old entries, each of which lists all volumes.
const TRIM_PAUSE: Duration = Duration::from_secs(60);

/// Records as resources in a namespace.
pub(crate) struct KubernetesCatalog {
    client: Client,
    namespace: String,
    api: Api<VineyardVolume>,
    ledger: Ledger,
    seen: watch::Receiver<Seen>,
    /// When entries were trimmed last.
    trimmed: Mutex<Option<Instant>>,
    /// Ends with the catalog.
    _watching: JoinSet<()>,
}

impl fmt::Debug for KubernetesCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesCatalog")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl KubernetesCatalog {
    /// Keeps records in `namespace`. Must be called within a runtime.
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        let (learned, seen) = watch::channel(Seen::default());
        let mut watching = JoinSet::new();
        watching.spawn(seen::follow(client.clone(), namespace.to_owned(), learned));
        Self {
            api: Api::namespaced(client.clone(), namespace),
            ledger: Ledger::new(client.clone(), namespace),
            client,
            namespace: namespace.to_owned(),
            seen,
            trimmed: Mutex::default(),
            _watching: watching,
        }
    }

    /// Not again and again, although what was seen may be long out of date.
    fn is_time_to_trim(&self) -> bool {
        let mut trimmed = self.trimmed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = trimmed.is_none_or(|last| last.elapsed() > TRIM_PAUSE);
        if is_time {
            *trimmed = Some(Instant::now());
        }
        is_time
    }

    /// The record that has this version.
    async fn get_at(&self, version: &ResourceVersion, id: &VolumeId) -> Result<Volume, Error> {
        let stored = self.get(id).await?;
        if stored.version != *version {
            return Err(Error::Conflict(id.clone()));
        }
        Ok(stored.volume)
    }

    async fn write(
        &self,
        version: Option<&ResourceVersion>,
        volume: Volume,
    ) -> Result<Stored, Error> {
        if let Some(version) = version {
            return self.update(version, volume).await;
        }
        let id = volume.id.clone();
        let created = self
            .api
            .create(&PostParams::default(), &volume.into())
            .await;
        let created = created.map_err(|error| match code(&error) {
            Some(409) => Error::AlreadyExists(id.clone()),
            _ => storage("create", id.as_str(), error),
        });
        stored(created?)
    }

    /// Whether a volume is booked on a node with at least so much; also when nobody can tell.
    async fn has_booked(&self, (id, node, capacity): &(VolumeId, NodeId, Bytes)) -> bool {
        match self.get(id).await {
            Ok(Stored { volume, .. }) => volume.booked == *node && volume.capacity >= *capacity,
            Err(Error::NotFound(_)) => false,
            Err(_) => true,
        }
    }

    /// Takes out the entry of a volume that is booked elsewhere now. A node's plugin may not do that to another node: then that node itself trims
    /// it, when it is old.
    async fn leave(&self, node: &NodeId, id: &VolumeId, number: Option<u64>) {
        if let Err(error) = self.ledger.take_out(node, id, number).await {
            tracing::debug!(volume.id = %id, %node, %error, "what is booked there stays a while");
        }
    }

    async fn remove(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error> {
        let only = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: Some(version.0.clone()),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        let deleted = self.api.delete(id.as_str(), &only).await;
        deleted
            .map(drop)
            .map_err(|error| refused("delete", id, error))
    }
}

#[async_trait]
impl Catalog for KubernetesCatalog {
    async fn get(&self, id: &VolumeId) -> Result<Stored, Error> {
        let found = self.api.get_opt(id.as_str()).await;
        let found = found.map_err(|error| match error {
            kube::Error::SerdeError(error) => corrupt(id.as_str(), &error),
            error => storage("read", id.as_str(), error),
        });
        stored(found?.ok_or_else(|| Error::NotFound(id.clone()))?)
    }

    async fn list(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        let resources = access::list::<VineyardVolume>(&self.client, &self.namespace).await?;
        for (name, resource) in resources {
            let reason = match resource.map(stored) {
                Ok(Ok(stored)) => {
                    listing.volumes.push(stored);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(reason) => reason,
            };
            listing.corrupt.push(Corrupt {
                id: VolumeId::parse(&name),
                path: format!("resource {name}"),
                reason,
            });
        }
        listing
            .volumes
            .sort_by(|a, b| a.volume.id.cmp(&b.volume.id));
        // After the volumes: one that is buried in between is counted twice, not never.
        let (nodes, unread) = self.ledger.list().await?;
        listing.nodes = nodes;
        listing.corrupt.extend(unread);
        Ok(listing)
    }

    async fn update(&self, version: &ResourceVersion, volume: Volume) -> Result<Stored, Error> {
        let id = volume.id.clone();
        let resource = VineyardVolume::from(volume);
        let parts = [
            ("spec", part(id.as_str(), &resource.spec)?),
            ("status", part(id.as_str(), &resource.status)?),
        ];
        let updated = access::swap(&self.api, id.as_str(), &version.0, &parts).await;
        stored(updated.map_err(|error| refused("update", &id, error))?)
    }

    async fn book(
        &self,
        version: Option<&ResourceVersion>,
        volume: Volume,
        budget: Bytes,
    ) -> Result<Stored, Error> {
        let before = match (version, self.get(&volume.id).await) {
            (None, Err(Error::NotFound(_))) => None,
            (None, Ok(_)) => return Err(Error::AlreadyExists(volume.id)),
            (_, Err(error)) => return Err(error),
            (Some(version), Ok(stored)) if stored.version == *version => Some(stored.volume),
            (Some(_), Ok(_)) => return Err(Error::Conflict(volume.id)),
        };
        let stays = before
            .as_ref()
            .filter(|before| before.booked == volume.booked);
        if stays.is_some_and(|before| volume.capacity <= before.capacity) {
            return self.write(version, volume).await;
        }
        let left = match &before {
            Some(before) if before.booked != volume.booked => {
                let number = self.ledger.number(&before.booked, &before.id).await?;
                Some((before.booked.clone(), number))
            }
            _ => None,
        };
        let id = volume.id.clone();
        let wanted = (id.clone(), volume.booked.clone(), volume.capacity);
        let entry = self.ledger.enter(&volume, budget).await?;
        let written = self.write(version, volume).await;
        match &written {
            Ok(_) => {
                if let Some((node, number)) = left {
                    self.leave(&node, &id, number).await;
                }
            }
            // When an answer is lost the client asks again, and its own work is in the way.
            Err(Error::AlreadyExists(_) | Error::Conflict(_)) if self.has_booked(&wanted).await => {
            }
            Err(Error::AlreadyExists(_) | Error::Conflict(_) | Error::NotFound(_)) => {
                self.ledger.take_back(entry).await?;
            }
            // It may be written all the same: the entry stays, and is trimmed when it is old.
            Err(_) => {}
        }
        written
    }

    async fn delete(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error> {
        let volume = self.get_at(version, id).await?;
        let number = self.ledger.number(&volume.booked, id).await?;
        self.remove(version, id).await?;
        self.ledger.take_out(&volume.booked, id, number).await
    }

    async fn bury(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error> {
        let volume = self.get_at(version, id).await?;
        let number = self.ledger.number(&volume.booked, id).await?;
        let mut given = Vec::new();
        for (node, layer) in &volume.layers {
            let tombstone = Tombstone {
                volume: id.clone(),
                epoch: layer.epoch,
                boot_id: layer.boot_id.clone(),
                capacity: volume.capacity,
            };
            if self.ledger.bury(node, &tombstone).await? {
                given.push((node, tombstone));
            }
        }
        let removed = self.remove(version, id).await;
        if matches!(removed, Err(Error::Conflict(_))) {
            for (node, tombstone) in given {
                self.ledger.dropped(node, &tombstone).await?;
            }
        }
        removed?;
        self.ledger.take_out(&volume.booked, id, number).await
    }

    async fn beat(&self, node: &NodeId, boot_id: &str) -> Result<Vec<Tombstone>, Error> {
        let status = self.ledger.beat(node, boot_id).await?;
        let is_elsewhere = |id: &str| self.seen.borrow().is_booked_elsewhere(id, node);
        if ledger::has_left(&status, is_elsewhere)
            && self.is_time_to_trim()
            && let Err(error) = self.ledger.trim(node).await
        {
            tracing::warn!(%node, %error, "what volumes that have left had booked here stays a while");
        }
        Ok(status.tombstones)
    }

    async fn report(&self, node: &NodeId, report: NodeReport) -> Result<(), Error> {
        self.ledger.report(node, report).await
    }

    async fn dropped(&self, node: &NodeId, tombstone: &Tombstone) -> Result<(), Error> {
        self.ledger.dropped(node, tombstone).await
    }

    async fn changed(&self, only: Option<&VolumeId>, seen: Revision) -> Revision {
        let mut now = self.seen.clone();
        let other = now.wait_for(|now| now.changed(only) > seen.0);
        let _ = tokio::time::timeout(LONGEST_WAIT, other).await;
        Revision(now.borrow().revision())
    }

    async fn doomed(&self, node: &NodeId) -> Result<Vec<VolumeId>, Error> {
        let known = self.seen.borrow().doomed(node);
        match known {
            Some(doomed) => Ok(doomed),
            None => {
                let volumes = self.list().await?.volumes.into_iter();
                let doomed = volumes.filter(|stored| stored.volume.is_doomed_on(node));
                Ok(doomed.map(|stored| stored.volume.id).collect())
            }
        }
    }
}

fn stored(resource: VineyardVolume) -> Result<Stored, Error> {
    let name = resource.name_any();
    let version = resource.resource_version();
    let version = version.ok_or_else(|| corrupt(&name, &"it has no version"))?;
    let volume = Volume::try_from(resource).map_err(|reason| corrupt(&name, &reason))?;
    Ok(Stored {
        volume,
        version: ResourceVersion(version),
    })
}
