//! The first stage of a clone.

use super::*;
use crate::volume::{ContentSource, Layer};

impl Bench {
    /// A volume with this content in a file.
    async fn filled(&self, name: &str, content: &str) {
        let id = self.volume(name).await.id;
        self.node.ensure_present(&id, None).await.unwrap();
        fs::write(self.node.layer_path(&id).join("file"), content).unwrap();
    }

    async fn clone_of(&self, source: &str, name: &str) -> VolumeId {
        let volume = Volume {
            content_source: Some(ContentSource {
                volume_id: VolumeId::of_name(source),
                generation: Some(1),
            }),
            ..conformance::volume(name)
        };
        self.catalog.create(volume).await.unwrap().volume.id
    }

    fn content(&self, name: &str) -> Option<String> {
        let layer = self.node.layer_path(&VolumeId::of_name(name));
        fs::read_to_string(layer.join("file")).ok()
    }
}

#[tokio::test]
async fn the_first_stage_copies_what_its_source_has_then_and_no_later_one_does() {
    let bench = Bench::new();
    bench.filled("source", "early").await;
    let id = bench.clone_of("source", "v").await;
    let source = bench.node.layer_path(&VolumeId::of_name("source"));
    fs::write(source.join("file"), "at the first stage").unwrap();
    bench.stage("v").await.unwrap();
    fs::write(source.join("file"), "late").unwrap();
    bench.stage("v").await.unwrap();
    bench.publish("v", "pods/p").await.unwrap();
    assert_eq!(bench.content("v").as_deref(), Some("at the first stage"));
    let volume = bench.read("v").await;
    assert_eq!((volume.phase, volume.epoch), (Phase::Resident, 1));
    assert_eq!(volume.generation, 1);
    // Once lost, it is as lost as any other volume, although its source is still there.
    bench.unpublish("v", "pods/p").await.unwrap();
    bench
        .node
        .mounter
        .unmount(&bench.node.layer_path(&id))
        .unwrap();
    assert_eq!(code(&bench.stage("v").await.unwrap_err()), Code::DataLoss);
}

#[tokio::test]
async fn a_stage_that_cannot_wait_is_joined_by_the_next_one() {
    let mut bench = Bench::new();
    bench.filled("source", "content").await;
    bench.clone_of("source", "v").await;
    bench.node.clones = Arc::new(Clones::new(std::time::Duration::ZERO));
    let mut waited = 0;
    while let Err(error) = bench.stage("v").await {
        assert_eq!(code(&error), Code::Aborted);
        assert!(error.to_string().contains("copied from source"), "{error}");
        waited += 1;
        assert!(waited < 10_000, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(waited > 0);
    assert_eq!(bench.content("v").as_deref(), Some("content"));
}

#[tokio::test]
async fn a_clone_is_only_filled_on_the_node_of_its_source() {
    let mut bench = Bench::new();
    bench.filled("source", "content").await;
    bench.clone_of("source", "v").await;
    bench.node.id = NodeId::parse("b").unwrap();
    let error = bench.stage("v").await.unwrap_err();
    assert_eq!(code(&error), Code::Aborted);
    assert!(error.to_string().contains("node a"), "{error}");
    assert!(bench.read("v").await.layers.is_empty());
}

#[tokio::test]
async fn a_clone_whose_source_is_lost_is_lost_or_begins_empty() {
    for on_loss in [OnLoss::Fail, OnLoss::Recreate] {
        let mut bench = Bench::new();
        bench.filled("source", "content").await;
        let id = bench.clone_of("source", "v").await;
        change::<Error>(&*bench.catalog, &id, |volume| {
            volume.parameters.on_loss = on_loss;
            Ok(())
        })
        .await
        .unwrap();
        let source = bench.node.layer_path(&VolumeId::of_name("source"));
        fs::remove_file(source.join("file")).unwrap();
        bench.reboot("boot-2");
        let staged = bench.stage("v").await;
        let source = bench.read("source").await;
        assert!(matches!(source.phase, Phase::Lost { .. }));
        match on_loss {
            OnLoss::Fail => {
                let error = staged.unwrap_err();
                assert_eq!(code(&error), Code::DataLoss);
                assert!(error.to_string().contains("source"), "{error}");
            }
            OnLoss::Recreate => {
                staged.unwrap();
                let volume = bench.read("v").await;
                assert_eq!((volume.generation, bench.content("v")), (2, None));
            }
        }
    }
}

#[tokio::test]
async fn another_generation_is_not_what_was_cloned() {
    let bench = Bench::new();
    bench.filled("source", "content").await;
    bench.clone_of("source", "v").await;
    change::<Error>(&*bench.catalog, &VolumeId::of_name("source"), |volume| {
        volume.generation = 2;
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(code(&bench.stage("v").await.unwrap_err()), Code::DataLoss);
}

#[tokio::test]
async fn half_a_clone_is_dropped_at_the_start_and_filled_anew() {
    let mut bench = Bench::new();
    bench.filled("source", "content").await;
    let id = bench.clone_of("source", "v").await;
    // What a driver leaves that is killed while it copies.
    let path = bench.node.layer_path(&id);
    fs::create_dir(&path).unwrap();
    let options = Tmpfs {
        source: "vineyard:v@1".into(),
        size: Bytes(4096),
        inodes: 64,
        context: None,
    };
    bench.node.mounter.mount_tmpfs(&path, &options).unwrap();
    change::<Error>(&*bench.catalog, &id, |volume| {
        let layer = Layer {
            boot_id: "boot-1".into(),
            epoch: 1,
            context: None,
        };
        volume.layers.insert(NodeId::parse("a").unwrap(), layer);
        Ok(())
    })
    .await
    .unwrap();
    bench.restart_driver();
    bench.node.reconcile().await.unwrap();
    assert!(bench.read("v").await.layers.is_empty() && !path.exists());
    bench.stage("v").await.unwrap();
    assert_eq!(bench.content("v").as_deref(), Some("content"));
}

#[tokio::test]
async fn a_copy_that_fails_leaves_nothing_and_is_tried_again() {
    let bench = Bench::new();
    bench.filled("source", "content").await;
    let id = bench.clone_of("source", "v").await;
    // Nothing can be mounted there.
    let path = bench.node.layer_path(&id);
    fs::write(&path, "in the way").unwrap();
    assert_eq!(code(&bench.stage("v").await.unwrap_err()), Code::Internal);
    fs::remove_file(&path).unwrap();
    bench.stage("v").await.unwrap();
    assert_eq!(bench.content("v").as_deref(), Some("content"));
    assert_eq!(bench.read("v").await.layers.len(), 1);
}
