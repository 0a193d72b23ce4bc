use std::os::fd::OwnedFd;

use vineyard_charge::{Extent, Limit, ReserveError};

use super::stage::{MIB, Stage};
use super::*;
use crate::sockets::Billing;

/// A file of the volume, and an extent of it.
fn file(stage: &Stage, id: &VolumeId, length: u64) -> Vec<(OwnedFd, Extent)> {
    let file = tempfile::tempfile_in(stage.layer(id)).unwrap();
    vec![(file.into(), Extent { offset: 0, length })]
}

#[tokio::test]
async fn the_retainer_reserves_only_what_is_allocated_to_it() {
    let stage = Stage::new(4 * MIB);
    let id = stage.volume("a").await;
    let (pod, _) = stage.pod("1");
    stage.publish(&pod, &id).await;
    let reserve = |bytes| {
        let files = file(&stage, &id, bytes);
        stage.bills.reserve_retained(&pod, files)
    };
    reserve(3 * MIB).await.unwrap();
    assert!(stage.desired() > 3 * MIB, "ahead of need");
    match reserve(2 * MIB).await {
        Err(ReserveError::Full(full)) => {
            assert_eq!((full.asked, full.free), (2 * MIB, MIB));
            assert_eq!((full.limit, full.limit_bytes), (Limit::Allowance, 4 * MIB));
        }
        other => panic!("{other:?}"),
    }
    // What was refused counts no more.
    reserve(MIB).await.unwrap();
}

#[tokio::test]
async fn reserves_at_the_same_time_are_counted_together() {
    let stage = Stage::new(4 * MIB);
    let id = stage.volume("a").await;
    let (pod, _) = stage.pod("1");
    stage.publish(&pod, &id).await;
    let reserve = || async {
        let files = file(&stage, &id, 3 * MIB);
        stage.bills.reserve_retained(&pod, files).await.is_ok()
    };
    let (one, two) = tokio::join!(reserve(), reserve());
    assert!(one != two, "{one} {two}");
}

#[tokio::test]
async fn a_file_on_another_pods_volume_is_refused() {
    let stage = Stage::new(4 * MIB);
    let id = stage.volume("a").await;
    let (pod, _) = stage.pod("1");
    let files = file(&stage, &id, MIB);
    let refused = stage.bills.reserve_retained(&pod, files).await;
    assert!(
        matches!(refused, Err(ReserveError::Refused { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_node_without_a_retainer_reserves_for_nobody_and_moves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mounter: Arc<dyn Mounter> = Arc::new(crate::mount::fake::FakeMounter::default());
    let bills = super::unbilled(folder.path(), "boot", &mounter);
    let pod = PodUid::parse("1").unwrap();
    assert!(bills.reserve_retained(&pod, Vec::new()).await.is_err());
    bills.leaving(&pod, Bytes(MIB)).await.unwrap();
    assert_eq!(bills.inner.request.desired(), Bytes(0));
}
