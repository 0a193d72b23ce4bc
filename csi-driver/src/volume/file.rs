//! The catalog in a directory: one JSON file a volume. For drivers without Kubernetes and for tests.
//!
//! Several processes may share the directory: every operation holds the lock of the file `lock`. A record is written
//! beside its place, synced, and renamed over it, so a crash at any point leaves the old record or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tonic::async_trait;

use super::catalog::{Catalog, Error, ResourceVersion, Revision, Stored};
use super::listing::{Corrupt, Listing, Tombstone};
use super::{NodeId, NodeReport, Volume, VolumeId};
use crate::bytes::Bytes;
#[cfg(not(test))]
use crate::failpoint::fail_point;

/// How often other processes' changes are looked for, and how long at most.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: u32 = 200;

/// Records in a directory.
#[derive(Clone, Debug)]
pub(crate) struct FileCatalog {
    directory: Arc<Directory>,
    written: Arc<Notify>,
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    #[cfg(test)]
    faults: tests::Faults,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    resource_version: u64,
    volume: Volume,
}

impl FileCatalog {
    /// Opens the catalog in `path`, which is made (mode 0700) when missing.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let storage = |source| storage("open the catalog", path, source);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(storage)?;
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(storage)?;
        let directory = Arc::new(Directory {
            path: path.to_owned(),
            #[cfg(test)]
            faults: tests::Faults::default(),
        });
        Ok(Self {
            directory,
            written: Arc::default(),
        })
    }

    /// Runs `work` under the lock, off the executor.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let directory = Arc::clone(&self.directory);
        let locked = move || {
            // Reopened, because locks of one open file do not exclude each other.
            let path = directory.path.join("lock");
            let failed = |source| storage("lock", &path, source);
            let lock = OpenOptions::new().write(true).open(&path).map_err(failed)?;
            lock.lock().map_err(failed)?;
            work(&directory)
        };
        tokio::task::spawn_blocking(locked)
            .await
            .unwrap_or_else(|error| {
                Err(storage(
                    "run",
                    &self.directory.path,
                    io::Error::other(error),
                ))
            })
    }
}

#[async_trait]
impl Catalog for FileCatalog {
    async fn get(&self, id: &VolumeId) -> Result<Stored, Error> {
        let id = id.clone();
        self.run(move |directory| directory.read(&id)).await
    }

    async fn list(&self) -> Result<Listing, Error> {
        self.run(Directory::list).await
    }

    async fn update(&self, version: &ResourceVersion, volume: Volume) -> Result<Stored, Error> {
        let version = version.clone();
        let updated = self.run(move |directory| {
            let current = directory.read_at(&version, &volume.id)?;
            directory.write(current, volume)
        });
        let updated = updated.await;
        self.written.notify_waiters();
        updated
    }

    async fn book(
        &self,
        version: Option<&ResourceVersion>,
        volume: Volume,
        budget: Bytes,
    ) -> Result<Stored, Error> {
        let version = version.cloned();
        let booked = self.run(move |directory| directory.book(version, volume, budget));
        let booked = booked.await;
        self.written.notify_waiters();
        booked
    }

    async fn delete(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error> {
        let (version, id) = (version.clone(), id.clone());
        let deleted = self.run(move |directory| {
            directory.read_at(&version, &id)?;
            directory.remove(&id)
        });
        let deleted = deleted.await;
        self.written.notify_waiters();
        deleted
    }

    async fn bury(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), Error> {
        let (version, id) = (version.clone(), id.clone());
        let buried = self.run(move |directory| {
            directory.read_at(&version, &id)?;
            // In this order: what is booked twice for a moment is never booked too little.
            directory.bury(&directory.read(&id)?.volume)?;
            directory.remove(&id)
        });
        let buried = buried.await;
        self.written.notify_waiters();
        buried
    }

    async fn beat(&self, node: &NodeId, boot_id: &str) -> Result<Vec<Tombstone>, Error> {
        let (node, boot_id) = (node.clone(), boot_id.to_owned());
        self.run(move |directory| directory.beat(&node, &boot_id))
            .await
    }

    async fn report(&self, node: &NodeId, report: NodeReport) -> Result<(), Error> {
        let node = node.clone();
        self.run(move |directory| directory.report(&node, report))
            .await
    }

    async fn dropped(&self, node: &NodeId, tombstone: &Tombstone) -> Result<(), Error> {
        let (node, tombstone) = (node.clone(), tombstone.clone());
        self.run(move |directory| directory.dropped(&node, &tombstone))
            .await
    }

    async fn changed(&self, _only: Option<&VolumeId>, seen: Revision) -> Revision {
        for _ in 0..LOOKS {
            let written = self.written.notified();
            let now = self.directory.revision();
            if now != seen {
                return now;
            }
            // A change within one tick of the file system's clock is seen by whoever waits here, else by the next look.
            if tokio::time::timeout(LOOK, written).await.is_ok() {
                return Revision(self.directory.revision().0.wrapping_add(1));
            }
        }
        seen
    }
}

impl Directory {
    fn place(&self, id: &VolumeId) -> PathBuf {
        self.path.join(format!("{id}.json"))
    }

    fn read(&self, id: &VolumeId) -> Result<Stored, Error> {
        let path = self.place(id);
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound(id.clone()),
            _ => storage("read", &path, source),
        })?;
        let corrupt = |reason| Error::Corrupt {
            path: path.display().to_string(),
            reason,
        };
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        if document.volume.id != *id {
            return Err(corrupt(format!("is about volume {}", document.volume.id)));
        }
        Ok(document.into())
    }

    /// The version of the record as a number, when it is the expected one.
    fn read_at(&self, version: &ResourceVersion, id: &VolumeId) -> Result<u64, Error> {
        let current = self.read(id)?.version;
        match current.0.parse() {
            Ok(number) if current == *version => Ok(number),
            _ => Err(Error::Conflict(id.clone())),
        }
    }

    fn list(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        let ids = stems(&self.path)?;
        let mut ids: Vec<_> = ids
            .iter()
            .filter_map(|stem| VolumeId::parse(stem))
            .collect();
        ids.sort();
        for id in ids {
            match self.read(&id) {
                Ok(stored) => listing.volumes.push(stored),
                Err(Error::Corrupt { path, reason }) => listing.corrupt.push(Corrupt {
                    id: Some(id),
                    path,
                    reason,
                }),
                Err(error) => return Err(error),
            }
        }
        self.list_nodes(&mut listing)?;
        Ok(listing)
    }

    fn book(
        &self,
        version: Option<ResourceVersion>,
        volume: Volume,
        budget: Bytes,
    ) -> Result<Stored, Error> {
        let (mut previous, mut before) = (0, Bytes(0));
        match (version, self.read(&volume.id)) {
            (None, Err(Error::NotFound(_))) => {}
            (None, Ok(_)) => return Err(Error::AlreadyExists(volume.id)),
            (_, Err(error)) => return Err(error),
            (Some(version), Ok(stored)) => {
                previous = self.read_at(&version, &volume.id)?;
                if stored.volume.booked == volume.booked {
                    before = stored.volume.capacity;
                }
            }
        }
        if volume.capacity > before {
            let booked = self.list()?.booked(&volume.booked)?;
            let free = Bytes(budget.0.saturating_sub(booked.0));
            if free.0 < volume.capacity.0 - before.0 {
                let node = volume.booked;
                return Err(Error::NoRoom { node, free });
            }
        }
        self.write(previous, volume)
    }

    fn write(&self, previous: u64, volume: Volume) -> Result<Stored, Error> {
        // The clock keeps a version from coming again after the record was removed; the counter, when the clock steps back.
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_micros());
        let resource_version = u64::try_from(clock).unwrap_or(0).max(previous + 1);
        let document = Document {
            resource_version,
            volume,
        };
        let place = self.place(&document.volume.id);
        self.replace(&document, &place)?;
        Ok(document.into())
    }

    /// Writes a document beside its place and renames it: whoever reads, and after a crash too, it is the old one or the new one.
    pub(super) fn replace(&self, document: &impl Serialize, place: &Path) -> Result<(), Error> {
        let replaced = self.try_replace(document, place);
        replaced.map_err(|source| storage("write", place, source))
    }

    fn try_replace(&self, document: &impl Serialize, place: &Path) -> io::Result<()> {
        let beside = &place.with_extension("tmp");
        self.step("catalog.begin")?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(beside)?;
        self.step("catalog.opened")?;
        let text = serde_json::to_vec_pretty(document)?;
        let (half, rest) = text.split_at(text.len() / 2);
        file.write_all(half)?;
        self.step("catalog.half")?;
        file.write_all(rest)?;
        self.step("catalog.written")?;
        file.sync_all()?;
        self.step("catalog.synced")?;
        fs::rename(beside, place)?;
        self.step("catalog.renamed")?;
        File::open(place.parent().unwrap_or(&self.path))?.sync_all()
    }

    fn remove(&self, id: &VolumeId) -> Result<(), Error> {
        let place = self.place(id);
        let removed = self
            .step("catalog.remove")
            .and_then(|()| fs::remove_file(&place))
            .and_then(|()| self.step("catalog.removed"))
            .and_then(|()| File::open(&self.path)?.sync_all());
        removed.map_err(|source| storage("remove", &place, source))
    }

    /// The directory's own time of change: it moves with every rename and removal in it.
    fn revision(&self) -> Revision {
        let moment = fs::metadata(&self.path).map_or((0, 0), |at| (at.ctime(), at.ctime_nsec()));
        Revision(u128::from(moment.0.unsigned_abs()) << 64 | u128::from(moment.1.unsigned_abs()))
    }

    /// A point where tests let the process die, or fail as if it had.
    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "tests fail here"
    )]
    fn step(&self, point: &'static str) -> io::Result<()> {
        fail_point!(point);
        Ok(())
    }
}

impl From<Document> for Stored {
    fn from(document: Document) -> Self {
        Self {
            volume: document.volume,
            version: ResourceVersion(document.resource_version.to_string()),
        }
    }
}

/// The names of a directory's documents, without their extension.
pub(super) fn stems(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| storage("list", path, source);
    let mut stems = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".json"));
        stems.extend(stem.map(str::to_owned));
    }
    Ok(stems)
}

pub(super) fn storage(verb: &str, path: &Path, source: io::Error) -> Error {
    Error::Storage {
        doing: format!("{verb} {}", path.display()),
        source,
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
