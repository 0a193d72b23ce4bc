//! The memory of a volume on this node: a tmpfs under a directory of our own, made once, never silently again.

use std::fs;
use std::path::PathBuf;

use super::{Error, Node, mount_of};
use crate::failpoint::fail_point;
use crate::mount::{self, Tmpfs};
use crate::report::{Reason, Subject};
use crate::volume::{Layer, OnLoss, Phase, PodReference, Presence, Volume, VolumeId, catalog};

/// Looks at a volume that others change meanwhile, before kubelet is told to come again.
const LOOKS: usize = 8;

impl Node {
    /// Where the tmpfs of a volume is mounted.
    pub(super) fn layer_path(&self, id: &VolumeId) -> PathBuf {
        self.layers.join(id.as_str())
    }

    /// What this node must do to have the volume.
    pub(super) async fn presence(&self, volume: &Volume) -> Result<Presence, Error> {
        let path = self.layer_path(&volume.id);
        let mounted = self
            .blocking(move |mounter| mount::at(mounter, &path))
            .await?;
        Ok(volume.presence(&self.id, &self.boot_id, |epoch| {
            mounted.is_some_and(|it| it.source == *source(&volume.id, epoch))
        }))
    }

    /// Makes the volume present here, with its whole capacity. Its memory is made at most once in an epoch.
    pub(super) async fn ensure_present(
        &self,
        id: &VolumeId,
        context: Option<&str>,
    ) -> Result<(), Error> {
        for _ in 0..LOOKS {
            let volume = self.catalog.get(id).await?.volume;
            match self.presence(&volume).await? {
                Presence::Here { .. } => {
                    let layer = volume.layers.get(&self.id);
                    if layer.is_some_and(|layer| layer.context.as_deref() != context) {
                        let path = self.layer_path(id);
                        return Err(Error::Incompatible {
                            id: id.clone(),
                            path,
                        });
                    }
                    self.fit(&volume).await?;
                    return Ok(self.bills.ensure_resident(id).await?);
                }
                Presence::Make { epoch } => self.make(&volume, epoch, context).await?,
                Presence::Fill { epoch, source } => {
                    self.ensure_filled(&volume, &source, epoch, context).await?;
                }
                Presence::Gone { reason } => self.lose(id, &reason).await?,
                other => return Err(absence(id, other)),
            }
        }
        Err(catalog::Error::Conflict(id.clone()).into())
    }

    /// Whether its content is gone, and its class lets it begin anew.
    pub(super) async fn begins_anew(&self, volume: &Volume) -> Result<bool, Error> {
        if volume.parameters.on_loss != OnLoss::Recreate {
            return Ok(false);
        }
        let gone = matches!(self.presence(volume).await?, Presence::Gone { .. });
        Ok(gone || matches!(volume.phase, Phase::Lost { .. }))
    }

    /// Requires that the volume is present here already.
    pub(super) async fn require_present(&self, volume: &Volume) -> Result<(), Error> {
        match self.presence(volume).await? {
            Presence::Here { .. } => Ok(()),
            Presence::Gone { reason } => {
                self.lose(&volume.id, &reason).await?;
                Err(Error::Lost {
                    id: volume.id.clone(),
                    reason,
                })
            }
            other => Err(absence(&volume.id, other)),
        }
    }

    /// Gives the tmpfs the capacity that is booked, when it has another one.
    pub(super) async fn fit(&self, volume: &Volume) -> Result<(), Error> {
        let (capacity, inodes) = (volume.capacity, volume.inodes());
        self.bills.fit(&volume.id, capacity, inodes).await?;
        fail_point!("layer.resized");
        Ok(())
    }

    /// Mounts empty memory, then records it. In this order: a record without memory would be a loss, memory without a record is
    /// what a crash left, and nobody has seen it.
    async fn make(&self, volume: &Volume, epoch: u64, context: Option<&str>) -> Result<(), Error> {
        let id = &volume.id;
        let path = self.layer_path(id);
        let options = Tmpfs {
            source: source(id, epoch),
            size: volume.capacity,
            inodes: volume.inodes(),
            context: context.map(str::to_owned),
        };
        let ours = mount_of(id);
        self.blocking(move |mounter| {
            mount::ensure_unmounted(mounter, &ours, &path)?;
            fail_point!("layer.clear");
            fs::create_dir_all(&path)
                .map_err(|error| failed("make the directory", &path, error))?;
            fail_point!("layer.directory");
            mounter.mount_tmpfs(&path, &options)
        })
        .await?;
        fail_point!("layer.mounted");
        self.bills.furnish(id).await?;
        fail_point!("layer.furnished");
        let layer = Layer {
            boot_id: self.boot_id.clone(),
            epoch,
            context: context.map(str::to_owned),
        };
        let settled = catalog::change_booking::<Error>(&*self.catalog, id, self.budget, |latest| {
            // An answer was lost, here or below: that must not look like somebody else's work.
            if latest.is_settled(&self.id, &layer) {
                return Ok(());
            }
            // Not when somebody else has made it somewhere, deleted it, or expanded it meanwhile.
            if latest.epoch + 1 != epoch
                || latest.phase != volume.phase
                || latest.capacity != volume.capacity
            {
                return Err(catalog::Error::Conflict(id.clone()).into());
            }
            latest.settle(&self.id, epoch, layer.clone());
            Ok(())
        })
        .await;
        match settled {
            Ok(volume) => {
                fail_point!("layer.recorded");
                tracing::info!(volume.id = %id, epoch, generation = volume.generation, capacity = %volume.capacity, "resident");
                let note = format!(
                    "{} of memory on node {}, epoch {epoch}",
                    volume.capacity, self.id
                );
                self.events
                    .publish(Reason::VolumeResident, &[Subject::Volume(id.clone())], note);
                Ok(self.bills.resident(id, Vec::new()).await?)
            }
            // The next call finds it there; or not, and then it makes it anew.
            Err(Error::Catalog(error)) if error.is_uncertain() => Err(error.into()),
            Err(error) => {
                fail_point!("layer.refused");
                self.unmount_layer(id).await?;
                match error {
                    // Look again: it may be here, elsewhere or deleted now.
                    Error::Catalog(catalog::Error::Conflict(_)) => Ok(()),
                    Error::Catalog(catalog::Error::NoRoom { node, free }) => Err(Error::NoRoom {
                        id: id.clone(),
                        capacity: volume.capacity,
                        node,
                        free,
                    }),
                    other => Err(other),
                }
            }
        }
    }

    /// Records that the volume's memory here is gone.
    pub(super) async fn lose(&self, id: &VolumeId, reason: &str) -> Result<(), Error> {
        let mut pods = Vec::new();
        catalog::change::<Error>(&*self.catalog, id, |latest| {
            let resident =
                latest.phase == Phase::Resident && latest.home.as_ref() == Some(&self.id);
            if resident {
                latest.lose(reason);
            }
            let here = latest.publications.iter().filter(|it| it.node == self.id);
            pods = here.filter_map(|it| it.pod.clone()).collect();
            Ok(())
        })
        .await?;
        self.bills.dropped(id).await;
        tracing::error!(volume.id = %id, reason, "the content of a volume is lost");
        self.say_lost(id, pods, reason);
        fail_point!("layer.lost");
        // The directory that it was mounted on. What is left of it now is removed at the next start.
        if let Err(error) = self.unmount_layer(id).await {
            tracing::warn!(volume.id = %id, %error, "the place of a lost volume stays");
        }
        Ok(())
    }

    /// Tells its owner, and those of the pods that had it, that its content is gone: kubelet names no pod when it stages it again.
    pub(super) fn say_lost(&self, id: &VolumeId, pods: Vec<PodReference>, reason: &str) {
        let note = format!("the content is lost: {reason}");
        let pods = pods.into_iter().map(Subject::Pod);
        let about: Vec<_> = [Subject::Volume(id.clone())]
            .into_iter()
            .chain(pods)
            .collect();
        self.events.publish(Reason::VolumeLost, &about, note);
    }

    /// Takes the memory away. Everything in it is gone then.
    pub(super) async fn unmount_layer(&self, id: &VolumeId) -> Result<(), Error> {
        let (path, ours) = (self.layer_path(id), mount_of(id));
        // Whoever looks at the bill has files of it open.
        self.bills.halt(id).await?;
        let unmounted = self
            .blocking(move |mounter| mount::ensure_unmounted(mounter, ours, &path))
            .await;
        match &unmounted {
            Ok(()) => self.bills.dropped(id).await,
            Err(_) => self.bills.resume(id),
        }
        unmounted
    }
}

/// Name of the tmpfs of an epoch, as the kernel's table shows it.
pub(super) fn source(id: &VolumeId, epoch: u64) -> String {
    format!("vineyard:{id}@{epoch}")
}

pub(super) fn absence(id: &VolumeId, presence: Presence) -> Error {
    let id = id.clone();
    match presence {
        Presence::Lost { reason } | Presence::Gone { reason } => Error::Lost { id, reason },
        Presence::Elsewhere { home, publications } => Error::Elsewhere {
            id,
            home,
            publications,
        },
        Presence::Deleting => Error::Unknown(id.as_str().to_owned()),
        Presence::SourceElsewhere { source, home } => Error::SourceElsewhere {
            id,
            of: source,
            home,
        },
        Presence::Make { .. } | Presence::Fill { .. } | Presence::Here { .. } => {
            Error::NotResident(id)
        }
    }
}

pub(super) fn failed(
    doing: &'static str,
    path: &std::path::Path,
    source: std::io::Error,
) -> mount::Error {
    mount::Error::System {
        doing,
        path: path.to_owned(),
        source,
    }
}
