//! A change that is on record although the catalog said something else: an answer was lost.

use std::sync::Mutex;

use tonic::async_trait;

use super::*;
use crate::volume::catalog::{Error as CatalogError, ResourceVersion, Revision, Stored};
use crate::volume::{ContentSource, Listing, NodeReport, Tombstone};

/// What becomes, once, of the change that makes a volume resident.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// It is written, and nobody hears of it.
    Lost,
    /// It is written, and asked for again, which meets itself.
    Repeated,
    /// It is written only just before the next change.
    Late,
}

const ALL: [Trouble; 3] = [Trouble::Lost, Trouble::Repeated, Trouble::Late];

#[derive(Debug)]
struct Troubled {
    inner: Arc<dyn Catalog>,
    trouble: Mutex<Option<Trouble>>,
    late: Mutex<Option<(ResourceVersion, Volume)>>,
}

impl Troubled {
    async fn swap(
        &self,
        version: &ResourceVersion,
        volume: Volume,
    ) -> Result<Stored, CatalogError> {
        let late = self.late.lock().unwrap().take();
        if let Some((version, volume)) = late {
            let _ = self.inner.update(&version, volume).await;
        }
        let id = volume.id.clone();
        let trouble = match volume.phase {
            Phase::Resident => self.trouble.lock().unwrap().take(),
            _ => None,
        };
        let unheard = CatalogError::Storage {
            doing: "update".into(),
            source: std::io::ErrorKind::TimedOut.into(),
        };
        match trouble {
            None => self.inner.update(version, volume).await,
            Some(Trouble::Lost) => {
                self.inner.update(version, volume).await?;
                Err(unheard)
            }
            Some(Trouble::Repeated) => {
                self.inner.update(version, volume).await?;
                Err(CatalogError::Conflict(id))
            }
            Some(Trouble::Late) => {
                *self.late.lock().unwrap() = Some((version.clone(), volume));
                Err(unheard)
            }
        }
    }
}

#[async_trait]
impl Catalog for Troubled {
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
        self.swap(version, volume).await
    }

    async fn book(
        &self,
        version: Option<&ResourceVersion>,
        volume: Volume,
        _budget: Bytes,
    ) -> Result<Stored, CatalogError> {
        self.swap(version.unwrap(), volume).await
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

/// A node whose volume `v` will have this trouble.
fn begin(mut bench: Bench, trouble: Trouble) -> Bench {
    bench.node.catalog = Arc::new(Troubled {
        inner: Arc::clone(&bench.catalog),
        trouble: Mutex::new(Some(trouble)),
        late: Mutex::default(),
    });
    bench
}

/// Stages `v`, as often as kubelet would.
async fn is_staged_in_the_end(bench: &Bench, what: &str) {
    let mut calls = 0;
    while let Err(error) = bench.stage("v").await {
        calls += 1;
        assert!(
            code(&error) != Code::DataLoss && calls < 4,
            "{what}: {error}"
        );
    }
    let volume = bench.read("v").await;
    assert_eq!((volume.phase, volume.epoch), (Phase::Resident, 1), "{what}");
    let known = bench.node.bills.views(false).await.unwrap().volumes;
    assert!(
        known.iter().any(|bill| bill.volume_id == "v"),
        "{what}: no bill"
    );
}

/// A volume with a file, and `v`, its clone.
async fn with_a_clone() -> Bench {
    let bench = Bench::new();
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
    bench.catalog.create(volume).await.unwrap();
    bench
}

fn content(bench: &Bench) -> String {
    let layer = bench.node.layer_path(&VolumeId::of_name("v"));
    fs::read_to_string(layer.join("file")).unwrap()
}

#[tokio::test]
async fn memory_whose_record_is_written_after_all_is_not_lost() {
    for trouble in ALL {
        let bench = begin(Bench::new(), trouble);
        bench.volume("v").await;
        is_staged_in_the_end(&bench, &format!("{trouble:?}")).await;
    }
}

#[tokio::test]
async fn a_clone_whose_record_is_written_after_all_is_not_lost() {
    for trouble in ALL {
        let bench = begin(with_a_clone().await, trouble);
        is_staged_in_the_end(&bench, &format!("{trouble:?}")).await;
        assert_eq!(content(&bench), "content", "{trouble:?}");
    }
}

#[tokio::test]
async fn a_clone_that_is_on_record_stays_when_its_bill_cannot_be_written() {
    let bench = with_a_clone().await;
    let in_the_way = bench.folder.path().join("bill/volumes/v.tmp");
    fs::create_dir_all(&in_the_way).unwrap();
    bench.stage("v").await.unwrap_err();
    fs::remove_dir(in_the_way).unwrap();
    is_staged_in_the_end(&bench, "its bill").await;
    assert_eq!(content(&bench), "content");
}
