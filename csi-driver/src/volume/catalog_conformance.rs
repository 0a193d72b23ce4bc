//! What every catalog must do. Written once, run for each implementation.

use std::sync::Arc;

use super::*;
use crate::bytes::Bytes;
use crate::volume::{AccessMode, NodeId, Parameters, Phase};

/// A record that differs from others by its name only.
pub(crate) fn volume(name: &str) -> Volume {
    Volume {
        id: VolumeId::of_name(name),
        name: name.into(),
        phase: Phase::Booked,
        capacity: Bytes(4096),
        parameters: Parameters::default(),
        access_modes: vec![AccessMode::SingleNodeWriter],
        pool: "default".into(),
        booked: NodeId::parse("a").unwrap(),
        home: None,
        epoch: 0,
        generation: 1,
        layers: Default::default(),
        stagings: Default::default(),
        publications: Vec::new(),
    }
}

/// Runs every case against an empty catalog that `fresh` makes.
pub(crate) async fn all<C: Catalog + 'static>(mut fresh: impl FnMut() -> C) {
    what_is_created_is_read_and_listed_in_order(&fresh()).await;
    a_name_is_created_once(&fresh()).await;
    a_stale_version_changes_nothing(&fresh()).await;
    a_version_is_never_valid_again_after_delete_and_create(&fresh()).await;
    concurrent_changes_are_all_kept(Arc::new(fresh())).await;
    a_change_wakes_who_waits(Arc::new(fresh())).await;
}

async fn what_is_created_is_read_and_listed_in_order(catalog: &dyn Catalog) {
    assert!(catalog.list().await.unwrap().is_empty());
    let id = VolumeId::of_name("b");
    assert!(matches!(catalog.get(&id).await, Err(Error::NotFound(_))));
    let created = catalog.create(volume("b")).await.unwrap();
    catalog.create(volume("a")).await.unwrap();
    catalog.create(volume("Not a label: ü")).await.unwrap();
    assert_eq!(catalog.get(&id).await.unwrap(), created);
    let listed = catalog.list().await.unwrap();
    let ids: Vec<_> = listed.iter().map(|s| s.volume.id.as_str()).collect();
    assert_eq!(ids[..2], ["a", "b"]);
    assert_eq!(listed[2].volume.name, "Not a label: ü");
}

async fn a_name_is_created_once(catalog: &dyn Catalog) {
    let first = catalog.create(volume("a")).await.unwrap();
    let mut other = volume("a");
    other.capacity = Bytes(8192);
    assert!(matches!(
        catalog.create(other).await,
        Err(Error::AlreadyExists(_))
    ));
    assert_eq!(catalog.get(&first.volume.id).await.unwrap(), first);
}

async fn a_stale_version_changes_nothing(catalog: &dyn Catalog) {
    let first = catalog.create(volume("a")).await.unwrap();
    let mut next = first.volume.clone();
    next.epoch = 1;
    let second = catalog.update(&first.version, next.clone()).await.unwrap();
    assert_ne!(first.version, second.version);
    next.epoch = 2;
    let id = &first.volume.id;
    let stale = catalog.update(&first.version, next.clone()).await;
    assert!(matches!(stale, Err(Error::Conflict(_))));
    assert!(matches!(
        catalog.delete(&first.version, id).await,
        Err(Error::Conflict(_))
    ));
    assert_eq!(catalog.get(id).await.unwrap(), second);
    catalog.delete(&second.version, id).await.unwrap();
    assert!(matches!(
        catalog.delete(&second.version, id).await,
        Err(Error::NotFound(_))
    ));
    let gone = catalog.update(&second.version, next).await;
    assert!(matches!(gone, Err(Error::NotFound(_))));
}

async fn a_version_is_never_valid_again_after_delete_and_create(catalog: &dyn Catalog) {
    let first = catalog.create(volume("a")).await.unwrap();
    catalog
        .delete(&first.version, &first.volume.id)
        .await
        .unwrap();
    let second = catalog.create(volume("a")).await.unwrap();
    assert_ne!(first.version, second.version);
    let stale = catalog.update(&first.version, volume("a")).await;
    assert!(matches!(stale, Err(Error::Conflict(_))));
}

async fn concurrent_changes_are_all_kept(catalog: Arc<dyn Catalog>) {
    let id = catalog.create(volume("a")).await.unwrap().volume.id;
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (catalog, id) = (Arc::clone(&catalog), id.clone());
            tokio::spawn(async move {
                for _ in 0..5 {
                    change::<Error>(&*catalog, &id, |volume| {
                        volume.epoch += 1;
                        Ok(())
                    })
                    .await
                    .unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(catalog.get(&id).await.unwrap().volume.epoch, 20);
}

async fn a_change_wakes_who_waits(catalog: Arc<dyn Catalog>) {
    let seen = catalog.changed(Revision::default()).await;
    let waiter = tokio::spawn({
        let catalog = Arc::clone(&catalog);
        async move { catalog.changed(seen).await }
    });
    catalog.create(volume("a")).await.unwrap();
    assert_ne!(waiter.await.unwrap(), seen);
}
