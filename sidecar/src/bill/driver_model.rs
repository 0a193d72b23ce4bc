//! Random lives of a pod whose grants come from the driver: whoever is killed and whatever answer is lost, the bytes that
//! are charged were granted, and what is spent never falls below them.

use proptest::prelude::*;

use super::*;
use crate::grants::{DriverGrants, Short};

const ALLOWANCE: u64 = 1000;
const CHUNK: u64 = 64;

/// What the kernel charges.
#[derive(Clone, Debug, Default)]
struct Kernel(Arc<Mutex<Charges>>);

#[derive(Debug, Default)]
struct Charges {
    /// The container that the sidecar runs in.
    container: u64,
    /// Containers and bytes.
    files: Vec<(u64, u64)>,
}

impl Kernel {
    fn state(&self) -> MutexGuard<'_, Charges> {
        self.0.lock().unwrap()
    }

    fn truth(&self) -> u64 {
        self.state().files.iter().map(|(_, bytes)| bytes).sum()
    }

    fn here(&self) -> u64 {
        let state = self.state();
        let own = state.files.iter().filter(|(at, _)| *at == state.container);
        own.map(|(_, bytes)| bytes).sum()
    }

    fn allocate(&self, bytes: u64) {
        let mut state = self.state();
        let container = state.container;
        state.files.push((container, bytes));
    }

    fn free(&self, which: usize) -> Option<u64> {
        let mut state = self.state();
        let count = state.files.len();
        (count > 0).then(|| state.files.swap_remove(which % count).1)
    }
}

impl Gauge for Kernel {
    fn at_most(&self, carried: u64) -> Option<u64> {
        Some(self.here() + carried)
    }

    fn at_least(&self, _relevant: u64) -> u64 {
        self.here()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A client reserves; the driver's answer may get lost, the allocation may fail.
    Reserve {
        bytes: u64,
        lost: bool,
        succeeds: bool,
    },
    /// A client frees a file, and says so at once, later, or never.
    Free { which: usize, says: Says },
    /// A late word arrives.
    Arrives,
    /// The driver measures, while one reserve begins before and another one after it has looked.
    Measure { before: u64, after: u64 },
    /// Measured by cgroup.
    Reconcile,
    /// The sidecar is killed: another process, in another container or not.
    Sidecar { container: bool },
}

#[derive(Clone, Copy, Debug)]
enum Says {
    Now,
    Later,
    Never,
}

fn step() -> impl Strategy<Value = Step> {
    let says = prop_oneof![Just(Says::Now), Just(Says::Later), Just(Says::Never)];
    prop_oneof![
        5 => (1..300_u64, any::<bool>(), any::<bool>())
            .prop_map(|(bytes, lost, succeeds)| Step::Reserve { bytes, lost, succeeds }),
        3 => (0..99_usize, says).prop_map(|(which, says)| Step::Free { which, says }),
        1 => Just(Step::Arrives),
        1 => (1..200_u64, 1..200_u64).prop_map(|(before, after)| Step::Measure { before, after }),
        1 => Just(Step::Reconcile),
        1 => any::<bool>().prop_map(|container| Step::Sidecar { container }),
    ]
}

struct Pod {
    kernel: Kernel,
    /// What the driver has on record.
    granted: u64,
    grants: Arc<DriverGrants>,
    bill: Arc<Bill>,
    under_way: Vec<u64>,
}

fn start(kernel: &Kernel, granted: u64) -> (Arc<DriverGrants>, Arc<Bill>) {
    let grants = Arc::new(DriverGrants::default());
    grants.welcome(granted, ALLOWANCE, CHUNK);
    let bill = Bill::new(
        Arc::clone(&grants) as Arc<dyn Grants>,
        Box::new(kernel.clone()),
    );
    (grants, Arc::new(bill))
}

impl Pod {
    /// As the connection to the driver does it.
    fn claim(&mut self, bytes: u64, lost: bool) -> Option<Claim> {
        for _ in 0..3 {
            match self.grants.claim(bytes) {
                Ok(claim) => return Some(claim),
                Err(Short::Beyond) => return None,
                Err(Short::Ask { total }) => {
                    assert!(total <= ALLOWANCE);
                    let rounded = total.div_ceil(CHUNK) * CHUNK;
                    self.granted = self.granted.max(rounded.min(ALLOWANCE));
                    if lost {
                        return None;
                    }
                    self.grants.granted(self.granted, ALLOWANCE);
                }
            }
        }
        panic!("asked and asked again");
    }

    fn reserve(&mut self, bytes: u64) -> Option<Draw> {
        let mut claim = self.claim(bytes, false)?;
        self.bill.draw(bytes, &mut claim).ok()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Reserve {
                bytes,
                lost,
                succeeds,
            } => {
                let Some(mut claim) = self.claim(bytes, lost) else {
                    return;
                };
                if let Ok(draw) = self.bill.draw(bytes, &mut claim)
                    && succeeds
                {
                    self.kernel.allocate(bytes);
                    draw.keep(bytes);
                }
            }
            Step::Free { which, says } => match (self.kernel.free(which), says) {
                (Some(bytes), Says::Now) => drop(self.bill.give_back(bytes)),
                (Some(bytes), Says::Later) => self.under_way.push(bytes),
                _ => {}
            },
            Step::Arrives => {
                if let Some(bytes) = self.under_way.pop() {
                    self.bill.give_back(bytes);
                }
            }
            Step::Measure { before, after } => {
                let first = self.reserve(before);
                let mark = self.bill.mark();
                let seen = self.kernel.truth();
                for (draw, bytes) in [(first, before), (self.reserve(after), after)] {
                    if let Some(draw) = draw {
                        self.kernel.allocate(bytes);
                        draw.keep(bytes);
                    }
                }
                self.bill.measured(mark, seen);
            }
            Step::Reconcile => drop(self.bill.reconcile()),
            Step::Sidecar { container } => {
                // What was under way is lost with the connection.
                self.under_way.clear();
                self.kernel.state().container += u64::from(container);
                (self.grants, self.bill) = start(&self.kernel, self.granted);
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_charged_was_granted_and_counts_as_spent(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let kernel = Kernel::default();
        let (grants, bill) = start(&kernel, 0);
        let mut pod = Pod { kernel, granted: 0, grants, bill, under_way: Vec::new() };
        for step in &steps {
            pod.apply(step);
            let (truth, spent) = (pod.kernel.truth(), pod.bill.usage().spent);
            prop_assert!(truth <= pod.granted && pod.granted <= ALLOWANCE, "{step:?}");
            prop_assert!(spent <= pod.grants.total(), "{step:?}");
            prop_assert!(truth <= spent, "{step:?}: {truth} charged, {spent} spent");
        }
        // Nobody is connected any more: what is measured is what is spent.
        let mark = pod.bill.mark();
        pod.bill.measured(mark, pod.kernel.truth());
        prop_assert!(pod.bill.usage().spent <= pod.kernel.truth());
    }
}
