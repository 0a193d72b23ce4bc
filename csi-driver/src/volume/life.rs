//! The rules of a volume's life, without any I/O.
//!
//! ```text
//! Booked ──first stage (a clone: and its content copied)──▶ Resident(home) ──memory gone──▶ Lost ──onLoss: recreate──▶ Resident, next epoch and generation
//!   └───── DeleteVolume ──────┴───────────────────────────┴──▶ Deleting ──▶ gone
//! ```

use std::path::Path;

use super::{ContentSource, Layer, NodeId, OnLoss, Phase, Publication, Staging, Volume, VolumeId};

/// What a node that wants to have the volume must do first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nothing: its memory is here, in this epoch.
    Here {
        /// Epoch that the layer was made in.
        epoch: u64,
    },
    /// Make empty memory: it never had any, or may begin anew.
    Make {
        /// Epoch of the new layer.
        epoch: u64,
    },
    /// Make memory and copy the content of its source into it.
    Fill {
        /// Epoch of the new layer.
        epoch: u64,
        /// What is to be copied.
        source: ContentSource,
    },
    /// Its source's memory is at another node, and can only be copied there.
    SourceElsewhere {
        /// The source.
        source: VolumeId,
        /// Where its memory is.
        home: NodeId,
    },
    /// Its memory was here and is not any more: record that.
    Gone {
        /// How that is known.
        reason: String,
    },
    /// Its memory is known to be gone and may not begin anew.
    Lost {
        /// How that is known.
        reason: String,
    },
    /// Its memory is at another node.
    Elsewhere {
        /// Which.
        home: NodeId,
        /// Pods that have it there.
        publications: usize,
    },
    /// It is being deleted.
    Deleting,
}

/// Why a publication is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// The target has it already, under other conditions.
    Different,
    /// A single writer has it at another target.
    Exclusive(std::path::PathBuf),
}

impl Volume {
    /// What `node`, in boot `boot_id`, must do to have the volume; `mounted` says whether the tmpfs of an epoch is there.
    pub(crate) fn presence(
        &self,
        node: &NodeId,
        boot_id: &str,
        mounted: impl FnOnce(u64) -> bool,
    ) -> Presence {
        let next = Presence::Make {
            epoch: self.epoch + 1,
        };
        match &self.phase {
            Phase::Deleting => return Presence::Deleting,
            Phase::Booked => {
                return match self.pending_source() {
                    None => next,
                    Some(source) if self.booked == *node => Presence::Fill {
                        epoch: self.epoch + 1,
                        source: source.clone(),
                    },
                    Some(source) => Presence::SourceElsewhere {
                        source: source.volume_id.clone(),
                        home: self.booked.clone(),
                    },
                };
            }
            Phase::Lost { reason } => {
                return match self.parameters.on_loss {
                    OnLoss::Recreate => next,
                    OnLoss::Fail => Presence::Lost {
                        reason: reason.clone(),
                    },
                };
            }
            Phase::Resident | Phase::Moving { .. } | Phase::Unreachable => {}
        }
        match (&self.home, self.layers.get(node)) {
            (Some(home), _) if home != node => Presence::Elsewhere {
                home: home.clone(),
                publications: self.publications.len(),
            },
            (_, None) => Presence::Gone {
                reason: format!("its home {node} has no record of its memory"),
            },
            (_, Some(layer)) if layer.boot_id != boot_id => Presence::Gone {
                reason: format!("node {node} was restarted (boot {} is over)", layer.boot_id),
            },
            (_, Some(layer)) if mounted(layer.epoch) => Presence::Here { epoch: layer.epoch },
            (_, Some(_)) => Presence::Gone {
                reason: format!("its memory on node {node} was unmounted"),
            },
        }
    }

    /// The source whose content still has to be copied.
    pub(crate) fn pending_source(&self) -> Option<&ContentSource> {
        let source = self.content_source.as_ref();
        source.filter(|source| self.phase == Phase::Booked && source.generation.is_some())
    }

    /// Records that its memory is at `node` now, made in `epoch`.
    pub(crate) fn settle(&mut self, node: &NodeId, epoch: u64, layer: Layer) {
        if self.phase != Phase::Booked || self.generation == 0 {
            self.generation += 1;
        }
        self.phase = Phase::Resident;
        self.epoch = epoch;
        self.home = Some(node.clone());
        self.booked = node.clone();
        self.layers.insert(node.clone(), layer);
        self.usage = None;
    }

    /// Whether exactly this layer of `node` is its memory.
    pub(crate) fn is_settled(&self, node: &NodeId, layer: &Layer) -> bool {
        self.phase == Phase::Resident
            && self.home.as_ref() == Some(node)
            && self.layers.get(node) == Some(layer)
    }

    /// Records that its memory is gone. The epoch stays: nobody else has it.
    pub(crate) fn lose(&mut self, reason: &str) {
        self.phase = Phase::Lost {
            reason: reason.to_owned(),
        };
        self.usage = None;
        if let Some(home) = &self.home {
            self.layers.remove(home);
        }
    }

    /// Forgets the mounts that `node` had in another boot than `boot_id`: the kernel forgot them too.
    pub(crate) fn forget_boot(&mut self, node: &NodeId, boot_id: &str) {
        self.stagings
            .retain(|each| each.node != *node || each.boot_id == boot_id);
        self.publications
            .retain(|each| each.node != *node || each.boot_id == boot_id);
    }

    /// Records a staging. The same again is no change.
    ///
    /// # Errors
    /// [`Conflict::Different`] when the path has it already, under other conditions.
    pub(crate) fn stage(&mut self, staging: Staging) -> Result<(), Conflict> {
        match self.staging(&staging.node, &staging.path) {
            Some(known) if known.claim == staging.claim => Ok(()),
            Some(_) => Err(Conflict::Different),
            None => {
                self.stagings.push(staging);
                Ok(())
            }
        }
    }

    /// The staging at a path of a node.
    pub(crate) fn staging(&self, node: &NodeId, path: &Path) -> Option<&Staging> {
        self.stagings
            .iter()
            .find(|each| each.node == *node && each.path == path)
    }

    /// Forgets the staging at a path of a node.
    pub(crate) fn unstage(&mut self, node: &NodeId, path: &Path) {
        self.stagings
            .retain(|each| each.node != *node || each.path != path);
    }

    /// Records a publication. The same again is no change.
    ///
    /// # Errors
    /// [`Conflict`] when the target or the access mode is taken.
    pub(crate) fn publish(&mut self, publication: Publication) -> Result<(), Conflict> {
        let same_place =
            |each: &&Publication| each.node == publication.node && each.path == publication.path;
        if let Some(known) = self.publications.iter().find(same_place) {
            return if known.claim == publication.claim {
                Ok(())
            } else {
                Err(Conflict::Different)
            };
        }
        let exclusive = |each: &&Publication| {
            each.claim.access_mode.is_exclusive() || publication.claim.access_mode.is_exclusive()
        };
        if let Some(holder) = self.publications.iter().find(exclusive) {
            return Err(Conflict::Exclusive(holder.path.clone()));
        }
        self.publications.push(publication);
        Ok(())
    }

    /// Forgets the publication at a path of a node.
    pub(crate) fn unpublish(&mut self, node: &NodeId, path: &Path) {
        self.publications
            .retain(|each| each.node != *node || each.path != path);
    }

    /// How often it is staged and published on nodes that count.
    pub(crate) fn users(&self, counts: impl Fn(&NodeId) -> bool) -> (usize, usize) {
        let stagings = self.stagings.iter().filter(|each| counts(&each.node));
        let publications = self.publications.iter().filter(|each| counts(&each.node));
        (stagings.count(), publications.count())
    }
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
