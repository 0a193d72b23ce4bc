//! With a payer: the stock, its end, and what it means when there is no room.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vineyard_charge::{Extent, Full, Limit, OwnPayer, Payer, ReserveError};
use vineyard_store::{Error, Kind, ListOptions, Mode, Options, PutOptions, Volume};

use crate::mounted::Mounted;
use crate::support::{Place, memory_directory, named, pattern, place};

/// Pays in process, counts, and has an allowance.
#[derive(Debug)]
struct Counting {
    own: OwnPayer,
    calls: AtomicUsize,
    spent: AtomicU64,
    allowance: u64,
}

impl Counting {
    fn new(allowance: u64) -> Arc<Self> {
        Arc::new(Self {
            own: OwnPayer::new(),
            calls: 0.into(),
            spent: 0.into(),
            allowance,
        })
    }
}

impl Payer for Counting {
    fn reserve(&self, extents: &[(BorrowedFd<'_>, Extent)]) -> Result<(), ReserveError> {
        assert!(extents.len() <= 200);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let asked: u64 = extents
            .iter()
            .map(|(_, e)| e.length.next_multiple_of(4096))
            .sum();
        let spent = self.spent.load(Ordering::Relaxed);
        if spent + asked > self.allowance {
            let free = self.allowance - spent;
            return Err(ReserveError::Full(Full {
                asked,
                free,
                limit: Limit::Allowance,
                limit_bytes: self.allowance,
            }));
        }
        self.spent.fetch_add(asked, Ordering::Relaxed);
        self.own.reserve(extents)
    }

    fn pull(&self, file: BorrowedFd<'_>, regions: &[Extent]) -> Result<Vec<u64>, ReserveError> {
        self.own.pull(file, regions)
    }

    fn give_back(&self, bytes: u64) {
        self.spent.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A volume that is there already, so that its own page is not on the bill.
fn billed(payer: &Arc<Counting>) -> Place {
    let Place { directory, volume } = place();
    drop(volume);
    let options = Options {
        payer: Some(Arc::clone(payer) as _),
        create: false,
    };
    let volume = Arc::new(Volume::open(directory.path(), options).unwrap());
    Place { directory, volume }
}

#[test]
fn every_size_is_reserved_and_comes_back() {
    let payer = Counting::new(u64::MAX / 2);
    let place = billed(&payer);
    for len in [
        0,
        1,
        4095,
        4096,
        4097,
        65536,
        65537,
        256 << 10,
        (2 << 20) + 1,
        70 << 20,
    ] {
        let content = pattern(len, 9);
        place.put("x", &content);
        assert!(place.get("x").bytes() == content, "{len}");
    }
}

#[test]
fn many_small_puts_ask_the_payer_rarely() {
    let payer = Counting::new(u64::MAX / 2);
    let place = billed(&payer);
    for i in 0..2000 {
        place.put(&format!("n{i}"), b"small");
    }
    let calls = payer.calls.load(Ordering::Relaxed);
    assert!(calls < 60, "{calls} calls for 2000 puts");
    for i in [0, 999, 1999] {
        assert_eq!(place.get(&format!("n{i}")).bytes(), b"small");
    }
}

#[test]
fn the_stock_is_given_back_before_anybody_hears_that_it_is_full() {
    let payer = Counting::new(4 << 20);
    let place = billed(&payer);
    // Gets a stock of 4 KiB files.
    for i in 0..100 {
        place.put(&format!("n{i}"), b"small");
    }
    let spent = payer.spent.load(Ordering::Relaxed);
    assert!(spent > 100 * 4096);
    let rest = usize::try_from((4 << 20) - 100 * 4096).unwrap();
    place.put("exactly the rest", &pattern(rest, 0));
    let more = place
        .volume
        .put(Kind::Raw, &[IoSlice::new(b"1")], &named("more"));
    assert!(
        matches!(
            more,
            Err(Error::Full {
                full: Full {
                    limit: Limit::Allowance,
                    ..
                },
                ..
            })
        ),
        "{more:?}"
    );
    assert_eq!(payer.spent.load(Ordering::Relaxed), 4 << 20);
}

#[test]
fn an_idle_stock_goes_back_by_itself() {
    let payer = Counting::new(u64::MAX / 2);
    let place = billed(&payer);
    for i in 0..20 {
        place.put(&format!("n{i}"), b"small");
    }
    let held = || payer.spent.load(Ordering::Relaxed) - 20 * 4096;
    assert!(held() > 0);
    for _ in 0..1000 {
        if held() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{} bytes are still held", held());
}

#[test]
fn what_is_not_sealed_is_given_back() {
    let payer = Counting::new(64 << 20);
    let place = billed(&payer);
    drop(place.volume.create(Kind::Raw, 32 << 20).unwrap());
    assert_eq!(payer.spent.load(Ordering::Relaxed), 0);
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    writer.append(&pattern(5 << 20, 0)).unwrap();
    drop(writer);
    assert_eq!(payer.spent.load(Ordering::Relaxed), 0);
    let mut writer = place.volume.writer(Kind::Raw).unwrap();
    writer.append(&pattern(5 << 20, 0)).unwrap();
    writer.seal(&PutOptions::default()).unwrap();
    assert_eq!(payer.spent.load(Ordering::Relaxed), 5 << 20);
    place.put("taken", b"");
    let options = PutOptions {
        overwrite: false,
        ..named("taken")
    };
    let content = pattern(1 << 20, 0);
    place
        .volume
        .put(Kind::Raw, &[IoSlice::new(&content)], &options)
        .unwrap_err();
    place
        .volume
        .put(Kind::Raw, &[IoSlice::new(b"1")], &options)
        .unwrap_err();
    place
        .volume
        .create(Kind::Raw, 1 << 20)
        .unwrap()
        .seal(&options)
        .unwrap_err();
    assert_eq!(payer.spent.load(Ordering::Relaxed), 5 << 20);
}

#[test]
fn a_full_volume_says_so_and_every_failed_put_is_undone() {
    let Some(mounted) = Mounted::new(16 << 20) else {
        return;
    };
    for payer in [None, Some(Arc::new(OwnPayer::new()) as Arc<dyn Payer>)] {
        let billed = payer.is_some();
        let root = mounted.path().join(if billed { "billed" } else { "local" });
        let volume = Arc::new(
            Volume::open(
                &root,
                Options {
                    payer,
                    create: true,
                },
            )
            .unwrap(),
        );
        let before = mounted.used();
        for len in [17 << 20, 64 << 20, 400 << 20] {
            let content = vec![1; len];
            let put = volume.put(Kind::Raw, &[IoSlice::new(&content)], &named("x"));
            assert!(matches!(put, Err(Error::Full { .. })), "{put:?}");
            assert!(matches!(
                volume.create(Kind::Raw, len as u64),
                Err(Error::Full { .. })
            ));
            assert_eq!(mounted.used(), before);
        }
        let mut writer = volume.writer(Kind::Raw).unwrap();
        let mut written = 0;
        let error = loop {
            match writer.append(&[7; 100_000]) {
                Ok(()) => written += 100_000,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Full { .. }), "{error:?}");
        assert!(written > 14 << 20, "{written}");
        drop(writer);
        assert_eq!(mounted.used(), before);
        // Full of small ones.
        let mut count = 0;
        let error = loop {
            match volume.put(
                Kind::Raw,
                &[IoSlice::new(&[1; 4096])],
                &named(&format!("n{count}")),
            ) {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Full { .. }), "{error:?}");
        assert!(count > 3000, "{count}");
        volume.remove_prefix("").unwrap();
        drop(volume);
        std::fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn space_of_removed_but_mapped_objects_is_named_and_used_again_when_the_view_goes() {
    let Some(mounted) = Mounted::new(16 << 20) else {
        return;
    };
    let volume = Arc::new(Volume::open(mounted.path(), Options::default()).unwrap());
    volume
        .put(Kind::Raw, &[IoSlice::new(b"1")], &named("small"))
        .unwrap();
    let content = vec![1; 12 << 20];
    let put = |name: &str| volume.put(Kind::Raw, &[IoSlice::new(&content)], &named(name));
    let view = volume
        .get(
            (&put("x").unwrap()).into(),
            vineyard_store::Mode::CopyOnWrite,
        )
        .unwrap();
    volume.remove((&crate::support::name("x")).into()).unwrap();
    let Err(Error::Full { space, .. }) = put("y") else {
        panic!("not full")
    };
    assert!(space.trash >= 12 << 20);
    assert_eq!(space.largest, [(crate::support::name("small"), 4096)]);
    drop(view);
    put("y").unwrap();
}

#[test]
fn a_read_only_volume_is_attached_and_refuses_to_be_changed() {
    let Some(mounted) = Mounted::new(16 << 20) else {
        return;
    };
    let content = pattern(3 << 20, 1);
    let put = |volume: &Volume| volume.put(Kind::Raw, &[IoSlice::new(&content)], &named("x"));
    put(&Volume::open(mounted.path(), Options::default()).unwrap()).unwrap();
    mounted.make_read_only();
    let volume = Arc::new(Volume::open(mounted.path(), Options::default()).unwrap());
    let x = crate::support::name("x");
    let view = volume.get((&x).into(), Mode::CopyOnWrite).unwrap();
    assert!(view.bytes() == content);
    assert!(matches!(put(&volume), Err(Error::ReadOnly)));
    let small = volume.put(Kind::Raw, &[IoSlice::new(b"1")], &named("y"));
    assert!(matches!(small, Err(Error::ReadOnly)), "{small:?}");
    assert!(matches!(volume.remove((&x).into()), Err(Error::ReadOnly)));
    assert!(matches!(volume.create(Kind::Raw, 10), Err(Error::ReadOnly)));
    assert!(matches!(
        volume.stream_writer(&crate::support::name("s")),
        Err(Error::ReadOnly)
    ));
    assert_eq!(volume.list(&ListOptions::default()).unwrap().count(), 1);
    assert!(volume.fsck(false).unwrap().is_clean());
}

#[test]
fn what_is_no_volume_or_a_newer_one_is_not_opened() {
    let directory = memory_directory();
    Volume::open(directory.path(), Options::default()).unwrap();
    let missing = Volume::open(
        &directory.path().join("no"),
        Options {
            payer: None,
            create: false,
        },
    );
    assert!(matches!(missing, Err(Error::NotAVolume { .. })));
    std::fs::remove_file(directory.path().join(".vineyard/format")).unwrap();
    std::fs::write(
        directory.path().join(".vineyard/format"),
        "vineyard-volume 2\n",
    )
    .unwrap();
    let newer = Volume::open(directory.path(), Options::default());
    assert!(matches!(newer, Err(Error::Format { .. })));
}

#[test]
fn a_large_put_beyond_the_allowance_says_what_the_whole_of_it_asked_for() {
    let payer = Counting::new(40 << 20);
    let place = billed(&payer);
    let content = vec![1; 100 << 20];
    let put = place
        .volume
        .put(Kind::Raw, &[IoSlice::new(&content)], &named("x"));
    let Err(Error::Full { full, .. }) = put else {
        panic!("{put:?}");
    };
    assert_eq!(full.asked, 100 << 20);
    assert_eq!(full.free, 40 << 20);
    assert_eq!(payer.spent.load(Ordering::Relaxed), 0);
}
