//! What the driver keeps in Kubernetes: custom resources, and their definitions made from the types here.

mod definitions;
#[cfg(test)]
mod golden;
mod mirror;
mod node;
mod volume;

pub(crate) use definitions::definitions;
pub(crate) use mirror::mirror;
pub(crate) use node::{
    Booking, Nodes, RetainerStatus, VineyardNode, VineyardNodeSpec, VineyardNodeStatus,
};
pub(crate) use volume::VineyardVolume;

/// The group of all of them.
pub(crate) const GROUP: &str = "vineyard.io";
