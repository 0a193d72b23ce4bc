//! Others at work during a pass, and trees that they leave.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::{Mode, mkdirat};
use vineyard_charge::{PAGE, REGION};

use crate::order::{During, Order, SEALED, furnish, is_empty, object, pages, write};
use crate::support::ground::{Ground, MIB, assert_pattern, pattern};

#[test]
fn what_is_removed_or_renamed_or_replaced_during_the_pass_does_not_come_back() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    for name in ["removed", "renamed", "replaced", "kept"] {
        write(&object(&ground, name), 5000, SEALED);
    }
    write(&object(&ground, "large"), 5 * MIB, SEALED);
    let meddle = || {
        let _ = fs::remove_file(object(&ground, "removed"));
        let _ = fs::rename(
            object(&ground, "renamed"),
            ground.at(".vineyard/trash/renamed"),
        );
        fs::write(ground.at("new"), b"theirs").unwrap();
        let _ = fs::rename(ground.at("new"), object(&ground, "replaced"));
        let _ = fs::remove_file(object(&ground, "large"));
    };
    let during = During(&payer, &meddle);
    Order::new(&ground, &during, retainer).run().unwrap();
    assert!(!object(&ground, "removed").exists());
    assert!(!object(&ground, "renamed").exists());
    assert!(!object(&ground, "large").exists());
    assert_eq!(fs::read(object(&ground, "replaced")).unwrap(), b"theirs");
    assert_pattern(&ground.at(".vineyard/trash/renamed"), 5000);
    assert!(is_empty(&ground.at(".vineyard/tmp")));

    let outcome = Order::new(&ground, &payer, retainer).run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    assert_eq!(ground.bills(), [(retainer, 2 * pages(5000) + PAGE)]);
    ground.assert_used(2 * pages(5000) + PAGE);
}

#[test]
fn a_file_in_the_trash_that_is_filled_anew_is_left_to_its_writer() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let path = ground.at(".vineyard/trash/recycled");
    let size = 9 * MIB + 5000;
    write(&path, size, SEALED);
    let writer = File::options().read(true).write(true).open(&path).unwrap();
    let order = Order::new(&ground, &payer, retainer);
    let outcome = order.run().unwrap();
    let tail = pages(size) % REGION;
    assert_eq!(outcome.left_bytes, tail, "{outcome:?}");
    assert_eq!(outcome.moved, pages(size) - tail);
    drop(writer);
    let changed = || fs::metadata(&path).unwrap().ctime_nsec();
    assert!(order.run().unwrap().is_complete());
    let before = changed();
    assert!(order.run().unwrap().is_complete());
    assert_eq!(
        changed(),
        before,
        "what is on the right bill is not touched"
    );
    assert_pattern(&path, size);
}

#[test]
fn a_hostile_tree_is_handed_over_to_its_end() {
    let Some(mut ground) = Ground::new(64 * MIB) else {
        return;
    };
    furnish(&ground);
    let retainer = ground.cgroup("retainer", None);
    let payer = ground.payer(retainer);
    let outside = ground.outside("precious");
    fs::write(&outside, b"precious").unwrap();
    symlink(&outside, ground.at("out")).unwrap();
    symlink(ground.outside(""), ground.at("away")).unwrap();
    symlink("..", ground.at(".vineyard/up")).unwrap();
    symlink("long/".repeat(50), ground.at("long")).unwrap();
    nix::unistd::mkfifo(&object(&ground, "fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(ground.at("socket")).unwrap();
    let setuid = ground.at("setuid");
    write(&setuid, 5000, 0o4755);
    // Deeper than any path can say.
    let mut deep = File::open(ground.volume()).unwrap();
    for _ in 0..3000 {
        mkdirat(&deep, "d", Mode::S_IRWXU).unwrap();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        deep = openat(&deep, "d", flags, Mode::empty()).unwrap().into();
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    let bottom = openat(&deep, "bottom", flags, Mode::S_IRUSR).unwrap();
    File::from(bottom)
        .write_all_at(&pattern(0, 5000), 0)
        .unwrap();
    // A lease keeps everybody else from opening.
    let leased = ground.at("leased");
    write(&leased, 5000, 0o644);
    let lease = File::open(&leased).unwrap();
    // SAFETY: plain fcntl calls on a live descriptor; SIGURG is ignored by default.
    unsafe {
        libc::fcntl(lease.as_raw_fd(), 10, libc::SIGURG);
        assert_eq!(
            libc::fcntl(lease.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK),
            0
        );
    }
    // Allocated far beyond its end, and with an attribute.
    let odd = ground.at("odd");
    write(&odd, 100, 0o644);
    let file = File::options().write(true).open(&odd).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 3 << 20).unwrap();
    drop(file);
    let value = [7u8; 3];
    let path = std::ffi::CString::new(odd.to_str().unwrap()).unwrap();
    // SAFETY: strings with their ends, and a buffer with its length.
    let set = unsafe {
        libc::setxattr(
            path.as_ptr(),
            c"trusted.x".as_ptr(),
            value.as_ptr().cast(),
            3,
            0,
        )
    };
    assert_eq!(set, 0);

    let mut order = Order::new(&ground, &payer, retainer);
    let outcome = order.run().unwrap();
    assert_eq!(outcome.left.len(), 1, "{outcome:?}");
    assert_eq!(outcome.left[0].path.as_deref(), Some(Path::new("leased")));
    assert_eq!((outcome.unreached, outcome.unseen), (pages(5000), PAGE));
    drop(lease);
    order.exclusive = false;
    let outcome = order.run().unwrap();
    assert!(outcome.is_complete(), "{outcome:?}");
    let total = 3 * pages(5000) + PAGE;
    assert_eq!((outcome.billed[&retainer], outcome.unseen), (total, PAGE));
    ground.assert_used(total + PAGE);
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
    assert_eq!(fs::metadata(&setuid).unwrap().mode() & 0o7777, 0o4755);
    let mut got = [0u8; 8];
    // SAFETY: as above.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            c"trusted.x".as_ptr(),
            got.as_mut_ptr().cast(),
            8,
        )
    };
    assert_eq!((length, &got[..3]), (3, &value[..]));
}
