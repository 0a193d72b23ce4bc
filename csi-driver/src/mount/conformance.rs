//! What every mounter must do, and what the steps make of it. The real one runs as root, in a mount namespace of its own.

use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::fake::FakeMounter;
use super::*;

const SIZE: Bytes = Bytes(1 << 20);

fn tmpfs() -> Tmpfs {
    Tmpfs {
        source: "vineyard:test@1".into(),
        size: SIZE,
        inodes: 100,
        context: None,
    }
}

fn ours(mount: &Mount) -> bool {
    mount.source.to_string_lossy().starts_with("vineyard:")
}

fn count(mounter: &dyn Mounter, point: &Path) -> usize {
    mounter
        .mounts()
        .unwrap()
        .iter()
        .filter(|mount| mount.point == point)
        .count()
}

fn all(mounter: &dyn Mounter, folder: &Path) {
    let backing = folder.join("backing with space\\");
    let target = folder.join("target\u{fc}");
    std::fs::create_dir(&backing).unwrap();
    mounter.mount_tmpfs(&backing, &tmpfs()).unwrap();
    let mounted = at(mounter, &backing).unwrap().unwrap();
    assert_eq!(
        (mounted.fs_type.as_str(), mounted.source.to_str()),
        ("tmpfs", Some("vineyard:test@1"))
    );
    assert!(mounted.is_confined());
    let usage = mounter.usage(&backing).unwrap();
    assert_eq!(
        (usage.bytes, usage.inodes, usage.free_inodes),
        (SIZE.0, 100, 99)
    );

    binding_twice_mounts_once(mounter, &backing, &target);
    mounts_on_each_other_are_taken_off(mounter, &backing, &target);
    a_bind_without_its_flags_gets_them(mounter, &backing, &target);
    what_is_not_ours_is_left_alone(mounter, &backing, &target);

    mounter.resize_tmpfs(&backing, Bytes(2 << 20), 200).unwrap();
    let usage = mounter.usage(&backing).unwrap();
    assert_eq!((usage.bytes, usage.inodes), (2 << 20, 200));
    assert!(
        at(mounter, &backing).unwrap().unwrap().is_confined(),
        "a resize keeps the flags"
    );
    ensure_unmounted(mounter, ours, &backing).unwrap();
    assert!(!backing.exists());
    let missing = ensure_bound(mounter, ours, &backing, &target, Flags::default());
    assert!(missing.is_err() && !target.exists());
}

fn binding_twice_mounts_once(mounter: &dyn Mounter, backing: &Path, target: &Path) {
    let flags = Flags {
        read_only: true,
        no_exec: true,
        no_atime: false,
    };
    for _ in 0..3 {
        ensure_bound(mounter, ours, backing, target, flags).unwrap();
        assert_eq!(count(mounter, target), 1);
    }
    let mount = at(mounter, target).unwrap().unwrap();
    assert_eq!(mount.flags(), flags);
    assert!(mount.is_confined());
    assert_eq!(mount.device, at(mounter, backing).unwrap().unwrap().device);
    assert!(!at(mounter, backing).unwrap().unwrap().flags().read_only);
    for _ in 0..2 {
        ensure_unmounted(mounter, ours, target).unwrap();
        assert!(!target.exists());
    }
}

fn mounts_on_each_other_are_taken_off(mounter: &dyn Mounter, backing: &Path, target: &Path) {
    std::fs::create_dir(target).unwrap();
    for _ in 0..5 {
        mounter.bind(backing, target).unwrap();
    }
    ensure_bound(mounter, ours, backing, target, Flags::default()).unwrap();
    assert_eq!(count(mounter, target), 1);
    for _ in 0..5 {
        mounter.bind(backing, target).unwrap();
    }
    ensure_unmounted(mounter, ours, target).unwrap();
    assert_eq!(count(mounter, target), 0);
    std::fs::create_dir(target).unwrap();
    for _ in 0..70 {
        mounter.bind(backing, target).unwrap();
    }
    let error = ensure_unmounted(mounter, ours, target).unwrap_err();
    assert!(matches!(error, Error::Stacked { .. }), "{error}");
    ensure_unmounted(mounter, ours, target).unwrap();
}

fn a_bind_without_its_flags_gets_them(mounter: &dyn Mounter, backing: &Path, target: &Path) {
    std::fs::create_dir(target).unwrap();
    mounter.bind(backing, target).unwrap();
    let flags = Flags {
        read_only: true,
        ..Flags::default()
    };
    ensure_bound(mounter, ours, backing, target, flags).unwrap();
    assert_eq!(
        (
            count(mounter, target),
            at(mounter, target).unwrap().unwrap().flags()
        ),
        (1, flags)
    );
    ensure_unmounted(mounter, ours, target).unwrap();
}

fn what_is_not_ours_is_left_alone(mounter: &dyn Mounter, backing: &Path, target: &Path) {
    std::fs::create_dir(target).unwrap();
    let foreign = Tmpfs {
        source: "somebody".into(),
        ..tmpfs()
    };
    mounter.mount_tmpfs(target, &foreign).unwrap();
    let bound = ensure_bound(mounter, ours, backing, target, Flags::default());
    assert!(matches!(bound, Err(Error::Foreign { .. })));
    assert!(matches!(
        ensure_unmounted(mounter, ours, target),
        Err(Error::Foreign { .. })
    ));
    assert_eq!(count(mounter, target), 1);
    mounter.unmount(target).unwrap();
    // A directory with something in it is not removed either.
    std::fs::write(target.join("precious"), "x").unwrap();
    assert!(ensure_unmounted(mounter, ours, target).is_err());
    std::fs::remove_file(target.join("precious")).unwrap();
    std::fs::remove_dir(target).unwrap();
    // Nor is a symlink followed to somewhere else.
    std::os::unix::fs::symlink(backing, target).unwrap();
    assert!(ensure_bound(mounter, ours, backing, target, Flags::default()).is_err());
    std::fs::remove_file(target).unwrap();
}

#[test]
fn the_fake_keeps_the_rules_of_every_mounter() {
    let folder = tempfile::tempdir().unwrap();
    all(&FakeMounter::default(), folder.path());
}

#[test]
fn linux_keeps_the_rules_of_every_mounter() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    // A thread may have a mount namespace of its own, and its children have it too.
    std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS) {
            eprintln!("skipped: no mount namespace of our own: {errno}");
            return;
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let unmounter = Unmounter {
            program: "umount".into(),
            arguments: Vec::new(),
            patience: Duration::from_secs(60),
        };
        all(&LinuxMounter::new(unmounter), &path);
    })
    .join()
    .unwrap();
}
