mod clones;

use std::collections::HashMap;

use tempfile::TempDir;
use tonic::Code;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::volume_capability::{AccessMode as WireMode, AccessType, MountVolume};
use vineyard_proto::csi::{CapacityRange, Topology, TopologyRequirement, VolumeCapability};

use super::*;
use crate::identity::{NODE_KEY, POOL_KEY};
use crate::volume::catalog::change;
use crate::volume::{FileCatalog, Layer, NodeId, Phase};

const MIB: i64 = 1 << 20;

fn controller(nodes: &[&str]) -> (TempDir, Arc<Controller>) {
    let folder = tempfile::tempdir().unwrap();
    let controller = Controller {
        events: Events::default(),
        catalog: Arc::new(FileCatalog::open(folder.path()).unwrap()),
        nodes: nodes.iter().map(|text| text.parse().unwrap()).collect(),
        default_capacity: Bytes(1 << 20),
        drop_patience: Duration::ZERO,
        node_grace: Duration::from_secs(40),
        cloning: Mutex::default(),
        forgotten: Forgotten::after(Duration::from_secs(30)),
        locks: KeyedLock::default(),
    };
    (folder, Arc::new(controller))
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(WireMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn wish(name: &str, mebibytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange {
            required_bytes: mebibytes * MIB,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

fn segment(key: &str, value: &str) -> Topology {
    Topology {
        segments: HashMap::from([(key.to_owned(), value.to_owned())]),
    }
}

/// The code; every status says something and carries no details.
fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    let status = Status::from(&result.unwrap_err());
    assert!(!status.message().is_empty() && status.details().is_empty());
    status.code()
}

fn delete(name: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest {
        volume_id: name.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn concurrent_calls_never_book_more_than_the_budget() {
    let (_folder, controller) = controller(&["a=4MiB", "b=3MiB"]);
    let calls: Vec<_> = (0..16)
        .map(|number| {
            let controller = Arc::clone(&controller);
            tokio::spawn(async move { controller.create(wish(&format!("v{number}"), 1)).await })
        })
        .collect();
    let mut made = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => made += 1,
            Err(error) => assert_eq!(Status::from(&error).code(), Code::ResourceExhausted),
        }
    }
    assert_eq!(made, 7);
    let left = controller
        .capacity(GetCapacityRequest::default())
        .await
        .unwrap();
    assert_eq!(
        (left.available_capacity, left.maximum_volume_size),
        (0, Some(0))
    );
}

#[tokio::test]
async fn the_same_call_again_gives_the_same_volume_and_another_one_is_refused() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    let first = controller.create(wish("v", 8)).await.unwrap();
    let again = controller.create(wish("v", 8)).await.unwrap();
    assert_eq!(first, again);
    let volume = first.volume.unwrap();
    assert!(volume.volume_context.is_empty());
    assert_eq!(volume.accessible_topology, [segment(POOL_KEY, "default")]);
    let mut smaller = wish("v", 4);
    assert_eq!(
        controller
            .create(smaller.clone())
            .await
            .unwrap()
            .volume
            .unwrap(),
        volume
    );
    smaller.capacity_range = Some(CapacityRange {
        required_bytes: MIB,
        limit_bytes: 4 * MIB,
    });
    let mut parameters = wish("v", 8);
    parameters
        .parameters
        .insert("onLoss".into(), "recreate".into());
    let mut mode = wish("v", 8);
    mode.volume_capabilities = vec![capability(Mode::SingleNodeSingleWriter)];
    let mut place = wish("v", 8);
    place.accessibility_requirements = Some(TopologyRequirement {
        requisite: vec![segment(POOL_KEY, "elsewhere")],
        preferred: Vec::new(),
    });
    for other in [wish("v", 16), smaller, parameters, mode, place] {
        assert_eq!(code(controller.create(other).await), Code::AlreadyExists);
    }
}

#[tokio::test]
async fn the_preferred_node_is_booked_first_and_the_next_one_when_it_is_full() {
    let (_folder, controller) = controller(&["a=2MiB", "b=8MiB"]);
    let on = |name: &str| {
        let (a, b) = (segment(NODE_KEY, "a"), segment(NODE_KEY, "b"));
        CreateVolumeRequest {
            accessibility_requirements: Some(TopologyRequirement {
                requisite: vec![b.clone(), a.clone()],
                preferred: vec![a, b],
            }),
            ..wish(name, 2)
        }
    };
    for (name, node) in [("one", "a"), ("two", "b")] {
        controller.create(on(name)).await.unwrap();
        let stored = controller
            .catalog
            .get(&VolumeId::of_name(name))
            .await
            .unwrap();
        assert_eq!(stored.volume.booked.as_str(), node);
    }
    let mut only = wish("three", 1);
    only.accessibility_requirements = Some(TopologyRequirement {
        requisite: vec![segment(NODE_KEY, "a")],
        preferred: Vec::new(),
    });
    assert_eq!(code(controller.create(only).await), Code::ResourceExhausted);
    let at = |node| GetCapacityRequest {
        accessible_topology: Some(segment(NODE_KEY, node)),
        ..Default::default()
    };
    assert_eq!(
        controller
            .capacity(at("a"))
            .await
            .unwrap()
            .available_capacity,
        0
    );
    assert_eq!(
        controller
            .capacity(at("b"))
            .await
            .unwrap()
            .available_capacity,
        6 * MIB
    );
    assert_eq!(
        controller
            .capacity(at("c"))
            .await
            .unwrap()
            .available_capacity,
        0
    );
}

#[tokio::test]
async fn requests_that_no_volume_can_meet_are_refused() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    let with = |change: &dyn Fn(&mut CreateVolumeRequest)| {
        let mut request = wish("v", 1);
        change(&mut request);
        controller.create(request)
    };
    let range = |required_bytes, limit_bytes| {
        Some(CapacityRange {
            required_bytes,
            limit_bytes,
        })
    };
    let refused = [
        (with(&|r| r.name.clear()).await, Code::InvalidArgument),
        (
            with(&|r| r.name = "n".repeat(129)).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.name = "a\u{7}".into()).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_capabilities.clear()).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_capabilities[0].access_mode = None).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| _ = r.parameters.insert("x".into(), "y".into())).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| _ = r.parameters.insert("x".into(), "y".repeat(5000))).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_content_source = Some(Default::default())).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.capacity_range = range(-1, 0)).await,
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.capacity_range = range(2, 1)).await,
            Code::OutOfRange,
        ),
        (
            with(&|r| r.capacity_range = range(1, 1)).await,
            Code::OutOfRange,
        ),
        (
            with(&|r| r.capacity_range = range(i64::MAX, 0)).await,
            Code::OutOfRange,
        ),
        (
            with(&|r| r.capacity_range = range(65 * MIB, 0)).await,
            Code::ResourceExhausted,
        ),
    ];
    for (result, expected) in refused {
        assert_eq!(code(result), expected);
    }
    assert!(controller.catalog.list().await.unwrap().volumes.is_empty());
    let exact = with(&|r| r.capacity_range = range(3 * MIB, 3 * MIB))
        .await
        .unwrap();
    assert_eq!(exact.volume.unwrap().capacity_bytes, 3 * MIB);
}

#[tokio::test]
async fn a_staging_that_nobody_undoes_keeps_a_volume_for_a_while_and_a_publication_for_ever() {
    let (_folder, mut controller) = controller(&["a=64MiB"]);
    controller.create(wish("v", 1)).await.unwrap();
    let id = VolumeId::of_name("v");
    let node = NodeId::parse("a").unwrap();
    let (boot_id, claim) = (String::from("boot"), claim());
    let staging = crate::volume::Staging {
        node: node.clone(),
        boot_id: boot_id.clone(),
        path: "/staging".into(),
        claim: claim.clone(),
    };
    let publication = crate::volume::Publication {
        node,
        boot_id,
        path: "/target".into(),
        pod_uid: None,
        pod: None,
        claim,
    };
    change::<Error>(&*controller.catalog, &id, |volume| {
        volume.stagings = vec![staging.clone()];
        volume.publications = vec![publication.clone()];
        Ok(())
    })
    .await
    .unwrap();
    let in_use = Code::FailedPrecondition;
    assert_eq!(code(controller.delete(delete("v")).await), in_use);
    Arc::get_mut(&mut controller).unwrap().forgotten = Forgotten::after(Duration::ZERO);
    assert_eq!(code(controller.delete(delete("v")).await), in_use);
    let unpublished = change::<Error>(&*controller.catalog, &id, |volume| {
        volume.publications.clear();
        Ok(())
    });
    unpublished.await.unwrap();
    let after = |grace| Forgotten::after(Duration::from_secs(grace));
    Arc::get_mut(&mut controller).unwrap().forgotten = after(3600);
    for _ in 0..2 {
        assert_eq!(code(controller.delete(delete("v")).await), in_use);
    }
    Arc::get_mut(&mut controller).unwrap().forgotten = after(0);
    controller.delete(delete("v")).await.unwrap();
    assert!(controller.catalog.list().await.unwrap().volumes.is_empty());
}

fn claim() -> crate::volume::Claim {
    crate::volume::Claim {
        access_mode: crate::volume::AccessMode::SingleNodeWriter,
        read_only: false,
        no_exec: false,
        no_atime: false,
    }
}

#[tokio::test]
async fn a_volume_in_use_is_not_deleted_and_one_whose_memory_is_left_is_deleted_later() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    controller.create(wish("v", 1)).await.unwrap();
    let (id, node) = (VolumeId::of_name("v"), NodeId::parse("a").unwrap());
    let edit = |with: fn(&mut crate::volume::Volume, &NodeId)| {
        change::<Error>(&*controller.catalog, &id, {
            let node = node.clone();
            move |volume| {
                with(volume, &node);
                Ok(())
            }
        })
    };
    edit(|volume, node| {
        let layer = Layer {
            boot_id: "boot".into(),
            epoch: 1,
            context: None,
        };
        volume.settle(node, 1, layer);
        volume.stagings.push(crate::volume::Staging {
            node: node.clone(),
            boot_id: "boot".into(),
            path: "/staging".into(),
            claim: claim(),
        });
    })
    .await
    .unwrap();
    assert_eq!(
        code(controller.delete(delete("v")).await),
        Code::FailedPrecondition
    );
    edit(|volume, _| volume.stagings.clear()).await.unwrap();
    assert_eq!(code(controller.delete(delete("v")).await), Code::Aborted);
    // Its name is not free yet, and its capacity is not either.
    assert_eq!(code(controller.create(wish("v", 1)).await), Code::Aborted);
    edit(|volume, _| volume.layers.clear()).await.unwrap();
    for _ in 0..2 {
        controller.delete(delete("v")).await.unwrap();
    }
    controller.delete(delete("Not an id: ../..")).await.unwrap();
    assert!(controller.catalog.list().await.unwrap().volumes.is_empty());
}

#[tokio::test]
async fn a_volume_on_a_dead_node_is_deleted_and_stays_booked_there() {
    let (_folder, mut controller) = controller(&["a=8MiB"]);
    controller.create(wish("v", 6)).await.unwrap();
    let (id, node) = (VolumeId::of_name("v"), NodeId::parse("a").unwrap());
    controller.catalog.beat(&node, "boot").await.unwrap();
    change::<Error>(&*controller.catalog, &id, |volume| {
        let layer = Layer {
            boot_id: "boot".into(),
            epoch: 1,
            context: None,
        };
        volume.settle(&node, 1, layer);
        volume.publications.push(crate::volume::Publication {
            node: node.clone(),
            boot_id: "boot".into(),
            path: "/target".into(),
            pod_uid: None,
            pod: None,
            claim: claim(),
        });
        Ok(())
    })
    .await
    .unwrap();
    // It was alive a moment ago, so its pods are too.
    assert_eq!(
        code(controller.delete(delete("v")).await),
        Code::FailedPrecondition
    );
    Arc::get_mut(&mut controller).unwrap().node_grace = Duration::ZERO;
    for _ in 0..2 {
        controller.delete(delete("v")).await.unwrap();
    }
    assert!(controller.catalog.list().await.unwrap().volumes.is_empty());
    let capacity = || controller.capacity(GetCapacityRequest::default());
    assert_eq!(capacity().await.unwrap().available_capacity, 2 * MIB);
    assert_eq!(
        code(controller.create(wish("v", 6)).await),
        Code::ResourceExhausted
    );
    controller.create(wish("v", 2)).await.unwrap();
    assert_eq!(capacity().await.unwrap().available_capacity, 0);
    // The node comes back after a reboot.
    controller.catalog.beat(&node, "boot-2").await.unwrap();
    assert_eq!(capacity().await.unwrap().available_capacity, 6 * MIB);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_listed_and_stops_bookings_only() {
    let (folder, controller) = controller(&["a=64MiB"]);
    for name in ["v", "w"] {
        controller.create(wish(name, 1)).await.unwrap();
    }
    let path = folder.path().join("v.json");
    std::fs::write(&path, "{\"volume\":").unwrap();
    let all = controller
        .list(ListVolumesRequest::default())
        .await
        .unwrap();
    let entries = all.entries.into_iter().map(|entry| entry.volume.unwrap());
    let entries: Vec<_> = entries
        .map(|it| (it.volume_id, it.capacity_bytes))
        .collect();
    assert_eq!(entries, [("v".to_owned(), 0), ("w".to_owned(), MIB)]);
    for status in [
        controller.create(wish("x", 1)).await.map(drop),
        controller.create(wish("v", 1)).await.map(drop),
        controller
            .capacity(GetCapacityRequest::default())
            .await
            .map(drop),
        controller.delete(delete("v")).await.map(drop),
    ] {
        let status = Status::from(&status.unwrap_err());
        assert_eq!(status.code(), Code::Internal);
        assert!(
            status.message().contains(path.to_str().unwrap()),
            "{status}"
        );
    }
    // What is there goes on.
    controller.create(wish("w", 1)).await.unwrap();
    controller.delete(delete("w")).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    controller.create(wish("x", 1)).await.unwrap();
}

#[tokio::test]
async fn a_second_operation_on_a_volume_is_aborted() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    let _held = controller.locks.try_lock(&VolumeId::of_name("v")).unwrap();
    assert_eq!(code(controller.create(wish("v", 1)).await), Code::Aborted);
    assert_eq!(code(controller.delete(delete("v")).await), Code::Aborted);
    controller.create(wish("w", 1)).await.unwrap();
}

#[tokio::test]
async fn pages_of_the_list_stay_right_while_volumes_go() {
    let (_folder, controller) = controller(&["a=64MiB"]);
    for name in ["a", "b", "c", "d", "e"] {
        controller.create(wish(name, 1)).await.unwrap();
    }
    let list = |max_entries, starting_token: &str| {
        controller.list(ListVolumesRequest {
            max_entries,
            starting_token: starting_token.into(),
        })
    };
    let ids = |page: &ListVolumesResponse| -> Vec<String> {
        page.entries
            .iter()
            .map(|entry| entry.volume.clone().unwrap().volume_id)
            .collect()
    };
    let first = list(2, "").await.unwrap();
    assert_eq!(ids(&first), ["a", "b"]);
    controller.delete(delete("a")).await.unwrap();
    controller.delete(delete("b")).await.unwrap();
    let second = list(2, &first.next_token).await.unwrap();
    assert_eq!(ids(&second), ["c", "d"]);
    let last = list(0, &second.next_token).await.unwrap();
    assert_eq!(
        (ids(&last), last.next_token.as_str()),
        (vec!["e".to_owned()], "")
    );
    assert_eq!(code(list(0, "e").await), Code::Aborted);
    assert_eq!(code(list(-1, "").await), Code::InvalidArgument);
}

#[tokio::test]
async fn an_expansion_books_what_it_adds_or_changes_nothing() {
    let (_folder, controller) = controller(&["a=8MiB"]);
    controller.create(wish("v", 2)).await.unwrap();
    controller.create(wish("w", 2)).await.unwrap();
    let expand = |required_bytes, limit_bytes| {
        controller.expand(ControllerExpandVolumeRequest {
            volume_id: "v".into(),
            capacity_range: Some(CapacityRange {
                required_bytes,
                limit_bytes,
            }),
            ..Default::default()
        })
    };
    for _ in 0..2 {
        let response = expand(6 * MIB, 6 * MIB).await.unwrap();
        assert_eq!(
            (response.capacity_bytes, response.node_expansion_required),
            (6 * MIB, false)
        );
    }
    assert_eq!(code(expand(7 * MIB, 0).await), Code::ResourceExhausted);
    assert_eq!(code(expand(0, MIB).await), Code::OutOfRange);
    assert_eq!(expand(MIB, 0).await.unwrap().capacity_bytes, 6 * MIB);
    let volume = controller
        .catalog
        .get(&VolumeId::of_name("v"))
        .await
        .unwrap()
        .volume;
    assert_eq!(
        (volume.capacity, volume.phase),
        (Bytes(6 << 20), Phase::Booked)
    );
}
