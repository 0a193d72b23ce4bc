//! CreateVolume: books capacity and writes the record. No memory exists before the first stage.

use std::collections::HashMap;

use vineyard_proto::csi::{
    self, CreateVolumeRequest, CreateVolumeResponse, Topology, TopologyRequirement,
};

use super::budget::candidates;
use super::{Controller, Error, NodeBudget, clone};
use crate::bytes::Bytes;
use crate::failpoint::fail_point;
use crate::identity::POOL_KEY;
use crate::validation;
use crate::volume::{
    AccessMode, CapacityRange, ClaimReference, Parameters, Phase, Volume, VolumeId, catalog,
};

/// A request that makes sense.
pub(super) struct Wish {
    pub(super) id: VolumeId,
    name: String,
    pub(super) range: CapacityRange,
    parameters: Parameters,
    access_modes: Vec<AccessMode>,
    pub(super) topology: TopologyRequirement,
    source: Option<VolumeId>,
    claim: Option<ClaimReference>,
}

impl Wish {
    fn parse(request: CreateVolumeRequest) -> Result<Self, Error> {
        let name = validation::name(&request.name)?.to_owned();
        let capabilities = validation::capabilities(&request.volume_capabilities)?;
        validation::map("parameters", &request.parameters)?;
        validation::map("mutable_parameters", &request.mutable_parameters)?;
        let parameters = Parameters::parse(&request.parameters, &request.mutable_parameters)?;
        let range = request.capacity_range.unwrap_or_default();
        let range = CapacityRange::parse(range.required_bytes, range.limit_bytes)?;
        let source = request.volume_content_source.as_ref();
        let source = source.map(clone::source).transpose()?;
        let mut access_modes: Vec<_> = capabilities.iter().map(|each| each.access_mode).collect();
        access_modes.sort();
        access_modes.dedup();
        Ok(Self {
            claim: ClaimReference::of_request(&request.parameters, &name),
            id: VolumeId::of_name(&name),
            name,
            range,
            parameters,
            access_modes,
            topology: request.accessibility_requirements.unwrap_or_default(),
            source,
        })
    }

    /// What of an existing volume is not what is wished for.
    fn differs_from(&self, volume: &Volume, nodes: &[NodeBudget]) -> Option<&'static str> {
        let requisite = &self.topology.requisite;
        let in_pool = |term: &Topology| {
            let mut pool = nodes.iter().filter(|node| node.pool == volume.pool);
            pool.any(|node| node.is_in(&term.segments))
        };
        if volume.name != self.name {
            return Some("name (their ids collide)");
        }
        if !self.range.contains(volume.capacity) {
            return Some("capacity");
        }
        if self.parameters != volume.parameters {
            return Some("parameters");
        }
        let source = volume.content_source.as_ref();
        if self.source.as_ref() != source.map(|source| &source.volume_id) {
            return Some("volume_content_source");
        }
        if !self
            .access_modes
            .iter()
            .all(|mode| volume.access_modes.contains(mode))
        {
            return Some("volume_capabilities");
        }
        if !requisite.is_empty() && !requisite.iter().any(in_pool) {
            return Some("accessibility_requirements");
        }
        None
    }
}

impl Controller {
    pub(crate) async fn create(
        &self,
        request: CreateVolumeRequest,
    ) -> Result<CreateVolumeResponse, Error> {
        let wish = Wish::parse(request)?;
        let _guard = self.lock(&wish.id)?;
        let volume = match self.catalog.get(&wish.id).await {
            Ok(stored) => {
                let id = wish.id.clone();
                if let Some(what) = wish.differs_from(&stored.volume, &self.nodes.all().await?) {
                    return Err(Error::Incompatible { id, what });
                }
                if stored.volume.phase == Phase::Deleting {
                    return Err(Error::Busy(id));
                }
                stored.volume
            }
            Err(catalog::Error::NotFound(_)) => match wish.source.clone() {
                Some(source) => self.book_clone(&wish, source).await?,
                None => self.book(wish).await?,
            },
            Err(error) => return Err(error.into()),
        };
        fail_point!("create.recorded");
        Ok(CreateVolumeResponse {
            volume: Some(described(&volume)),
        })
    }

    async fn book(&self, wish: Wish) -> Result<Volume, Error> {
        let capacity = wish.range.choose(self.default_capacity)?;
        let all = self.catalog.list().await?;
        let TopologyRequirement {
            requisite,
            preferred,
        } = &wish.topology;
        let nodes = self.nodes.all().await?;
        let order = candidates(&nodes, &all, preferred, requisite)?;
        let mut most = Bytes(0);
        for (node, _) in order.iter().filter(|(_, free)| *free >= capacity) {
            let volume = wish.booked_on(node, capacity);
            fail_point!("create.chosen");
            match self.catalog.book(None, volume, node.budget).await {
                Ok(stored) => return Ok(stored.volume),
                // Somebody was faster. There may be room on the next one.
                Err(catalog::Error::NoRoom { free, .. }) => most = most.max(free),
                Err(error) => return Err(error.into()),
            }
        }
        let free = order.iter().map(|(_, free)| *free);
        Err(Error::NoRoom {
            capacity,
            nodes: order.len(),
            free: free.filter(|free| *free < capacity).fold(most, Bytes::max),
        })
    }
}

impl Wish {
    /// The volume before its first stage.
    pub(super) fn booked_on(&self, node: &NodeBudget, capacity: Bytes) -> Volume {
        Volume {
            id: self.id.clone(),
            name: self.name.clone(),
            phase: Phase::Booked,
            capacity,
            parameters: self.parameters.clone(),
            access_modes: self.access_modes.clone(),
            pool: node.pool.clone(),
            booked: node.node.clone(),
            home: None,
            epoch: 0,
            generation: 1,
            layers: Default::default(),
            content_source: None,
            claim: self.claim.clone(),
            stagings: Vec::new(),
            publications: Vec::new(),
            usage: None,
            conditions: Vec::new(),
        }
    }
}

/// A volume on the wire. Where it is accessible is its pool: never one node, which would pin its pods there.
pub(super) fn described(volume: &Volume) -> csi::Volume {
    let segments = HashMap::from([(POOL_KEY.to_owned(), volume.pool.clone())]);
    csi::Volume {
        capacity_bytes: volume.capacity.wire(),
        volume_id: volume.id.as_str().to_owned(),
        // Never changes for a volume, hence nothing that could.
        volume_context: HashMap::new(),
        content_source: volume.content_source.as_ref().map(clone::described),
        accessible_topology: vec![Topology { segments }],
    }
}
