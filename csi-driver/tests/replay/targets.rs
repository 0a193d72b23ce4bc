//! What is mounted where, under which conditions, and what a call for the same place under others changes: nothing.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use tonic::Code;
use vineyard_proto::csi::volume_capability::access_mode::Mode;
use vineyard_proto::csi::*;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::requests::{book_request, create_request, delete_request, text};
use crate::rpc::{Rpc, capability_of};
use crate::sandbox;

const MIB: i64 = 1 << 20;

fn with_kubelet<F: Future<Output = ()>>(test: impl FnOnce(Kubelet) -> F + Send) {
    sandbox::run(|folder| {
        let kubelet = Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
        sandbox::runtime().block_on(test(kubelet));
    });
}

async fn refused<R: Rpc>(kubelet: &mut Kubelet, request: R, code: Code) -> String {
    match kubelet.once(request).await {
        Err(status) if status.code() == code => status.message().to_owned(),
        Err(status) => kubelet.complain(&format!("{} instead of {code:?}", R::NAME), &status),
        Ok(_) => panic!("{} instead of {code:?}", R::NAME),
    }
}

/// The options of what is mounted on `point`.
fn options(point: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let lines = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let here = lines.filter(|words| Path::new(words[4]) == point);
    here.map(|words| words[5].to_owned()).collect()
}

#[test]
fn the_same_place_under_other_conditions_is_refused_and_unchanged() {
    with_kubelet(async |mut kubelet| {
        let (p, q) = (Kubelet::pod_uid(1), Kubelet::pod_uid(2));
        kubelet.create("v", MIB, &[]).await.unwrap();
        kubelet.stage("v").await.unwrap();
        kubelet.publish("v", &p, false).await.unwrap();
        kubelet.publish("v", &q, true).await.unwrap();
        let (writable, read_only) = (kubelet.target(&p, "v"), kubelet.target(&q, "v"));
        let before = (options(&writable), options(&read_only));
        let request = kubelet.publish_request("v", &p, true);
        refused(&mut kubelet, request, Code::AlreadyExists).await;
        let request = kubelet.publish_request("v", &q, false);
        refused(&mut kubelet, request, Code::AlreadyExists).await;
        for flags in [["noexec"], ["noatime"], ["ro"]] {
            let capability = Some(capability_of(Mode::SingleNodeMultiWriter, &flags));
            let request = NodePublishVolumeRequest {
                volume_capability: capability.clone(),
                ..kubelet.publish_request("v", &p, false)
            };
            refused(&mut kubelet, request, Code::AlreadyExists).await;
            let request = NodeStageVolumeRequest {
                volume_capability: capability,
                ..kubelet.stage_request("v")
            };
            refused(&mut kubelet, request, Code::AlreadyExists).await;
        }
        assert_eq!((options(&writable), options(&read_only)), before);
        fs::write(writable.join("content"), "1").unwrap();
        let error = fs::write(read_only.join("content"), "2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        assert_eq!(fs::read(read_only.join("content")).unwrap(), b"1");
    });
}

#[test]
fn every_mount_is_confined_and_has_the_flags_of_its_request() {
    with_kubelet(async |mut kubelet| {
        kubelet.create("v", MIB, &[]).await.unwrap();
        kubelet.stage("v").await.unwrap();
        let cases: [(&[&str], &[&str]); 4] = [
            (&[], &["rw"]),
            (&["ro"], &["ro"]),
            (&["noexec", "noatime"], &["rw", "noexec", "noatime"]),
            (&["ro", "noexec", "nosuid", "nodev"], &["ro", "noexec"]),
        ];
        for (number, (flags, expected)) in (1..).zip(cases) {
            let pod = Kubelet::pod_uid(number);
            let request = NodePublishVolumeRequest {
                volume_capability: Some(capability_of(Mode::SingleNodeMultiWriter, flags)),
                ..kubelet.publish_request("v", &pod, false)
            };
            for _ in 0..2 {
                kubelet.once(request.clone()).await.unwrap();
                let found = options(&kubelet.target(&pod, "v"));
                assert_eq!(found.len(), 1, "{found:?}");
                let words: Vec<_> = found[0].split(',').collect();
                for word in expected.iter().chain(&["nosuid", "nodev"]) {
                    assert!(words.contains(word), "{flags:?}: {words:?}");
                }
            }
        }
    });
}

#[test]
fn a_single_writer_is_alone_and_a_reader_never_writes() {
    with_kubelet(async |mut kubelet| {
        let (p, q) = (Kubelet::pod_uid(1), Kubelet::pod_uid(2));
        let mut places = Vec::new();
        for (name, mode) in [
            ("single", Mode::SingleNodeSingleWriter),
            ("reader", Mode::SingleNodeReaderOnly),
        ] {
            let capability = capability_of(mode, &[]);
            let request = CreateVolumeRequest {
                volume_capabilities: vec![capability.clone()],
                ..create_request(name, MIB)
            };
            kubelet.once(request).await.unwrap();
            let request = NodeStageVolumeRequest {
                volume_capability: Some(capability.clone()),
                ..kubelet.stage_request(name)
            };
            kubelet.once(request).await.unwrap();
            for pod in [&p, &q] {
                places.push(NodePublishVolumeRequest {
                    volume_capability: Some(capability.clone()),
                    ..kubelet.publish_request(name, pod, false)
                });
            }
        }
        let [first, second, reader, other_reader] = places.try_into().unwrap();
        kubelet.once(first).await.unwrap();
        let message = refused(&mut kubelet, second.clone(), Code::FailedPrecondition).await;
        assert!(message.contains(&p), "does not name the holder: {message}");
        kubelet.unpublish("single", &p).await;
        kubelet.once(second).await.unwrap();
        kubelet.once(reader).await.unwrap();
        kubelet.once(other_reader).await.unwrap();
        let error = fs::write(kubelet.target(&p, "reader").join("x"), "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        // More than it was created for.
        let request = kubelet.stage_request("single");
        refused(&mut kubelet, request, Code::FailedPrecondition).await;
    });
}

#[test]
fn steps_that_kubelet_skips_are_failed_preconditions() {
    with_kubelet(async |mut kubelet| {
        let pod = Kubelet::pod_uid(1);
        kubelet.create("v", MIB, &[]).await.unwrap();
        let publish = kubelet.publish_request("v", &pod, false);
        refused(&mut kubelet, publish.clone(), Code::FailedPrecondition).await;
        kubelet.stage("v").await.unwrap();
        let elsewhere = NodePublishVolumeRequest {
            staging_target_path: text(&kubelet.staging("other")),
            ..publish.clone()
        };
        refused(&mut kubelet, elsewhere, Code::FailedPrecondition).await;
        let nowhere = NodePublishVolumeRequest {
            staging_target_path: String::new(),
            ..publish.clone()
        };
        refused(&mut kubelet, nowhere, Code::FailedPrecondition).await;
        kubelet.once(publish).await.unwrap();
        refused(&mut kubelet, delete_request("v"), Code::FailedPrecondition).await;
        kubelet.unpublish("v", &pod).await;
        refused(&mut kubelet, delete_request("v"), Code::FailedPrecondition).await;
        kubelet.unstage("v").await;
        kubelet.delete("v").await;
        kubelet.driver.assert_nothing_is_left().await;
    });
}

#[test]
fn what_nobody_knows_is_gone_already_or_not_found() {
    with_kubelet(async |mut kubelet| {
        let pod = Kubelet::pod_uid(1);
        for name in ["nobody", "No/../body", "v.0123"] {
            kubelet.unpublish("nobody", &pod).await;
            let unpublish = NodeUnpublishVolumeRequest {
                volume_id: name.to_owned(),
                ..kubelet.unpublish_request("nobody", &pod)
            };
            kubelet.once(unpublish).await.unwrap();
            let unstage = NodeUnstageVolumeRequest {
                volume_id: name.to_owned(),
                ..kubelet.unstage_request("nobody")
            };
            kubelet.once(unstage).await.unwrap();
            kubelet.once(delete_request(name)).await.unwrap();
            let stage = NodeStageVolumeRequest {
                volume_id: name.to_owned(),
                ..kubelet.stage_request("nobody")
            };
            refused(&mut kubelet, stage, Code::NotFound).await;
            let publish = NodePublishVolumeRequest {
                volume_id: name.to_owned(),
                ..kubelet.publish_request("nobody", &pod, false)
            };
            refused(&mut kubelet, publish, Code::NotFound).await;
            let stats = NodeGetVolumeStatsRequest {
                volume_id: name.to_owned(),
                ..kubelet.stats_request("nobody", &pod)
            };
            refused(&mut kubelet, stats, Code::NotFound).await;
            refused(&mut kubelet, book_request(name, MIB), Code::NotFound).await;
        }
    });
}

#[test]
fn paths_may_be_as_long_as_the_kernel_takes_them() {
    with_kubelet(async |mut kubelet| {
        kubelet.create("v", MIB, &[]).await.unwrap();
        kubelet.stage("v").await.unwrap();
        let pods = kubelet.target("p", "v");
        let pods = pods.ancestors().nth(4).unwrap();
        for (length, component) in [(128, 20), (1_000, 200), (3_900, 255)] {
            let mut path = pods.to_owned();
            while path.as_os_str().len() + component + 1 < length {
                path.push("d".repeat(component));
            }
            fs::create_dir_all(&path).unwrap();
            let request = NodePublishVolumeRequest {
                target_path: text(&path.join("mount with space")),
                ..kubelet.publish_request("v", "p", false)
            };
            for _ in 0..2 {
                kubelet.once(request.clone()).await.unwrap();
            }
            let stats = NodeGetVolumeStatsRequest {
                volume_path: request.target_path.clone(),
                ..kubelet.stats_request("v", "p")
            };
            assert_eq!(kubelet.once(stats).await.unwrap().usage[0].total, MIB);
            let request = NodeUnpublishVolumeRequest {
                volume_id: "v".into(),
                target_path: request.target_path,
            };
            for _ in 0..2 {
                kubelet.once(request.clone()).await.unwrap();
            }
            assert!(!Path::new(&request.target_path).exists());
        }
        let request = NodePublishVolumeRequest {
            target_path: text(&pods.join("d/".repeat(3_000))),
            ..kubelet.publish_request("v", "p", false)
        };
        refused(&mut kubelet, request, Code::InvalidArgument).await;
    });
}
