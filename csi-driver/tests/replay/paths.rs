//! Ids and targets that lead elsewhere: refused or unknown, and nothing is mounted, made or removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tonic::{Code, Status};
use vineyard_proto::csi::*;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::requests::{book_request, delete_request, modify_request, text};
use crate::sandbox;

const MIB: i64 = 1 << 20;

/// A volume that is used, and a place outside that nobody may touch.
async fn scene(folder: &Path) -> (Kubelet, String) {
    let mut kubelet = Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
    let pod = Kubelet::pod_uid(1);
    fs::create_dir_all(folder.join("outside/empty")).unwrap();
    kubelet.create("v", MIB, &[]).await.unwrap();
    kubelet.stage("v").await.unwrap();
    kubelet.publish("v", &pod, false).await.unwrap();
    fs::write(kubelet.target(&pod, "v").join("content"), "content").unwrap();
    (kubelet, pod)
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[test]
fn no_volume_id_leads_out_of_its_directory() {
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let (mut kubelet, pod) = scene(folder).await;
            let mounts = kubelet.driver.mounts();
            // Where a careless join of an id and `.json` would lead.
            fs::copy(folder.join("catalog/v.json"), folder.join("outside/v.json")).unwrap();
            let long = "v".repeat(129);
            for id in [
                "../outside/v",
                "../outside/empty",
                "v/../v",
                "/",
                ".",
                "..",
                "v/",
                "./v",
                "V",
                "v\0",
                "v\n",
                "*",
                "v.json",
                "v.",
                "nodes",
                "nodes/replay",
                "lock",
                "v.0123456789abcdef0123456789abcdeg",
                &long,
            ] {
                let expected = if id.len() > 128 {
                    Code::InvalidArgument
                } else {
                    Code::NotFound
                };
                let gone = if id.len() > 128 {
                    Code::InvalidArgument
                } else {
                    Code::Ok
                };
                let get = ControllerGetVolumeRequest {
                    volume_id: id.to_owned(),
                };
                assert_eq!(code(kubelet.once(get).await), expected, "{id:?}");
                assert_eq!(
                    code(kubelet.once(book_request(id, 2 * MIB)).await),
                    expected,
                    "{id:?}"
                );
                assert_eq!(
                    code(kubelet.once(modify_request(id, "fail")).await),
                    expected,
                    "{id:?}"
                );
                let stage = NodeStageVolumeRequest {
                    volume_id: id.to_owned(),
                    ..kubelet.stage_request("new")
                };
                assert_eq!(code(kubelet.once(stage).await), expected, "{id:?}");
                let publish = NodePublishVolumeRequest {
                    volume_id: id.to_owned(),
                    ..kubelet.publish_request("v", &pod, false)
                };
                assert_eq!(code(kubelet.once(publish).await), expected, "{id:?}");
                let stats = NodeGetVolumeStatsRequest {
                    volume_id: id.to_owned(),
                    ..kubelet.stats_request("v", &pod)
                };
                assert_eq!(code(kubelet.once(stats).await), expected, "{id:?}");
                let grow = NodeExpandVolumeRequest {
                    volume_id: id.to_owned(),
                    ..kubelet.grow_request("v", &pod, MIB)
                };
                assert_eq!(code(kubelet.once(grow).await), expected, "{id:?}");
                assert_eq!(code(kubelet.once(delete_request(id)).await), gone, "{id:?}");
                let unstage = NodeUnstageVolumeRequest {
                    volume_id: id.to_owned(),
                    ..kubelet.unstage_request("new")
                };
                assert_eq!(code(kubelet.once(unstage).await), gone, "{id:?}");
                let unpublish = NodeUnpublishVolumeRequest {
                    volume_id: id.to_owned(),
                    ..kubelet.unpublish_request("new", &pod)
                };
                assert_eq!(code(kubelet.once(unpublish).await), gone, "{id:?}");
                // Nor does it unmount what it does not own.
                let unpublish = NodeUnpublishVolumeRequest {
                    volume_id: id.to_owned(),
                    ..kubelet.unpublish_request("v", &pod)
                };
                assert_ne!(code(kubelet.once(unpublish).await), Code::Ok, "{id:?}");
                assert_eq!(kubelet.driver.mounts(), mounts, "{id:?}");
                assert!(
                    folder.join("outside/v.json").exists() && folder.join("catalog/lock").exists()
                );
            }
        });
    });
}

#[test]
fn no_target_leads_out_of_kubelets_directory() {
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let (mut kubelet, pod) = scene(folder).await;
            let own = folder.join("kubelet");
            fs::create_dir(own.join("pods/trap")).unwrap();
            symlink(folder.join("outside"), own.join("pods/trap/link")).unwrap();
            symlink("link", own.join("pods/trap/chain")).unwrap();
            symlink("loop", own.join("pods/trap/loop")).unwrap();
            symlink(&own, folder.join("outside/back")).unwrap();
            let at = |path: &str| text(&folder.join(path));
            let mounts = kubelet.driver.mounts();
            let outside = [
                at("outside/empty"),
                at("outside/new"),
                at("layers/v"),
                at("catalog"),
                at("kubelet"),
                at("kubelet/../outside/new"),
                at("kubelet/pods/../../outside/new"),
                at("kubelet/pods/trap/link/empty"),
                at("kubelet/pods/trap/link/new"),
                at("kubelet/pods/trap/chain/new"),
                at("kubelet/pods/trap/./x"),
                "/etc".into(),
                "/".into(),
                "relative/path".into(),
                "..".into(),
                "~".into(),
                format!("{}\0", at("kubelet/pods/x")),
                format!("{}/", "x".repeat(5_000)),
            ];
            for target in &outside {
                refuses(&mut kubelet, &pod, target, Code::InvalidArgument).await;
                assert_eq!(kubelet.driver.mounts(), mounts, "{target:?}");
            }
            // Inside, but no place for a mount: nothing is followed there.
            for target in [
                at("kubelet/pods/trap/link"),
                at("kubelet/pods/trap/loop"),
                at("kubelet/pods/trap/loop/x"),
                at("kubelet/pods/missing/parent/x"),
            ] {
                let request = NodePublishVolumeRequest {
                    target_path: target.clone(),
                    ..kubelet.publish_request("v", &pod, false)
                };
                let status = kubelet.once(request).await.unwrap_err();
                let told = matches!(status.code(), Code::Internal | Code::InvalidArgument);
                assert!(told, "{target}: {status:?}");
                assert_eq!(kubelet.driver.mounts(), mounts, "{target:?}");
            }
            // Through a symlink into kubelet's directory is inside.
            let request = NodeGetVolumeStatsRequest {
                volume_path: kubelet
                    .target(&pod, "v")
                    .to_str()
                    .unwrap()
                    .replace("/kubelet/", "/outside/back/"),
                ..kubelet.stats_request("v", &pod)
            };
            kubelet.once(request).await.unwrap();
            let left: Vec<_> = fs::read_dir(folder.join("outside")).unwrap().collect();
            assert_eq!(left.len(), 2, "{left:?}");
            assert_eq!(
                fs::read_dir(folder.join("outside/empty")).unwrap().count(),
                0
            );
            let record = fs::read_to_string(folder.join("catalog/v.json")).unwrap();
            assert!(
                !record.contains("trap") && !record.contains("outside"),
                "{record}"
            );
        });
    });
}

/// All calls that take a path.
async fn refuses(kubelet: &mut Kubelet, pod: &str, target: &str, expected: Code) {
    let stage = NodeStageVolumeRequest {
        staging_target_path: target.to_owned(),
        ..kubelet.stage_request("v")
    };
    assert_eq!(code(kubelet.once(stage).await), expected, "{target:?}");
    let publish = NodePublishVolumeRequest {
        target_path: target.to_owned(),
        ..kubelet.publish_request("v", pod, false)
    };
    assert_eq!(code(kubelet.once(publish).await), expected, "{target:?}");
    let publish = NodePublishVolumeRequest {
        staging_target_path: target.to_owned(),
        ..kubelet.publish_request("v", pod, false)
    };
    assert_eq!(code(kubelet.once(publish).await), expected, "{target:?}");
    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: "v".into(),
        target_path: target.to_owned(),
    };
    assert_eq!(code(kubelet.once(unpublish).await), expected, "{target:?}");
    let unstage = NodeUnstageVolumeRequest {
        volume_id: "v".into(),
        staging_target_path: target.to_owned(),
    };
    assert_eq!(code(kubelet.once(unstage).await), expected, "{target:?}");
    // Where nothing of ours can be, nothing is found.
    let stats = NodeGetVolumeStatsRequest {
        volume_path: target.to_owned(),
        ..kubelet.stats_request("v", pod)
    };
    assert_eq!(
        code(kubelet.once(stats).await),
        Code::NotFound,
        "{target:?}"
    );
    let grow = NodeExpandVolumeRequest {
        volume_path: target.to_owned(),
        ..kubelet.grow_request("v", pod, MIB)
    };
    assert_eq!(code(kubelet.once(grow).await), Code::NotFound, "{target:?}");
}
