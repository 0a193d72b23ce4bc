//! What a volume is: its record, the rules of its life, and the catalog that stores it.

mod access;
mod capacity;
pub(crate) mod catalog;
mod condition;
mod file;
mod file_nodes;
mod id;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod life;
mod listing;
mod node_report;
mod parameters;
mod record;
mod reference;
mod timestamp;
mod usage;

pub(crate) use access::AccessMode;
pub(crate) use capacity::{CapacityRange, PAGE, RangeError};
pub(crate) use catalog::Catalog;
pub(crate) use condition::Condition;
pub(crate) use file::FileCatalog;
pub(crate) use id::{NodeId, PodUid, VolumeId, fnv1a, label_value};
#[cfg(feature = "kubernetes")]
pub(crate) use kubernetes::KubernetesCatalog;
pub(crate) use life::{Conflict, Presence};
pub(crate) use listing::{Listing, NodeRecord, Tombstone};
pub(crate) use node_report::{NodeReport, RetainerReport, probed};
pub(crate) use parameters::{OnLoss, ParameterError, Parameters};
pub(crate) use record::{Claim, ContentSource, Layer, Phase, Publication, Staging, Volume};
pub(crate) use reference::{ClaimReference, PodReference};
pub(crate) use timestamp::rfc3339;
pub(crate) use usage::{Bill, HandOver, Payer, Usage};
