//! Clones that are deleted, or whose caller gives up, while they are filled.

use std::fs;
use std::time::Duration;

use tonic::Code;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::requests::delete_request;
use crate::rpc::Rpc;
use crate::sandbox;

const MIB: i64 = 1 << 20;

/// A source with content, and a clone of it that is not filled yet.
async fn prepared(kubelet: &mut Kubelet) {
    let pod = Kubelet::pod_uid(1);
    kubelet.create("source", MIB, &[]).await.unwrap();
    kubelet.stage("source").await.unwrap();
    kubelet.publish("source", &pod, false).await.unwrap();
    fs::write(kubelet.target(&pod, "source").join("content"), "here").unwrap();
    kubelet.unpublish("source", &pod).await;
    kubelet.unstage("source").await;
    kubelet.clone_of("source", "clone", MIB).await.unwrap();
}

#[test]
fn a_clone_that_is_deleted_while_it_is_filled_leaves_nothing() {
    if !sandbox::has_fail_points() {
        return;
    }
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let kubelet = &mut Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
            prepared(kubelet).await;
            kubelet.driver.order("hold clone.copied 1");
            let channel = kubelet.driver.connect().await;
            let stage = kubelet.stage_request("clone").send(channel.clone());
            let stage = tokio::spawn(stage);
            kubelet.driver.held().await;
            // All of it is there, and nobody sees it.
            assert!(folder.join("layers/clone/content").exists());
            let pinned = kubelet.try_delete("source").await.unwrap_err();
            assert_eq!(pinned.code(), Code::FailedPrecondition, "{pinned:?}");
            let delete = tokio::spawn(delete_request("clone").send(channel));
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(!delete.is_finished(), "deleted while its memory is there");
            kubelet.driver.withdraw();
            stage.await.unwrap().unwrap_err();
            delete.await.unwrap().unwrap();
            kubelet.unstage("clone").await;
            kubelet.delete("source").await;
            kubelet.driver.assert_nothing_is_left().await;
        });
    });
}

#[test]
fn a_clone_is_filled_to_its_end_although_nobody_waits_for_it() {
    if !sandbox::has_fail_points() {
        return;
    }
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let kubelet = &mut Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
            prepared(kubelet).await;
            kubelet.driver.order("hold clone.mounted 1");
            let channel = kubelet.driver.connect().await;
            let stage = kubelet.stage_request("clone").send(channel);
            let stage = tokio::spawn(stage);
            kubelet.driver.held().await;
            stage.abort();
            kubelet.driver.withdraw();
            kubelet.stage("clone").await.unwrap();
            let content = fs::read_to_string(folder.join("layers/clone/content"));
            assert_eq!(content.unwrap(), "here");
            kubelet.unstage("clone").await;
            for name in ["clone", "source"] {
                kubelet.delete(name).await;
            }
            kubelet.driver.assert_nothing_is_left().await;
        });
    });
}
