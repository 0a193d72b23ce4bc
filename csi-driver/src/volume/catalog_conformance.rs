//! What every catalog must do. Written once, run for each implementation.

use std::sync::Arc;

use super::*;
use crate::bytes::Bytes;
use crate::volume::{AccessMode, Layer, NodeId, Parameters, Phase};

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
        content_source: None,
        claim: None,
        stagings: Default::default(),
        publications: Vec::new(),
        usage: None,
        conditions: Vec::new(),
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
    what_is_deleted_is_doomed_where_it_has_memory(&fresh()).await;
    what_is_booked_never_exceeds_the_budget(Arc::new(fresh())).await;
    a_tombstone_stays_booked_until_the_memory_is_dropped_or_gone(&fresh()).await;
}

async fn what_is_created_is_read_and_listed_in_order(catalog: &dyn Catalog) {
    assert_eq!(catalog.list().await.unwrap(), Listing::default());
    let id = VolumeId::of_name("b");
    assert!(matches!(catalog.get(&id).await, Err(Error::NotFound(_))));
    let created = catalog.create(volume("b")).await.unwrap();
    catalog.create(volume("a")).await.unwrap();
    catalog.create(volume("Not a label: ü")).await.unwrap();
    assert_eq!(catalog.get(&id).await.unwrap(), created);
    let listed = catalog.list().await.unwrap().volumes;
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
    let a = VolumeId::of_name("a");
    for only in [None, Some(a)] {
        let seen = catalog.changed(only.as_ref(), Revision::default()).await;
        let waiter = tokio::spawn({
            let (catalog, only) = (Arc::clone(&catalog), only.clone());
            async move { catalog.changed(only.as_ref(), seen).await }
        });
        let stored = catalog.create(volume("a")).await.unwrap();
        assert_ne!(waiter.await.unwrap(), seen);
        catalog
            .delete(&stored.version, &stored.volume.id)
            .await
            .unwrap();
    }
}

async fn what_is_deleted_is_doomed_where_it_has_memory(catalog: &dyn Catalog) {
    let (here, there) = (NodeId::parse("a").unwrap(), NodeId::parse("b").unwrap());
    let layer = Layer {
        epoch: 1,
        boot_id: "one".into(),
        context: None,
    };
    let mut seen = Revision::default();
    for (name, phase, node) in [
        ("stays", Phase::Resident, Some(&here)),
        ("elsewhere", Phase::Deleting, Some(&there)),
        ("dropped", Phase::Deleting, None),
        ("doomed", Phase::Deleting, Some(&here)),
    ] {
        let mut volume = volume(name);
        volume.phase = phase;
        volume
            .layers
            .extend(node.map(|node| (node.clone(), layer.clone())));
        catalog.create(volume).await.unwrap();
    }
    let doomed = VolumeId::of_name("doomed");
    while catalog.doomed(&here).await.unwrap() != [doomed.clone()] {
        seen = catalog.changed(None, seen).await;
    }
    change::<Error>(catalog, &doomed, |volume| {
        volume.layers.clear();
        Ok(())
    })
    .await
    .unwrap();
    while !catalog.doomed(&here).await.unwrap().is_empty() {
        seen = catalog.changed(Some(&doomed), seen).await;
    }
}

async fn what_is_booked_never_exceeds_the_budget(catalog: Arc<dyn Catalog>) {
    let budget = Bytes(3 * 4096);
    let node = NodeId::parse("a").unwrap();
    let calls: Vec<_> = (0..12)
        .map(|number| {
            let catalog = Arc::clone(&catalog);
            let volume = volume(&format!("v{number}"));
            tokio::spawn(async move { catalog.book(None, volume, budget).await })
        })
        .collect();
    let mut made = Vec::new();
    for call in calls {
        match call.await.unwrap() {
            Ok(stored) => made.push(stored),
            Err(error) => assert!(matches!(error, Error::NoRoom { .. }), "{error}"),
        }
    }
    assert_eq!(made.len(), 3);
    assert_eq!(catalog.list().await.unwrap().booked(&node).unwrap(), budget);
    let Stored { version, volume } = made.remove(0);
    let larger = Volume {
        capacity: Bytes(8192),
        ..volume.clone()
    };
    let refused = catalog.book(Some(&version), larger, budget).await;
    assert!(matches!(refused, Err(Error::NoRoom { free, .. }) if free == Bytes(0)));
    // What is booked stays booked, under a smaller budget too.
    let moved = Volume { epoch: 1, ..volume };
    let kept = catalog.book(Some(&version), moved, Bytes(0)).await;
    assert_eq!(kept.unwrap().volume.epoch, 1);
}

async fn a_tombstone_stays_booked_until_the_memory_is_dropped_or_gone(catalog: &dyn Catalog) {
    let (a, b) = (NodeId::parse("a").unwrap(), NodeId::parse("b").unwrap());
    for node in [&a, &b] {
        assert!(catalog.beat(node, "boot-1").await.unwrap().is_empty());
    }
    let mut stored = catalog.create(volume("v")).await.unwrap();
    for node in [&a, &b] {
        let layer = Layer {
            boot_id: "boot-1".into(),
            epoch: 3,
            context: None,
        };
        stored.volume.layers.insert(node.clone(), layer);
    }
    let id = stored.volume.id.clone();
    let stale = stored.version.clone();
    let stored = catalog
        .update(&stored.version, stored.volume)
        .await
        .unwrap();
    assert!(matches!(
        catalog.bury(&stale, &id).await,
        Err(Error::Conflict(_))
    ));
    catalog.bury(&stored.version, &id).await.unwrap();
    assert!(matches!(catalog.get(&id).await, Err(Error::NotFound(_))));
    let listing = catalog.list().await.unwrap();
    for node in [&a, &b] {
        assert_eq!(listing.booked(node).unwrap(), Bytes(4096));
    }
    let found = catalog.beat(&a, "boot-1").await.unwrap();
    assert_eq!((found.len(), found[0].epoch), (1, 3));
    catalog.dropped(&a, &found[0]).await.unwrap();
    // Another boot has none of it.
    assert!(catalog.beat(&b, "boot-2").await.unwrap().is_empty());
    let listing = catalog.list().await.unwrap();
    for node in [&a, &b] {
        assert_eq!(listing.booked(node).unwrap(), Bytes(0));
        assert!(!listing.is_dead(node, std::time::Duration::from_secs(3600)));
        assert!(listing.is_dead(node, std::time::Duration::ZERO));
    }
    let stranger = NodeId::parse("stranger").unwrap();
    assert!(!listing.is_dead(&stranger, std::time::Duration::ZERO));
}
