//! Every fail point is passed, and dying there is harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::rpc::Rpc;
use crate::{life, number, sandbox};

/// More than a life has.
const PASSAGES: u64 = 5_000;

/// Schedules that say that the machine has time.
const MANY: u64 = 1_000;

/// The names of all points, from the source.
fn written() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for mark in ["fail_point!(\"", ".step(\""] {
                let after = text.split(mark).skip(1);
                found.extend(after.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    found
}

#[test]
fn a_driver_that_dies_at_any_point_leaves_nothing() {
    if !sandbox::has_fail_points() {
        return;
    }
    let died = Mutex::new(BTreeSet::new());
    let passages = AtomicU64::new(0);
    let points: Vec<_> = written().into_iter().collect();
    // Every passage takes minutes: the first of every point does where not many schedules are asked for.
    let all = number("VINEYARD_SCHEDULES").is_some_and(|many| many >= MANY);
    let firsts = points.len() as u64;
    let count = firsts + if all { PASSAGES } else { 0 };
    sandbox::each(count, |number, folder| {
        let order = match usize::try_from(number).ok().and_then(|it| points.get(it)) {
            Some(point) => format!("kill {point} 1"),
            None => format!("kill * {}", number - firsts + 1),
        };
        let deaths = sandbox::runtime().block_on(life::play(folder, &order));
        // The last passage has been.
        if deaths.is_empty() && number >= firsts {
            return ControlFlow::Break(());
        }
        passages.fetch_max(number + 1, Ordering::Relaxed);
        died.lock().unwrap().extend(deaths.into_keys());
        ControlFlow::Continue(())
    });
    sandbox::run(|folder| {
        let deaths = sandbox::runtime().block_on(expanded_while_it_is_made(folder));
        died.lock().unwrap().extend(deaths.into_keys());
    });
    let (died, passages) = (died.into_inner().unwrap(), passages.into_inner());
    println!("{passages} passages of {} points", died.len());
    // None died where mounting is not possible. Not here: what needs a retainer.
    let mut never = written();
    let elsewhere = ["bill."];
    never.retain(|point| !elsewhere.iter().any(|it| point.starts_with(it)));
    never.retain(|point| !died.contains(point));
    assert!(passages == 0 || never.is_empty(), "never passed: {never:?}");
}

/// Memory that is made while the volume is expanded is taken down again: the driver dies before it is, and again while it
/// finds that memory at its start.
async fn expanded_while_it_is_made(folder: &Path) -> BTreeMap<String, u64> {
    let mut kubelet = Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
    kubelet.create("v", 1 << 20, &[]).await.unwrap();
    kubelet.driver.order("hold layer.mounted 1");
    let channel = kubelet.driver.connect().await;
    let stage = tokio::spawn(kubelet.stage_request("v").send(channel));
    kubelet.driver.held().await;
    kubelet.book("v", 2 << 20).await.unwrap();
    kubelet.driver.order("kill layer.refused 1");
    kubelet.driver.release();
    stage.await.unwrap().unwrap_err();
    assert!(kubelet.driver.spare());
    kubelet.driver.order("kill reconcile.dropped 1");
    kubelet.stage("v").await.unwrap();
    let pod = Kubelet::pod_uid(1);
    kubelet.publish("v", &pod, false).await.unwrap();
    assert_eq!(kubelet.stats("v", &pod).await.unwrap()[0].total, 2 << 20);
    kubelet.unpublish("v", &pod).await;
    kubelet.unstage("v").await;
    kubelet.delete("v").await;
    kubelet.driver.assert_nothing_is_left().await;
    std::mem::take(&mut kubelet.driver.deaths)
}
