use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::volume::catalog::conformance;

/// Lets the n-th step of the next writes fail, as if the process had died there.
#[derive(Debug, Default)]
pub(super) struct Faults {
    countdown: AtomicUsize,
}

impl Directory {
    pub(super) fn step(&self, _: &str) -> io::Result<()> {
        let count = &self.faults.countdown;
        match count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        }) {
            Ok(1) => Err(io::Error::other("died here")),
            _ => Ok(()),
        }
    }
}

fn dying_at(path: &Path, step: usize) -> FileCatalog {
    let catalog = FileCatalog::open(path).unwrap();
    catalog
        .directory
        .faults
        .countdown
        .store(step, Ordering::SeqCst);
    catalog
}

#[tokio::test]
async fn files_keep_the_rules_of_every_catalog() {
    let mut folders = Vec::new();
    conformance::all(|| {
        folders.push(tempfile::tempdir().unwrap());
        FileCatalog::open(folders.last().unwrap().path()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_the_old_record_or_the_new_one() {
    let mut seen_new = 0;
    for step in 1..=6 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let first = FileCatalog::open(path).unwrap();
        let old = first.create(conformance::volume("a")).await.unwrap();
        let mut next = old.volume.clone();
        next.epoch = 7;
        assert!(
            dying_at(path, step)
                .update(&old.version, next)
                .await
                .is_err()
        );
        let reopened = FileCatalog::open(path).unwrap();
        let found = reopened.get(&old.volume.id).await.unwrap();
        assert!(
            found == old || found.volume.epoch == 7,
            "step {step}: {found:?}"
        );
        let listed = reopened.list().await.unwrap().volumes;
        assert_eq!(listed, std::slice::from_ref(&found));
        seen_new += usize::from(found != old);
        // Whatever was left behind, the record can be changed and removed.
        let mut next = found.volume.clone();
        next.epoch = 8;
        let last = reopened.update(&found.version, next).await.unwrap();
        reopened
            .delete(&last.version, &last.volume.id)
            .await
            .unwrap();
    }
    assert_eq!(seen_new, 1, "only the last step is after the rename");
}

#[tokio::test]
async fn a_crash_while_creating_or_removing_leaves_the_record_or_none() {
    for step in 1..=6 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(
            dying_at(path, step)
                .create(conformance::volume("a"))
                .await
                .is_err()
        );
        let reopened = FileCatalog::open(path).unwrap();
        let left = reopened.list().await.unwrap().volumes.len();
        assert_eq!(left, usize::from(step == 6));
    }
    for step in 1..=2 {
        let folder = tempfile::tempdir().unwrap();
        let stored = FileCatalog::open(folder.path()).unwrap();
        let stored = stored.create(conformance::volume("a")).await.unwrap();
        let dying = dying_at(folder.path(), step);
        assert!(
            dying
                .delete(&stored.version, &stored.volume.id)
                .await
                .is_err()
        );
        let left = FileCatalog::open(folder.path())
            .unwrap()
            .list()
            .await
            .unwrap()
            .volumes
            .len();
        assert_eq!(left, usize::from(step == 1));
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_an_error_and_not_a_missing_volume() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = FileCatalog::open(folder.path()).unwrap();
    let stored = catalog.create(conformance::volume("a")).await.unwrap();
    catalog.create(conformance::volume("b")).await.unwrap();
    let path = folder.path().join("a.json");
    let text = fs::read_to_string(&path).unwrap();
    for broken in [
        &text[..text.len() / 2],
        "{}",
        &text.replace("\"a\"", "\"c\""),
        "",
    ] {
        fs::write(&path, broken).unwrap();
        let got = catalog.get(&stored.volume.id).await;
        assert!(matches!(got, Err(Error::Corrupt { .. })), "{got:?}");
        assert!(catalog.create(conformance::volume("a")).await.is_err());
        // The others go on, but nobody books before it is known what this one has booked.
        let listing = catalog.list().await.unwrap();
        assert!(listing.is_corrupt(&stored.volume.id));
        assert_eq!(listing.volumes.len(), 1);
        let mut other = listing.volumes[0].clone();
        other.volume.epoch += 1;
        catalog.update(&other.version, other.volume).await.unwrap();
        for refused in [
            listing.booked(&stored.volume.booked).map(drop),
            catalog.create(conformance::volume("c")).await.map(drop),
        ] {
            let Err(Error::Corrupt { path: named, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(Path::new(&named), path);
        }
    }
    fs::remove_file(&path).unwrap();
    catalog.create(conformance::volume("c")).await.unwrap();
}

#[tokio::test]
async fn two_processes_may_share_the_directory() {
    let folder = tempfile::tempdir().unwrap();
    let one = FileCatalog::open(folder.path()).unwrap();
    let two = FileCatalog::open(folder.path()).unwrap();
    let seen = two.changed(None, Revision::default()).await;
    let stored = one.create(conformance::volume("a")).await.unwrap();
    assert_ne!(two.changed(None, seen).await, seen);
    assert_eq!(two.get(&stored.volume.id).await.unwrap(), stored);
    two.update(&stored.version, stored.volume.clone())
        .await
        .unwrap();
    let stale = one.update(&stored.version, stored.volume.clone()).await;
    assert!(matches!(stale, Err(Error::Conflict(_))));
}
