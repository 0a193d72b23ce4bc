//! How far a long run of schedules is, and which of them have failed. The driver's replayed kubelet has this file too.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(30);

/// So many failures are enough to look at.
const MOST: usize = 10;

/// Schedules that one or several threads play. Says every 30 s how many, and how long the rest will take.
#[derive(Debug)]
pub struct Progress {
    total: u64,
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    done: u64,
    failed: Vec<u64>,
    said: Instant,
}

impl Progress {
    /// Of so many schedules, the first of which begins now.
    #[must_use]
    pub fn of(total: u64) -> Self {
        let begin = Instant::now();
        let state = State {
            done: 0,
            failed: Vec::new(),
            said: begin,
        };
        Self {
            total,
            begin,
            state: Mutex::new(state),
        }
    }

    /// Notes that the schedule of `seed` is through. Returns whether more are worth while.
    pub fn played(&self, seed: u64, failed: bool) -> bool {
        let mut state = self.state();
        state.done += 1;
        state.failed.extend(failed.then_some(seed));
        if state.said.elapsed() >= PAUSE {
            state.said = Instant::now();
            eprintln!("{}", self.line(&state));
        }
        state.failed.len() < MOST
    }

    /// Says how long it all took. Returns the seeds of those that have failed.
    #[must_use]
    pub fn end(&self) -> Vec<u64> {
        let state = self.state();
        eprintln!("{}", self.line(&state));
        state.failed.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
    fn line(&self, state: &State) -> String {
        let (total, done, failed) = (self.total, state.done, state.failed.len());
        let seconds = self.begin.elapsed().as_secs_f64();
        let rate = done as f64 / seconds;
        let left = total.saturating_sub(done) as f64 / rate;
        format!(
            "{done} of {total} schedules in {seconds:.0} s, {rate:.2} a second, {failed} failed, {left:.0} s left"
        )
    }
}
