//! What the figures were taken on.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The load of the last minute.
pub(crate) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|_| "?".into())
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or("?".into(), |(_, value)| value.trim().to_owned())
}

/// One line about the machine, one about the run.
pub(crate) fn describe(folder: &Path, before: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = field("/proc/cpuinfo", "model name");
    let memory = field("/proc/meminfo", "MemTotal");
    let kernel = output("uname", &["-r"]);
    let folder = folder.display().to_string();
    let disk = output("stat", &["--file-system", "--format=%T", &folder]);
    let when = output("date", &["--utc", "+%Y-%m-%d %H:%M UTC"]);
    let after = load();
    format!(
        "Run of {when}. Processor: {processor}, {cores} cores; memory: {memory}; kernel: {kernel}; \
         records on: {disk}; load before the run: {before}; load after the run: {after}."
    )
}
