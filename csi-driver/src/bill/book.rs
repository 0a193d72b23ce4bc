//! What each pod of this node was granted: one JSON file a pod, written before anybody hears of it.
//!
//! The files live in the run directory, which dies with the boot, as the memory does. One process has the book; what it
//! reads is in memory, and a change is written beside the file and renamed over it, so a kill at any point leaves the
//! old record or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::failpoint::fail_point;
use crate::volume::PodUid;

/// What is recorded of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PodBill {
    /// The pod.
    pub(crate) pod_uid: PodUid,
    /// The boot that the grants are of: memory of any other one is gone.
    pub(crate) boot_id: String,
    /// `volume_id` of its sockets volume.
    pub(crate) sockets_volume: String,
    /// Where kubelet has that volume.
    pub(crate) target: PathBuf,
    /// `vineyard.io/writes` of that volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) writes: Option<Bytes>,
    /// The most that it may add to its bill. None: not decided yet, nothing is granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) allowance: Option<Bytes>,
    /// What was ever granted, in all. Never above the allowance, never lowered.
    pub(crate) granted: Bytes,
    /// Its sidecar has said that it leaves, when at most so much was charged to the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) leaving: Option<Bytes>,
}

/// The records of all pods that have a sockets volume here.
#[derive(Debug)]
pub(crate) struct Book {
    directory: PathBuf,
    bills: Mutex<BTreeMap<PodUid, PodBill>>,
}

impl Book {
    /// Opens the book in `directory`, made (mode 0700) when missing. Records of other boots are removed; one that
    /// cannot be read stays as it is, is logged, and its pod is unknown.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(directory: &Path, boot_id: &str) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut bills = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // What a kill left of a write.
                fs::remove_file(&path)?;
                continue;
            }
            match serde_json::from_slice::<PodBill>(&fs::read(&path)?) {
                Ok(bill) if bill.boot_id != boot_id => fs::remove_file(&path)?,
                Ok(bill) => drop(bills.insert(bill.pod_uid.clone(), bill)),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the record of a pod's grants cannot be read");
                }
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            bills: Mutex::new(bills),
        })
    }

    /// The record of a pod.
    pub(crate) fn get(&self, pod: &PodUid) -> Option<PodBill> {
        self.bills().get(pod).cloned()
    }

    /// All records.
    pub(crate) fn all(&self) -> Vec<PodBill> {
        self.bills().values().cloned().collect()
    }

    /// Adds the record of a pod that has none.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the file system says.
    pub(crate) fn add(&self, bill: PodBill) -> io::Result<()> {
        let mut bills = self.bills();
        if bills.contains_key(&bill.pod_uid) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.write(&bill)?;
        bills.insert(bill.pod_uid.clone(), bill);
        Ok(())
    }

    /// Changes the record of a pod, and returns it as it is then. A change that changes nothing writes nothing.
    ///
    /// `edit` also sees the records of all other pods, and nobody changes any meanwhile.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says; then nothing has changed.
    pub(crate) fn change(
        &self,
        pod: &PodUid,
        edit: impl FnOnce(&mut PodBill, &BTreeMap<PodUid, PodBill>),
    ) -> io::Result<PodBill> {
        let mut bills = self.bills();
        let before = bills.get(pod).ok_or(ErrorKind::NotFound)?;
        let mut bill = before.clone();
        edit(&mut bill, &bills);
        if bill != *before {
            self.write(&bill)?;
            bills.insert(pod.clone(), bill.clone());
        }
        Ok(bill)
    }

    /// Removes the record of a pod. None is fine.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn remove(&self, pod: &PodUid) -> io::Result<()> {
        let mut bills = self.bills();
        match fs::remove_file(self.path(pod)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        bills.remove(pod);
        Ok(())
    }

    fn path(&self, pod: &PodUid) -> PathBuf {
        self.directory.join(format!("{pod}.json"))
    }

    /// Not synced: a crash of the machine is another boot.
    fn write(&self, bill: &PodBill) -> io::Result<()> {
        let beside = self.directory.join(format!("{}.new", bill.pod_uid));
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(bill)?)?;
        drop(file);
        fail_point!("book.written");
        fs::rename(&beside, self.path(&bill.pod_uid))?;
        fail_point!("book.renamed");
        Ok(())
    }

    /// Changed only after its file is, so whole after any panic.
    fn bills(&self) -> MutexGuard<'_, BTreeMap<PodUid, PodBill>> {
        self.bills.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
pub(crate) mod tests;
