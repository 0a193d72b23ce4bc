//! Starts the sidecar under test.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::binaries;
use crate::cgroups::Cgroup;
use crate::process::{Process, Program, poll};

/// How long it may take on a machine that does a lot besides.
const START: Duration = Duration::from_secs(60);

/// Starts it as `uid` in `container`; returns when it listens at `listen`.
///
/// # Errors
/// When it ends or does not listen in time.
pub fn start(listen: &Path, others: &[&OsStr], uid: u32, container: &Cgroup) -> Result<Process> {
    let mut arguments = vec![OsStr::new("--listen"), listen.as_os_str()];
    arguments.extend(others);
    let program = Program {
        path: binaries::sidecar()?,
        arguments,
        uid,
        address_space: None,
        variable: None,
    };
    let mut process = Process::start(&program, container)?;
    let listens = poll(START, || {
        UnixStream::connect(listen).is_ok() || process.check_alive().is_err()
    });
    process.check_alive()?;
    ensure!(listens, "no sidecar listens at {}", listen.display());
    Ok(process)
}
