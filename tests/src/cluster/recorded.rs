//! Processes by name, in files: whoever comes later ends exactly those, and nobody who got the same number since.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::poll;

/// A process that was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    name: String,
    pid: Pid,
    started: u64,
}

impl Recorded {
    /// Records a process that runs.
    ///
    /// # Errors
    /// When it is gone already, or the file cannot be written.
    pub fn write(directory: &Path, name: &str, pid: Pid) -> Result<Self> {
        let started = started(pid).with_context(|| format!("{name} is gone"))?;
        let path = file(directory, name);
        fs::create_dir_all(directory)?;
        fs::write(&path, format!("{pid} {started}\n"))
            .with_context(|| path.display().to_string())?;
        Ok(Self {
            name: name.to_owned(),
            pid,
            started,
        })
    }

    /// The process that was recorded last under this name. `None` when none was.
    ///
    /// # Errors
    /// When the record is no record.
    pub fn read(directory: &Path, name: &str) -> Result<Option<Self>> {
        let path = file(directory, name);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| path.display().to_string())?,
        };
        let parsed = text.trim().split_once(' ').and_then(|(pid, started)| {
            let pid = pid.parse().ok().filter(|pid| *pid > 1)?;
            Some((Pid::from_raw(pid), started.parse().ok()?))
        });
        // A writer that was killed.
        let Some((pid, started)) = parsed else {
            return Ok(None);
        };
        Ok(Some(Self {
            name: name.to_owned(),
            pid,
            started,
        }))
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(&self, signal: Signal, limit: Duration) -> Result<()> {
        self.signal(signal);
        if !poll(limit, || !self.is_alive()) {
            bail!("{} (process {}) does not end", self.name, self.pid);
        }
        Ok(())
    }
}

fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.pid"))
}

/// When a process started, in ticks since the boot. `None` when it is gone or dead.
fn started(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of a program may have spaces and brackets.
    let rest = &stat[stat.rfind(')')? + 2..];
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_again_and_its_successor_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        Recorded::write(folder.path(), "a", pid).unwrap();
        let read = Recorded::read(folder.path(), "a").unwrap().unwrap();
        assert!(read.is_alive());
        let other = Recorded {
            started: read.started + 1,
            ..read.clone()
        };
        other.signal(Signal::SIGKILL);
        assert!(read.is_alive());
        read.signal(Signal::SIGKILL);
        child.wait().unwrap();
        assert!(!read.is_alive());
        assert!(Recorded::read(folder.path(), "b").unwrap().is_none());
    }

    #[test]
    fn a_record_that_was_cut_off_names_nobody() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "12", "1 5", "-1 5", "x y"] {
            fs::write(folder.path().join("a.pid"), text).unwrap();
            assert!(
                Recorded::read(folder.path(), "a").unwrap().is_none(),
                "{text}"
            );
        }
    }
}
