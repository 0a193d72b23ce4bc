//! One life of two volumes in two pods, in which every call has every step: the driver dies at each of its fail points in turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tonic::Code;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};

const MIB: i64 = 1 << 20;

/// Plays the life in `folder`, with one order to the driver. Returns the points where it died.
pub(crate) async fn play(folder: &Path, order: &str) -> BTreeMap<String, u64> {
    let mut kubelet = Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
    kubelet.driver.order(order);
    let (p, q) = (Kubelet::pod_uid(1), Kubelet::pod_uid(2));
    kubelet.create("a", MIB, &[]).await.unwrap();
    kubelet.create("b", MIB, &[]).await.unwrap();
    kubelet.stage("a").await.unwrap();
    kubelet.publish_sockets(&p).await;
    kubelet.publish("a", &p, false).await.unwrap();
    fs::write(kubelet.target(&p, "a").join("content"), "a").unwrap();
    kubelet.publish("a", &q, true).await.unwrap();
    kubelet.stage("b").await.unwrap();
    kubelet.publish("b", &q, false).await.unwrap();
    kubelet.clone_of("a", "c", MIB).await.unwrap();
    kubelet.publish_sockets(&q).await;
    assert_eq!(kubelet.book("a", 2 * MIB).await.unwrap(), 2 * MIB);
    kubelet.grow("a", &q, 2 * MIB).await;
    let usage = kubelet.stats("a", &q).await.unwrap();
    assert_eq!(usage[0].total, 2 * MIB);
    a_clone_that_is_too_small_at_first(&mut kubelet, &p).await;
    a_target_that_is_a_file(&mut kubelet, &p).await;
    mounts_on_each_other(&mut kubelet, &p).await;
    let seen = fs::read_to_string(kubelet.target(&q, "a").join("content")).unwrap();
    assert_eq!(seen, "a");
    kubelet.unpublish("a", &p).await;
    kubelet.unpublish_sockets(&p).await;
    kubelet.unpublish("a", &q).await;
    kubelet.unstage("a").await;
    // The node is restarted under the other volume, whose class lets it begin anew only then.
    kubelet.driver.reboot();
    let lost = kubelet.stage("b").await.unwrap_err();
    assert_eq!(lost.code(), Code::DataLoss, "{lost:?}");
    kubelet.modify("b", "recreate").await;
    kubelet.stage("b").await.unwrap();
    kubelet.publish("b", &q, false).await.unwrap();
    kubelet.publish_sockets(&q).await;
    kubelet.unpublish_sockets(&q).await;
    kubelet.unpublish("b", &q).await;
    kubelet.unstage("b").await;
    kubelet.delete("b").await;
    kubelet.delete("a").await;
    kubelet.driver.withdraw();
    kubelet.driver.assert_nothing_is_left().await;
    std::mem::take(&mut kubelet.driver.deaths)
}

/// Volume a was expanded after it was cloned, and holds more than its clone can take.
async fn a_clone_that_is_too_small_at_first(kubelet: &mut Kubelet, pod: &str) {
    let large = kubelet.target(pod, "a").join("large");
    fs::write(&large, vec![1; 1_500_000]).unwrap();
    let full = kubelet.stage("c").await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    assert_eq!(kubelet.book("c", 2 * MIB).await.unwrap(), 2 * MIB);
    kubelet.stage("c").await.unwrap();
    kubelet.publish("c", pod, false).await.unwrap();
    let copy = kubelet.target(pod, "c");
    assert_eq!(fs::read_to_string(copy.join("content")).unwrap(), "a");
    assert_eq!(fs::read(copy.join("large")).unwrap(), vec![1; 1_500_000]);
    fs::remove_file(&large).unwrap();
    kubelet.unpublish("c", pod).await;
    kubelet.unstage("c").await;
    kubelet.delete("c").await;
}

async fn a_target_that_is_a_file(kubelet: &mut Kubelet, pod: &str) {
    let target = kubelet.target(pod, "b");
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::write(&target, "precious").unwrap();
    let refused = kubelet.publish("b", pod, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    fs::remove_file(&target).unwrap();
    kubelet.unpublish("b", pod).await;
}

async fn mounts_on_each_other(kubelet: &mut Kubelet, pod: &str) {
    let target = kubelet.target(pod, "a");
    for _ in 0..2 {
        let (none, bind) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
        nix::mount::mount(Some(&target), &target, none, bind, none).unwrap();
    }
    kubelet.publish("a", pod, false).await.unwrap();
}
