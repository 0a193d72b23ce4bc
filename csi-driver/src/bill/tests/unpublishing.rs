use std::sync::atomic::Ordering;

use vineyard_charge::CgroupId;

use super::stage::{LONG, MIB, RETAINER, Stage};
use super::*;
use crate::sockets::Billing;

fn wait_long(stage: &mut Stage) {
    Arc::get_mut(&mut stage.bills.inner)
        .expect("nobody else has it yet")
        .settings
        .join = LONG;
}

#[tokio::test]
async fn a_pod_without_a_sidecar_is_handed_over_before_its_unpublish_returns() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let (id, pod, owner) = stage.filled(5 * MIB).await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, owner), 5 * MIB, "while it lives it pays");
    stage.unpublish(&pod, &id).await;
    assert_eq!(stage.billed(&id, RETAINER), 5 * MIB);
    stage
        .eventually("requested", |stage| stage.desired() == 5 * MIB)
        .await;
}

#[tokio::test]
async fn the_request_is_on_record_before_leaving_is_answered_and_the_bytes_follow() {
    let mut stage = Stage::new(1 << 40);
    let id = stage.volume("a").await;
    let (pod, owner) = stage.pod("1");
    let (other, others) = stage.pod("2");
    stage.publish(&pod, &id).await;
    stage.publish(&other, &id).await;
    stage.settled(&id).await;
    stage.put(&id, owner, 5 * MIB);
    stage.put(&id, others, 3 * MIB);
    stage.engine.hold(true);
    stage.bills.leaving(&pod, Bytes(6 * MIB)).await.unwrap();
    assert_eq!(stage.desired(), 6 * MIB, "what was granted");
    // A driver that is killed now finds it again.
    let restarted = {
        stage.engine.hold(false);
        stage.restart();
        &stage
    };
    assert_eq!(restarted.desired(), 6 * MIB);
    let tenants = [&pod, &other].map(|uid| (stage.target(uid, &id), Some(uid.clone()), true));
    stage.bills.resident(&id, tenants.into()).await.unwrap();
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, RETAINER), 5 * MIB);
    assert_eq!(stage.billed(&id, others), 3 * MIB, "a pod that stays pays");
    stage
        .eventually("what it holds", |stage| stage.desired() == 5 * MIB)
        .await;
    stage.unpublish(&pod, &id).await;
    let records = stage.folder.path().join("bill/leaving");
    assert_eq!(fs::read_dir(records).unwrap().count(), 0);
}

#[tokio::test]
async fn a_leaving_pod_that_comes_back_pays_for_what_it_puts_then() {
    let stage = Stage::new(1 << 40);
    let (id, pod, owner) = stage.filled(5 * MIB).await;
    stage.bills.leaving(&pod, Bytes(5 * MIB)).await.unwrap();
    stage.settled(&id).await;
    stage.bills.returned(&pod).await.unwrap();
    stage.bills.returned(&pod).await.unwrap();
    stage.put(&id, owner, 2 * MIB);
    stage.look().await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, RETAINER), 5 * MIB, "what moved stays");
    assert_eq!(stage.billed(&id, owner), 2 * MIB);
}

#[tokio::test]
async fn two_pods_of_one_volume_may_leave_at_once() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let id = stage.volume("a").await;
    let (one, first) = stage.pod("1");
    let (two, second) = stage.pod("2");
    for pod in [&one, &two] {
        stage.publish(pod, &id).await;
    }
    stage.put(&id, first, 5 * MIB);
    stage.put(&id, second, 3 * MIB);
    tokio::join!(stage.unpublish(&one, &id), stage.unpublish(&two, &id));
    assert_eq!(stage.billed(&id, RETAINER), 8 * MIB);
    stage
        .eventually("counted once", |stage| stage.desired() == 8 * MIB)
        .await;
}

#[tokio::test]
async fn what_could_not_be_freed_is_freed_by_another_run_while_pods_have_the_volume() {
    let stage = Stage::new(1 << 40);
    let (id, pod, _) = stage.filled(5 * MIB).await;
    stage.settled(&id).await;
    stage.engine.unfreed.store(MIB, Ordering::SeqCst);
    let before = stage.engine.runs.load(Ordering::SeqCst);
    stage.bills.leaving(&pod, Bytes(5 * MIB)).await.unwrap();
    stage
        .eventually("freed", |stage| {
            stage.engine.runs.load(Ordering::SeqCst) == before + 2
        })
        .await;
    stage.settled(&id).await;
    assert_eq!(stage.desired(), 5 * MIB);
}

#[tokio::test]
async fn a_pod_that_leaves_leaves_all_of_its_volumes() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let (a, b) = (stage.volume("a").await, stage.volume("b").await);
    let (pod, owner) = stage.pod("1");
    for id in [&a, &b] {
        stage.publish(&pod, id).await;
        stage.put(id, owner, 4 * MIB);
    }
    stage.bills.leaving(&pod, Bytes(8 * MIB)).await.unwrap();
    assert_eq!(stage.desired(), 8 * MIB);
    stage.unpublish(&pod, &a).await;
    let record = leaving_path(&stage.bills.inner.settings.records, &pod);
    assert!(record.exists(), "it still has the other one");
    stage.unpublish(&pod, &b).await;
    assert!(!record.exists());
    for id in [&a, &b] {
        assert_eq!(stage.billed(id, RETAINER), 4 * MIB);
    }
}

#[tokio::test]
async fn unpublish_is_bounded_while_the_retainer_is_away_and_the_bytes_follow_when_it_is_back() {
    let stage = Stage::new(1 << 40);
    let (id, pod, owner) = stage.filled(5 * MIB).await;
    stage.engine.away.store(true, Ordering::SeqCst);
    let took = stage.unpublish(&pod, &id).await;
    assert!(took >= stage.bills.inner.settings.join, "{took:?}");
    assert_eq!(stage.billed(&id, owner), 5 * MIB);
    assert_eq!(
        stage.desired(),
        5 * MIB,
        "requested, although nothing has moved"
    );
    {
        let all = stage.bills.inner.accounts();
        assert!(all.volumes[&id].trouble().is_some(), "and listed");
    }
    stage.engine.away.store(false, Ordering::SeqCst);
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, RETAINER), 5 * MIB);
}

#[tokio::test]
async fn unpublish_does_not_wait_for_what_is_done_already() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let (id, pod, _) = stage.filled(5 * MIB).await;
    stage.bills.leaving(&pod, Bytes(5 * MIB)).await.unwrap();
    stage.settled(&id).await;
    // No run ends any more, so an unpublish that waits for one fails this test.
    stage.engine.hold(true);
    let unpublish = stage.unpublish(&pod, &id);
    let in_time = tokio::time::timeout(LONG / 2, unpublish).await;
    stage.engine.hold(false);
    in_time.unwrap();
}

#[tokio::test]
async fn a_pod_to_which_nothing_is_charged_leaves_without_a_survey() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let id = stage.volume("a").await;
    let (pod, _) = stage.pod("1");
    stage.publish(&pod, &id).await;
    stage.settled(&id).await;
    stage.says_shmem(&pod, 0);
    let runs = stage.engine.runs.load(Ordering::SeqCst);
    stage.unpublish(&pod, &id).await;
    stage.settled(&id).await;
    assert_eq!(stage.engine.runs.load(Ordering::SeqCst), runs);
}

#[tokio::test]
async fn a_pod_that_a_survey_has_found_to_pay_is_handed_over_although_the_kernels_sum_lags() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let (id, pod, owner) = stage.filled(4096).await;
    stage.look().await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, owner), 4096);
    stage.says_shmem(&pod, 0);
    stage.unpublish(&pod, &id).await;
    assert_eq!(stage.billed(&id, RETAINER), 4096);
}

#[tokio::test]
async fn another_pod_that_is_the_retainer_takes_over_from_the_first() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let (id, pod, _) = stage.filled(5 * MIB).await;
    stage.unpublish(&pod, &id).await;
    stage.settled(&id).await;
    let other = CgroupId(8);
    *stage.engine.other.lock().unwrap() = Some(other);
    stage.look().await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, other), 5 * MIB);
    assert_eq!(stage.billed(&id, RETAINER), 0);
    stage
        .eventually("requested", |stage| stage.desired() == 5 * MIB)
        .await;
}

#[tokio::test]
async fn another_pod_that_is_the_retainer_is_noticed_long_before_the_next_look() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let inner = Arc::get_mut(&mut stage.bills.inner).unwrap();
    inner.settings.look = LONG * 60;
    let (id, pod, _) = stage.filled(5 * MIB).await;
    stage.unpublish(&pod, &id).await;
    stage.settled(&id).await;
    let watching = tokio::spawn(stage.bills.clone().watch());
    // The first one has to be known.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let other = CgroupId(8);
    *stage.engine.other.lock().unwrap() = Some(other);
    stage
        .eventually("handed over", |stage| stage.billed(&id, other) == 5 * MIB)
        .await;
    watching.abort();
}

#[tokio::test]
async fn a_run_that_counts_on_nobody_writing_ends_before_somebody_may() {
    let stage = Stage::new(1 << 40);
    let id = stage.volume("a").await;
    stage.settled(&id).await;
    stage.put(&id, CgroupId::ROOT, 5 * MIB);
    stage.engine.hold(true);
    let is_running = || {
        let all = stage.bills.inner.accounts();
        all.volumes[&id].running().is_some_and(|it| it.exclusive)
    };
    // Not at once, when the last survey has taken long.
    let begin = Instant::now();
    while !is_running() {
        assert!(begin.elapsed() < LONG, "never a run");
        stage.look().await;
    }
    let (reader, _) = stage.pod("1");
    let target = stage.target(&reader, &id);
    let read_only = stage.bills.published(&id, &target, Some(reader), false);
    read_only.await.unwrap();
    assert!(
        stage.bills.inner.accounts().volumes[&id]
            .running()
            .is_some_and(|it| !it.progress.is_stopped()),
        "a reader disturbs nobody"
    );
    let (writer, _) = stage.pod("2");
    stage.publish(&writer, &id).await;
    {
        let all = stage.bills.inner.accounts();
        assert!(all.volumes[&id].running().is_none_or(|it| !it.exclusive));
    }
    stage.engine.hold(false);
    stage.settled(&id).await;
    assert!(!stage.engine.exclusive.load(Ordering::SeqCst));
    assert_eq!(stage.billed(&id, RETAINER), 5 * MIB);
}

#[tokio::test]
async fn a_volume_that_is_deleted_is_let_go_of_and_asked_for_no_more() {
    let stage = Stage::new(1 << 40);
    let (id, pod, _) = stage.filled(5 * MIB).await;
    stage.engine.hold(true);
    stage.unpublish(&pod, &id).await;
    assert_eq!(stage.desired(), 5 * MIB);
    stage.bills.halt(&id).await.unwrap();
    let runs = stage.engine.runs.load(Ordering::SeqCst);
    stage.look().await;
    assert_eq!(stage.engine.runs.load(Ordering::SeqCst), runs, "halted");
    // The unmount failed: it goes on.
    stage.engine.hold(false);
    stage.bills.resume(&id);
    stage.settled(&id).await;
    stage.bills.halt(&id).await.unwrap();
    stage.bills.dropped(&id).await;
    assert_eq!(stage.desired(), 0);
    let records = stage.folder.path().join("bill/volumes");
    assert_eq!(fs::read_dir(records).unwrap().count(), 0);
}

#[tokio::test]
async fn a_pod_whose_cgroup_is_gone_is_handed_over_without_a_call() {
    let stage = Stage::new(1 << 40);
    let (id, pod, owner) = stage.filled(5 * MIB).await;
    stage.look().await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, owner), 5 * MIB);
    stage.remove_cgroup(&pod);
    stage.bills.start().await;
    stage
        .eventually("handed over", |stage| stage.billed(&id, RETAINER) > 0)
        .await;
}

#[tokio::test]
async fn the_request_follows_bytes_that_go() {
    let stage = Stage::new(1 << 40);
    let (id, pod, _) = stage.filled(5 * MIB).await;
    stage.unpublish(&pod, &id).await;
    stage.settled(&id).await;
    stage.clear(&id);
    stage.look().await;
    assert_eq!(stage.desired(), 0);
}

#[tokio::test]
async fn a_pod_that_nobody_can_name_keeps_its_bytes_and_keeps_nobody_elses() {
    let mut stage = Stage::new(1 << 40);
    wait_long(&mut stage);
    let (id, pod, owner) = stage.filled(5 * MIB).await;
    let (living, stays) = stage.pod("2");
    stage.publish(&living, &id).await;
    stage.put(&id, stays, MIB);
    let target = stage.folder.path().join("target");
    let published = stage.bills.published(&id, &target, None, true);
    published.await.unwrap();
    let nameless = CgroupId(4711);
    stage.put(&id, nameless, 3 * MIB);
    // What pods left that are gone.
    let above = stage.above();
    stage.put(&id, above, 2 * MIB);
    stage.unpublish(&pod, &id).await;
    assert_eq!(stage.billed(&id, owner), 0);
    assert_eq!(stage.billed(&id, RETAINER), 7 * MIB);
    assert_eq!(stage.billed(&id, nameless), 3 * MIB, "nobody knows");
    assert_eq!(stage.billed(&id, stays), MIB);
    stage.bills.before_unpublish(&id, &target).await;
    stage.bills.after_unpublish(&id, &target).await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, RETAINER), 10 * MIB);
    assert_eq!(stage.billed(&id, stays), MIB);
}

#[tokio::test]
async fn a_restarted_containers_bytes_stay_its_pods_while_the_kernel_still_names_it() {
    let stage = Stage::new(1 << 40);
    let (id, pod, owner) = stage.filled(5 * MIB).await;
    stage.look().await;
    stage.settled(&id).await;
    stage.restart_container(&pod);
    // Something calls for a run just then.
    let (other, others) = stage.pod("2");
    stage.publish(&other, &id).await;
    stage.put(&id, others, MIB);
    stage.unpublish(&other, &id).await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, RETAINER), MIB);
    assert_eq!(stage.billed(&id, owner), 5 * MIB, "its pod lives");
    // With its pod it goes at once.
    stage.unpublish(&pod, &id).await;
    stage.settled(&id).await;
    assert_eq!(stage.billed(&id, RETAINER), 6 * MIB);
}
