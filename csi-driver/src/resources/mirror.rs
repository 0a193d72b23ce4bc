//! A copy of all objects of a kind, kept up to date by a watch.

use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;

use kube::Resource;
use kube::api::Api;
use kube::runtime::reflector::{self, Lookup, Store};
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

/// Follows the objects of `api` that `which` selects, as one of `tasks`. What cannot be watched is logged, and tried again.
pub(crate) fn mirror<K>(api: Api<K>, which: watcher::Config, tasks: &mut JoinSet<()>) -> Store<K>
where
    K: Resource + Lookup + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    <K as Lookup>::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
{
    let (copies, writer) = reflector::store();
    tasks.spawn(async move {
        let events = watcher(api, which).default_backoff();
        let mut events = pin!(reflector::reflector(writer, events));
        while let Some(event) = events.next().await {
            if let Err(error) = event {
                tracing::warn!(%error, "a watch broke; it is tried again");
            }
        }
    });
    copies
}
