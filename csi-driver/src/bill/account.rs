//! What is known of one volume's bill on this node. No I/O.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vineyard_charge::CgroupId;

use super::engine::Report;
use super::handover::Progress;
use crate::volume::PodUid;

/// A pod that has the volume at a target path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tenant {
    /// Which, when kubelet's path says so.
    pub(crate) uid: Option<PodUid>,
    /// It may write.
    pub(crate) writable: bool,
    /// Its NodeUnpublishVolume was called.
    pub(crate) departing: bool,
    /// It had a cgroup when somebody looked last.
    pub(crate) is_alive: bool,
    /// Nothing was charged to it when its NodeUnpublishVolume was called.
    pub(crate) owes_nothing: bool,
}

/// How much memory the volume uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Files, directories and names.
    pub(crate) inodes: u64,
}

/// A run that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// The last ticket that it covers.
    ticket: u64,
    /// It counts on nobody else writing.
    pub(crate) exclusive: bool,
    /// How far it is.
    pub(crate) progress: Arc<Progress>,
}

/// One volume's account.
#[derive(Debug, Default)]
pub(crate) struct Account {
    tenants: BTreeMap<PathBuf, Tenant>,
    /// Tickets: each event that calls for a run gets one, and a run covers those that were drawn before it began.
    asked: u64,
    done: u64,
    running: Option<Running>,
    /// Bytes on the retainer's bill: at least these, at the last survey and what was reserved since.
    retained: u64,
    /// Bytes on a wrong bill, at the last survey.
    pending: u64,
    /// Bytes that may turn out to be on a wrong bill, of events that no run has covered yet.
    expected: u64,
    /// Bytes that are being reserved on the retainer's bill.
    reserving: u64,
    /// Bytes that were reserved on it since the run that is under way began: its survey may have missed them.
    since: u64,
    /// The last survey, and the use at its end.
    report: Option<(Report, Use)>,
    /// Why the last run came to nothing.
    trouble: Option<String>,
    /// Runs in a row that left something.
    failures: u32,
    /// When the last run ended, and how long it took.
    ended: Option<Instant>,
    took: Duration,
    /// Its memory is about to go: no run any more.
    halted: bool,
    /// Somebody else works in its memory, and ends when this is set.
    held: Option<Arc<AtomicBool>>,
    /// A worker looks after it.
    pub(crate) has_worker: bool,
}

/// What a worker does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing is wrong.
    Rest,
    /// Something is left: again after a pause, longer with each failure in a row.
    Again {
        /// How many there were.
        failures: u32,
    },
    /// A run is due.
    Run,
}

impl Account {
    /// As the last driver left it.
    pub(crate) fn resumed(retained: u64, pending: u64, expected: u64) -> Self {
        Self {
            retained,
            pending,
            expected,
            ..Self::default()
        }
    }

    /// Records that a pod has it. The same again means that it stays after all.
    pub(crate) fn publish(&mut self, path: &Path, uid: Option<PodUid>, writable: bool) {
        let tenant = Tenant {
            uid,
            writable,
            departing: false,
            is_alive: false,
            owes_nothing: false,
        };
        self.tenants.insert(path.to_owned(), tenant);
    }

    /// Records that a pod's unpublish was called. Returns whether that is news.
    pub(crate) fn depart(&mut self, path: &Path, owes_nothing: bool) -> Option<bool> {
        let tenant = self.tenants.get_mut(path)?;
        tenant.owes_nothing = owes_nothing;
        Some(!std::mem::replace(&mut tenant.departing, true))
    }

    /// The pod at `path`.
    pub(crate) fn tenant(&self, path: &Path) -> Option<&Tenant> {
        self.tenants.get(path)
    }

    /// Forgets a publication.
    pub(crate) fn unpublish(&mut self, path: &Path) -> Option<Tenant> {
        self.tenants.remove(path)
    }

    /// The pods that have it.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    /// Whether `uid` has it, at any path.
    pub(crate) fn has(&self, uid: &PodUid) -> bool {
        self.tenants().any(|it| it.uid.as_ref() == Some(uid))
    }

    /// The pods that rightly pay for what they are charged: they have it, and do not leave.
    pub(crate) fn staying<'a>(
        &'a self,
        leaving: impl Fn(&PodUid) -> bool + 'a,
    ) -> impl Iterator<Item = &'a PodUid> {
        let here = self.tenants().filter(|tenant| !tenant.departing);
        here.filter_map(|tenant| tenant.uid.as_ref())
            .filter(move |uid| !leaving(uid))
    }

    /// Whether a pod has it that kubelet's path does not name: nobody can say then which cgroup is its own.
    pub(crate) fn has_nameless(&self) -> bool {
        self.tenants()
            .any(|tenant| tenant.uid.is_none() && !tenant.departing)
    }

    /// Records which pods have a cgroup now. Returns whether one has lost it.
    pub(crate) fn look(&mut self, is_alive: impl Fn(&PodUid) -> bool) -> bool {
        let mut lost = false;
        for tenant in self.tenants.values_mut() {
            let alive = tenant.uid.as_ref().is_some_and(&is_alive);
            lost |= std::mem::replace(&mut tenant.is_alive, alive) && !alive;
        }
        lost
    }

    /// Calls for a run, because up to `expected` bytes may have come to a wrong bill. Returns the ticket.
    pub(crate) fn ask(&mut self, expected: u64) -> u64 {
        self.expected = self.expected.saturating_add(expected);
        self.asked += 1;
        self.asked
    }

    /// Whether nothing has happened to it since it was read from its record.
    pub(crate) fn is_untouched(&self) -> bool {
        self.asked == 0 && self.tenants.is_empty()
    }

    /// Whether a run has covered `ticket`.
    pub(crate) fn is_done(&self, ticket: u64) -> bool {
        self.done >= ticket
    }

    /// Whether every event has been covered, nothing is left, and the volume is used as it was then.
    pub(crate) fn is_settled(&self, now: Use) -> bool {
        let unchanged = self.report.as_ref().is_some_and(|(_, then)| *then == now);
        !self.is_due() && self.pending == 0 && self.trouble.is_none() && unchanged
    }

    /// Whether a run is due or under way, or something is left.
    pub(crate) fn is_due(&self) -> bool {
        self.asked > self.done || self.running.is_some()
    }

    /// Whether the last survey is older than `pause`, and the volume is used differently now.
    pub(crate) fn is_stale(&self, now: Use, pause: Duration) -> bool {
        let unchanged = self.report.as_ref().is_some_and(|(_, then)| *then == now);
        let recent = self.ended.is_some_and(|at| at.elapsed() < pause);
        !unchanged && !recent && !self.is_due()
    }

    /// Whether another retainer than this one was billed at the last survey. A pod keeps its own cgroup while its containers come and go.
    pub(crate) fn is_of_another(&self, retainer: &[CgroupId]) -> bool {
        let report = self.report.as_ref().map(|(report, _)| report);
        report.is_some_and(|it| !it.retainer.iter().any(|owner| retainer.contains(owner)))
    }

    /// How long ago the last run ended.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.ended.map(|at| at.elapsed())
    }

    /// How long the last run took.
    pub(crate) fn took(&self) -> Duration {
        self.took
    }

    /// Whether no other pod has it.
    pub(crate) fn is_only(&self, uid: &PodUid) -> bool {
        self.tenants()
            .all(|tenant| tenant.uid.as_ref() == Some(uid))
    }

    /// Whether something is on a wrong bill, or nobody knows.
    pub(crate) fn has_left(&self) -> bool {
        self.pending > 0 || self.trouble.is_some()
    }

    /// What its worker does next.
    pub(crate) fn next(&self) -> Next {
        let is_left = self.has_left();
        match () {
            () if self.halted || self.running.is_some() => Next::Rest,
            () if self.asked > self.done && self.trouble.is_none() => Next::Run,
            () if is_left => Next::Again {
                failures: self.failures,
            },
            () => Next::Rest,
        }
    }

    /// Begins a run, unless the memory is about to go.
    pub(crate) fn begin(&mut self) -> Option<Running> {
        if self.halted || self.running.is_some() {
            return None;
        }
        let running = Running {
            ticket: self.asked,
            exclusive: !self.tenants().any(|tenant| tenant.writable),
            progress: Arc::default(),
        };
        self.running = Some(running.clone());
        self.since = 0;
        Some(running)
    }

    /// The run that is under way.
    pub(crate) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// Ends the run that is under way. `wrong` are the report's bytes on wrong bills.
    pub(crate) fn finish(
        &mut self,
        ended: Result<(Report, Use), String>,
        wrong: u64,
        took: Duration,
    ) {
        let Some(running) = self.running.take() else {
            return;
        };
        (self.ended, self.took) = (Some(Instant::now()), took);
        match ended {
            // Half a survey says nothing; it is due again.
            Ok((report, _)) if report.outcome.interrupted => {}
            Ok((report, used)) => {
                self.retained = report.retained().saturating_add(self.since);
                self.pending = wrong;
                if self.asked == running.ticket {
                    self.expected = 0;
                }
                self.done = running.ticket;
                self.trouble = None;
                self.failures = if wrong > 0 { self.failures + 1 } else { 0 };
                self.report = Some((report, used));
            }
            Err(trouble) => {
                self.trouble = Some(trouble);
                self.failures += 1;
            }
        }
    }

    /// Bytes are about to be reserved on the retainer's bill.
    pub(crate) fn reserve(&mut self, bytes: u64) {
        self.reserving = self.reserving.saturating_add(bytes);
    }

    /// They are, or they are not after all.
    pub(crate) fn reserved(&mut self, bytes: u64, is_done: bool) {
        self.reserving = self.reserving.saturating_sub(bytes);
        if is_done {
            self.retained = self.retained.saturating_add(bytes);
            self.since = self.since.saturating_add(bytes);
        }
    }

    /// Bytes that the retainer holds for this volume or may have to; never more than the volume uses, which the caller knows.
    pub(crate) fn held(&self) -> u64 {
        let to_come = self.pending.saturating_add(self.expected);
        self.retained.saturating_add(to_come)
    }

    /// Bytes that are being reserved on the retainer's bill, on top of these.
    pub(crate) fn reserving(&self) -> u64 {
        self.reserving
    }

    /// Bytes of the volume that may be on a wrong bill if all pods but the retainer's leave.
    pub(crate) fn unretained(&self, used: u64) -> u64 {
        used.saturating_sub(self.retained)
    }

    /// Begins work of somebody else, unless the memory is about to go or there is some already. Returns what stops it.
    pub(crate) fn hold(&mut self) -> Option<Arc<AtomicBool>> {
        if self.halted || self.held.is_some() {
            return None;
        }
        Some(Arc::clone(self.held.insert(Arc::default())))
    }

    /// That work has ended.
    pub(crate) fn let_go(&mut self, stop: &Arc<AtomicBool>) {
        self.held.take_if(|held| Arc::ptr_eq(held, stop));
    }

    /// Whether nobody works in its memory.
    pub(crate) fn is_free(&self) -> bool {
        self.running.is_none() && self.held.is_none()
    }

    /// No run and no other work from now on; what is under way is stopped.
    pub(crate) fn halt(&mut self) {
        self.halted = true;
        if let Some(stop) = &self.held {
            stop.store(true, Ordering::Relaxed);
        }
        if let Some(running) = &self.running {
            running.progress.stop();
        }
    }

    /// Whether nothing is to touch the volume.
    pub(crate) fn is_halted(&self) -> bool {
        self.halted
    }

    /// Runs again.
    pub(crate) fn unhalt(&mut self) {
        self.halted = false;
    }

    /// The last survey.
    pub(crate) fn report(&self) -> Option<&(Report, Use)> {
        self.report.as_ref()
    }

    /// Why the last run came to nothing.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Bytes on the retainer's bill, those on a wrong bill, and those that may be.
    pub(crate) fn sums(&self) -> (u64, u64, u64) {
        (self.retained, self.pending, self.expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bill::handover::Outcome;

    #[test]
    fn what_is_reserved_during_a_run_that_misses_it_still_counts() {
        let mut account = Account::default();
        account.ask(0);
        account.begin().unwrap();
        account.reserve(3);
        account.reserved(3, true);
        let report = Report {
            outcome: Outcome::default(),
            retainer: Vec::new(),
        };
        account.finish(Ok((report, Use::default())), 0, Duration::ZERO);
        assert_eq!((account.held(), account.reserving()), (3, 0));
    }
}
