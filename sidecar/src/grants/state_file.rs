//! The record that lets a restarted sidecar know what it had spent.
//!
//! Replaced by rename, so a reader sees the old or the new record. It is not synced to disk: after a crash of the
//! *machine* the boot id differs and the memory is gone anyway. A record that cannot be understood is an error that
//! the caller answers with "all spent", never with "nothing spent".

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const MAGIC: &str = "vineyard-allowance 1";

/// What is recorded, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The boot during which it was written.
    pub(crate) boot_id: String,
    /// Inode of the memory cgroup of the process that wrote it, 0 if unknown.
    pub(crate) cgroup: u64,
    /// Upper bound of the spent bytes.
    pub(crate) spent: u64,
    /// Upper bound of the part that is charged to earlier cgroups.
    pub(crate) carried: u64,
}

/// The file.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    temporary: PathBuf,
}

impl StateFile {
    /// A record at `path`; a file `path`.tmp next to it is used for writing.
    pub(crate) fn new(path: &Path) -> Self {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        Self {
            path: path.to_owned(),
            temporary: temporary.into(),
        }
    }

    /// The record, or `None` if there is none yet.
    ///
    /// # Errors
    /// When the file cannot be read, or `InvalidData` when it is not a record.
    pub(crate) fn read(&self) -> io::Result<Option<Record>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => parse(&text).map(Some).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "not an allowance record")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// When the file cannot be written; the old record stays.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let mut file = File::create(&self.temporary)?;
        write!(
            file,
            "{MAGIC}\nboot {}\ncgroup {}\nspent {}\ncarried {}\n",
            record.boot_id, record.cgroup, record.spent, record.carried
        )?;
        drop(file);
        fs::rename(&self.temporary, &self.path)
    }
}

fn parse(text: &str) -> Option<Record> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    if lines.next()? != MAGIC {
        return None;
    }
    let mut field = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
    Some(Record {
        boot_id: field("boot")?.to_owned(),
        cgroup: field("cgroup")?.parse().ok()?,
        spent: field("spent")?.parse().ok()?,
        carried: field("carried")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            boot_id: "b-1".into(),
            cgroup: 17,
            spent: 4096,
            carried: 0,
        }
    }

    #[test]
    fn a_record_is_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(&folder.path().join("spent"));
        assert_eq!(file.read().unwrap(), None);
        file.write(&record()).unwrap();
        file.write(&record()).unwrap();
        assert_eq!(file.read().unwrap(), Some(record()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_truncation_of_a_record_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spent");
        let file = StateFile::new(&path);
        file.write(&record()).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = file.read().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length} bytes");
        }
    }

    #[test]
    fn an_unwritable_folder_is_an_error_and_keeps_the_old_record() {
        let file = StateFile::new(Path::new("/proc/vineyard-test/spent"));
        assert!(file.write(&record()).is_err());
    }
}
