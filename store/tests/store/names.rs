//! Names own objects; links share them; prefixes and globs list them.

use std::io::IoSlice;

use crate::support::{Place, name, named, pattern, place};
use vineyard_store::{Error, Key, Kind, ListOptions, Listing, Mode};

fn listed(place: &Place, prefix: &str, glob: Option<&str>) -> Vec<String> {
    let options = ListOptions {
        prefix: Some(prefix.into()),
        glob: glob.map(Into::into),
        stat: false,
    };
    let mut names: Vec<String> = place
        .volume
        .list(&options)
        .unwrap()
        .map(|l| l.unwrap().name.to_string())
        .collect();
    names.sort();
    names
}

#[test]
fn a_linked_object_lives_until_its_last_name_goes() {
    let place = place();
    place.put("a", b"1");
    place
        .volume
        .link(Key::Name(&name("a")), &name("d/b"), false)
        .unwrap();
    place
        .volume
        .link(Key::Name(&name("d/b")), &name("c"), false)
        .unwrap();
    assert!(place.volume.remove(Key::Name(&name("a"))).unwrap());
    assert_eq!(place.get("d/b").bytes(), b"1");
    place.put("c", b"2");
    assert_eq!(place.get("d/b").bytes(), b"1");
    assert!(place.volume.remove(Key::Name(&name("d/b"))).unwrap());
    assert_eq!(place.objects().len(), 1);
    assert_eq!(place.own("links"), Vec::<String>::new());
}

#[test]
fn a_link_to_nothing_is_refused_and_a_taken_name_too() {
    let place = place();
    place.put("a", b"1");
    place.put("b", b"2");
    let missing = place.volume.link(Key::Name(&name("x")), &name("y"), false);
    assert!(matches!(missing, Err(Error::NotFound { .. })));
    let taken = place.volume.link(Key::Name(&name("a")), &name("b"), false);
    assert!(matches!(taken, Err(Error::Exists { .. })));
    assert_eq!(place.get("b").bytes(), b"2");
}

#[test]
fn rename_keeps_the_object_and_works_across_depths() {
    let place = place();
    let put = place.put("a", b"1");
    place
        .volume
        .rename(&name("a"), &name("x/y/z"), false)
        .unwrap();
    assert_eq!(place.get("x/y/z").id, Some(put.id));
    assert!(!place.volume.exists(&name("a")).unwrap());
    assert!(place.volume.remove(Key::Name(&name("x/y/z"))).unwrap());
    assert_eq!(place.objects(), Vec::<String>::new());
}

#[test]
fn removing_an_object_by_id_takes_its_linked_names_along() {
    let place = place();
    let put = place.put("a", b"1");
    place
        .volume
        .link(Key::from(&put), &name("b"), false)
        .unwrap();
    assert!(place.volume.remove(Key::Id(put.id)).unwrap());
    assert!(!place.volume.exists(&name("b")).unwrap());
    assert!(!place.volume.remove(Key::Id(put.id)).unwrap());
}

#[test]
fn a_link_by_id_leaves_the_object_to_the_name_that_is_known() {
    let place = place();
    let put = place.put("a", b"1");
    place
        .volume
        .link_known(Key::from(&put), &name("a"), &name("b"), false)
        .unwrap();
    assert!(place.volume.remove(Key::Name(&name("b"))).unwrap());
    assert_eq!(place.get("a").bytes(), b"1");
}

#[test]
fn removing_an_object_with_a_name_that_was_re_pointed_leaves_the_new_one() {
    let place = place();
    let old = place.put("a", b"1");
    place
        .volume
        .link_known(Key::from(&old), &name("a"), &name("b"), false)
        .unwrap();
    place.put("a", b"2");
    assert!(
        place
            .volume
            .remove_known(Key::from(&old), &name("a"))
            .unwrap()
    );
    assert_eq!(place.get("a").bytes(), b"2");
    assert!(!place.volume.exists(&name("b")).unwrap());
    let new = place.put("c", b"3");
    assert!(
        place
            .volume
            .remove_known(Key::from(&new), &name("c"))
            .unwrap()
    );
    assert!(!place.volume.exists(&name("c")).unwrap());
}

#[test]
fn a_list_holds_names_and_plain_files_of_every_depth_but_nothing_of_the_tree_itself() {
    let place = place();
    for at in ["a", "run/1/x", "run/1/y", "run/2/x", "runner"] {
        place.put(at, b"1");
    }
    std::fs::write(place.path().join("run/plain.csv"), "1").unwrap();
    assert_eq!(
        listed(&place, "", None),
        [
            "a",
            "run/1/x",
            "run/1/y",
            "run/2/x",
            "run/plain.csv",
            "runner"
        ]
    );
    assert_eq!(listed(&place, "run/1/", None), ["run/1/x", "run/1/y"]);
    assert_eq!(listed(&place, "run", None).len(), 5);
    assert_eq!(listed(&place, "run/", None).len(), 4);
    assert_eq!(listed(&place, "nothing/here", None), Vec::<String>::new());
    assert_eq!(listed(&place, "", Some("run/*/x")), ["run/1/x", "run/2/x"]);
    assert_eq!(listed(&place, "", Some("*")), ["a", "runner"]);
    assert_eq!(listed(&place, "", Some("**/y")), ["run/1/y"]);
    assert_eq!(listed(&place, "run/2", Some("run/*/x")), ["run/2/x"]);
    assert_eq!(listed(&place, "q", Some("run/*/x")), Vec::<String>::new());
}

#[test]
fn a_list_tells_the_kind_and_on_demand_the_size() {
    let place = place();
    place
        .volume
        .put(Kind::Npy, &[IoSlice::new(b"12345")], &named("n"))
        .unwrap();
    let options = ListOptions {
        stat: true,
        ..ListOptions::default()
    };
    let all: Vec<_> = place
        .volume
        .list(&options)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(all.len(), 1);
    assert!(matches!(all[0].what, Listing::Object(_, Kind::Npy)));
    assert_eq!(all[0].stat.as_ref().unwrap().len, 5);
}

#[test]
fn remove_prefix_takes_names_objects_and_empty_directories() {
    let place = place();
    for at in ["run/1/x", "run/1/y/z", "run/10", "run/2/x", "rum"] {
        place.put(at, &pattern(100, 0));
    }
    assert_eq!(place.volume.remove_prefix("run/1/").unwrap(), 2);
    assert!(!place.path().join("run/1").exists());
    assert_eq!(place.volume.remove_prefix("run").unwrap(), 2);
    assert!(!place.path().join("run").exists());
    assert_eq!(listed(&place, "", None), ["rum"]);
    assert_eq!(place.objects().len(), 1);
    assert_eq!(place.volume.remove_prefix("").unwrap(), 1);
    assert_eq!(place.volume.remove_prefix("none/of/it").unwrap(), 0);
}

#[test]
fn many_writers_of_one_name_leave_exactly_one_object() {
    let place = place();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let place = &place;
            scope.spawn(move || {
                for i in 0..200_u8 {
                    place.put("contended", &[thread, i]);
                    let got = place
                        .volume
                        .get(Key::Name(&name("contended")), Mode::CopyOnWrite)
                        .unwrap();
                    assert_eq!(got.bytes().len(), 2);
                }
            });
        }
    });
    assert_eq!(place.objects().len(), 1);
    assert_eq!(place.own("tmp"), Vec::<String>::new());
}

#[test]
fn a_put_makes_its_directory_again_when_others_remove_it() {
    let place = place();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                place.volume.remove_prefix("d/").unwrap();
            }
        });
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                place.volume.remove(Key::Name(&name("d/e/f"))).unwrap();
            }
        });
        let failed = (0..5000_u16).find_map(|_| {
            let put = place
                .volume
                .put(Kind::Raw, &[IoSlice::new(b"x")], &named("d/e/f"));
            put.err()
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
}

#[test]
fn names_that_come_and_go_at_once_never_leave_an_object_behind() {
    let place = place();
    let at = name("contended");
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (place, at) = (&place, &at);
            scope.spawn(move || {
                for i in 0..500_u16 {
                    match (thread, i % 3) {
                        (0 | 1, _) => drop(place.put("contended", &[thread])),
                        (2, _) => drop(place.volume.remove(Key::Name(at)).unwrap()),
                        (_, 0) => drop(place.volume.rename(at, &name("other"), true)),
                        (_, 1) => match place.volume.link(Key::Name(at), &name("third"), true) {
                            Ok(()) | Err(Error::NotFound { .. }) => {}
                            Err(error) => panic!("{error}"),
                        },
                        _ => drop(place.volume.remove_prefix("").unwrap()),
                    }
                }
            });
        }
    });
    place.volume.remove_prefix("").unwrap();
    assert_eq!(place.own("tmp"), Vec::<String>::new());
    assert_eq!(place.objects(), Vec::<String>::new());
}
