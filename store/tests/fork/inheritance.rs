//! What a forked child inherits.

use std::sync::Arc;
use std::time::Duration;

use vineyard_charge::OwnPayer;
use vineyard_store::{Kind, Options};

use crate::alone;
use crate::support::{Place, name, named, pattern, place, place_with};

#[test]
fn a_forked_child_that_still_maps_the_draft_cannot_change_the_object() {
    let _alone = alone();
    let place = place();
    let draft = place.volume.create(Kind::Raw, 3 << 20).unwrap();
    let start = draft.as_mut_ptr();
    // SAFETY: 3 MiB are writable.
    unsafe { start.write_bytes(1, 3 << 20) };
    let mut go = [0; 2];
    let mut done = [0; 2];
    // SAFETY: plain pipes; the child only uses system calls and memory that it inherited, then ends at once.
    let child = unsafe {
        assert_eq!(libc::pipe(go.as_mut_ptr()), 0);
        assert_eq!(libc::pipe(done.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            let mut byte = 0_u8;
            libc::read(go[0], (&raw mut byte).cast(), 1);
            start.write_bytes(2, 3 << 20);
            libc::write(done[1], (&raw const byte).cast(), 1);
            libc::_exit(0);
        }
        child
    };
    assert!(child > 0);
    let (_, view) = draft.seal(&named("x")).unwrap();
    let mut byte = 0_u8;
    // SAFETY: as above; the child is ours.
    unsafe {
        libc::write(go[1], (&raw const byte).cast(), 1);
        libc::read(done[0], (&raw mut byte).cast(), 1);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert!(view.as_slice().iter().all(|b| *b == 1));
    assert!(place.get("x").bytes().iter().all(|b| *b == 1));
}

#[test]
fn wait_works_in_a_forked_child() {
    let _alone = alone();
    let place = place();
    place.put("warm", b"1");
    assert!(
        place
            .volume
            .wait(&[name("x")], Some(Duration::from_millis(20)))
            .is_err()
    );
    // SAFETY: the child ends by `_exit` and shares nothing but the volume.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = i32::from(
            place
                .volume
                .wait(&[name("x")], Some(Duration::from_secs(60)))
                .is_err(),
        );
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(code) };
    }
    std::thread::sleep(Duration::from_millis(50));
    place.put("x", b"1");
    let mut status = -1;
    // SAFETY: the child is ours.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
}

#[test]
fn a_forked_child_does_not_keep_the_stock_of_its_parent() {
    let _alone = alone();
    for payer in [None, Some(Arc::new(OwnPayer::new()) as _)] {
        child_of_a_stocked_parent(&place_with(Options {
            payer,
            create: true,
        }));
    }
}

fn child_of_a_stocked_parent(place: &Place) {
    for i in 0..50 {
        place.put(&format!("n{i}"), b"small");
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let parent = open();
    // SAFETY: the child only looks at its descriptors and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        place.volume.after_fork_in_child();
        let closed = parent - open();
        place.put("from the child", b"1");
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(closed < 10)) };
    }
    let mut status = -1;
    // SAFETY: the child is ours.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    assert_eq!(place.get("from the child").bytes(), b"1");
    place.put("from the parent", b"1");
}

#[test]
fn a_forked_child_does_not_keep_what_its_parent_recycles() {
    let _alone = alone();
    let place = place();
    let trash = || place.own("trash").len();
    let remove = |at| assert!(place.volume.remove((&name(at)).into()).unwrap());
    place.put("x", &pattern(9 << 20, 1));
    remove("x");
    assert_eq!(trash(), 1);
    let mut end = [0; 2];
    // SAFETY: a plain pipe; the child only reads from it and ends at once.
    let child = unsafe {
        assert_eq!(libc::pipe(end.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            let mut byte = 0_u8;
            libc::close(end[1]);
            libc::read(end[0], (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
        child
    };
    assert!(child > 0);
    place.put("y", &pattern(9 << 20, 2));
    assert_eq!(trash(), 0);
    // A lease on it is granted although the child lives.
    remove("y");
    assert_eq!(trash(), 1);
    place.put("z", &pattern(9 << 20, 3));
    assert_eq!(trash(), 0);
    assert!(place.get("z").bytes() == pattern(9 << 20, 3));
    // SAFETY: as above; the child is ours.
    unsafe {
        libc::close(end[1]);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}
