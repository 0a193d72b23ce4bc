//! What a volume is: its record, the rules of its life, and the catalog that stores it.

mod access;
mod capacity;
pub(crate) mod catalog;
mod file;
mod file_nodes;
mod id;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod life;
mod listing;
mod parameters;
mod record;
mod reference;

pub(crate) use access::AccessMode;
pub(crate) use capacity::{CapacityRange, PAGE, RangeError};
pub(crate) use catalog::Catalog;
pub(crate) use file::FileCatalog;
pub(crate) use id::{NodeId, PodUid, VolumeId, fnv1a, label_value};
#[cfg(feature = "kubernetes")]
pub(crate) use kubernetes::KubernetesCatalog;
pub(crate) use life::{Conflict, Presence};
pub(crate) use listing::{Listing, Tombstone};
pub(crate) use parameters::{OnLoss, ParameterError, Parameters};
pub(crate) use record::{Claim, ContentSource, Layer, Phase, Publication, Staging, Volume};
pub(crate) use reference::{ClaimReference, PodReference};
