//! Custom resources, read and swapped: what volumes and nodes have in common.

use std::fmt::{Debug, Display};
use std::io;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation};
use kube::api::{Api, DynamicObject, ListParams, PatchParams};
use kube::core::{ApiResource, NamespaceResourceScope};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::volume::VolumeId;
use crate::volume::catalog::Error;

/// Records that one page of a list has.
const PAGE: u32 = 500;

/// What a resource of ours is.
pub(super) trait Record:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Record for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// Lists all resources of a kind, each as far as it can be read: one that cannot does not hide the others.
pub(super) async fn list<K: Record>(
    client: &Client,
    namespace: &str,
) -> Result<Vec<(String, Result<K, String>)>, Error> {
    let kind = ApiResource::erase::<K>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    let mut all = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await;
        let list = list.map_err(|error| storage("list", &kind.plural, error))?;
        for object in list.items {
            let name = object.metadata.name.clone().unwrap_or_default();
            let parsed = object.try_parse::<K>();
            all.push((name, parsed.map_err(|error| error.to_string())));
        }
        match list.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => page = page.continue_token(&next),
            None => return Ok(all),
        }
    }
}

/// Replaces parts of the resource that has this version, and leaves everything else of it alone: labels, owners, finalizers.
pub(super) async fn swap<K: Record>(
    api: &Api<K>,
    name: &str,
    version: &str,
    parts: &[(&str, serde_json::Value)],
) -> Result<K, kube::Error> {
    // Replaced by itself, or the API server answers 409: this is the comparison.
    let mut operations = vec![PatchOperation::Replace(ReplaceOperation {
        path: PointerBuf::from_tokens(["metadata", "resourceVersion"]),
        value: version.into(),
    })];
    // To add a member that is there is to replace it.
    operations.extend(parts.iter().map(|(part, value)| {
        PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens([*part]),
            value: value.clone(),
        })
    }));
    let patch = kube::api::Patch::Json::<()>(Patch(operations));
    api.patch(name, &PatchParams::default(), &patch).await
}

/// A part of a resource as [`swap`] takes it.
pub(super) fn part(name: &str, value: &impl Serialize) -> Result<serde_json::Value, Error> {
    serde_json::to_value(value).map_err(|error| corrupt(name, &error))
}

/// What the API server's refusal of a change of a volume means.
pub(super) fn refused(doing: &str, id: &VolumeId, error: kube::Error) -> Error {
    match code(&error) {
        Some(404) => Error::NotFound(id.clone()),
        Some(409) => Error::Conflict(id.clone()),
        _ => storage(doing, id.as_str(), error),
    }
}

/// The code of the API server's answer; none when there was no answer.
pub(super) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

pub(super) fn storage(doing: &str, what: &str, error: kube::Error) -> Error {
    Error::Storage {
        doing: format!("{doing} {what} in Kubernetes"),
        source: io::Error::other(error),
    }
}

pub(super) fn corrupt(name: &str, reason: &impl Display) -> Error {
    Error::Corrupt {
        path: format!("resource {name}"),
        reason: reason.to_string(),
    }
}
