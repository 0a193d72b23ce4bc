//! How many events are written. Pure: the clock is the caller's.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The same thing about the same object again within this time is not worth a request.
const SAME: Duration = Duration::from_secs(60);

/// What is written in that time at most, whatever it is about.
const MOST: usize = 300;

/// Remembers what was said lately.
#[derive(Debug)]
pub(super) struct Limit<K>(HashMap<K, Instant>);

impl<K: Eq + Hash> Limit<K> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Whether `what` may be said now.
    pub(super) fn allows(&mut self, what: K, now: Instant) -> bool {
        self.0.retain(|_, at| now.duration_since(*at) < SAME);
        if self.0.len() >= MOST || self.0.contains_key(&what) {
            return false;
        }
        self.0.insert(what, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_and_anything_else_at_once() {
        let mut limit = Limit::new();
        let begin = Instant::now();
        assert!(limit.allows(("a", "lost"), begin));
        assert!(!limit.allows(("a", "lost"), begin + SAME / 2));
        assert!(limit.allows(("a", "full"), begin + SAME / 2));
        assert!(limit.allows(("b", "lost"), begin + SAME / 2));
        assert!(limit.allows(("a", "lost"), begin + SAME));
    }

    #[test]
    fn a_storm_is_cut_off_and_a_minute_later_forgotten() {
        let mut limit = Limit::new();
        let begin = Instant::now();
        let let_through = (0..10 * MOST).filter(|each| limit.allows(*each, begin));
        assert_eq!(let_through.count(), MOST);
        assert!(!limit.allows(usize::MAX, begin + SAME / 2));
        assert!(limit.allows(usize::MAX, begin + SAME));
        assert_eq!(limit.0.len(), 1);
    }
}
