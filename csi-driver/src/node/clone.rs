//! The content of a clone: copied from its source at the first stage, by a job that goes on when the call gives up and that
//! retries join.
//!
//! The clone's memory is on record before anything is in it, and its home only when everything is. Whatever a crash leaves is
//! dropped at the next start, and the copy begins anew.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use vineyard_charge::{OwnPayer, Payer};

use super::layer::{absence, failed, source as name_of};
use super::{Error, Node, mount_of};
use crate::clone::{self, Progress, Report};
use crate::edge::chain;
use crate::failpoint::fail_point;
use crate::mount::{self, Tmpfs};
use crate::report::{Reason, Subject};
use crate::volume::{ContentSource, Layer, Phase, Presence, Volume, VolumeId, catalog};

/// Copies at the same time: each has hundreds of files open.
const TURNS: usize = 2;

/// How long a copy that was told to end may take to do so.
const STOP: Duration = Duration::from_secs(10);

/// The copies that are under way.
#[derive(Debug)]
pub(crate) struct Clones {
    jobs: Mutex<HashMap<VolumeId, Job>>,
    turns: Semaphore,
    patience: Duration,
}

#[derive(Clone, Debug)]
struct Job {
    progress: Arc<Progress>,
    ended: watch::Receiver<Option<Result<(), Arc<Error>>>>,
}

impl Clones {
    /// A call waits for a copy for `patience`; less than its caller does.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            jobs: Mutex::default(),
            turns: Semaphore::new(TURNS),
            patience,
        }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<VolumeId, Job>> {
        // Whole after any panic.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Makes the clone's memory with the content of its source; or finds that there is no such content any more, and records that.
    pub(super) async fn ensure_filled(
        &self,
        volume: &Volume,
        source: &ContentSource,
        epoch: u64,
        context: Option<&str>,
    ) -> Result<(), Error> {
        let mut job = self.join_or_begin(volume, source, epoch, context);
        let ended = job.ended.wait_for(Option::is_some);
        match timeout(self.clones.patience, ended).await {
            Err(_) => Err(Error::Filling {
                id: volume.id.clone(),
                of: source.volume_id.clone(),
                percent: job.progress.percent(),
            }),
            Ok(Ok(ended)) => match &*ended {
                Some(Err(error)) => Err(Error::Shared(Arc::clone(error))),
                Some(Ok(())) | None => Ok(()),
            },
            Ok(Err(_)) => Err(Error::Inside("the copy ended without a result".into())),
        }
    }

    fn join_or_begin(
        &self,
        volume: &Volume,
        source: &ContentSource,
        epoch: u64,
        context: Option<&str>,
    ) -> Job {
        let mut jobs = self.clones.jobs();
        if let Some(job) = jobs.get(&volume.id) {
            return job.clone();
        }
        let progress = Arc::new(Progress::default());
        let (end, ended) = watch::channel(None);
        let job = Job {
            progress: Arc::clone(&progress),
            ended,
        };
        jobs.insert(volume.id.clone(), job.clone());
        let filling = Filling {
            node: self.clone(),
            id: volume.id.clone(),
            source: source.clone(),
            layer: Layer {
                boot_id: self.boot_id.clone(),
                epoch,
                context: context.map(str::to_owned),
            },
            progress,
        };
        tokio::spawn(async move {
            let result = filling.run().await;
            if let Err(error) = &result {
                tracing::warn!(volume.id = %filling.id, %error, "a clone is not filled");
                let about = [Subject::Volume(filling.id.clone())];
                let events = &filling.node.events;
                events.publish(Reason::CloneNotFilled, &about, chain(error));
            }
            filling.node.clones.jobs().remove(&filling.id);
            end.send_replace(Some(result.map_err(Arc::new)));
        });
        job
    }

    /// Ends a copy, if there is one: its memory is about to go.
    pub(super) async fn stop_filling(&self, id: &VolumeId) -> Result<(), Error> {
        let job = self.clones.jobs().get(id).cloned();
        let Some(mut job) = job else {
            return Ok(());
        };
        job.progress.stop();
        let ended = timeout(STOP, job.ended.wait_for(Option::is_some)).await;
        match ended.is_ok() {
            true => Ok(()),
            false => Err(Error::Busy(id.clone())),
        }
    }
}

/// One copy.
struct Filling {
    node: Node,
    id: VolumeId,
    source: ContentSource,
    layer: Layer,
    progress: Arc<Progress>,
}

impl Filling {
    async fn run(&self) -> Result<(), Error> {
        let turn = self.node.clones.turns.acquire().await;
        let _turn = turn.map_err(|closed| Error::Inside(closed.to_string()))?;
        let Some(from) = self.source_memory().await? else {
            return Ok(());
        };
        let filled = self.fill(from).await;
        match &filled {
            Ok(()) => {}
            // It may be settled. The next call finds that; or not, and then it begins anew.
            Err(Error::Catalog(error)) if error.is_uncertain() => {}
            Err(_) => {
                if let Err(error) = self.undo().await {
                    tracing::warn!(volume.id = %self.id, %error, "half a clone stays until the next start");
                }
            }
        }
        filled?;
        Ok(self.node.bills.resident(&self.id, Vec::new()).await?)
    }

    /// The root of what is to be copied. `None`: it is gone, and the clone with it.
    async fn source_memory(&self) -> Result<Option<File>, Error> {
        let node = &self.node;
        let id = &self.source.volume_id;
        let source = match node.catalog.get(id).await {
            Err(catalog::Error::NotFound(_)) => return self.lose("was deleted").await,
            other => other?.volume,
        };
        let path = node.layer_path(id);
        let opened = match node.presence(&source).await? {
            Presence::Here { .. } => directory(&path)?,
            Presence::Gone { reason } => {
                node.lose(id, &reason).await?;
                return self.lose(&format!("was lost: {reason}")).await;
            }
            Presence::Lost { reason } => return self.lose(&format!("was lost: {reason}")).await,
            Presence::Make { .. } | Presence::Fill { .. } | Presence::Deleting => {
                return self.lose("has begun anew or is deleted").await;
            }
            elsewhere => return Err(absence(id, elsewhere)),
        };
        if Some(source.generation) != self.source.generation {
            return self.lose("has begun anew").await;
        }
        // The directory was the memory only if that is still there.
        match node.presence(&source).await? {
            Presence::Here { .. } => Ok(Some(opened)),
            _ => Err(catalog::Error::Conflict(id.clone()).into()),
        }
    }

    /// Records that the clone can never have its content. Its class says what that means.
    async fn lose(&self, what: &str) -> Result<Option<File>, Error> {
        let reason = format!(
            "volume {} {what} before it was copied",
            self.source.volume_id
        );
        catalog::change::<Error>(&*self.node.catalog, &self.id, |volume| {
            if volume.pending_source() == Some(&self.source) {
                volume.lose(&reason);
            }
            Ok(())
        })
        .await?;
        tracing::error!(volume.id = %self.id, reason, "a clone has no content");
        self.node.say_lost(&self.id, Vec::new(), &reason);
        Ok(None)
    }

    async fn fill(&self, from: File) -> Result<(), Error> {
        let node = &self.node;
        // On record first, so that nobody deletes the clone and believes that its memory is free.
        let volume = self.swap(|volume| {
            volume.layers.insert(node.id.clone(), self.layer.clone());
        });
        let volume = volume.await?;
        fail_point!("clone.recorded");
        let to = self.mount(&volume).await?;
        fail_point!("clone.mounted");
        let payer = node.bills.filling(&self.id);
        let report = self.copy(from, to, payer).await?;
        fail_point!("clone.copied");
        let settled = self.swap(|volume| {
            volume.settle(&node.id, self.layer.epoch, self.layer.clone());
        });
        match settled.await {
            // An answer was lost: it is our own work that is in the way.
            Err(Error::Catalog(catalog::Error::Conflict(_))) if self.is_settled().await? => {}
            other => drop(other?),
        }
        fail_point!("clone.settled");
        tracing::info!(volume.id = %self.id, source = %self.source.volume_id, ?report, "a clone is resident");
        Ok(())
    }

    async fn swap(&self, edit: impl Fn(&mut Volume)) -> Result<Volume, Error> {
        catalog::change(&*self.node.catalog, &self.id, |volume| {
            let is_wanted = volume.pending_source() == Some(&self.source)
                && volume.booked == self.node.id
                && volume.epoch + 1 == self.layer.epoch;
            if !is_wanted {
                return Err(catalog::Error::Conflict(self.id.clone()).into());
            }
            edit(volume);
            Ok(())
        })
        .await
    }

    async fn is_settled(&self) -> Result<bool, Error> {
        let stored = self.node.catalog.get(&self.id).await?;
        Ok(stored.volume.is_settled(&self.node.id, &self.layer))
    }

    async fn mount(&self, volume: &Volume) -> Result<File, Error> {
        let path = self.node.layer_path(&self.id);
        let options = Tmpfs {
            source: name_of(&self.id, self.layer.epoch),
            size: volume.capacity,
            inodes: volume.inodes(),
            context: self.layer.context.clone(),
        };
        let (ours, at) = (mount_of(&self.id), path.clone());
        let mounted = self.node.blocking(move |mounter| {
            mount::ensure_unmounted(mounter, &ours, &at)?;
            fs::create_dir_all(&at).map_err(|error| failed("make the directory", &at, error))?;
            mounter.mount_tmpfs(&at, &options)
        });
        mounted.await?;
        directory(&path)
    }

    async fn copy(
        &self,
        from: File,
        to: File,
        payer: Option<Arc<dyn Payer>>,
    ) -> Result<Report, Error> {
        if payer.is_none() {
            tracing::warn!(volume.id = %self.id, "there is no retainer: the driver is charged for the clone");
        }
        let payer = payer.unwrap_or_else(|| Arc::new(OwnPayer::new()));
        let progress = Arc::clone(&self.progress);
        let copied = tokio::task::spawn_blocking(move || {
            clone::copy(from.as_fd(), to.as_fd(), &*payer, &progress)
        });
        let copied = copied
            .await
            .map_err(|panic| Error::Inside(panic.to_string()))?;
        copied.map_err(|error| Error::Copy {
            id: self.id.clone(),
            source: error,
        })
    }

    /// Takes away what there is of the copy, unless that is on record.
    async fn undo(&self) -> Result<(), Error> {
        let node = &self.node;
        // Any change of the record keeps those out that are still on their way.
        let fenced = catalog::change::<Error>(&*node.catalog, &self.id, |volume| {
            if volume.phase == Phase::Booked
                && let Some(layer) = volume.layers.get_mut(&node.id)
            {
                layer.epoch = 0;
            }
            Ok(())
        });
        match fenced.await {
            Ok(volume) if volume.is_settled(&node.id, &self.layer) => return Ok(()),
            Ok(_) | Err(Error::Catalog(catalog::Error::NotFound(_))) => {}
            Err(error) => return Err(error),
        }
        fail_point!("clone.fenced");
        node.unmount_layer(&self.id).await?;
        fail_point!("clone.undone");
        let forgotten = catalog::change::<Error>(&*node.catalog, &self.id, |volume| {
            if volume.phase == Phase::Booked {
                volume.layers.remove(&node.id);
            }
            Ok(())
        });
        match forgotten.await {
            Ok(_) | Err(Error::Catalog(catalog::Error::NotFound(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Opens a directory of our own.
fn directory(path: &Path) -> Result<File, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = open(path, flags, Mode::empty());
    let opened = opened.map_err(|errno| failed("open", path, errno.into()))?;
    Ok(opened.into())
}
