use super::*;
use crate::bytes::Bytes;
use crate::volume::{AccessMode, Claim, Parameters, VolumeId};

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn booked() -> Volume {
    Volume {
        id: VolumeId::of_name("v"),
        name: "v".into(),
        phase: Phase::Booked,
        capacity: Bytes(4096),
        parameters: Parameters::default(),
        access_modes: vec![AccessMode::SingleNodeWriter],
        pool: "default".into(),
        booked: node("a"),
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

fn layer(boot: &str, epoch: u64) -> Layer {
    Layer {
        boot_id: boot.into(),
        epoch,
        context: None,
    }
}

fn resident() -> Volume {
    let mut volume = booked();
    volume.settle(&node("a"), 1, layer("boot-1", 1));
    volume
}

fn publication(path: &str, mode: AccessMode, read_only: bool) -> Publication {
    Publication {
        node: node("a"),
        boot_id: "boot-1".into(),
        path: path.into(),
        pod_uid: None,
        pod: None,
        claim: Claim {
            access_mode: mode,
            read_only,
            no_exec: false,
            no_atime: false,
        },
    }
}

#[test]
fn the_first_stage_decides_the_home() {
    let volume = booked();
    assert_eq!(
        volume.presence(&node("b"), "boot-9", |_| false),
        Presence::Make { epoch: 1 }
    );
    let mut volume = volume;
    volume.settle(&node("b"), 1, layer("boot-9", 1));
    assert_eq!(
        (volume.home.clone(), volume.booked.clone()),
        (Some(node("b")), node("b"))
    );
    assert_eq!((volume.epoch, volume.generation), (1, 1));
    assert_eq!(
        volume.presence(&node("a"), "boot-1", |_| true),
        Presence::Elsewhere {
            home: node("b"),
            publications: 0
        }
    );
}

#[test]
fn memory_that_is_there_is_used_and_memory_that_is_gone_is_said_to_be() {
    let volume = resident();
    assert_eq!(
        volume.presence(&node("a"), "boot-1", |epoch| epoch == 1),
        Presence::Here { epoch: 1 }
    );
    let Presence::Gone { reason } = volume.presence(&node("a"), "boot-1", |_| false) else {
        panic!("unmounted memory is gone");
    };
    assert!(reason.contains("unmounted"));
    // A mount that happens to be there after a restart cannot be the old memory.
    let Presence::Gone { reason } = volume.presence(&node("a"), "boot-2", |_| true) else {
        panic!("memory of another boot is gone");
    };
    assert!(reason.contains("restarted"));
}

#[test]
fn a_lost_volume_stays_lost_unless_its_class_lets_it_begin_anew() {
    let mut volume = resident();
    volume.lose("reboot");
    let at = node("a");
    assert_eq!(
        volume.presence(&at, "boot-2", |_| true),
        Presence::Lost {
            reason: "reboot".into()
        }
    );
    volume.parameters.on_loss = OnLoss::Recreate;
    assert_eq!(
        volume.presence(&at, "boot-2", |_| true),
        Presence::Make { epoch: 2 }
    );
    volume.settle(&at, 2, layer("boot-2", 2));
    assert_eq!((volume.epoch, volume.generation), (2, 2));
}

#[test]
fn the_same_publication_again_is_no_change_and_another_one_there_is_refused() {
    let mut volume = resident();
    let mode = AccessMode::SingleNodeWriter;
    volume.publish(publication("/p", mode, false)).unwrap();
    let before = volume.clone();
    volume.publish(publication("/p", mode, false)).unwrap();
    assert_eq!(volume, before);
    assert_eq!(
        volume.publish(publication("/p", mode, true)),
        Err(Conflict::Different)
    );
    volume.publish(publication("/q", mode, true)).unwrap();
    volume.unpublish(&node("a"), Path::new("/p"));
    assert_eq!(volume.publications.len(), 1);
    assert_eq!(volume.users(|_| true), (0, 1));
    assert_eq!(volume.users(|at| *at != node("a")), (0, 0));
}

#[test]
fn a_single_writer_is_alone_whoever_came_first() {
    let single = AccessMode::SingleNodeSingleWriter;
    let multi = AccessMode::SingleNodeMultiWriter;
    for (first, second) in [(single, multi), (multi, single), (single, single)] {
        let mut volume = resident();
        volume.publish(publication("/p", first, false)).unwrap();
        assert_eq!(
            volume.publish(publication("/q", second, false)),
            Err(Conflict::Exclusive("/p".into()))
        );
    }
}

#[test]
fn mounts_of_an_older_boot_are_forgotten_and_no_others() {
    let mut volume = resident();
    volume
        .publish(publication("/p", AccessMode::SingleNodeWriter, false))
        .unwrap();
    volume.forget_boot(&node("b"), "boot-2");
    volume.forget_boot(&node("a"), "boot-1");
    assert_eq!(volume.publications.len(), 1);
    volume.forget_boot(&node("a"), "boot-2");
    assert_eq!(volume.users(|_| true), (0, 0));
}
