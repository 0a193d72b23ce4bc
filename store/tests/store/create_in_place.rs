//! `create`: fill in place, seal, and the same memory stays usable.

use crate::support::{named, pattern, place};
use vineyard_store::{Error, Kind, PutOptions};

#[test]
fn what_is_filled_in_place_is_got_and_the_array_stays_valid_but_private() {
    let place = place();
    for len in [0, 1, 5000, 3 << 20] {
        let draft = place.volume.create(Kind::Raw, len as u64).unwrap();
        let content = pattern(len, 5);
        // SAFETY: the draft has `len` writable bytes.
        unsafe { draft.as_mut_ptr().copy_from(content.as_ptr(), len) };
        let address = draft.as_mut_ptr();
        let (object, view) = draft.seal(&named("x")).unwrap();
        assert_eq!(object.len, len as u64);
        assert!(len == 0 || view.as_ptr() == address.cast_const());
        assert!(view.as_slice() == content);
        if len > 0 {
            // SAFETY: the view is copy-on-write.
            unsafe { view.as_mut_ptr().write(99) };
        }
        assert!(place.get("x").bytes() == content);
    }
}

#[test]
fn what_is_written_by_offset_is_in_the_memory_and_stays_inside() {
    let place = place();
    let draft = place.volume.create(Kind::Raw, 3 << 20).unwrap();
    draft.write_at(b"tail", (3 << 20) - 4).unwrap();
    for beyond in [(3 << 20) - 3, 3 << 20, u64::MAX] {
        assert!(draft.write_at(b"tail", beyond).is_err(), "{beyond}");
    }
    let (_, view) = draft.seal(&named("x")).unwrap();
    assert_eq!(view.as_slice()[(3 << 20) - 5..], *b"\0tail");
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let place = place();
    drop(place.volume.create(Kind::Raw, 5 << 20).unwrap());
    assert_eq!(place.objects(), Vec::<String>::new());
}

#[test]
fn a_draft_that_is_not_filled_is_zeros_and_holds_its_pages() {
    let place = place();
    let (object, _view) = place
        .volume
        .create(Kind::Raw, 3 << 20)
        .unwrap()
        .seal(&named("x"))
        .unwrap();
    assert!(place.get("x").bytes().iter().all(|b| *b == 0));
    let stat = place.volume.stat((&object).into()).unwrap();
    assert!(stat.allocated >= 3 << 20);
}

#[test]
fn a_seal_under_a_taken_name_fails_and_leaves_nothing() {
    let place = place();
    place.put("x", b"first");
    let options = PutOptions {
        overwrite: false,
        ..named("x")
    };
    let sealed = place.volume.create(Kind::Raw, 100).unwrap().seal(&options);
    let failed = sealed.unwrap_err();
    assert!(matches!(failed.error, Error::Exists { .. }));
    assert_eq!(failed.memory.as_slice(), [0; 100]);
    assert_eq!(place.objects().len(), 1);
}
