//! One call at a time for a volume: a second one is told to come again, whatever it is, and other volumes go on.

use std::fs;

use tonic::Code;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::requests::{book_request, create_request, delete_request, modify_request};
use crate::rpc::Rpc;
use crate::sandbox;

const MIB: i64 = 1 << 20;

/// Holds a call at `point`, has the others come meanwhile, and returns how it ended.
async fn holding<R: Rpc>(kubelet: &mut Kubelet, point: &str, request: R) -> R::Reply
where
    R::Reply: 'static,
{
    let channel = kubelet.driver.connect().await;
    kubelet.driver.order(&format!("hold {point} 1"));
    let call = tokio::spawn(request.send(channel));
    kubelet.driver.held().await;
    let is_controller = R::NAME.starts_with("controller") || !R::NAME.starts_with("node");
    if is_controller {
        aborted(kubelet, create_request("v", MIB)).await;
        aborted(kubelet, delete_request("v")).await;
        aborted(kubelet, book_request("v", 2 * MIB)).await;
        aborted(kubelet, modify_request("v", "fail")).await;
    } else {
        let pod = Kubelet::pod_uid(1);
        aborted(kubelet, kubelet.stage_request("v")).await;
        aborted(kubelet, kubelet.publish_request("v", &pod, false)).await;
        aborted(kubelet, kubelet.unpublish_request("v", &pod)).await;
        aborted(kubelet, kubelet.unstage_request("v")).await;
    }
    another_volume_lives(kubelet).await;
    assert!(!call.is_finished());
    kubelet.driver.withdraw();
    match call.await.unwrap() {
        Ok(reply) => reply.into_inner(),
        Err(status) => kubelet.complain(R::NAME, &status),
    }
}

async fn aborted<R: Rpc>(kubelet: &mut Kubelet, request: R) {
    match kubelet.once(request).await {
        Err(status) if status.code() == Code::Aborted => {
            assert!(status.message().contains("under way"), "{status:?}");
        }
        Err(status) => kubelet.complain(R::NAME, &status),
        Ok(_) => panic!("{} was done beside another call", R::NAME),
    }
}

async fn another_volume_lives(kubelet: &mut Kubelet) {
    let pod = Kubelet::pod_uid(2);
    kubelet.once(create_request("w", MIB)).await.unwrap();
    kubelet.once(kubelet.stage_request("w")).await.unwrap();
    let publish = kubelet.publish_request("w", &pod, false);
    kubelet.once(publish).await.unwrap();
    kubelet.once(book_request("w", 2 * MIB)).await.unwrap();
    let grow = kubelet.grow_request("w", &pod, 2 * MIB);
    kubelet.once(grow).await.unwrap();
    kubelet.unpublish("w", &pod).await;
    kubelet.unstage("w").await;
    // Again, on a slow machine: its memory is let go of within a bounded time.
    kubelet.delete("w").await;
}

#[test]
fn a_second_call_for_a_volume_is_aborted_and_other_volumes_go_on() {
    if !sandbox::has_fail_points() {
        return;
    }
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let kubelet = &mut Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
            let pod = Kubelet::pod_uid(1);
            holding(kubelet, "create.chosen", create_request("v", MIB)).await;
            holding(kubelet, "stage.recorded", kubelet.stage_request("v")).await;
            let publish = kubelet.publish_request("v", &pod, false);
            holding(kubelet, "publish.recorded", publish).await;
            fs::write(kubelet.target(&pod, "v").join("content"), "here").unwrap();
            holding(kubelet, "expand.booked", book_request("v", 2 * MIB)).await;
            let grow = kubelet.grow_request("v", &pod, 2 * MIB);
            holding(kubelet, "expand.resized", grow).await;
            holding(kubelet, "modify.recorded", modify_request("v", "fail")).await;
            let content = fs::read(kubelet.target(&pod, "v").join("content"));
            assert_eq!(content.unwrap(), b"here");
            let unpublish = kubelet.unpublish_request("v", &pod);
            holding(kubelet, "unpublish.unmounted", unpublish).await;
            kubelet.unpublish("v", &pod).await;
            let unstage = kubelet.unstage_request("v");
            holding(kubelet, "unstage.unmounted", unstage).await;
            kubelet.unstage("v").await;
            holding(kubelet, "delete.marked", delete_request("v")).await;
            // What kubelet has made for calls that came in vain.
            kubelet.unpublish("v", &pod).await;
            kubelet.unstage("v").await;
            kubelet.driver.assert_nothing_is_left().await;
        });
    });
}

#[test]
fn a_call_whose_caller_gives_up_is_finished() {
    if !sandbox::has_fail_points() {
        return;
    }
    sandbox::run(|folder| {
        sandbox::runtime().block_on(async {
            let kubelet = &mut Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
            kubelet.create("v", MIB, &[]).await.unwrap();
            let channel = kubelet.driver.connect().await;
            kubelet.driver.order("hold stage.recorded 1");
            let call = tokio::spawn(kubelet.stage_request("v").send(channel));
            kubelet.driver.held().await;
            call.abort();
            assert!(call.await.is_err_and(|end| end.is_cancelled()));
            // Its volume is not free before it is done.
            aborted(kubelet, kubelet.unstage_request("v")).await;
            kubelet.driver.withdraw();
            // Published without having been staged by anybody who waited for it.
            while kubelet
                .publish("v", &Kubelet::pod_uid(0), false)
                .await
                .is_err()
            {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            kubelet.unpublish("v", &Kubelet::pod_uid(0)).await;
            kubelet.unstage("v").await;
            kubelet.delete("v").await;
            kubelet.driver.assert_nothing_is_left().await;
        });
    });
}
