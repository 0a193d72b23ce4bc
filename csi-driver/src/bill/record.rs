//! Small records in the run directory: written beside and renamed, so that a reader sees the old one or the new one.
//!
//! The run directory is a tmpfs and dies with the boot, as the memory does that they are about; so nothing is synced.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failpoint::fail_point;

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RecordError {
    /// The file system refuses.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which record.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The record is not what anybody wrote; nothing is guessed from it.
    #[error("record {}: {reason}", path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Io {
        doing,
        path,
        source,
    }
}

/// Replaces the record at `path`.
///
/// # Errors
/// [`RecordError::Io`]; then the old one is still there.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    let beside = path.with_extension("tmp");
    let text = serde_json::to_vec(record).map_err(|error| RecordError::Corrupt {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    fail_point!("record.begin");
    let written = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| {
            fail_point!("record.written");
            fs::rename(&beside, path)
        });
    fail_point!("record.renamed");
    written.map_err(failed("write", path))
}

/// Reads the record at `path`; `None` when there is none.
///
/// # Errors
/// [`RecordError`].
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("read", path))?,
    };
    let record = serde_json::from_slice(&text).map_err(|error| RecordError::Corrupt {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(Some(record))
}

/// Reads every record in a directory at the start of whoever alone writes there, in the order of their names. What was half written
/// when the last one was killed goes. A record that is not what anybody wrote is logged, and stays for whoever looks.
///
/// # Errors
/// [`RecordError::Io`].
pub(crate) fn read_all<T: DeserializeOwned>(directory: &Path) -> Result<Vec<T>, RecordError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let path = entry.map_err(failed("list", directory))?.path();
        match path.extension().and_then(OsStr::to_str) {
            Some("json") => paths.push(path),
            Some("tmp") => remove(&path)?,
            _ => {}
        }
    }
    paths.sort();
    let mut records = Vec::new();
    for path in &paths {
        match read(path) {
            Ok(record) => records.extend(record),
            Err(error @ RecordError::Corrupt { .. }) => {
                tracing::error!(%error, "a record is left out");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

/// Removes the record at `path`. None there is fine.
///
/// # Errors
/// [`RecordError::Io`].
pub(crate) fn remove(path: &Path) -> Result<(), RecordError> {
    let removed = fs::remove_file(path);
    fail_point!("record.removed");
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_as_a_whole_and_a_broken_one_stands_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1, 2, 3]).unwrap();
        write(&path, &vec![4]).unwrap();
        write(&folder.path().join("b.json"), &vec![5]).unwrap();
        // What a crash leaves.
        let half = folder.path().join("c.tmp");
        fs::write(&half, "[6").unwrap();
        assert_eq!(
            read_all::<Vec<u32>>(folder.path()).unwrap(),
            [vec![4], vec![5]]
        );
        assert!(!half.exists(), "nobody would write it again");
        fs::write(&path, "[4").unwrap();
        assert!(matches!(
            read::<Vec<u32>>(&path),
            Err(RecordError::Corrupt { .. })
        ));
        assert_eq!(read_all::<Vec<u32>>(folder.path()).unwrap(), [vec![5]]);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
    }
}
