//! CreateVolume with a volume as its source: booked where the source's memory is, because it is copied from there, at the first
//! stage.

use vineyard_proto::csi::VolumeContentSource;
use vineyard_proto::csi::volume_content_source::{Type, VolumeSource};

use super::budget::candidates;
use super::create::Wish;
use super::{Controller, Error};
use crate::bytes::Bytes;
use crate::validation;
use crate::volume::{ContentSource, Listing, NodeId, Phase, Volume, VolumeId, catalog};

/// Takes the source of a request.
pub(super) fn source(source: &VolumeContentSource) -> Result<VolumeId, Error> {
    let Some(Type::Volume(VolumeSource { volume_id })) = &source.r#type else {
        return Err(Error::Source);
    };
    let id = validation::volume_id(volume_id)?;
    id.ok_or_else(|| Error::NoSource(volume_id.clone()))
}

/// A source on the wire.
pub(super) fn described(source: &ContentSource) -> VolumeContentSource {
    let volume_id = source.volume_id.as_str().to_owned();
    VolumeContentSource {
        r#type: Some(Type::Volume(VolumeSource { volume_id })),
    }
}

impl Controller {
    /// Books a clone. It pins its source until it is filled: see [`unfilled`].
    pub(super) async fn book_clone(&self, wish: &Wish, source: VolumeId) -> Result<Volume, Error> {
        // Nobody deletes the source between the look at it and the record of the clone.
        let _cloning = self.cloning.lock().await;
        let source = match self.catalog.get(&source).await {
            Err(catalog::Error::NotFound(id)) => {
                return Err(Error::NoSource(id.as_str().to_owned()));
            }
            other => other?.volume,
        };
        let home = home(&source)?;
        let capacity = wish.range.at_least(source.capacity)?;
        let capacity = capacity.choose(self.default_capacity)?;
        let all = self.catalog.list().await?;
        let (preferred, requisite) = (&wish.topology.preferred, &wish.topology.requisite);
        let nodes = self.nodes.all().await?;
        let mut order = candidates(&nodes, &all, preferred, requisite)?;
        order.retain(|(node, _)| home.is_none_or(|home| *home == node.node));
        let mut most = Bytes(0);
        for (node, _) in &order {
            let mut volume = wish.booked_on(node, capacity);
            volume.content_source = Some(ContentSource {
                volume_id: source.id.clone(),
                generation: home.map(|_| source.generation),
            });
            let (wanted, offered) = (source.inodes(), volume.inodes());
            if offered < wanted {
                return Err(Error::Unclonable {
                    id: source.id,
                    reason: format!("it may have {wanted} inodes, the clone {offered}"),
                });
            }
            match self.catalog.book(None, volume, node.budget).await {
                Ok(stored) => return Ok(stored.volume),
                Err(catalog::Error::NoRoom { free, .. }) => most = most.max(free),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::NoRoom {
            capacity,
            nodes: order.len(),
            free: most,
        })
    }
}

/// The clones whose content still has to be copied from a volume; none when that content is gone.
pub(super) fn unfilled(all: &Listing, source: &Volume) -> Vec<VolumeId> {
    let is_of =
        |it: &ContentSource| it.volume_id == source.id && it.generation == Some(source.generation);
    let volumes = all.volumes.iter().map(|stored| &stored.volume);
    let unfilled = volumes.filter(|volume| volume.pending_source().is_some_and(is_of));
    match source.phase {
        Phase::Lost { .. } => Vec::new(),
        _ => unfilled.map(|volume| volume.id.clone()).collect(),
    }
}

/// Where the source's content is; `None`: it never had any.
fn home(source: &Volume) -> Result<Option<&NodeId>, Error> {
    let id = source.id.clone();
    match &source.phase {
        Phase::Booked if source.pending_source().is_none() => Ok(None),
        Phase::Booked => Err(Error::Unclonable {
            id,
            reason: "it is a clone itself, and was never staged: it has no content yet".into(),
        }),
        Phase::Resident | Phase::Unreachable => Ok(source.home.as_ref()),
        // Where it will be is not decided.
        Phase::Moving { .. } => Err(Error::Busy(id)),
        Phase::Lost { reason } => Err(Error::Unclonable {
            id,
            reason: format!("its content is lost: {reason}"),
        }),
        Phase::Deleting => Err(Error::NoSource(id.as_str().to_owned())),
    }
}
