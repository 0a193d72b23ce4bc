//! `sweep`: removes what is not needed any more: objects past their time to live, trash that nobody maps, and what
//! processes that died have left.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::Error;
use crate::id::ObjectId;
use crate::kind::Kind;
use crate::name::{Name, ObjectFile};
use crate::naming::Entry;
use crate::pace::Pace;
use crate::remove::{Burial, each_entry};
use crate::tree::Tree;
use crate::volume::Volume;

/// A symlink in `tmp/` lives for two system calls: older ones are litter.
const LITTER: Duration = Duration::from_secs(60);
/// Objects that are searched for at once.
const SEARCHED: usize = 4096;

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Objects past their time to live.
    pub expired: u64,
    /// Objects in the trash that nobody maps any more.
    pub trash: u64,
    /// Objects in the trash that stay: somebody still maps them, they are not ours to ask about, or came a moment ago.
    pub mapped: u64,
    /// Objects whose writer died between sealing and naming.
    pub unnamed: u64,
    /// Other leftovers of processes that died.
    pub litter: u64,
}

/// How far a sweep may go in a tree that somebody else fills.
#[derive(Clone, Copy, Debug)]
pub struct SweepLimits<'a> {
    /// The longest for each of the four kinds of leftovers, so that one that never ends does not shield the others.
    pub time: Duration,
    /// Set by whoever wants it to end now.
    pub stop: &'a AtomicBool,
    /// What came to the trash less than this ago stays: whoever removed it may be about to use its memory again.
    pub rest: Duration,
}

/// The first error; what comes after it is done all the same.
#[derive(Debug, Default)]
struct Trouble(Option<Error>);

impl Trouble {
    /// Goes on unless the time is over.
    fn after(
        &mut self,
        result: Result<(), Error>,
        pace: &Pace<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        if let Err(error) = result {
            if pace.is_over() {
                return Ok(ControlFlow::Break(()));
            }
            self.0.get_or_insert(error);
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Volume {
    /// Removes what is not needed any more.
    ///
    /// # Errors
    /// When the volume is read-only or the tree cannot be changed. What can be removed is removed all the same.
    pub fn sweep(&self) -> Result<SweepReport, Error> {
        let mut report = SweepReport::default();
        let pace = Pace::free();
        let expired = self.sweep_expired(&mut report, &pace);
        let tmp = self.sweep_tmp(&mut report, LITTER, &pace);
        let links = self.sweep_links(&mut report, &pace);
        let emptied = self.empty_trash(false);
        expired.and(tmp).and(links)?;
        let emptied = emptied?;
        (report.trash, report.mapped) = (emptied.gone, emptied.used);
        Ok(report)
    }

    /// The same within limits, for a process that serves others too and trusts nobody who writes to the volume. What it has
    /// removed is added to `report`. Returns whether it came to its end.
    ///
    /// # Errors
    /// As [`Volume::sweep`].
    pub fn sweep_within(
        &self,
        limits: &SweepLimits<'_>,
        report: &mut SweepReport,
    ) -> Result<bool, Error> {
        let mut trouble = Trouble::default();
        let mut is_whole = true;
        let mut each = |sweep: &mut dyn FnMut(&Pace<'_>) -> Result<(), Error>| {
            let pace = Pace::until(Instant::now().checked_add(limits.time), limits.stop);
            let swept = sweep(&pace);
            is_whole &= !pace.is_over();
            trouble.after(swept, &pace).map(drop)
        };
        each(&mut |pace| self.sweep_expired(report, pace))?;
        each(&mut |pace| self.sweep_tmp(report, LITTER, pace))?;
        each(&mut |pace| self.sweep_links(report, pace))?;
        each(&mut |pace| self.sweep_trash(report, limits.rest, pace))?;
        match trouble.0 {
            None => Ok(is_whole),
            Some(error) => Err(error),
        }
    }

    fn sweep_expired(&self, report: &mut SweepReport, pace: &Pace<'_>) -> Result<(), Error> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let directory = self.tree().ttl.as_fd();
        let mut trouble = Trouble::default();
        each_entry(directory, ".vineyard/ttl", pace, |marker| {
            let swept = self.sweep_marker(marker, now, report, pace);
            trouble.after(swept, pace)
        })?;
        trouble.0.map_or(Ok(()), Err)
    }

    fn sweep_marker(
        &self,
        marker: &str,
        now: u64,
        report: &mut SweepReport,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let directory = self.tree().ttl.as_fd();
        let unlink_marker =
            || Tree::unlink(directory, marker).map_err(|errno| Error::io(".vineyard/ttl", errno));
        let Some((end, object)) = parse_marker(marker) else {
            return Ok(());
        };
        if end > now {
            // A marker comes before its object; one that stayed alone belongs to an object that was removed.
            if is_older(directory, marker, LITTER) && !self.exists_object(&object) {
                report.litter += u64::from(unlink_marker()?);
            }
            return Ok(());
        }
        let named = readlinkat(directory, marker).ok();
        if let Some(name) = named.and_then(|n| Name::new(n.to_str()?).ok()) {
            self.unname(&name, &object)?;
        }
        self.unname_others(&object, pace)?;
        report.expired += u64::from(self.discard(&object)?);
        self.forget_links(&object, pace)?;
        unlink_marker().map(drop)
    }

    /// `tmp/<id>.<kind>` says that an object was about to get the name that is the target; others were about to be
    /// renamed over a name.
    fn sweep_tmp(
        &self,
        report: &mut SweepReport,
        age: Duration,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let directory = self.tree().tmp.as_fd();
        let mut trouble = Trouble::default();
        each_entry(directory, ".vineyard/tmp", pace, |entry| {
            let swept = match is_older(directory, entry, age) {
                true => self.sweep_note(entry, report, pace),
                false => Ok(()),
            };
            trouble.after(swept, pace)
        })?;
        trouble.0.map_or(Ok(()), Err)
    }

    fn sweep_note(
        &self,
        entry: &str,
        report: &mut SweepReport,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let directory = self.tree().tmp.as_fd();
        if let Some(object) = ObjectFile::parse(entry.as_bytes()) {
            let name = readlinkat(directory, entry).ok();
            let name = name.and_then(|n| Name::new(n.to_str()?).ok());
            if let Some(name) = name
                && !self.is_named(&name, &object, pace)?
            {
                report.unnamed += u64::from(self.discard(&object)?);
            }
        } else if let Ok(Some(object)) = self.read_link(directory, entry) {
            // About to be swapped into a name, or swapped out of it: either way, the object of a name that it lost.
            let before = self.exists_object(&object);
            self.release_in(&object, pace)?;
            report.unnamed += u64::from(before && !self.exists_object(&object));
        }
        let gone = match Tree::unlink(directory, entry) {
            // A directory that never came to its place.
            Err(Errno::EISDIR) => unlinkat(directory, entry, UnlinkatFlags::RemoveDir).is_ok(),
            other => other.map_err(|errno| Error::io(".vineyard/tmp", errno))?,
        };
        report.litter += u64::from(gone);
        Ok(())
    }

    pub(crate) fn exists_object(&self, object: &ObjectFile) -> bool {
        fstatat(
            self.tree().objects.as_fd(),
            object.as_str(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .is_ok()
    }

    fn is_named(&self, name: &Name, object: &ObjectFile, pace: &Pace<'_>) -> Result<bool, Error> {
        Ok(
            matches!(self.resolve(name), Ok(Entry::Object(found)) if found == *object)
                || self.has_other_name(object, pace)? == Some(true),
        )
    }

    /// Notes about names of objects that are gone.
    fn sweep_links(&self, report: &mut SweepReport, pace: &Pace<'_>) -> Result<(), Error> {
        let mut trouble = Trouble::default();
        // Of a kind of somebody else, or gone: the directory of objects is searched for many at once.
        let mut unseen = HashSet::new();
        each_entry(
            self.tree().links.as_fd(),
            ".vineyard/links",
            pace,
            |entry| {
                let Some(id) = ObjectId::parse(entry.as_bytes()) else {
                    return Ok(ControlFlow::Continue(()));
                };
                let is_known = |kind| self.exists_object(&ObjectFile::new(id, kind));
                if !Kind::KNOWN.into_iter().any(is_known) {
                    unseen.insert(id);
                }
                let swept = match unseen.len() < SEARCHED {
                    true => Ok(()),
                    false => self.sweep_unseen(&mut unseen, report, pace),
                };
                trouble.after(swept, pace)
            },
        )?;
        let swept = self.sweep_unseen(&mut unseen, report, pace);
        trouble.0.map_or(swept, Err)
    }

    /// Forgets the notes about those of these objects that are gone.
    fn sweep_unseen(
        &self,
        unseen: &mut HashSet<ObjectId>,
        report: &mut SweepReport,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let mut unseen = std::mem::take(unseen);
        if unseen.is_empty() {
            return Ok(());
        }
        let objects = self.tree().objects.as_fd();
        // Twice: a file that is renamed over an object meanwhile, whose bytes change hands, may be missed.
        for _ in 0..2 {
            each_entry(objects, ".vineyard/objects", pace, |entry| {
                if let Some(object) = ObjectFile::parse(entry.as_bytes()) {
                    unseen.remove(&object.id);
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        let mut trouble = Trouble::default();
        for id in unseen {
            let forgotten = self.forget_links(&ObjectFile::new(id, Kind::Raw), pace);
            report.litter += u64::from(forgotten.is_ok());
            if trouble.after(forgotten, pace)?.is_break() {
                break;
            }
        }
        trouble.0.map_or(Ok(()), Err)
    }

    /// Unlinks what has rested in the trash and is used by nobody.
    fn sweep_trash(
        &self,
        report: &mut SweepReport,
        rest: Duration,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let trash = self.tree().trash.as_fd();
        report.mapped = 0;
        self.each_of_trash(pace, |name| {
            let gone = is_older(trash, name, rest) && self.bury(name, false) == Burial::Gone;
            report.trash += u64::from(gone);
            report.mapped += u64::from(!gone);
            Ok(ControlFlow::Continue(()))
        })
    }
}

fn is_older(directory: BorrowedFd<'_>, entry: &str, limit: Duration) -> bool {
    let Ok(stat) = fstatat(directory, entry, AtFlags::AT_SYMLINK_NOFOLLOW) else {
        return false;
    };
    let made = UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_ctime).unwrap_or(0));
    SystemTime::now()
        .duration_since(made)
        .is_ok_and(|age| age >= limit)
}

/// Reads `<unix seconds, 12 digits>.<id>.<kind>`.
pub(crate) fn parse_marker(marker: &str) -> Option<(u64, ObjectFile)> {
    let (end, object) = marker.split_once('.')?;
    if end.len() != 12 || !end.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((end.parse().ok()?, ObjectFile::parse(object.as_bytes())?))
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use nix::sys::stat::{Mode, mkdirat};
    use nix::unistd::symlinkat;

    use super::*;
    use crate::object::{Key, PutOptions, Ref};
    use crate::volume::Options;

    fn put(volume: &Volume, name: Option<&str>) -> Ref {
        let name = name.map(|n| Name::new(n).unwrap());
        let options = PutOptions {
            name,
            ..PutOptions::default()
        };
        volume
            .put(Kind::Raw, &[IoSlice::new(b"1")], &options)
            .unwrap()
    }

    #[test]
    fn objects_whose_writer_died_before_naming_go_and_named_ones_stay() {
        let directory = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let volume = Volume::open(directory.path(), Options::default()).unwrap();
        let tmp = volume.tree().tmp.as_fd();
        let note = |object: &Ref, name: &str| {
            let file = ObjectFile::new(object.id, object.kind);
            symlinkat(name, tmp, file.as_str()).unwrap();
        };
        let (died, named, linked) = (
            put(&volume, None),
            put(&volume, Some("a")),
            put(&volume, Some("b")),
        );
        volume
            .link(Key::from(&linked), &Name::new("c").unwrap(), false)
            .unwrap();
        note(&died, "a");
        note(&named, "a");
        note(&linked, "d");
        let (before, after) = (put(&volume, None), put(&volume, None));
        for (object, spare) in [(&before, "0"), (&after, "1")] {
            let target = Name::new("x/y")
                .unwrap()
                .target(&ObjectFile::new(object.id, object.kind));
            symlinkat(target.as_str(), tmp, spare).unwrap();
        }
        for made in ["2", "3", "3/full"] {
            mkdirat(tmp, made, Mode::S_IRWXU).unwrap();
        }
        let mut report = SweepReport::default();
        volume
            .sweep_tmp(&mut report, LITTER, &Pace::free())
            .unwrap();
        assert_eq!(report, SweepReport::default(), "too young");
        volume
            .sweep_tmp(&mut report, Duration::ZERO, &Pace::free())
            .unwrap();
        assert_eq!((report.unnamed, report.litter), (3, 6));
        for object in [&named, &linked] {
            assert!(volume.stat(Key::from(object)).is_ok());
        }
        for object in [&died, &before, &after] {
            assert!(volume.stat(Key::from(object)).is_err());
        }
    }
}
