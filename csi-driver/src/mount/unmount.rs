//! umount(2) in a child: it may hang in the kernel, and must take nothing of the driver along.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::Error;
use crate::failpoint::fail_point;

/// Between two looks at the child; it is gone before the first one unless something is wrong.
const LOOK: Duration = Duration::from_millis(1);
const SLOWEST_LOOK: Duration = Duration::from_millis(100);

/// How long a mount may be busy: a child that the driver makes for another call has the driver's descriptors until it
/// executes its program.
const BUSY: Duration = Duration::from_millis(500);

/// The program that unmounts its last argument.
#[derive(Clone, Debug)]
pub(crate) struct Unmounter {
    /// Normally this program itself.
    pub(crate) program: PathBuf,
    /// What comes before the path.
    pub(crate) arguments: Vec<OsString>,
    /// How long it may take before the caller is told to come again.
    pub(crate) patience: Duration,
}

impl Unmounter {
    /// Takes one mount off `target`.
    ///
    /// # Errors
    /// [`Error::Hanging`] when it takes longer than our patience, else what the child says.
    pub(super) fn unmount(&self, target: &Path) -> Result<(), Error> {
        let failed = |source| Error::system("unmount", target, source);
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(target)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        fail_point!("unmount.begun");
        let begin = Instant::now();
        let mut look = LOOK;
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return match status.success() {
                    true => Ok(()),
                    false => Err(failed(complaint(&mut child))),
                };
            }
            if begin.elapsed() > self.patience {
                // Not killed: half an unmount is worse than a late one. Whoever collects it does nothing else.
                std::thread::spawn(move || child.wait());
                return Err(Error::Hanging {
                    path: target.to_owned(),
                    seconds: self.patience.as_secs(),
                });
            }
            std::thread::sleep(look);
            look = (look * 2).min(SLOWEST_LOOK);
        }
    }
}

fn complaint(child: &mut Child) -> io::Error {
    let mut text = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Bounded: an error message is short.
        let _ = stderr.take(1024).read_to_string(&mut text);
    }
    io::Error::other(text.trim().to_owned())
}

/// What the child of `parent` runs.
///
/// It dies with its parent: the next driver may have mounted something there already.
///
/// # Errors
/// What the kernel says, or that the parent is gone.
pub(crate) fn run(parent: u32, target: &Path) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::other("the process that wanted this is gone"));
    }
    // A symlink in the last place is never followed: kubelet's directories are not ours alone.
    until_free(|| umount2(target, MntFlags::UMOUNT_NOFOLLOW))
}

fn until_free(unmount: impl Fn() -> nix::Result<()>) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match unmount() {
            Err(Errno::EBUSY) if begin.elapsed() < BUSY => std::thread::sleep(LOOK * 10),
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> Unmounter {
        Unmounter {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            patience,
        }
    }

    #[test]
    fn an_unmount_that_hangs_is_left_to_itself() {
        let hanging = shell("sleep 2", Duration::from_millis(20));
        let error = hanging.unmount(Path::new("/nowhere")).unwrap_err();
        assert!(matches!(error, Error::Hanging { .. }), "{error}");
    }

    #[test]
    fn a_mount_that_is_busy_for_a_moment_is_unmounted_and_one_that_stays_so_is_not() {
        let begin = Instant::now();
        let in_use = || match begin.elapsed() < BUSY / 10 {
            true => Err(Errno::EBUSY),
            false => Ok(()),
        };
        until_free(in_use).unwrap();
        let error = until_free(|| Err(Errno::EBUSY)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EBUSY as i32));
    }

    #[test]
    fn what_the_child_says_is_passed_on() {
        let failing = shell("echo target is busy >&2; exit 1", Duration::from_secs(60));
        let error = failing
            .unmount(Path::new("/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nowhere") && error.contains("target is busy"),
            "{error}"
        );
    }
}
