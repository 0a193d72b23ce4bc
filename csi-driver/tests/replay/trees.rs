//! Volumes in which pods have placed whatever a file system knows: every call ends, and the tree stays as it is.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;

use crate::chance::Chance;
use crate::kubelet::{Kills, Kubelet};
use crate::{number, patient, sandbox};

const MIB: i64 = 1 << 20;

/// How long one call may take on a busy machine before it hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// One of everything. Returns the files whose leases are held.
fn plant(root: &Path) -> Vec<File> {
    let all = Mode::from_bits_truncate(0o666);
    mkfifo(&root.join("fifo"), all).unwrap();
    mknod(&root.join("socket"), SFlag::S_IFSOCK, all, 0).unwrap();
    mknod(&root.join("null"), SFlag::S_IFCHR, all, makedev(1, 3)).unwrap();
    mknod(&root.join("disk"), SFlag::S_IFBLK, all, makedev(254, 0)).unwrap();
    fs::write(root.join("setuid"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("setuid"), Permissions::from_mode(0o6755)).unwrap();
    symlink("/etc/passwd", root.join("out")).unwrap();
    symlink("/", root.join("root")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    fs::write(root.join("name with\nnewline and \\040"), "x").unwrap();
    File::create(root.join("sparse"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    fs::write(root.join("unreadable"), "x").unwrap();
    fs::set_permissions(root.join("unreadable"), Permissions::from_mode(0o0)).unwrap();
    fs::create_dir(root.join("hidden")).unwrap();
    fs::set_permissions(root.join("hidden"), Permissions::from_mode(0o0)).unwrap();
    let mut deep = root.to_owned();
    for _ in 0..400 {
        deep.push("deep");
        // Longer than any path that the kernel takes at once.
        if fs::create_dir(&deep).is_err() {
            break;
        }
    }
    // The store's own names as something else.
    let own = root.join(".vineyard");
    fs::create_dir_all(own.join("objects")).unwrap();
    mkfifo(&own.join("objects/0123456789abcdefghjkmnpqra.raw"), all).unwrap();
    symlink("/etc", own.join("trap")).unwrap();
    ["leased", ".vineyard/objects/0123456789abcdefghjkmnpqrb.raw"]
        .iter()
        .map(|name| {
            let file = File::create_new(root.join(name)).unwrap();
            file.write_all_at(b"leased", 0).unwrap();
            // SAFETY: a lease on a descriptor that lives longer.
            let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
            assert_eq!(taken, 0);
            file
        })
        .collect()
}

/// What is there, without opening anything.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u64, u64, PathBuf)> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            let link = fs::read_link(&path).unwrap_or_default();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let size = if meta.is_dir() { 0 } else { meta.size() };
            found.insert(name, (meta.mode(), meta.rdev(), size, link));
            if meta.is_dir() {
                pending.push(path);
            }
        }
    }
    found
}

async fn ends<T>(what: &str, call: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patient(LIMIT), call).await {
        Ok(done) => done,
        Err(_) => panic!("{what} hangs"),
    }
}

/// Every call on a volume whose tree is what `plant` makes of it.
async fn every_call_ends(
    folder: &Path,
    parameters: &[(&str, &str)],
    plant: impl FnOnce(&Path) -> Vec<File>,
) {
    let mut kubelet = Kubelet::new(folder, Chance::new(0), Kills::AsOrdered);
    let (p, q) = (Kubelet::pod_uid(1), Kubelet::pod_uid(2));
    kubelet.create("v", MIB, parameters).await.unwrap();
    kubelet.stage("v").await.unwrap();
    kubelet.publish("v", &p, false).await.unwrap();
    let layer = folder.join("layers/v");
    // Whoever holds a lease holds it in the memory itself: open files of a pod would keep its mount busy.
    let held = plant(&layer);
    let before = tree(&layer);
    ends("stage", kubelet.stage("v")).await.unwrap();
    ends("publish", kubelet.publish("v", &q, true))
        .await
        .unwrap();
    ends("publish again", kubelet.publish("v", &p, false))
        .await
        .unwrap();
    ends("stats", kubelet.stats("v", &q)).await.unwrap();
    let larger = 2 * MIB;
    ends("expand", kubelet.book("v", larger)).await.unwrap();
    ends("expand", kubelet.grow("v", &p, larger)).await;
    kubelet.driver.kill();
    ends("restart", kubelet.stats("v", &q)).await.unwrap();
    ends("unpublish", kubelet.unpublish("v", &p)).await;
    ends("unpublish", kubelet.unpublish("v", &q)).await;
    ends("unstage", kubelet.unstage("v")).await;
    assert_eq!(tree(&layer), before);
    // Open files keep nothing but their own memory.
    drop(held);
    ends("delete", kubelet.delete("v")).await;
    kubelet.driver.assert_nothing_is_left().await;
}

#[test]
fn every_call_ends_on_a_hostile_tree() {
    sandbox::run(|folder| {
        sandbox::runtime().block_on(every_call_ends(folder, &[], plant));
    });
}

/// `VINEYARD_ENTRIES` says how many files.
#[test]
fn every_call_ends_on_a_tree_of_many_files() {
    let entries = number("VINEYARD_ENTRIES").unwrap_or(20_000);
    sandbox::run(|folder| {
        let fill = |root: &Path| {
            for number in 0..entries {
                File::create(root.join(number.to_string())).unwrap();
            }
            Vec::new()
        };
        sandbox::runtime().block_on(async {
            let inodes = (entries + 64).to_string();
            every_call_ends(folder, &[("inodes", &inodes)], fill).await;
        });
    });
}
