//! Random lives of a pod against what the kernel really charges: nothing is spent twice, nothing leaks for ever.

use std::mem;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::grants::{Place, StateFile, StaticAllowance};

const ALLOWANCE: u64 = 1000;
const CHUNK: u64 = 64;

/// The kernel's view: allocations with the cgroup that each is charged to.
#[derive(Clone, Debug, Default)]
struct Kernel(Arc<Mutex<Charges>>);

#[derive(Debug, Default)]
struct Charges {
    cgroup: u64,
    files: Vec<(u64, u64)>,
    others_on_the_volume: u64,
}

impl Kernel {
    fn charges(&self) -> MutexGuard<'_, Charges> {
        self.0.lock().unwrap()
    }

    fn truth(&self) -> u64 {
        self.charges().files.iter().map(|(_, bytes)| bytes).sum()
    }

    fn here(&self) -> u64 {
        let charges = self.charges();
        let own = charges.files.iter().filter(|(at, _)| *at == charges.cgroup);
        own.map(|(_, bytes)| bytes).sum()
    }

    fn allocate(&self, bytes: u64) {
        let mut charges = self.charges();
        let cgroup = charges.cgroup;
        charges.files.push((cgroup, bytes));
    }

    /// Frees one file; returns its bytes.
    fn free(&self, which: usize) -> Option<u64> {
        let mut charges = self.charges();
        if charges.files.is_empty() {
            return None;
        }
        let which = which % charges.files.len();
        Some(charges.files.swap_remove(which).1)
    }
}

impl Gauge for Kernel {
    fn at_most(&self, carried: u64) -> Option<u64> {
        let held = self.truth() + self.charges().others_on_the_volume;
        Some((self.here() + carried).min(held))
    }

    fn at_least(&self, _relevant: u64) -> u64 {
        self.here()
    }
}

/// What happens next. Sizes are in bytes, files are chosen by number.
#[derive(Clone, Debug)]
enum Step {
    /// A client reserves; the payer succeeds, or fails and undoes.
    Reserve { bytes: u64, succeeds: bool },
    /// A second client reserves while the first reserve is being allocated.
    Overlap { first: u64, second: u64 },
    /// A client frees a file and says so, at once or later.
    GiveBack { which: usize, late: bool },
    /// A late word arrives.
    Arrives,
    /// A client dies, or another pod removes an object: nobody says anything.
    Vanishes { which: usize },
    /// The volume gains or loses bytes that others are billed for.
    Others { bytes: u64 },
    /// A connection ended a while ago.
    Reconcile,
    /// The sidecar is killed, or its whole container.
    Crash { container: bool },
    /// An orderly restart.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..300_u64, any::<bool>()).prop_map(|(bytes, succeeds)| Step::Reserve { bytes, succeeds }),
        1 => (1..300_u64, 1..300_u64).prop_map(|(first, second)| Step::Overlap { first, second }),
        3 => (0..99_usize, any::<bool>()).prop_map(|(which, late)| Step::GiveBack { which, late }),
        2 => Just(Step::Arrives),
        1 => (0..99_usize).prop_map(|which| Step::Vanishes { which }),
        1 => (0..2000_u64).prop_map(|bytes| Step::Others { bytes }),
        2 => Just(Step::Reconcile),
        1 => any::<bool>().prop_map(|container| Step::Crash { container }),
        1 => Just(Step::Restart),
    ]
}

struct Pod<'a> {
    kernel: Kernel,
    state: &'a Path,
    bill: Arc<Bill>,
    /// Words that are under way; they are lost with the connection.
    under_way: Vec<u64>,
}

fn start(kernel: &Kernel, state: &Path) -> Arc<Bill> {
    let place = Place {
        boot_id: "boot".into(),
        cgroup: kernel.charges().cgroup,
    };
    let file = StateFile::new(state);
    let grants = StaticAllowance::recorded(ALLOWANCE, file, CHUNK, place).unwrap();
    let bill = Arc::new(Bill::new(Arc::new(grants), Box::new(kernel.clone())));
    bill.reconcile();
    bill
}

impl Pod<'_> {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Reserve { bytes, succeeds } => {
                if let Ok(draw) = self.bill.draw(bytes, &mut Claim::default())
                    && succeeds
                {
                    self.kernel.allocate(bytes);
                    draw.keep(bytes);
                }
            }
            Step::Overlap { first, second } => {
                let Ok(draw) = self.bill.draw(first, &mut Claim::default()) else {
                    return;
                };
                if let Ok(other) = self.bill.draw(second, &mut Claim::default()) {
                    self.kernel.allocate(second);
                    other.keep(second);
                }
                self.bill.reconcile();
                self.kernel.allocate(first);
                draw.keep(first);
            }
            Step::GiveBack { which, late } => match self.kernel.free(which) {
                Some(bytes) if late => self.under_way.push(bytes),
                Some(bytes) => drop(self.bill.give_back(bytes)),
                None => {}
            },
            Step::Arrives => {
                if let Some(bytes) = self.under_way.pop() {
                    self.bill.give_back(bytes);
                }
            }
            Step::Vanishes { which } => drop(self.kernel.free(which)),
            Step::Others { bytes } => self.kernel.charges().others_on_the_volume = bytes,
            Step::Reconcile => {
                self.bill.reconcile();
                let most = self.kernel.at_most(self.bill.usage().carried);
                assert!(Some(self.bill.usage().spent) <= most);
            }
            Step::Crash { container } => {
                self.under_way.clear();
                if container {
                    self.kernel.charges().cgroup += 1;
                }
                mem::forget(mem::replace(
                    &mut self.bill,
                    start(&self.kernel, self.state),
                ));
            }
            Step::Restart => {
                self.under_way.clear();
                let nobody = Arc::new(Bill::new(
                    Arc::new(StaticAllowance::new(0)),
                    Box::new(self.kernel.clone()),
                ));
                drop(mem::replace(&mut self.bill, nobody));
                self.bill = start(&self.kernel, self.state);
            }
        }
    }
}

proptest! {
    #[test]
    fn spent_is_never_below_the_truth_and_comes_down_to_it(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let state = folder.path().join("spent");
        let kernel = Kernel::default();
        kernel.charges().cgroup = 1;
        let bill = start(&kernel, &state);
        let mut pod = Pod { kernel: kernel.clone(), state: &state, bill, under_way: Vec::new() };
        for step in steps {
            pod.apply(step);
            let (usage, truth) = (pod.bill.usage(), kernel.truth());
            prop_assert!(usage.spent >= truth, "{usage:?} below {truth}");
            prop_assert!(usage.spent <= ALLOWANCE);
            prop_assert!(usage.carried <= usage.spent);
        }
        kernel.charges().files.clear();
        kernel.charges().others_on_the_volume = 0;
        pod.bill.reconcile();
        prop_assert_eq!(pod.bill.usage().spent, 0);
        prop_assert!(pod.bill.draw(ALLOWANCE, &mut Claim::default()).is_ok());
    }
}
