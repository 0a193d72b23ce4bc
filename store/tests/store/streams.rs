//! Streams and waiting.

use std::io::IoSlice;
use std::time::Duration;

use crate::support::{name, place};
use vineyard_store::{Error, Kind};

const SOON: Option<Duration> = Some(Duration::from_millis(20));
const LONG: Option<Duration> = Some(Duration::from_secs(60));

#[test]
fn parts_come_in_order_while_they_are_made_and_then_the_end() {
    let place = place();
    let mut reader = place.volume.stream_reader(&name("run/scores")).unwrap();
    assert!(matches!(reader.next(SOON), Err(Error::Timeout { .. })));
    let producer = {
        let volume = std::sync::Arc::clone(&place.volume);
        std::thread::spawn(move || {
            let mut writer = volume.stream_writer(&name("run/scores")).unwrap();
            for i in 0..50_u8 {
                writer.append(Kind::Raw, &[IoSlice::new(&[i])]).unwrap();
            }
            writer.end().unwrap()
        })
    };
    for i in 0..50_u8 {
        assert_eq!(reader.next(LONG).unwrap().unwrap().bytes(), [i]);
    }
    assert!(reader.next(LONG).unwrap().is_none());
    assert_eq!(producer.join().unwrap(), 50);
    assert!(place.volume.is_stream(&name("run/scores")).unwrap());
}

#[test]
fn several_producers_share_one_stream_without_losing_a_part() {
    let place = place();
    std::thread::scope(|scope| {
        for thread in 0..3_u8 {
            let volume = &place.volume;
            scope.spawn(move || {
                let mut writer = volume.stream_writer(&name("s")).unwrap();
                for i in 0..100_u8 {
                    writer
                        .append(Kind::Raw, &[IoSlice::new(&[thread, i])])
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(
        place
            .volume
            .stream_writer(&name("s"))
            .unwrap()
            .end()
            .unwrap(),
        300
    );
    let mut reader = place.volume.stream_reader(&name("s")).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    while let Some(part) = reader.next(SOON).unwrap() {
        seen.insert(part.bytes().to_vec());
    }
    assert_eq!(seen.len(), 300);
}

#[test]
fn the_failure_of_a_producer_reaches_the_reader_after_the_last_part() {
    let place = place();
    let mut writer = place.volume.stream_writer(&name("s")).unwrap();
    writer.append(Kind::Raw, &[IoSlice::new(b"1")]).unwrap();
    writer.fail("disk \"on\" fire").unwrap();
    let mut reader = place.volume.stream_reader(&name("s")).unwrap();
    assert!(reader.next(SOON).unwrap().is_some());
    let failed = reader.next(SOON);
    assert!(
        matches!(failed, Err(Error::StreamFailed { message, .. }) if message == "disk \"on\" fire")
    );
}

#[test]
fn nothing_is_appended_after_the_end_and_there_is_one_end() {
    let place = place();
    let mut one = place.volume.stream_writer(&name("s")).unwrap();
    let other = place.volume.stream_writer(&name("s")).unwrap();
    other.end().unwrap();
    assert!(matches!(
        one.append(Kind::Raw, &[]),
        Err(Error::Exists { .. })
    ));
    assert!(matches!(one.end(), Err(Error::Exists { .. })));
    assert!(place.volume.stream_writer(&name("s")).is_err());
}

#[test]
fn a_consuming_reader_leaves_no_parts_behind() {
    let place = place();
    let mut writer = place.volume.stream_writer(&name("s")).unwrap();
    for _ in 0..3 {
        writer.append(Kind::Raw, &[IoSlice::new(b"1")]).unwrap();
    }
    writer.end().unwrap();
    let mut reader = place.volume.stream_reader(&name("s")).unwrap().consuming();
    while reader.next(SOON).unwrap().is_some() {}
    assert_eq!(place.objects(), Vec::<String>::new());
    let lost = place.volume.stream_reader(&name("s")).unwrap().next(SOON);
    assert!(matches!(lost, Err(Error::Lost { .. })));
}

#[test]
fn a_hostile_end_mark_is_an_error() {
    let place = place();
    place.volume.stream_writer(&name("s")).unwrap();
    for content in ["", "{", "{\"parts\": -1}", &"x".repeat(100_000)] {
        std::fs::write(place.path().join("s/.end"), content).unwrap();
        let next = place.volume.stream_reader(&name("s")).unwrap().next(SOON);
        assert!(
            matches!(next, Err(Error::Corrupt { .. })),
            "{content:.20} {next:?}"
        );
    }
}

#[test]
fn wait_returns_when_all_names_are_there_whatever_their_depth() {
    let place = place();
    let names = [name("a"), name("b/c/d")];
    assert!(matches!(
        place.volume.wait(&names, SOON),
        Err(Error::Timeout { .. })
    ));
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| place.volume.wait(&names, LONG)))
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        place.put("b/c/d", b"1");
        std::thread::sleep(Duration::from_millis(20));
        place.put("a", b"1");
        for waiter in waiters {
            waiter.join().unwrap().unwrap();
        }
    });
}

#[test]
fn a_producer_that_starts_anew_goes_on_after_what_was_consumed() {
    let place = place();
    let append = |writer: &mut vineyard_store::StreamWriter, byte: u8| {
        writer
            .append(Kind::Raw, &[IoSlice::new(&[byte])])
            .unwrap()
            .name
            .unwrap()
            .to_string()
    };
    let mut lagging = place.volume.stream_writer(&name("s")).unwrap();
    let mut first = place.volume.stream_writer(&name("s")).unwrap();
    for byte in 0..3 {
        append(&mut first, byte);
    }
    let consume = || place.volume.stream_reader(&name("s")).unwrap().consuming();
    let mut reader = consume();
    for byte in 0..3 {
        assert_eq!(reader.next(SOON).unwrap().unwrap().bytes(), [byte]);
    }
    assert!(matches!(reader.next(SOON), Err(Error::Timeout { .. })));

    let mut anew = place.volume.stream_writer(&name("s")).unwrap();
    assert_eq!(append(&mut anew, 3), "s/00000003");
    assert_eq!(append(&mut lagging, 4), "s/00000004");
    assert_eq!(reader.next(SOON).unwrap().unwrap().bytes(), [3]);
    // A reader that starts anew, too.
    assert_eq!(consume().next(SOON).unwrap().unwrap().bytes(), [4]);
    assert_eq!(
        place
            .volume
            .stream_writer(&name("s"))
            .unwrap()
            .end()
            .unwrap(),
        5
    );
    assert!(consume().next(SOON).unwrap().is_none());
    assert!(place.volume.fsck(false).unwrap().problems.is_empty());
    assert!(place.volume.remove_prefix("s/").is_ok());
}

#[test]
fn of_several_consuming_readers_each_part_reaches_one() {
    let place = place();
    let volume = &place.volume;
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut reader = volume.stream_reader(&name("s")).unwrap().consuming();
                    let mut seen = Vec::new();
                    while let Some(part) = reader.next(LONG).unwrap() {
                        seen.push(part.bytes().to_vec());
                    }
                    seen
                })
            })
            .collect();
        let writers: Vec<_> = (0..2_u8)
            .map(|thread| {
                scope.spawn(move || {
                    for i in 0..100_u8 {
                        // Anew each time, so that it starts at what is free.
                        let mut writer = volume.stream_writer(&name("s")).unwrap();
                        writer
                            .append(Kind::Raw, &[IoSlice::new(&[thread, i])])
                            .unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        volume.stream_writer(&name("s")).unwrap().end().unwrap();
        readers
            .into_iter()
            .flat_map(|reader| reader.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!(read.len(), 200);
    let distinct: std::collections::BTreeSet<_> = read.into_iter().collect();
    assert_eq!(distinct.len(), 200);
}

#[test]
fn a_writer_of_a_stream_that_was_removed_adds_nothing_to_the_next_one_of_that_name() {
    let place = place();
    let content = [IoSlice::new(b"part")];
    let mut writer = place.volume.stream_writer(&name("s")).unwrap();
    let late = place.volume.stream_writer(&name("s")).unwrap();
    writer.append(Kind::Raw, &content).unwrap();
    assert_eq!(place.volume.remove_prefix("s/").unwrap(), 1);
    let refused = writer.append(Kind::Raw, &content);
    assert!(
        matches!(refused, Err(Error::NotFound { .. })),
        "{refused:?}"
    );
    let mut other = place.volume.stream_writer(&name("s")).unwrap();
    let refused = writer.append(Kind::Raw, &content);
    assert!(
        matches!(refused, Err(Error::NotFound { .. })),
        "{refused:?}"
    );
    assert!(matches!(late.end(), Err(Error::NotFound { .. })));
    other.append(Kind::Raw, &content).unwrap();
    assert_eq!(other.end().unwrap(), 1);
    assert_eq!(place.objects().len(), 1);
}
