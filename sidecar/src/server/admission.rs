//! How many clients may be connected: in all, and of one uid.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its uid, as seen from here.
    pub(crate) uid: u32,
    /// Its process id; 0 when it lives in a pid namespace that cannot be seen from here.
    pub(crate) pid: i32,
}

/// The connections that exist.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    total: usize,
    per_uid: usize,
    present: Arc<Mutex<HashMap<u32, usize>>>,
}

/// The right to be connected; dropped, it is free for another client.
#[derive(Debug)]
pub(crate) struct Admitted {
    uid: u32,
    present: Arc<Mutex<HashMap<u32, usize>>>,
}

/// Which limit a client met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Crowded {
    /// Of all clients together.
    #[error("{0} clients are connected, the most that this sidecar accepts")]
    Total(usize),
    /// Of one uid.
    #[error("{0} clients of this uid are connected, the most that this sidecar accepts")]
    Uid(usize),
}

impl Admission {
    /// At most `total` connections, at most `per_uid` of one uid.
    pub(crate) fn new(total: usize, per_uid: usize) -> Self {
        Self {
            total,
            per_uid,
            present: Arc::default(),
        }
    }

    /// Admits one more connection of `uid`.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub(crate) fn admit(&self, uid: u32) -> Result<Admitted, Crowded> {
        let mut present = lock(&self.present);
        if present.values().sum::<usize>() >= self.total {
            return Err(Crowded::Total(self.total));
        }
        let of_uid = present.entry(uid).or_insert(0);
        if *of_uid >= self.per_uid {
            return Err(Crowded::Uid(self.per_uid));
        }
        *of_uid += 1;
        Ok(Admitted {
            uid,
            present: Arc::clone(&self.present),
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut present = lock(&self.present);
        if let Some(of_uid) = present.get_mut(&self.uid) {
            *of_uid -= 1;
            if *of_uid == 0 {
                present.remove(&self.uid);
            }
        }
    }
}

fn lock(present: &Mutex<HashMap<u32, usize>>) -> MutexGuard<'_, HashMap<u32, usize>> {
    present.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uid_cannot_take_the_places_of_others() {
        let admission = Admission::new(3, 2);
        let first = admission.admit(7).unwrap();
        let _second = admission.admit(7).unwrap();
        assert_eq!(admission.admit(7).unwrap_err(), Crowded::Uid(2));
        let _other = admission.admit(8).unwrap();
        assert_eq!(admission.admit(9).unwrap_err(), Crowded::Total(3));
        drop(first);
        let _again = admission.admit(7).unwrap();
    }

    #[test]
    fn uids_that_left_are_forgotten() {
        let admission = Admission::new(3, 2);
        for uid in 0..1000 {
            drop(admission.admit(uid).unwrap());
        }
        assert!(lock(&admission.present).is_empty());
    }
}
