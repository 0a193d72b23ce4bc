//! Random sequences of steps. A step names things by numbers that are taken modulo what there is when it runs, so that
//! every prefix of a sequence is a sequence too.

use std::time::Duration;

use crate::random::Random;

/// How many pods a sequence has.
pub const PODS: usize = 2;
/// How many names there are: few, so that they are re-pointed often.
pub const NAMES: u64 = 6;
/// How many streams there are.
pub const STREAMS: u64 = 2;
/// Steps of a sequence.
const STEPS: u64 = 28;
/// Most members of a pack.
const MEMBERS: u64 = 12;

/// Objects of so many bytes and more are recycled.
const RECYCLED: u64 = 8 << 20;

/// Where the ways of the store part: pages, regions, what is read or mapped, copied or collapsed.
const BORDERS: [u64; 8] = [
    0,
    4096,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
];

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The client of `pod` puts an object.
    Put {
        /// The pod.
        pod: usize,
        /// The name, if any.
        name: Option<u64>,
        /// Bytes.
        len: u64,
    },
    /// The client puts an object with a time to live.
    PutExpiring {
        /// The pod.
        pod: usize,
        /// The name, if any.
        name: Option<u64>,
        /// Bytes.
        len: u64,
    },
    /// The client puts many values as one object.
    PutMany {
        /// The pod.
        pod: usize,
        /// The name, if any.
        name: Option<u64>,
        /// Bytes of each.
        lens: Vec<u64>,
    },
    /// The client writes an object in pieces.
    Write {
        /// The pod.
        pod: usize,
        /// The name, if any.
        name: Option<u64>,
        /// Bytes.
        len: u64,
        /// Bytes of a piece.
        piece: u64,
    },
    /// The client gives an object another name.
    Link {
        /// The pod.
        pod: usize,
        /// A name of it.
        from: u64,
        /// The other name.
        to: u64,
    },
    /// The client puts a large object, removes it, and at once puts or builds another, in whose file its pages may be.
    Again {
        /// The pod.
        pod: usize,
        /// The name.
        name: u64,
        /// Bytes of the first and of the second.
        lens: (u64, u64),
        /// The second is built in place and held as a draft.
        in_place: bool,
    },
    /// The client makes an object in place and holds it.
    Create {
        /// The pod.
        pod: usize,
        /// Bytes.
        len: u64,
    },
    /// It seals one that it had made.
    Seal {
        /// The pod.
        pod: usize,
        /// The name, if any.
        name: Option<u64>,
        /// Which one.
        which: u64,
    },
    /// It gets an object.
    Get {
        /// The pod.
        pod: usize,
        /// The name.
        name: u64,
        /// Mapped shared and read-only.
        shared: bool,
        /// It keeps the view.
        hold: bool,
        /// It writes to every page of a copy-on-write view.
        dirty: bool,
    },
    /// It gets a member of a pack.
    GetMember {
        /// The pod.
        pod: usize,
        /// The name of the pack.
        name: u64,
        /// Which member.
        which: u64,
        /// It keeps the view.
        hold: bool,
    },
    /// It unmaps one of its views.
    Release {
        /// The pod.
        pod: usize,
        /// Which one.
        which: u64,
    },
    /// It removes a name.
    Remove {
        /// The pod.
        pod: usize,
        /// The name.
        name: u64,
    },
    /// It removes an object that has no name.
    RemoveUnnamed {
        /// The pod.
        pod: usize,
        /// Which one.
        which: u64,
    },
    /// It appends a part to a stream.
    Append {
        /// The pod.
        pod: usize,
        /// The stream.
        stream: u64,
        /// Bytes.
        len: u64,
    },
    /// It ends a stream.
    End {
        /// The pod.
        pod: usize,
        /// The stream.
        stream: u64,
    },
    /// It takes the next part of a stream.
    Consume {
        /// The pod.
        pod: usize,
        /// The stream.
        stream: u64,
    },
    /// It removes a stream.
    RemoveStream {
        /// The pod.
        pod: usize,
        /// The stream.
        stream: u64,
    },
    /// It writes an ordinary file.
    Plain {
        /// The pod.
        pod: usize,
        /// The name.
        name: u64,
        /// Bytes.
        len: u64,
    },
    /// The time of an object is over.
    Expire {
        /// Which one.
        which: u64,
    },
    /// The driver moves the charge of all that `pod` pays to the retainer.
    Recharge {
        /// The pod.
        pod: usize,
    },
    /// `kill -9` of the client while it does `what`.
    KillClient {
        /// When, after `what` was ordered.
        after: Duration,
        /// What it does: one of the steps above.
        what: Box<Step>,
    },
    /// `kill -9` of the sidecar while the client does `what`; it is started again at once.
    KillSidecar {
        /// When, after `what` was ordered.
        after: Duration,
        /// What the client does.
        what: Box<Step>,
    },
    /// The pod is gone, and its cgroups too; another takes its place.
    ReplacePod {
        /// The pod.
        pod: usize,
    },
}

impl Step {
    /// The pod that it is about, or any.
    #[must_use]
    pub fn pod(&self) -> usize {
        match self {
            Self::Put { pod, .. }
            | Self::PutExpiring { pod, .. }
            | Self::PutMany { pod, .. }
            | Self::Write { pod, .. }
            | Self::Again { pod, .. }
            | Self::Link { pod, .. }
            | Self::Create { pod, .. }
            | Self::Seal { pod, .. }
            | Self::Get { pod, .. }
            | Self::GetMember { pod, .. }
            | Self::Release { pod, .. }
            | Self::Remove { pod, .. }
            | Self::RemoveUnnamed { pod, .. }
            | Self::Append { pod, .. }
            | Self::End { pod, .. }
            | Self::Consume { pod, .. }
            | Self::RemoveStream { pod, .. }
            | Self::Plain { pod, .. }
            | Self::Recharge { pod }
            | Self::ReplacePod { pod } => *pod,
            Self::KillClient { what, .. } | Self::KillSidecar { what, .. } => what.pod(),
            Self::Expire { .. } => 0,
        }
    }
}

/// The sequence of `seed`.
#[must_use]
pub fn sequence(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let count = STEPS / 2 + random.below(STEPS);
    (0..count).map(|_| step(&mut random)).collect()
}

fn step(random: &mut Random) -> Step {
    let pod = random.index(PODS);
    match random.below(100) {
        0..75 => by_client(random, pod),
        75..83 => Step::KillClient {
            after: delay(random),
            what: Box::new(changing(random, pod)),
        },
        83..89 => Step::KillSidecar {
            after: delay(random),
            what: Box::new(changing(random, pod)),
        },
        89..94 => Step::Recharge { pod },
        94..97 => Step::Expire {
            which: random.bits(),
        },
        _ => Step::ReplacePod { pod },
    }
}

/// Most moments in a put of some MiB, and often before its end.
fn delay(random: &mut Random) -> Duration {
    let most = random.one_of(&[50, 300, 1500, 4000]);
    Duration::from_micros(random.below(most))
}

fn by_client(random: &mut Random, pod: usize) -> Step {
    match random.below(100) {
        0..46 => changing(random, pod),
        46..56 => Step::Create {
            pod,
            len: len(random),
        },
        56..78 => Step::Get {
            pod,
            name: random.below(NAMES),
            shared: random.chance(30),
            hold: random.chance(60),
            dirty: random.chance(50),
        },
        78..84 => Step::GetMember {
            pod,
            name: random.below(NAMES),
            which: random.below(MEMBERS),
            hold: random.chance(60),
        },
        84..94 => Step::Release {
            pod,
            which: random.bits(),
        },
        _ => Step::Plain {
            pod,
            name: random.below(2),
            len: len(random),
        },
    }
}

/// A step that changes the tree.
fn changing(random: &mut Random, pod: usize) -> Step {
    let name = random.chance(80).then(|| random.below(NAMES));
    let stream = random.below(STREAMS);
    match random.below(100) {
        0..28 => Step::Put {
            pod,
            name,
            len: len(random),
        },
        28..34 => Step::PutExpiring {
            pod,
            name,
            len: len(random),
        },
        34..42 => Step::PutMany {
            pod,
            name,
            lens: members(random),
        },
        42..52 => Step::Write {
            pod,
            name,
            len: len(random),
            piece: random.one_of(&[5_000, 70_000, 1 << 20]),
        },
        52..57 => Step::Link {
            pod,
            from: random.below(NAMES),
            to: random.below(NAMES),
        },
        57..63 => Step::Seal {
            pod,
            name,
            which: random.bits(),
        },
        63..67 => Step::Again {
            pod,
            name: random.below(NAMES),
            lens: (
                RECYCLED + random.below(RECYCLED / 4),
                RECYCLED + random.below(RECYCLED / 4),
            ),
            in_place: random.chance(50),
        },
        67..79 => Step::Remove {
            pod,
            name: random.below(NAMES),
        },
        79..82 => Step::RemoveUnnamed {
            pod,
            which: random.bits(),
        },
        82..90 => Step::Append {
            pod,
            stream,
            len: len(random),
        },
        90..92 => Step::End { pod, stream },
        92..97 => Step::Consume { pod, stream },
        _ => Step::RemoveStream { pod, stream },
    }
}

/// Lengths of a pack's members: mostly small, as packs are for, and now and then one that is mapped.
fn members(random: &mut Random) -> Vec<u64> {
    let count = random.below(MEMBERS + 1);
    let small = |random: &mut Random| random.below(2000);
    (0..count)
        .map(|_| match random.below(12) {
            0 => random.below(300_000),
            _ => small(random),
        })
        .collect()
}

/// A length on one of the borders, near it, or anywhere below it.
fn len(random: &mut Random) -> u64 {
    let border = random.one_of(&BORDERS);
    match random.below(4) {
        0 => border,
        1 => border + 1 + random.below(3),
        2 => border.saturating_sub(1 + random.below(3)),
        _ => random.below(border + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_sequence_and_another_gives_another() {
        assert_eq!(sequence(5), sequence(5));
        assert_ne!(sequence(5), sequence(6));
    }

    #[test]
    fn all_kinds_of_steps_come_up() {
        let steps: Vec<Step> = (0..200).flat_map(sequence).collect();
        let mut kinds: Vec<_> = steps.iter().map(std::mem::discriminant).collect();
        kinds.dedup();
        let kinds: std::collections::HashSet<_> = kinds.into_iter().collect();
        assert_eq!(kinds.len(), 23);
        let inside = |s: &Step| matches!(s, Step::KillClient { what, .. } if matches!(**what, Step::Seal { .. }));
        assert!(steps.iter().any(inside));
    }
}
