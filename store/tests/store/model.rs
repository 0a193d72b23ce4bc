//! Random sequences of operations against a model: a map from names to contents. What the volume holds is exactly what the
//! model says, to the last object.

use std::collections::{BTreeMap, HashMap};
use std::io::IoSlice;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use vineyard_charge::OwnPayer;
use vineyard_store::{Error, Key, Kind, ListOptions, Mode, Object, Options, PutOptions};

use crate::support::{Place, name, named, pattern, place_with};

const NAMES: [&str; 6] = ["a", "b", "d/a", "d/b", "d/e/a", "x/y"];
const PREFIXES: [&str; 5] = ["", "d/", "d/e/", "d", "a"];
/// Small, read and mapped, page by page and in huge pages.
const SIZES: [usize; 6] = [0, 1, 4097, 65_536, 65_537, (2 << 20) + 1];

#[derive(Clone, Debug)]
enum Step {
    Put {
        name: usize,
        size: usize,
        seed: u8,
        overwrite: bool,
    },
    PutUnnamed {
        size: usize,
        seed: u8,
    },
    Create {
        name: usize,
        size: usize,
        seed: u8,
    },
    Link {
        from: usize,
        to: usize,
        overwrite: bool,
    },
    Rename {
        from: usize,
        to: usize,
        overwrite: bool,
    },
    Remove {
        name: usize,
    },
    RemovePrefix {
        prefix: usize,
    },
    View {
        name: usize,
    },
    DropViews,
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let (name, size) = (0..NAMES.len(), 0..SIZES.len());
    let two = (name.clone(), name.clone(), any::<bool>());
    prop_oneof![
        4 => (name.clone(), size.clone(), any::<u8>(), any::<bool>())
            .prop_map(|(name, size, seed, overwrite)| Step::Put { name, size, seed, overwrite }),
        1 => (size.clone(), any::<u8>()).prop_map(|(size, seed)| Step::PutUnnamed { size, seed }),
        1 => (name.clone(), size, any::<u8>()).prop_map(|(name, size, seed)| Step::Create { name, size, seed }),
        2 => two.clone().prop_map(|(from, to, overwrite)| Step::Link { from, to, overwrite }),
        1 => two.prop_map(|(from, to, overwrite)| Step::Rename { from, to, overwrite }),
        2 => name.clone().prop_map(|name| Step::Remove { name }),
        1 => (0..PREFIXES.len()).prop_map(|prefix| Step::RemovePrefix { prefix }),
        1 => name.prop_map(|name| Step::View { name }),
        1 => Just(Step::DropViews),
        1 => Just(Step::Sweep),
    ]
}

/// Objects by number; names by the number of their object.
#[derive(Default)]
struct Model {
    names: BTreeMap<&'static str, u64>,
    unnamed: Vec<u64>,
    contents: HashMap<u64, Vec<u8>>,
    next: u64,
    views: Vec<(Object, Vec<u8>)>,
}

impl Model {
    fn add(&mut self, content: Vec<u8>) -> u64 {
        self.next += 1;
        self.contents.insert(self.next, content);
        self.next
    }

    /// Objects that must exist: named, or never named.
    fn objects(&self) -> usize {
        let mut named: Vec<u64> = self.names.values().copied().collect();
        named.sort_unstable();
        named.dedup();
        named.len() + self.unnamed.len()
    }
}

fn run(place: &Place, model: &mut Model, step: &Step) {
    let volume = &place.volume;
    let options = |at: &str, overwrite| PutOptions {
        overwrite,
        ..named(at)
    };
    match *step {
        Step::Put {
            name: at,
            size,
            seed,
            overwrite,
        } => {
            let content = pattern(SIZES[size], seed);
            let put = volume.put(
                Kind::Raw,
                &[IoSlice::new(&content)],
                &options(NAMES[at], overwrite),
            );
            if model.names.contains_key(NAMES[at]) && !overwrite {
                assert!(matches!(put, Err(Error::Exists { .. })), "{put:?}");
            } else {
                put.unwrap();
                let object = model.add(content);
                model.names.insert(NAMES[at], object);
            }
        }
        Step::PutUnnamed { size, seed } => {
            let content = pattern(SIZES[size], seed);
            volume
                .put(Kind::Raw, &[IoSlice::new(&content)], &PutOptions::default())
                .unwrap();
            let object = model.add(content);
            model.unnamed.push(object);
        }
        Step::Create {
            name: at,
            size,
            seed,
        } => {
            let content = pattern(SIZES[size], seed);
            let draft = volume.create(Kind::Raw, content.len() as u64).unwrap();
            // SAFETY: the draft has as many writable bytes.
            unsafe {
                draft
                    .as_mut_ptr()
                    .copy_from(content.as_ptr(), content.len())
            };
            draft.seal(&options(NAMES[at], true)).unwrap();
            let object = model.add(content);
            model.names.insert(NAMES[at], object);
        }
        Step::Link {
            from,
            to,
            overwrite,
        }
        | Step::Rename {
            from,
            to,
            overwrite,
        } => {
            let (from, to) = (NAMES[from], NAMES[to]);
            let renames = matches!(step, Step::Rename { .. });
            let done = if renames {
                volume.rename(&name(from), &name(to), overwrite)
            } else {
                volume.link(Key::Name(&name(from)), &name(to), overwrite)
            };
            let Some(object) = model.names.get(from).copied() else {
                assert!(
                    from == to && renames || matches!(done, Err(Error::NotFound { .. })),
                    "{done:?}"
                );
                return;
            };
            if from != to && !overwrite && model.names.get(to).is_some_and(|o| *o != object) {
                assert!(matches!(done, Err(Error::Exists { .. })), "{done:?}");
                return;
            }
            done.unwrap();
            if from != to && renames {
                model.names.remove(from);
            }
            model.names.insert(to, object);
        }
        Step::Remove { name: at } => {
            let removed = volume.remove(Key::Name(&name(NAMES[at]))).unwrap();
            assert_eq!(removed, model.names.remove(NAMES[at]).is_some());
        }
        Step::RemovePrefix { prefix } => {
            let before = model.names.len();
            model
                .names
                .retain(|name, _| !name.starts_with(PREFIXES[prefix]));
            let removed = volume.remove_prefix(PREFIXES[prefix]).unwrap();
            assert_eq!(removed, (before - model.names.len()) as u64);
        }
        Step::View { name: at } => {
            if let Some(object) = model.names.get(NAMES[at]) {
                let view = place.get(NAMES[at]);
                model.views.push((view, model.contents[object].clone()));
            }
        }
        Step::DropViews => model.views.clear(),
        Step::Sweep => {
            volume.sweep().unwrap();
            if model.views.is_empty() {
                assert_eq!(place.own("trash"), Vec::<String>::new());
            }
        }
    }
}

fn check(place: &Place, model: &Model) {
    let mut listed: Vec<String> = place
        .volume
        .list(&ListOptions::default())
        .unwrap()
        .map(|l| l.unwrap().name.to_string())
        .collect();
    listed.sort();
    assert_eq!(
        listed,
        model
            .names
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    );
    for (at, object) in &model.names {
        let got = place
            .volume
            .get(Key::Name(&name(at)), Mode::ReadOnly)
            .unwrap();
        assert!(got.bytes() == model.contents[object], "{at}");
    }
    for (view, content) in &model.views {
        assert!(view.bytes() == content);
    }
    assert_eq!(place.objects().len(), model.objects());
    assert_eq!(place.own("tmp"), Vec::<String>::new());
}

fn run_all(place: &Place, steps: &[Step]) {
    let mut model = Model::default();
    for step in steps {
        run(place, &mut model, step);
        check(place, &model);
    }
    assert_eq!(place.volume.fsck(false).unwrap().problems, []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_volume_does_what_a_map_does(steps in vec(step(), 1..40), billed in any::<bool>()) {
        let payer = billed.then(|| Arc::new(OwnPayer::new()) as _);
        run_all(&place_with(Options { payer, create: true }), &steps);
    }
}
