//! `sweep`: removes what is not needed any more: objects past their time to live, trash that nobody maps, and what
//! processes that died have left.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::Error;
use crate::name::{Name, ObjectFile};
use crate::naming::Entry;
use crate::remove::list_directory;
use crate::tree::Tree;
use crate::volume::Volume;

/// A symlink in `tmp/` lives for two system calls: older ones are litter.
const LITTER: Duration = Duration::from_secs(60);

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Objects past their time to live.
    pub expired: u64,
    /// Objects in the trash that nobody maps any more.
    pub trash: u64,
    /// Objects in the trash that somebody still maps, or that are not ours to ask about.
    pub mapped: u64,
    /// Objects whose writer died between sealing and naming.
    pub unnamed: u64,
    /// Other leftovers of processes that died.
    pub litter: u64,
}

impl Volume {
    /// Removes what is not needed any more.
    ///
    /// # Errors
    /// When the volume is read-only or the tree cannot be changed.
    pub fn sweep(&self) -> Result<SweepReport, Error> {
        let mut report = SweepReport::default();
        self.sweep_expired(&mut report)?;
        self.sweep_tmp(&mut report, LITTER)?;
        report.litter += self.sweep_links()?;
        let emptied = self.empty_trash(false)?;
        (report.trash, report.mapped) = (emptied.gone, emptied.used);
        Ok(report)
    }

    fn sweep_expired(&self, report: &mut SweepReport) -> Result<(), Error> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let directory = self.tree().ttl.as_fd();
        let unlink_marker = |marker: &str| {
            Tree::unlink(directory, marker).map_err(|errno| Error::io(".vineyard/ttl", errno))
        };
        for marker in list_directory(directory, ".vineyard/ttl")? {
            let Some((end, object)) = parse_marker(&marker) else {
                continue;
            };
            if end > now {
                // A marker comes before its object; one that stayed alone belongs to an object that was removed.
                if is_older(directory, &marker, LITTER) && !self.exists_object(&object) {
                    report.litter += u64::from(unlink_marker(&marker)?);
                }
                continue;
            }
            let named = readlinkat(directory, marker.as_str()).ok();
            if let Some(name) = named.and_then(|n| Name::new(n.to_str()?).ok()) {
                self.unname(&name, &object)?;
            }
            for name in self.other_names(&object)?.unwrap_or_default() {
                self.unname(&name, &object)?;
            }
            report.expired += u64::from(self.discard(&object)?);
            self.forget_links(&object)?;
            unlink_marker(&marker)?;
        }
        Ok(())
    }

    /// `tmp/<id>.<kind>` says that an object was about to get the name that is the target; others were about to be
    /// renamed over a name.
    fn sweep_tmp(&self, report: &mut SweepReport, age: Duration) -> Result<(), Error> {
        let directory = self.tree().tmp.as_fd();
        for entry in list_directory(directory, ".vineyard/tmp")? {
            if !is_older(directory, &entry, age) {
                continue;
            }
            if let Some(object) = ObjectFile::parse(entry.as_bytes()) {
                let name = readlinkat(directory, entry.as_str()).ok();
                let name = name.and_then(|n| Name::new(n.to_str()?).ok());
                if let Some(name) = name
                    && !self.is_named(&name, &object)?
                {
                    report.unnamed += u64::from(self.discard(&object)?);
                }
            } else if let Ok(Some(object)) = self.read_link(directory, &entry) {
                // About to be swapped into a name, or swapped out of it: either way, the object of a name that it lost.
                let before = self.exists_object(&object);
                self.release(&object)?;
                report.unnamed += u64::from(before && !self.exists_object(&object));
            }
            let gone = match Tree::unlink(directory, &entry) {
                // A directory that never came to its place.
                Err(Errno::EISDIR) => {
                    unlinkat(directory, entry.as_str(), UnlinkatFlags::RemoveDir).is_ok()
                }
                other => other.map_err(|errno| Error::io(".vineyard/tmp", errno))?,
            };
            report.litter += u64::from(gone);
        }
        Ok(())
    }

    fn exists_object(&self, object: &ObjectFile) -> bool {
        fstatat(
            self.tree().objects.as_fd(),
            object.as_str(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .is_ok()
    }

    fn is_named(&self, name: &Name, object: &ObjectFile) -> Result<bool, Error> {
        Ok(
            matches!(self.resolve(name), Ok(Entry::Object(found)) if found == *object)
                || self
                    .other_names(object)?
                    .is_some_and(|names| !names.is_empty()),
        )
    }

    /// Notes about names of objects that are gone.
    fn sweep_links(&self) -> Result<u64, Error> {
        let mut litter = 0;
        let directory = self.tree().links.as_fd();
        for entry in list_directory(directory, ".vineyard/links")? {
            let Some(id) = crate::id::ObjectId::parse(entry.as_bytes()) else {
                continue;
            };
            match self.object_of(crate::object::Key::Id(id)) {
                Ok(_) => {}
                Err(Error::NotFound { .. }) => {
                    self.forget_links(&ObjectFile::new(id, crate::kind::Kind::Raw))?;
                    litter += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(litter)
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
    use crate::kind::Kind;
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
        volume.sweep_tmp(&mut report, LITTER).unwrap();
        assert_eq!(report, SweepReport::default(), "too young");
        volume.sweep_tmp(&mut report, Duration::ZERO).unwrap();
        assert_eq!((report.unnamed, report.litter), (3, 6));
        for object in [&named, &linked] {
            assert!(volume.stat(Key::from(object)).is_ok());
        }
        for object in [&died, &before, &after] {
            assert!(volume.stat(Key::from(object)).is_err());
        }
    }
}
