//! What has to be known to inject a pod, and where in the pod it says what to look up. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{LimitRange, PersistentVolumeClaimSpec, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity;
use crate::bytes::Bytes;

/// What is known of a pod's claims and of its namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// Claims of this driver, and claims that do not exist, by the name of the pod's volume.
    pub(super) claims: BTreeMap<String, Claim>,
    /// The nodes that have, or will have, memory of these claims, and how many bytes.
    pub(super) homes: BTreeMap<String, Bytes>,
    /// Names of claims that no node has memory of, nor has booked any.
    pub(super) unplaced: BTreeSet<String>,
    /// What the namespace allows.
    pub(super) bounds: Bounds,
}

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Claim {
    /// Its volume is, or will be, one of ours.
    Ours {
        /// What is booked for it, or asked for.
        capacity: Bytes,
        /// It holds nothing, and no other live pod has it.
        is_fresh: bool,
        /// This pod cannot write it.
        is_read_only: bool,
    },
    /// It does not exist yet, so nobody knows whose it will be.
    Missing {
        /// Its name.
        name: String,
        /// This pod could not write it.
        is_read_only: bool,
    },
}

/// Where a pod's volume comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source<'a> {
    /// A claim by its name.
    Claim {
        /// Its name.
        name: &'a str,
        /// The pod mounts it read-only.
        is_read_only: bool,
    },
    /// A claim that is made for this pod.
    Template(&'a PersistentVolumeClaimSpec),
}

/// The volumes of a pod that a claim is behind, with their names.
pub(super) fn sources(pod: &Pod) -> impl Iterator<Item = (&str, Source<'_>)> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some((volume.name.as_str(), source(volume)?)))
}

fn source(volume: &Volume) -> Option<Source<'_>> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(Source::Claim {
            name: &claim.claim_name,
            is_read_only: claim.read_only.unwrap_or(false),
        });
    }
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    Some(Source::Template(&template.spec))
}

/// What a claim asks for; 0 when it does not say.
pub(super) fn requested(claim: &PersistentVolumeClaimSpec) -> Bytes {
    let requests = claim.resources.as_ref().and_then(|it| it.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage"));
    storage
        .and_then(|Quantity(text)| quantity::bytes(text))
        .unwrap_or_default()
}

/// Whether nobody can write through a claim with these access modes.
pub(super) fn only_reads(claim: &PersistentVolumeClaimSpec) -> bool {
    let modes = claim.access_modes.as_deref().unwrap_or_default();
    !modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany")
}

/// What the LimitRanges of a namespace allow, all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The least memory of a container.
    pub(super) least_memory: Option<Bytes>,
    /// The most memory of a container.
    pub(super) most_memory: Option<Bytes>,
    /// The most memory of a pod.
    pub(super) most_pod_memory: Option<Bytes>,
    /// The least processor time of a container, in thousandths.
    pub(super) least_cpu: Option<u64>,
    /// The most processor time of a container, in thousandths.
    pub(super) most_cpu: Option<u64>,
}

impl Bounds {
    /// Those of these LimitRanges. What cannot be read of them is the API server's to refuse.
    pub(super) fn of(ranges: &[LimitRange]) -> Self {
        let mut bounds = Self::default();
        let items = ranges.iter().filter_map(|range| range.spec.as_ref());
        for item in items.flat_map(|spec| &spec.limits) {
            let read = |map: &Option<BTreeMap<String, Quantity>>, key: &str| {
                map.as_ref()?.get(key).map(|Quantity(text)| text.clone())
            };
            let memory = |map| read(map, "memory").and_then(|text| quantity::bytes(&text));
            let cpu = |map| read(map, "cpu").and_then(|text| quantity::millicores(&text));
            match item.type_.as_str() {
                "Container" => {
                    most(&mut bounds.least_memory, memory(&item.min));
                    least(&mut bounds.most_memory, memory(&item.max));
                    most(&mut bounds.least_cpu, cpu(&item.min));
                    least(&mut bounds.most_cpu, cpu(&item.max));
                }
                "Pod" => least(&mut bounds.most_pod_memory, memory(&item.max)),
                _ => {}
            }
        }
        bounds
    }
}

fn least<T: Ord>(bound: &mut Option<T>, other: Option<T>) {
    *bound = match (bound.take(), other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
}

fn most<T: Ord>(bound: &mut Option<T>, other: Option<T>) {
    *bound = bound.take().max(other);
}
