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
use super::{Volume, VolumeId};

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
struct Directory {
    path: PathBuf,
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

    async fn list(&self) -> Result<Vec<Stored>, Error> {
        self.run(Directory::list).await
    }

    async fn create(&self, volume: Volume) -> Result<Stored, Error> {
        let created = self.run(move |directory| match directory.read(&volume.id) {
            Ok(_) => Err(Error::AlreadyExists(volume.id)),
            Err(Error::NotFound(_)) => directory.write(0, volume),
            Err(error) => Err(error),
        });
        let created = created.await;
        self.written.notify_waiters();
        created
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

    async fn changed(&self, seen: Revision) -> Revision {
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

    fn list(&self) -> Result<Vec<Stored>, Error> {
        let failed = |source| storage("list", &self.path, source);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(stem.and_then(VolumeId::parse));
        }
        ids.sort();
        ids.iter().map(|id| self.read(id)).collect()
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
        let beside = place.with_extension("tmp");
        let written = self.replace(&document, &beside, &place);
        written.map_err(|source| storage("write", &place, source))?;
        Ok(document.into())
    }

    fn replace(&self, document: &Document, beside: &Path, place: &Path) -> io::Result<()> {
        self.step()?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(beside)?;
        self.step()?;
        let text = serde_json::to_vec_pretty(document)?;
        let (half, rest) = text.split_at(text.len() / 2);
        file.write_all(half)?;
        self.step()?;
        file.write_all(rest)?;
        self.step()?;
        file.sync_all()?;
        self.step()?;
        fs::rename(beside, place)?;
        self.step()?;
        File::open(&self.path)?.sync_all()
    }

    fn remove(&self, id: &VolumeId) -> Result<(), Error> {
        let place = self.place(id);
        let removed = self
            .step()
            .and_then(|()| fs::remove_file(&place))
            .and_then(|()| self.step())
            .and_then(|()| File::open(&self.path)?.sync_all());
        removed.map_err(|source| storage("remove", &place, source))
    }

    /// The directory's own time of change: it moves with every rename and removal in it.
    fn revision(&self) -> Revision {
        let moment = fs::metadata(&self.path).map_or((0, 0), |at| (at.ctime(), at.ctime_nsec()));
        Revision(u128::from(moment.0.unsigned_abs()) << 64 | u128::from(moment.1.unsigned_abs()))
    }

    /// A point where tests let the process "die".
    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "tests fail here"
    )]
    fn step(&self) -> io::Result<()> {
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

fn storage(verb: &str, path: &Path, source: io::Error) -> Error {
    Error::Storage {
        doing: format!("{verb} {}", path.display()),
        source,
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
