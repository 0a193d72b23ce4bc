use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::book::tests::{bill, pod};
use super::*;

const CHUNK: u64 = 64;

fn granter(folder: &Path) -> Granter {
    Granter {
        book: Arc::new(Book::open(folder, "boot-1").unwrap()),
        rule: Box::new(StandaloneRule),
        chunk: Bytes(CHUNK),
    }
}

fn claim(name: &str, capacity: u64, is_fresh: bool, others: &[&str]) -> WritableClaim {
    WritableClaim {
        id: VolumeId::of_name(name),
        capacity: Bytes(capacity),
        is_fresh,
        others: others.iter().map(|uid| pod(uid)).collect(),
    }
}

/// The allowance of a pod with these claims, when its sockets volume says `writes`.
async fn allowance(writes: Option<u64>, claims: &[WritableClaim]) -> Option<u64> {
    let folder = tempfile::tempdir().unwrap();
    let granter = granter(folder.path());
    let writes = writes.map(Bytes);
    granter
        .book
        .add(PodBill {
            writes,
            ..bill("me")
        })
        .unwrap();
    let decided = granter.decide(&pod("me"), claims).await.unwrap();
    decided.allowance.map(|bytes| bytes.0)
}

#[tokio::test]
async fn the_allowance_is_what_is_asked_for_or_the_volumes_that_the_pod_alone_fills() {
    let fresh = claim("fresh", 100, true, &[]);
    let filled = claim("filled", 1000, false, &[]);
    let shared = claim("shared", 10_000, false, &["you"]);
    assert_eq!(allowance(None, &[]).await, None);
    assert_eq!(allowance(Some(7), &[]).await, None);
    let all = [fresh.clone(), filled.clone(), shared];
    assert_eq!(allowance(None, &all).await, Some(100));
    assert_eq!(allowance(Some(7), &all).await, Some(7));
    assert_eq!(
        allowance(Some(0), std::slice::from_ref(&fresh)).await,
        Some(0)
    );
    assert_eq!(
        allowance(None, std::slice::from_ref(&filled)).await,
        Some(0)
    );
    // Never more than what is booked.
    assert_eq!(allowance(Some(5000), &[fresh, filled]).await, Some(1100));
}

#[tokio::test]
async fn pods_that_share_a_volume_are_never_allowed_more_than_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let granter = granter(folder.path());
    for (uid, writes) in [("a", 60), ("b", 60), ("c", 60)] {
        let writes = Some(Bytes(writes));
        granter
            .book
            .add(PodBill {
                writes,
                ..bill(uid)
            })
            .unwrap();
    }
    let shared = claim("shared", 100, true, &["a", "b", "c"]);
    let mut decided = Vec::new();
    for uid in ["a", "b", "c"] {
        let claims = std::slice::from_ref(&shared);
        let bill = granter.decide(&pod(uid), claims).await.unwrap();
        decided.push(bill.allowance.unwrap().0);
    }
    assert_eq!(decided, [60, 40, 0]);
}

#[tokio::test]
async fn a_decided_allowance_stays() {
    let folder = tempfile::tempdir().unwrap();
    let granter = granter(folder.path());
    granter.book.add(bill("me")).unwrap();
    let one = claim("one", 100, true, &[]);
    let first = granter.decide(&pod("me"), &[one]).await.unwrap();
    let two = claim("one", 100, false, &["you"]);
    assert_eq!(granter.decide(&pod("me"), &[two]).await.unwrap(), first);
}

/// What happens to the driver and to the sidecars of two pods that share a volume.
#[derive(Clone, Debug)]
enum Step {
    /// A sidecar wants more than it has; the answer may get lost.
    Grant { pod: usize, more: u64, lost: bool },
    /// A sidecar repeats what it asked for last.
    Repeat { pod: usize },
    /// A sidecar starts anew: it knows nothing but what the driver says.
    Sidecar { pod: usize },
    /// The driver is killed; `torn` leaves half a write.
    Driver { torn: bool },
    /// The sidecar leaves, and may come back.
    Leave { pod: usize, comes_back: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let pod = 0..2_usize;
    prop_oneof![
        5 => (pod.clone(), 1..200_u64, any::<bool>())
            .prop_map(|(pod, more, lost)| Step::Grant { pod, more, lost }),
        2 => pod.clone().prop_map(|pod| Step::Repeat { pod }),
        1 => pod.clone().prop_map(|pod| Step::Sidecar { pod }),
        2 => any::<bool>().prop_map(|torn| Step::Driver { torn }),
        1 => (pod, any::<bool>())
            .prop_map(|(pod, comes_back)| Step::Leave { pod, comes_back }),
    ]
}

/// What a sidecar believes.
#[derive(Debug, Default)]
struct Sidecar {
    granted: u64,
    asked: u64,
}

proptest! {
    #[test]
    fn no_kill_and_no_repetition_grants_anything_twice(
        steps in prop::collection::vec(step(), 1..80),
        writes in prop::array::uniform2(0..1500_u64),
        capacity in 0..2000_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let pods = [pod("a"), pod("b")];
        let shared = claim("shared", capacity, true, &["a", "b"]);
        let mut driver = granter(folder.path());
        for (uid, writes) in pods.iter().zip(writes) {
            let writes = Some(Bytes(writes));
            driver.book.add(PodBill { writes, ..bill(uid.as_str()) }).unwrap();
            runtime.block_on(driver.decide(uid, std::slice::from_ref(&shared))).unwrap();
        }
        let mut sidecars: [Sidecar; 2] = Default::default();
        // The most that a sidecar was ever told, and the sum of the different grants that it was told of.
        let mut told: BTreeMap<usize, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Grant { pod, more, lost } => {
                    let total = sidecars[pod].granted + more;
                    sidecars[pod].asked = total;
                    let answer = driver.grant(&pods[pod], Bytes(total)).unwrap();
                    if let (Granting::Granted(granted), false) = (answer, lost) {
                        prop_assert!(granted.0 >= total);
                        sidecars[pod].granted = granted.0;
                    }
                }
                Step::Repeat { pod } => {
                    let before = driver.book.get(&pods[pod]).unwrap().granted;
                    let total = Bytes(sidecars[pod].asked);
                    let first = driver.grant(&pods[pod], total).unwrap();
                    prop_assert_eq!(driver.grant(&pods[pod], total).unwrap(), first);
                    if let Granting::Granted(granted) = first {
                        sidecars[pod].granted = granted.0;
                        prop_assert!(granted >= before);
                    }
                }
                Step::Sidecar { pod } => {
                    let bill = driver.readmit(&pods[pod], Bytes(0), false).unwrap();
                    sidecars[pod] = Sidecar { granted: bill.granted.0, asked: 0 };
                }
                Step::Driver { torn } => {
                    let before = driver.book.all();
                    if torn {
                        std::fs::write(folder.path().join("a.new"), "{\"podUid\":").unwrap();
                    }
                    driver = granter(folder.path());
                    prop_assert_eq!(driver.book.all(), before);
                    for (pod, sidecar) in pods.iter().zip(&sidecars) {
                        let spent = Bytes(sidecar.granted);
                        driver.readmit(pod, spent, false).unwrap();
                    }
                }
                Step::Leave { pod, comes_back } => {
                    let at_most = driver.leave(&pods[pod]).unwrap();
                    prop_assert!(at_most.0 >= sidecars[pod].granted);
                    if comes_back {
                        let spent = Bytes(sidecars[pod].granted);
                        let bill = driver.readmit(&pods[pod], spent, false).unwrap();
                        prop_assert_eq!(bill.leaving, None);
                    }
                }
            }
            let mut sum = 0;
            for (index, pod) in pods.iter().enumerate() {
                let bill = driver.book.get(pod).unwrap();
                let most = told.entry(index).or_default();
                *most = sidecars[index].granted.max(*most);
                // The record is at least what anybody was told, and never above the allowance.
                prop_assert!(bill.granted.0 >= *most);
                prop_assert!(bill.granted <= bill.allowance.unwrap());
                sum += bill.granted.0;
            }
            prop_assert!(sum <= capacity);
        }
    }
}
