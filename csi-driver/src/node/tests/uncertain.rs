//! A change that is on record although the catalog said that it failed: an answer that was lost.

use std::sync::atomic::{AtomicBool, Ordering};

use tonic::async_trait;

use super::*;
use crate::volume::catalog::{Error as CatalogError, ResourceVersion, Revision, Stored};
use crate::volume::{ContentSource, Listing, NodeReport, Tombstone};

/// Loses the answer to a change that makes a volume resident.
#[derive(Debug)]
struct Lossy {
    inner: Arc<dyn Catalog>,
    armed: AtomicBool,
}

impl Lossy {
    fn answer(&self, stored: Result<Stored, CatalogError>) -> Result<Stored, CatalogError> {
        let is_resident = stored
            .as_ref()
            .is_ok_and(|it| it.volume.phase == Phase::Resident);
        if is_resident && self.armed.swap(false, Ordering::Relaxed) {
            return Err(CatalogError::Storage {
                doing: "update".into(),
                source: std::io::ErrorKind::TimedOut.into(),
            });
        }
        stored
    }
}

#[async_trait]
impl Catalog for Lossy {
    async fn get(&self, id: &VolumeId) -> Result<Stored, CatalogError> {
        self.inner.get(id).await
    }

    async fn list(&self) -> Result<Listing, CatalogError> {
        self.inner.list().await
    }

    async fn update(
        &self,
        version: &ResourceVersion,
        volume: Volume,
    ) -> Result<Stored, CatalogError> {
        self.answer(self.inner.update(version, volume).await)
    }

    async fn book(
        &self,
        version: Option<&ResourceVersion>,
        volume: Volume,
        budget: Bytes,
    ) -> Result<Stored, CatalogError> {
        self.answer(self.inner.book(version, volume, budget).await)
    }

    async fn delete(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), CatalogError> {
        self.inner.delete(version, id).await
    }

    async fn bury(&self, version: &ResourceVersion, id: &VolumeId) -> Result<(), CatalogError> {
        self.inner.bury(version, id).await
    }

    async fn beat(&self, node: &NodeId, boot_id: &str) -> Result<Vec<Tombstone>, CatalogError> {
        self.inner.beat(node, boot_id).await
    }

    async fn report(&self, node: &NodeId, report: NodeReport) -> Result<(), CatalogError> {
        self.inner.report(node, report).await
    }

    async fn dropped(&self, node: &NodeId, tombstone: &Tombstone) -> Result<(), CatalogError> {
        self.inner.dropped(node, tombstone).await
    }

    async fn changed(&self, only: Option<&VolumeId>, seen: Revision) -> Revision {
        self.inner.changed(only, seen).await
    }
}

fn lossy() -> Bench {
    let mut bench = Bench::new();
    let lossy = Lossy {
        inner: Arc::clone(&bench.catalog),
        armed: AtomicBool::new(true),
    };
    bench.node.catalog = Arc::new(lossy);
    bench
}

/// Stages `v` until it is there, which must be at the second call.
async fn staged_by_the_second_call(bench: &Bench) {
    let error = bench.stage("v").await.unwrap_err();
    assert_ne!(code(&error), Code::DataLoss, "{error}");
    bench.stage("v").await.unwrap();
    let volume = bench.read("v").await;
    assert_eq!((volume.phase, volume.epoch), (Phase::Resident, 1));
    let known = bench.node.bills.views(false).await.unwrap().volumes;
    assert!(known.iter().any(|bill| bill.volume_id == "v"), "no bill");
}

#[tokio::test]
async fn memory_whose_record_is_written_after_all_is_not_lost() {
    let bench = lossy();
    bench.volume("v").await;
    staged_by_the_second_call(&bench).await;
}

#[tokio::test]
async fn a_clone_whose_record_is_written_after_all_is_not_lost() {
    let mut bench = lossy();
    let lossy = std::mem::replace(&mut bench.node.catalog, Arc::clone(&bench.catalog));
    let source = bench.volume("source").await.id;
    bench.node.ensure_present(&source, None).await.unwrap();
    fs::write(bench.node.layer_path(&source).join("file"), "content").unwrap();
    let volume = Volume {
        content_source: Some(ContentSource {
            volume_id: source,
            generation: Some(1),
        }),
        ..conformance::volume("v")
    };
    let id = bench.catalog.create(volume).await.unwrap().volume.id;
    bench.node.catalog = lossy;
    staged_by_the_second_call(&bench).await;
    let content = fs::read_to_string(bench.node.layer_path(&id).join("file"));
    assert_eq!(content.unwrap(), "content");
}
