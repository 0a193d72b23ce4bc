//! The last events of this process, for the web page.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::{Notice, Reason};

/// How many are kept.
const MOST: usize = 100;

/// An event as the page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What has happened.
    pub(crate) reason: Reason,
    /// To whom, for people.
    pub(crate) about: String,
    /// The sentence.
    pub(crate) note: String,
    /// How often it happened in a row.
    pub(crate) count: u64,
    /// When it happened last.
    pub(crate) at: SystemTime,
}

#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Seen>);

impl Recent {
    /// Adds one; the same again is counted, and becomes the newest.
    pub(super) fn add(&mut self, notice: &Notice, at: SystemTime) {
        let about: Vec<_> = notice.subjects.iter().map(ToString::to_string).collect();
        let about = about.join(", ");
        let is_same =
            |it: &Seen| it.reason == notice.reason && it.about == about && it.note == notice.note;
        let before = self.0.iter().position(is_same);
        let before = before.and_then(|index| self.0.remove(index));
        if self.0.len() == MOST {
            self.0.pop_back();
        }
        self.0.push_front(Seen {
            reason: notice.reason,
            about,
            note: notice.note.clone(),
            count: before.map_or(1, |it| it.count + 1),
            at,
        });
    }

    pub(super) fn newest_first(&self) -> Vec<Seen> {
        self.0.iter().cloned().collect()
    }
}
