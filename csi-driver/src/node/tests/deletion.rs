//! What was deleted while this node was silent.

use super::*;

impl Bench {
    /// What the controller does when the node is dead.
    async fn bury(&self, name: &str) {
        let stored = self.catalog.get(&VolumeId::of_name(name)).await.unwrap();
        let id = &stored.volume.id;
        self.catalog.bury(&stored.version, id).await.unwrap();
    }

    async fn booked(&self) -> u64 {
        let listing = self.catalog.list().await.unwrap();
        listing.booked(&self.node.id).unwrap().0
    }
}

#[tokio::test]
async fn a_node_that_comes_back_drops_what_was_deleted_meanwhile() {
    for restarted in [false, true] {
        let mut bench = Bench::new();
        bench.node.reconcile().await.unwrap();
        bench.volume("v").await;
        bench.stage("v").await.unwrap();
        bench.publish("v", "pods/p").await.unwrap();
        bench.bury("v").await;
        assert_eq!(bench.booked().await, 4096);
        if restarted {
            bench.restart_driver();
            bench.node.reconcile().await.unwrap();
        } else {
            bench.node.beat().await.unwrap();
        }
        // A pod still has it: its bytes are still there, and still booked.
        assert_eq!(bench.mounts(&bench.path("pods/p")).len(), 1);
        assert_eq!(bench.booked().await, 4096);
        bench.unpublish("v", "pods/p").await.unwrap();
        bench.unstage("v").await.unwrap();
        bench.node.beat().await.unwrap();
        assert!(bench.node.mounter.mounts().unwrap().is_empty());
        assert_eq!(bench.booked().await, 0);
    }
}

#[tokio::test]
async fn a_reboot_drops_what_was_deleted_meanwhile() {
    let mut bench = Bench::new();
    bench.node.reconcile().await.unwrap();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    bench.bury("v").await;
    assert_eq!(bench.booked().await, 4096);
    bench.reboot("boot-2");
    bench.node.reconcile().await.unwrap();
    assert_eq!(bench.booked().await, 0);
}

#[tokio::test]
async fn a_new_volume_with_the_name_of_a_deleted_one_keeps_its_memory() {
    let bench = Bench::new();
    bench.node.reconcile().await.unwrap();
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    bench.unstage("v").await.unwrap();
    bench.bury("v").await;
    bench.volume("v").await;
    bench.stage("v").await.unwrap();
    bench.node.beat().await.unwrap();
    bench.publish("v", "pods/p").await.unwrap();
    assert_eq!(bench.booked().await, 4096);
    assert_eq!(bench.node.mounter.mounts().unwrap().len(), 2);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_costs_nobody_his_memory() {
    let mut bench = Bench::new();
    for name in ["v", "w"] {
        bench.volume(name).await;
        bench
            .node
            .ensure_present(&VolumeId::of_name(name), None)
            .await
            .unwrap();
    }
    let path = bench.folder.path().join("catalog/v.json");
    let text = fs::read(&path).unwrap();
    fs::write(&path, "{").unwrap();
    bench.restart_driver();
    bench.node.reconcile().await.unwrap();
    bench.stage("w").await.unwrap();
    bench.publish("w", "pods/w").await.unwrap();
    bench.node.drop_deleted().await.unwrap();
    bench.unpublish("w", "pods/w").await.unwrap();
    bench.unstage("w").await.unwrap();
    let error = bench.stage("v").await.unwrap_err();
    assert_eq!(code(&error), Code::Internal);
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    fs::write(&path, text).unwrap();
    bench.stage("v").await.unwrap();
    assert_eq!(bench.read("v").await.generation, 1);
}
