//! A process of the node: started in its cgroup, asked what it takes, ended with its guard.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use vineyard_charge::cgroup::control::ControlledCgroup;

/// Killed when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts `program`; what it logs goes to the file `log`. It allocates nothing of a volume before it is in `cgroup`: nobody
    /// knows its socket yet.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&OsStr],
        log: &Path,
        cgroup: Option<&ControlledCgroup>,
    ) -> Self {
        let started = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log).unwrap())
            .spawn();
        let process = Self(started.unwrap());
        if let Some(cgroup) = cgroup {
            cgroup.join(process.0.id()).unwrap();
        }
        process
    }

    /// Resident MiB.
    pub(crate) fn memory(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().nth(1));
        kibibytes.unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// Processor time of all its threads so far.
    pub(crate) fn processor(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks = fields.skip(11).take(2).map(|it| it.parse::<f64>().unwrap());
        let each = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
        let each = each as f64;
        Duration::from_secs_f64(ticks.sum::<f64>() / each)
    }

    /// Tells it to end. It may take its time.
    pub(crate) fn tell_to_end(&self) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
    }

    /// Waits until it has ended, well.
    pub(crate) fn wait(&mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "it ended with {status}");
    }

    /// Kills it, unless it has ended.
    pub(crate) fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
