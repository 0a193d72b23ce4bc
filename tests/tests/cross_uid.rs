//! Client, sidecar and reader are three users. All clients run with umask 077.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vineyard_store::{Options, Volume};
use vineyard_tests::account::{Account, create, done, get, put, put_refused, remove};
use vineyard_tests::commands::{Answer, Cause, Command, Content};
use vineyard_tests::inspect::Shown;
use vineyard_tests::pod::{PodSettings, World};
use vineyard_tests::skip_unless_possible;
use vineyard_tests::watchdog::test_deadline;

const CLIENT: &str = env!("CARGO_BIN_EXE_vineyard-test-client");
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn an_object_belongs_to_the_client_and_its_bytes_to_the_sidecars_bill() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let world = World::new(64 * MIB, CLIENT)?;
    let settings = PodSettings::new("pod", 1);
    let (client, sidecar) = (settings.client_uid, settings.sidecar_uid);
    ensure!(client != sidecar, "one user is no test");
    let mut pod = world.started(settings)?;
    let mut account = Account::open(&world)?;
    account.ahead(MIB);
    for len in [0, 100, 100_000, 3 * MIB] {
        put(
            &mut pod,
            &format!("deep/down/put-{len}"),
            Content::new(1, len),
        )?;
        create(
            &mut pod,
            1,
            &format!("deep/down/create-{len}"),
            Content::new(2, len),
        )?;
        account.add(pod.sidecar_cgroup().id(), len);
        account.add(pod.sidecar_cgroup().id(), len);
    }
    account.check(&world)?;
    for object in fs::read_dir(world.volume().join(".vineyard/objects"))? {
        let metadata = object?.metadata()?;
        ensure!(
            metadata.uid() == client,
            "an object of user {}",
            metadata.uid()
        );
        ensure!(
            metadata.mode() & 0o7777 == 0o444,
            "mode {:o}",
            metadata.mode()
        );
    }
    for directory in ["deep", "deep/down", ".vineyard", ".vineyard/objects"] {
        let mode = fs::metadata(world.volume().join(directory))?
            .permissions()
            .mode()
            & 0o7777;
        ensure!(mode == 0o777, "{directory} has mode {mode:o}");
    }
    Ok(())
}

#[test]
fn everybody_reads_re_points_and_removes_what_another_user_put() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, [mut one, mut two], mut account) = World::with_pods(64 * MIB, CLIENT)?;
    let driver = Arc::new(Volume::open(world.volume(), Options::default())?);
    account.ahead(MIB);
    let (first, second) = (one.sidecar_cgroup().id(), two.sidecar_cgroup().id());
    for len in [3, 70_000, 3 * MIB] {
        put(&mut one, "a/name", Content::new(1, len))?;
        account.add(first, len);
        for shared in [false, true] {
            get(&mut two, "a/name", Content::new(1, len), shared, None)?;
        }
        account.check(&world)?;
        // Re-pointed by the other user: the old object goes, at the latest when the driver sweeps.
        put(&mut two, "a/name", Content::new(2, len))?;
        driver.sweep()?;
        account.take(first, len)?;
        account.add(second, len);
        account
            .check(&world)
            .with_context(|| format!("{len} re-pointed"))?;
        get(&mut one, "a/name", Content::new(2, len), false, None)?;
        remove(&mut one, "a/name")?;
        driver.sweep()?;
        account.take(second, len)?;
        account
            .check(&world)
            .with_context(|| format!("{len} removed"))?;
    }
    Ok(())
}

#[test]
fn what_was_removed_is_freed_when_its_owner_or_another_user_needs_room() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (_world, [mut one, mut two], _) = World::with_pods(32 * MIB, CLIENT)?;
    for round in 0..3 {
        put(&mut one, "large", Content::new(round, 20 * MIB)).context("by its owner")?;
        remove(&mut two, "large")?;
    }
    put(&mut two, "large", Content::new(9, 20 * MIB)).context("by another user")?;
    get(&mut one, "large", Content::new(9, 20 * MIB), false, Some(1))?;
    // Mapped, it is not freed for anybody, and stays as it is.
    remove(&mut one, "large")?;
    for pod in [&mut one, &mut two] {
        put_refused(pod, Content::new(10, 20 * MIB), Cause::Volume)?;
    }
    done(&mut one, &Command::Check { view: 1 })?;
    done(&mut one, &Command::Release { view: 1 })?;
    put(&mut one, "large", Content::new(11, 20 * MIB)).context("after the last view")
}

#[test]
fn nobody_writes_to_a_sealed_object_of_another_user() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, [mut one, mut two], _) = World::with_pods(64 * MIB, CLIENT)?;
    let object = Content::new(1, 3 * MIB);
    put(&mut one, "object", object)?;
    let shown = Shown::scan(world.volume())?;
    let path = format!(".vineyard/objects/{}", shown.names["object"]);
    for pod in [&mut one, &mut two] {
        // As an ordinary program would, through its path and through its name.
        for name in [path.clone(), "object".to_owned()] {
            match pod.call(&Command::Plain {
                name,
                content: Content::new(2, 10),
            })? {
                Answer::Wrong(why) => ensure!(why.contains("denied"), "{why}"),
                other => bail!("a sealed object was written to: {other:?}"),
            }
        }
    }
    get(&mut two, "object", object, false, None)
}

#[test]
fn a_stale_name_of_a_removed_object_is_not_found_by_the_other_user() -> Result<()> {
    skip_unless_possible!();
    let _limit = test_deadline(LIMIT);
    let (world, [mut one, mut two], _) = World::with_pods(64 * MIB, CLIENT)?;
    let object = Content::new(1, 100_000);
    put(&mut one, "object", object)?;
    done(&mut two, &Command::Sweep)?;
    let shown = Shown::scan(world.volume())?;
    let order = Command::RemoveObject {
        object: shown.names["object"].clone(),
    };
    ensure!(
        two.call(&order)? == Answer::Count(1),
        "the object is not removed"
    );
    let name = "object".to_owned();
    let order = Command::Get {
        name,
        content: object,
        shared: false,
        view: None,
    };
    match one.call(&order)? {
        Answer::Failed(failure) if failure.cause == Cause::Absent => Ok(()),
        other => bail!("a lost name: {other:?}"),
    }
}
