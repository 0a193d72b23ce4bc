use std::mem;
use std::path::PathBuf;

use super::*;

const MIB: u64 = 1 << 20;

fn place(cgroup: u64) -> Place {
    Place {
        boot_id: "boot-1".into(),
        cgroup,
    }
}

struct Recorded {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Recorded {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spent");
        Self {
            _folder: folder,
            path,
        }
    }

    fn open(&self, cgroup: u64) -> StaticAllowance {
        StaticAllowance::recorded(
            100 * MIB,
            StateFile::new(&self.path),
            4 * MIB,
            place(cgroup),
        )
        .unwrap()
    }

    fn on_disk(&self) -> u64 {
        StateFile::new(&self.path).read().unwrap().unwrap().spent
    }
}

#[test]
fn a_draw_beyond_the_allowance_says_what_is_left_and_takes_nothing() {
    let grants = StaticAllowance::new(10);
    grants.draw(7).unwrap();
    let error = grants.draw(4).unwrap_err();
    assert!(matches!(
        error,
        DrawError::Full {
            free: 3,
            allowance: 10
        }
    ));
    grants.draw(3).unwrap();
    assert_eq!(grants.usage().free(), 0);
}

#[test]
fn giving_back_more_than_was_drawn_never_makes_the_allowance_larger() {
    let grants = StaticAllowance::new(10);
    grants.draw(5).unwrap();
    grants.give_back(u64::MAX);
    assert_eq!(grants.usage().spent, 0);
    assert!(grants.draw(11).is_err());
}

#[test]
fn the_record_is_never_below_what_is_spent_and_is_written_once_per_chunk() {
    let recorded = Recorded::new();
    let grants = recorded.open(1);
    let mut writes = std::collections::BTreeSet::new();
    for _ in 0..8 * 256 {
        grants.draw(4096).unwrap();
        assert!(recorded.on_disk() >= grants.usage().spent);
        writes.insert(recorded.on_disk());
    }
    assert_eq!(writes.len(), 2);
    grants.give_back(8 * MIB);
    assert_eq!(recorded.on_disk(), 0);
}

#[test]
fn a_crash_loses_no_spent_byte_and_an_orderly_exit_records_the_exact_number() {
    let recorded = Recorded::new();
    let grants = recorded.open(1);
    grants.draw(5 * MIB).unwrap();
    mem::forget(grants);
    let again = recorded.open(1);
    assert_eq!(again.usage().spent, 8 * MIB);
    assert_eq!(again.usage().carried, 0);
    again.give_back(3 * MIB);
    again.draw(1).unwrap();
    drop(again);
    assert_eq!(recorded.open(1).usage().spent, 5 * MIB + 1);
}

#[test]
fn bytes_spent_in_another_cgroup_are_carried_until_given_back() {
    let recorded = Recorded::new();
    recorded.open(1).draw(5 * MIB).unwrap();
    let again = recorded.open(2);
    assert_eq!(again.usage().carried, 5 * MIB);
    again.draw(MIB).unwrap();
    again.give_back(4 * MIB);
    assert_eq!(again.usage().carried, 2 * MIB);
    assert_eq!(again.usage().spent, 2 * MIB);
}

#[test]
fn a_record_of_another_boot_counts_nothing_because_the_memory_is_gone() {
    let recorded = Recorded::new();
    recorded.open(1).draw(5 * MIB).unwrap();
    let rebooted = Place {
        boot_id: "boot-2".into(),
        cgroup: 1,
    };
    let file = StateFile::new(&recorded.path);
    let grants = StaticAllowance::recorded(100 * MIB, file, MIB, rebooted).unwrap();
    assert_eq!(grants.usage().spent, 0);
}

#[test]
fn a_damaged_record_counts_as_all_spent() {
    let recorded = Recorded::new();
    std::fs::write(&recorded.path, "vineyard-allow").unwrap();
    let grants = recorded.open(1);
    assert_eq!(grants.usage().spent, 100 * MIB);
    assert_eq!(grants.usage().carried, 100 * MIB);
    assert!(grants.draw(1).is_err());
}

#[test]
fn a_draw_that_cannot_be_recorded_is_refused() {
    let recorded = Recorded::new();
    let grants = recorded.open(1);
    grants.draw(MIB).unwrap();
    std::fs::create_dir(recorded.path.with_extension("tmp")).unwrap();
    grants.draw(MIB).unwrap();
    assert!(matches!(
        grants.draw(4 * MIB),
        Err(DrawError::Unrecorded(_))
    ));
    assert_eq!(grants.usage().spent, 2 * MIB);
}
