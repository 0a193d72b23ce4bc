//! CreateVolume with a source.

use vineyard_proto::csi::VolumeContentSource;
use vineyard_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};

use super::*;
use crate::volume::{ContentSource, Volume};

fn clone_of(source: &str, name: &str, mebibytes: i64) -> CreateVolumeRequest {
    let volume_id = source.to_owned();
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(Type::Volume(VolumeSource { volume_id })),
        }),
        ..wish(name, mebibytes)
    }
}

async fn edit(controller: &Controller, name: &str, edit: impl Fn(&mut Volume)) {
    let id = VolumeId::of_name(name);
    let edited = change::<Error>(&*controller.catalog, &id, |volume| {
        edit(volume);
        Ok(())
    });
    edited.await.unwrap();
}

async fn settle(controller: &Controller, name: &str, node: &str) {
    let node = NodeId::parse(node).unwrap();
    edit(controller, name, |volume| {
        let layer = Layer {
            boot_id: "boot".into(),
            epoch: 1,
            context: None,
        };
        volume.settle(&node, 1, layer);
    })
    .await;
}

async fn read(controller: &Controller, name: &str) -> Volume {
    let id = VolumeId::of_name(name);
    controller.catalog.get(&id).await.unwrap().volume
}

#[tokio::test]
async fn a_clone_is_booked_where_its_sources_memory_is_and_nowhere_else() {
    let (_folder, controller) = controller(&["a=64MiB", "b=8MiB"]);
    controller.create(wish("source", 4)).await.unwrap();
    settle(&controller, "source", "b").await;
    let made = controller
        .create(clone_of("source", "clone", 4))
        .await
        .unwrap();
    let again = controller
        .create(clone_of("source", "clone", 4))
        .await
        .unwrap();
    assert_eq!(made, again);
    let wire = made.volume.unwrap();
    assert_eq!(
        wire.content_source,
        clone_of("source", "", 0).volume_content_source
    );
    assert_eq!(wire.accessible_topology, [segment(POOL_KEY, "default")]);
    let clone = read(&controller, "clone").await;
    assert_eq!(
        (clone.booked.as_str(), clone.capacity),
        ("b", Bytes(4 << 20))
    );
    let source = ContentSource {
        volume_id: VolumeId::of_name("source"),
        generation: Some(1),
    };
    assert_eq!(clone.pending_source(), Some(&source));
    // There is room on a, but it cannot be copied there.
    let full = controller.create(clone_of("source", "second", 4)).await;
    assert_eq!(code(full), Code::ResourceExhausted);
    let mut elsewhere = clone_of("source", "third", 4);
    elsewhere.accessibility_requirements = Some(TopologyRequirement {
        requisite: vec![segment(NODE_KEY, "a")],
        preferred: Vec::new(),
    });
    assert_eq!(
        code(controller.create(elsewhere).await),
        Code::ResourceExhausted
    );
    // The same name with another source, or with none.
    for other in [wish("clone", 4), clone_of("clone", "clone", 4)] {
        assert_eq!(code(controller.create(other).await), Code::AlreadyExists);
    }
    assert_eq!(
        code(controller.create(clone_of("clone", "source", 4)).await),
        Code::AlreadyExists
    );
}

#[tokio::test]
async fn a_clone_is_never_smaller_than_its_source() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    controller.create(wish("source", 4)).await.unwrap();
    settle(&controller, "source", "a").await;
    let with = |name: &str, required_bytes, limit_bytes| {
        let mut request = clone_of("source", name, 0);
        request.capacity_range = Some(CapacityRange {
            required_bytes,
            limit_bytes,
        });
        controller.create(request)
    };
    for (name, required, limit, expected) in [
        ("unsaid", 0, 0, 4),
        ("smaller", MIB, 0, 4),
        ("limited", 0, 8 * MIB, 4),
        ("larger", 6 * MIB, 6 * MIB, 6),
    ] {
        let made = with(name, required, limit).await.unwrap();
        assert_eq!(
            made.volume.unwrap().capacity_bytes,
            expected * MIB,
            "{name}"
        );
    }
    assert_eq!(code(with("less", 0, 3 * MIB).await), Code::OutOfRange);
    let mut few = clone_of("source", "few", 4);
    few.parameters.insert("inodes".into(), "64".into());
    assert_eq!(code(controller.create(few).await), Code::InvalidArgument);
}

#[tokio::test]
async fn what_cannot_be_cloned_is_refused() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    for name in ["lost", "deleting", "resident"] {
        controller.create(wish(name, 1)).await.unwrap();
        settle(&controller, name, "a").await;
    }
    controller
        .create(clone_of("resident", "pending", 1))
        .await
        .unwrap();
    edit(&controller, "lost", |volume| volume.lose("a reboot")).await;
    edit(&controller, "deleting", |volume| {
        volume.phase = Phase::Deleting
    })
    .await;
    let snapshot = Type::Snapshot(SnapshotSource {
        snapshot_id: "s".into(),
    });
    let mut of_snapshot = wish("clone", 1);
    of_snapshot.volume_content_source = Some(VolumeContentSource {
        r#type: Some(snapshot),
    });
    let mut of_nothing = wish("clone", 1);
    of_nothing.volume_content_source = Some(VolumeContentSource { r#type: None });
    for (request, expected) in [
        (of_snapshot, Code::InvalidArgument),
        (of_nothing, Code::InvalidArgument),
        (clone_of("", "clone", 1), Code::InvalidArgument),
        (clone_of("unknown", "clone", 1), Code::NotFound),
        (clone_of("Not an id: ../..", "clone", 1), Code::NotFound),
        (clone_of("deleting", "clone", 1), Code::NotFound),
        (clone_of("lost", "clone", 1), Code::InvalidArgument),
        (clone_of("pending", "clone", 1), Code::InvalidArgument),
    ] {
        let said = format!("{:?}", request.volume_content_source);
        assert_eq!(code(controller.create(request).await), expected, "{said}");
    }
}

#[tokio::test]
async fn a_volume_is_not_deleted_before_its_clones_are_filled_or_gone() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    controller.create(wish("source", 1)).await.unwrap();
    settle(&controller, "source", "a").await;
    for name in ["one", "two"] {
        controller
            .create(clone_of("source", name, 1))
            .await
            .unwrap();
    }
    let error = controller.delete(delete("source")).await.unwrap_err();
    assert!(error.to_string().contains("one, two"), "{error}");
    assert_eq!(Status::from(&error).code(), Code::FailedPrecondition);
    controller.delete(delete("one")).await.unwrap();
    settle(&controller, "two", "a").await;
    // Marked now, and waiting for its node.
    assert_eq!(
        code(controller.delete(delete("source")).await),
        Code::Aborted
    );
    // What is lost cannot be copied any more, so nothing is gained by keeping it.
    controller.create(wish("lost", 1)).await.unwrap();
    settle(&controller, "lost", "a").await;
    controller
        .create(clone_of("lost", "three", 1))
        .await
        .unwrap();
    edit(&controller, "lost", |volume| volume.lose("a reboot")).await;
    controller.delete(delete("lost")).await.unwrap();
}

#[tokio::test]
async fn the_clone_of_a_volume_that_was_never_staged_is_an_empty_volume() {
    let (_folder, controller) = controller(&["a=2MiB", "b=64MiB"]);
    controller.create(wish("source", 2)).await.unwrap();
    controller
        .create(clone_of("source", "clone", 2))
        .await
        .unwrap();
    let clone = read(&controller, "clone").await;
    assert!(clone.content_source.is_some() && clone.pending_source().is_none());
    controller.delete(delete("source")).await.unwrap();
    // Said again, although its source is gone.
    controller
        .create(clone_of("source", "clone", 2))
        .await
        .unwrap();
}
