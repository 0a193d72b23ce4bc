//! What is known of a pod's claims and namespace, asked of Kubernetes and of the records at the moment of the review.
//!
//! Nothing is cached: a claim is often made a moment before its pod, and most pods have none of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    LimitRange, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams};
use kube::core::{ApiResource, Object};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::facts::{self, Bounds, Claim, Facts, Source};
use crate::bytes::Bytes;
use crate::identity::DRIVER;
use crate::volume::{Catalog, NodeId, OnLoss, Phase, Volume, VolumeId, catalog};

/// Marks the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// How claims named their class before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Where claims are looked up.
#[derive(Clone)]
pub(crate) struct Lookup {
    client: Client,
    catalog: Arc<dyn Catalog>,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").finish_non_exhaustive()
    }
}

impl Lookup {
    /// In the Kubernetes of `client`, with records in `catalog`.
    pub(crate) fn new(client: Client, catalog: Arc<dyn Catalog>) -> Self {
        Self { client, catalog }
    }

    /// The Kubernetes that is asked.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The facts of a pod that is to be in `namespace`.
    ///
    /// # Errors
    /// [`Error`] when something cannot be found out: what does not exist is an answer, what is not said is none.
    pub(super) async fn facts(&self, pod: &Pod, namespace: &str) -> Result<Facts, Error> {
        let mut facts = Facts::default();
        for (volume, source) in facts::sources(pod) {
            let claim = match source {
                Source::Template(spec) => self.template(spec).await?,
                Source::Claim { name, is_read_only } => {
                    self.claim(pod, namespace, name, is_read_only, &mut facts)
                        .await?
                }
            };
            facts
                .claims
                .extend(claim.map(|claim| (volume.to_owned(), claim)));
        }
        if facts
            .claims
            .values()
            .any(|claim| matches!(claim, Claim::Ours { .. }))
        {
            let ranges: Api<LimitRange> = Api::namespaced(self.client.clone(), namespace);
            let ranges = ranges.list(&ListParams::default()).await;
            let ranges = ranges.map_err(failed("list limit ranges"))?;
            facts.bounds = Bounds::of(&ranges.items);
        }
        Ok(facts)
    }

    /// A claim that is made for this pod, after it.
    async fn template(&self, spec: &PersistentVolumeClaimSpec) -> Result<Option<Claim>, Error> {
        if !self.is_ours(spec.storage_class_name.as_deref()).await? {
            return Ok(None);
        }
        Ok(Some(Claim::Ours {
            capacity: facts::requested(spec),
            is_fresh: !has_source(spec),
            is_read_only: facts::only_reads(spec),
        }))
    }

    /// A claim that is there, or is not. Adds where its memory is to `found`.
    async fn claim(
        &self,
        pod: &Pod,
        namespace: &str,
        name: &str,
        is_read_only: bool,
        found: &mut Facts,
    ) -> Result<Option<Claim>, Error> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let Some(claim) = get(&claims, "claim", name).await? else {
            let name = name.to_owned();
            found.unplaced.insert(name.clone());
            return Ok(Some(Claim::Missing { name, is_read_only }));
        };
        let class = claim.annotations().get(CLASS_ANNOTATION).cloned();
        let spec = claim.spec.clone().unwrap_or_default();
        let class = class.as_ref().or(spec.storage_class_name.as_ref());
        let (capacity, is_empty) = match spec.volume_name.as_deref().unwrap_or_default() {
            "" => {
                if !self.is_ours(class.map(String::as_str)).await? {
                    return Ok(None);
                }
                found.unplaced.insert(name.to_owned());
                (facts::requested(&spec), !has_source(&spec))
            }
            volume => match self.volume(volume, &mut found.homes).await? {
                Some(its) => its,
                None => return Ok(None),
            },
        };
        let is_read_only = is_read_only || facts::only_reads(&spec);
        let is_fresh = is_empty && !is_read_only && !self.is_used(pod, namespace, name).await?;
        Ok(Some(Claim::Ours {
            capacity,
            is_fresh,
            is_read_only,
        }))
    }

    /// The capacity of a volume of ours, and whether it is known to be empty. Adds where it is to `homes`.
    async fn volume(
        &self,
        name: &str,
        homes: &mut BTreeMap<String, Bytes>,
    ) -> Result<Option<(Bytes, bool)>, Error> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume = get(&volumes, "volume", name).await?;
        let csi = volume.and_then(|volume| volume.spec?.csi);
        let Some(csi) = csi.filter(|csi| csi.driver == DRIVER) else {
            return Ok(None);
        };
        let Some(id) = VolumeId::parse(&csi.volume_handle) else {
            return Ok(Some((Bytes(0), false)));
        };
        match self.catalog.get(&id).await {
            Ok(stored) => {
                let volume = stored.volume;
                let is_empty = match volume.phase {
                    Phase::Booked => volume.content_source.is_none(),
                    Phase::Lost { .. } => volume.parameters.on_loss == OnLoss::Recreate,
                    Phase::Resident
                    | Phase::Moving { .. }
                    | Phase::Unreachable
                    | Phase::Deleting => false,
                };
                if let Some((node, bytes)) = home(&volume) {
                    let sum = homes.entry(node.as_str().to_owned()).or_default();
                    *sum = Bytes(sum.0.saturating_add(bytes.0));
                }
                Ok(Some((volume.capacity, is_empty)))
            }
            Err(catalog::Error::NotFound(_)) => Ok(Some((Bytes(0), false))),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether claims of this class are ours. None: the cluster's default class.
    async fn is_ours(&self, class: Option<&str>) -> Result<bool, Error> {
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let class = match class {
            // No class at all: such a claim waits for a volume that somebody made.
            Some("") => None,
            Some(name) => get(&classes, "storage class", name).await?,
            None => {
                let all = classes.list(&ListParams::default()).await;
                default_class(all.map_err(failed("list storage classes"))?.items)
            }
        };
        Ok(class.is_some_and(|class| class.provisioner == DRIVER))
    }

    /// Whether another pod that has not ended has the claim.
    async fn is_used(&self, pod: &Pod, namespace: &str, claim: &str) -> Result<bool, Error> {
        let pods = ApiResource::erase::<Pod>(&());
        let pods: Api<User> = Api::namespaced_with(self.client.clone(), namespace, &pods);
        // From the API server's cache: a little late is early enough, the node looks again.
        let users = pods.list(&ListParams::default().match_any()).await;
        let users = users.map_err(failed("list pods"))?;
        let own = pod.metadata.name.as_deref().filter(|name| !name.is_empty());
        Ok(users.items.iter().any(|user| {
            user.metadata.name.as_deref() != own && user.spec.has(claim) && !has_ended(user)
        }))
    }
}

/// The class of claims that name none: of several, the one that was made last.
fn default_class(classes: Vec<StorageClass>) -> Option<StorageClass> {
    let is_default = |class: &StorageClass| {
        class
            .annotations()
            .get(DEFAULT_CLASS)
            .is_some_and(|value| value == "true")
    };
    let marked = classes.into_iter().filter(is_default);
    marked.max_by(|one, other| {
        let made = |class: &StorageClass| class.creation_timestamp().map(|time| time.0);
        made(one)
            .cmp(&made(other))
            .then(other.name_any().cmp(&one.name_any()))
    })
}

/// Where a volume's memory is, or will be, and how much it is.
fn home(volume: &Volume) -> Option<(&NodeId, Bytes)> {
    let node = match volume.phase {
        Phase::Booked => &volume.booked,
        Phase::Resident | Phase::Moving { .. } | Phase::Unreachable => volume.home.as_ref()?,
        // Its memory is gone, or goes.
        Phase::Lost { .. } | Phase::Deleting => return None,
    };
    let used = volume.usage.as_ref().map(|usage| usage.used);
    Some((node, used.unwrap_or_default()))
}

/// Whether a claim's volume begins with content.
fn has_source(spec: &PersistentVolumeClaimSpec) -> bool {
    spec.data_source.is_some() || spec.data_source_ref.is_some()
}

async fn get<K>(api: &Api<K>, kind: &str, name: &str) -> Result<Option<K>, Error>
where
    K: Clone + DeserializeOwned + fmt::Debug,
{
    let found = api.get_opt(name).await;
    found.map_err(failed(format!("get {kind} {name}")))
}

fn failed(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let doing = doing.into();
    move |source| Error::Lookup {
        doing,
        source: Box::new(source),
    }
}

/// As much of a pod as says which claims it has: there may be thousands.
type User = Object<UserSpec, UserStatus>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct UserSpec {
    #[serde(default)]
    volumes: Vec<UserVolume>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserVolume {
    persistent_volume_claim: Option<UserClaim>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserClaim {
    claim_name: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct UserStatus {
    phase: Option<String>,
}

impl UserSpec {
    fn has(&self, claim: &str) -> bool {
        let mut claims = self
            .volumes
            .iter()
            .flat_map(|it| &it.persistent_volume_claim);
        claims.any(|it| it.claim_name == claim)
    }
}

fn has_ended(user: &User) -> bool {
    let phase = user
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
