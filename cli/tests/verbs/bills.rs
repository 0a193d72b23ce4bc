//! Full volumes and the ledger: on a tmpfs of its own, which takes root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::session::{Answer, answer};

/// A mounted tmpfs, unmounted when it is dropped.
struct Tmpfs {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Tmpfs {
    /// `None`, and a line that says so, without the right to mount.
    fn new(options: &str) -> Option<Self> {
        let directory = tempfile::Builder::new()
            .prefix("vineyard-test-")
            .tempdir()
            .unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = directory.path().join("volume");
        std::fs::create_dir(&path).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        match mount(
            Some("vineyard-test"),
            &path,
            Some("tmpfs"),
            flags,
            Some(options),
        ) {
            Ok(()) => Some(Self {
                _directory: directory,
                path,
            }),
            Err(errno) => {
                println!("skipped: a tmpfs cannot be mounted here ({errno})");
                None
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vineyard"));
        command
            .env("VINEYARD_VOLUME", &self.path)
            .env_remove("VINEYARD_SOCKET")
            .args(arguments);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Answer {
        answer(&mut self.command(arguments))
    }

    fn put(&self, name: &str, len: usize) -> Answer {
        let source = self.path.with_file_name("source");
        std::fs::write(&source, vec![7; len]).unwrap();
        self.run(&["put", source.to_str().unwrap(), name])
    }

    fn used(&self) -> u64 {
        self.run(&["stat", "--json"]).ok().json()[0]["used_bytes"]
            .as_u64()
            .unwrap()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

fn sum(rows: &Value, key: &str) -> u64 {
    rows.as_array()
        .unwrap()
        .iter()
        .map(|row| row[key].as_u64().unwrap())
        .sum()
}

#[test]
fn a_full_volume_ends_with_4_and_nothing_of_the_object_stays() {
    let Some(volume) = Tmpfs::new("size=4m,mode=0777") else {
        return;
    };
    volume.put("fits", 1 << 20).ok();
    let before = volume.used();
    let full = volume.put("does-not-fit", 8 << 20);
    assert_eq!(full.code, 4, "{}", full.err);
    assert!(full.err.contains("vineyard ls --sort size"), "{}", full.err);
    assert_eq!(volume.used(), before);
    assert_eq!(volume.run(&["ls"]).ok().text(), "fits\n");
}

#[test]
fn the_ledger_adds_up_to_what_the_volume_uses() {
    let Some(volume) = Tmpfs::new("size=64m,mode=0777,huge=never") else {
        return;
    };
    volume.put("large", 5 << 20).ok();
    volume.put("small", 100).ok();
    let answer = volume.run(&["charges", "--json"]);
    if answer.code == 7 {
        println!("skipped: {}", answer.err);
        return;
    }
    let ledger = &answer.ok().json()[0];
    let charged = sum(&ledger["bills"], "bytes");
    // The format file is the third.
    assert_eq!(charged, (5 << 20) + 2 * 4096);
    let rest =
        ledger["unreached_bytes"].as_u64().unwrap() + ledger["unseen_bytes"].as_u64().unwrap();
    assert_eq!(charged + rest, ledger["used_bytes"].as_u64().unwrap());

    let objects = volume.run(&["charges", "--objects", "--json"]).ok().json();
    assert_eq!(objects[0]["names"][0], "large");
    assert_eq!(sum(&objects[0]["owners"], "bytes"), 5 << 20);
    assert_eq!(sum(&objects[1]["owners"], "bytes"), 4096);
    let text = volume.run(&["charges"]).ok().text().to_owned();
    assert!(text.starts_with("CHARGED TO"), "{text}");
    assert!(text.contains("5.0 MiB of 64.0 MiB used"), "{text}");
}

#[test]
fn the_ledger_without_privileges_says_what_is_missing_and_ends_with_7() {
    let Some(volume) = Tmpfs::new("size=4m,mode=0777") else {
        return;
    };
    volume.put("a", 10).ok();
    // The build's own directory may be closed to other users. Copied by another process: what another test forks
    // meanwhile would hold the file open for writing, and nothing executes such a file.
    let binary = volume.path.with_file_name("vineyard");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_vineyard"))
        .arg(&binary)
        .status();
    assert!(copied.unwrap().success());
    let refused = answer(
        Command::new(&binary)
            .args(["charges", "--volume"])
            .arg(&volume.path)
            .uid(65534)
            .gid(65534)
            .stdin(Stdio::null()),
    );
    assert_eq!(refused.code, 7, "{}", refused.err);
    assert!(
        refused.err.contains("CAP_SYS_ADMIN") && refused.err.contains("root"),
        "{}",
        refused.err
    );
    let looked = answer(
        Command::new(&binary)
            .args(["top", "--once", "--json", "--volume"])
            .arg(&volume.path)
            .uid(65534)
            .stdin(Stdio::null()),
    );
    let look = &looked.ok().json()[0];
    assert_eq!(look["bills"], Value::Null);
    assert!(look["no_bills"].as_str().unwrap().contains("CAP_SYS_ADMIN"));
}

#[test]
fn a_plain_file_of_the_volume_is_in_the_ledger_too() {
    let Some(volume) = Tmpfs::new("size=8m,mode=0777") else {
        return;
    };
    volume.put("a", 10).ok();
    std::fs::write(Path::new(&volume.path).join("plain.csv"), vec![b'x'; 9000]).unwrap();
    let answer = volume.run(&["charges", "--objects", "--json"]);
    if answer.code == 7 {
        println!("skipped: {}", answer.err);
        return;
    }
    let rows = answer.ok().json();
    let plain = rows.iter().find(|row| row["path"] == "plain.csv").unwrap();
    assert_eq!(plain["bytes"], 12288);
}
