use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::grants::StaticAllowance;

/// A kernel that charges exactly what the test says.
#[derive(Debug, Clone, Default)]
struct Kernel {
    charged: Arc<AtomicU64>,
    blind: bool,
}

impl Kernel {
    fn set(&self, bytes: u64) {
        self.charged.store(bytes, Ordering::Relaxed);
    }
}

impl Gauge for Kernel {
    fn at_most(&self, carried: u64) -> Option<u64> {
        (!self.blind).then(|| self.charged.load(Ordering::Relaxed) + carried)
    }

    fn at_least(&self, _relevant: u64) -> u64 {
        if self.blind {
            0
        } else {
            self.charged.load(Ordering::Relaxed)
        }
    }
}

fn bill(allowance: u64, kernel: &Kernel) -> Arc<Bill> {
    let grants = Arc::new(StaticAllowance::new(allowance));
    Arc::new(Bill::new(grants, Box::new(kernel.clone())))
}

#[test]
fn an_undone_draw_is_free_again_and_a_kept_one_is_not() {
    let kernel = Kernel::default();
    let bill = bill(100, &kernel);
    drop(bill.draw(60, &mut Claim::default()).unwrap());
    assert_eq!(bill.usage().spent, 0);
    bill.draw(60, &mut Claim::default()).unwrap().keep(60);
    kernel.set(60);
    assert_eq!(bill.usage().spent, 60);
    bill.draw(40, &mut Claim::default()).unwrap().keep(10);
    assert_eq!(bill.usage().spent, 70);
}

#[test]
fn what_a_dead_client_held_is_found_before_anybody_hears_full() {
    let kernel = Kernel::default();
    let bill = bill(100, &kernel);
    bill.draw(90, &mut Claim::default()).unwrap().keep(90);
    kernel.set(20);
    bill.draw(80, &mut Claim::default()).unwrap().keep(80);
    assert_eq!(bill.usage().spent, 100);
}

#[test]
fn bytes_in_flight_are_not_taken_for_a_leak() {
    let kernel = Kernel::default();
    let bill = bill(100, &kernel);
    let draw = bill.draw(70, &mut Claim::default()).unwrap();
    assert_eq!(bill.reconcile(), 0);
    assert!(bill.draw(40, &mut Claim::default()).is_err());
    draw.keep(70);
}

#[test]
fn a_late_give_back_of_corrected_bytes_does_not_count_twice() {
    let kernel = Kernel::default();
    let bill = bill(100, &kernel);
    bill.draw(80, &mut Claim::default()).unwrap().keep(80);
    kernel.set(50);
    assert_eq!(bill.reconcile(), 30);
    assert!(bill.give_back(30));
    assert_eq!(bill.usage().spent, 50);
    assert!(!bill.give_back(10));
    assert_eq!(bill.usage().spent, 40);
}

#[test]
fn what_the_retainer_reserved_frees_nothing_here_when_it_is_given_back() {
    let kernel = Kernel::default();
    let bill = bill(100, &kernel);
    bill.draw(100, &mut Claim::default()).unwrap().keep(100);
    kernel.set(100);
    bill.elsewhere(40);
    assert!(bill.give_back(40));
    assert_eq!(bill.usage().spent, 100);
    assert!(!bill.give_back(10));
    assert_eq!(bill.usage().spent, 90);
}

#[test]
fn what_was_drawn_while_somebody_measured_counts_on_top() {
    let kernel = Kernel {
        blind: true,
        ..Kernel::default()
    };
    let bill = bill(100, &kernel);
    bill.draw(50, &mut Claim::default()).unwrap().keep(50);
    let under_way = bill.draw(10, &mut Claim::default()).unwrap();
    let mark = bill.mark();
    under_way.keep(10);
    bill.draw(20, &mut Claim::default()).unwrap().keep(20);
    // It saw 5 of the 50, and neither of the others for sure.
    assert_eq!(bill.measured(mark, 5), 45);
    assert_eq!(bill.usage().spent, 35);
}

#[test]
fn a_client_that_lies_about_what_it_freed_cannot_spend_twice() {
    let kernel = Kernel::default();
    let bill = bill(100, &kernel);
    bill.draw(80, &mut Claim::default()).unwrap().keep(80);
    kernel.set(80);
    bill.give_back(80);
    let Err(Refusal::Full(full)) = bill.draw(30, &mut Claim::default()) else {
        panic!("spent twice");
    };
    assert_eq!((full.asked, full.free, full.limit_bytes), (30, 20, 100));
}

#[test]
fn without_a_measurement_only_give_backs_count() {
    let kernel = Kernel {
        blind: true,
        ..Kernel::default()
    };
    let bill = bill(100, &kernel);
    bill.draw(80, &mut Claim::default()).unwrap().keep(80);
    assert_eq!(bill.reconcile(), 0);
    assert!(bill.draw(21, &mut Claim::default()).is_err());
    bill.give_back(1);
    assert!(bill.draw(21, &mut Claim::default()).is_ok());
}

#[test]
fn held_bytes_count_again_when_nothing_remembers_them() {
    let kernel = Kernel::default();
    let bill = bill(100, &kernel);
    bill.readmit(30);
    assert_eq!(bill.usage().spent, 30);
    bill.readmit(1000);
    assert_eq!(bill.usage().spent, 100);
}
