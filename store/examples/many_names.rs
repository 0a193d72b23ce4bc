//! How long do a volume's names take to list? Makes many names for one object, and prints microseconds a name.
//!
//!     cargo run --release -p vineyard-store --example many_names [-- DIRECTORY [NAMES]]
#![expect(clippy::expect_used, reason = "a measurement stops at the first error")]

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use vineyard_store::{Key, Kind, ListOptions, Mode, Name, Options, PutOptions, Volume};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = PathBuf::from(arguments.next().unwrap_or_else(|| "/dev/shm".into()));
    let names: usize = arguments
        .next()
        .map_or(100_000, |n| n.parse().expect("NAMES is a number"));
    let directory = tempfile::tempdir_in(parent).expect("DIRECTORY can be written");
    let volume = Arc::new(Volume::open(directory.path(), Options::default()).expect("volume"));
    let put = |name: &str, content: &[u8]| {
        let options = PutOptions::named(Name::new(name).expect("a name"));
        volume
            .put(Kind::Raw, &[IoSlice::new(content)], &options)
            .expect("put")
    };
    let object = put("run/0", b"content");
    for i in 0..names {
        let target = format!("../../.vineyard/objects/{}.raw", object.id);
        let part = directory.path().join(format!("run/{}", i % 10));
        if i < 10 {
            let _ = std::fs::remove_file(&part);
            std::fs::create_dir_all(&part).expect("directory");
        }
        std::os::unix::fs::symlink(target, part.join(format!("n{i}"))).expect("symlink");
    }
    let list = |what: &str, options: ListOptions| {
        let start = Instant::now();
        let count = volume
            .list(&options)
            .expect("list")
            .filter(Result::is_ok)
            .count();
        let micros = start.elapsed().as_secs_f64() * 1e6;
        println!(
            "{what:32} {count:9} names {:10.1} ms {:7.2} µs a name",
            micros / 1e3,
            micros / count.max(1) as f64
        );
    };
    list("all", ListOptions::default());
    list(
        "one prefix",
        ListOptions {
            prefix: Some("run/3/".into()),
            ..ListOptions::default()
        },
    );
    list(
        "one name by prefix",
        ListOptions {
            prefix: Some("run/3/n13".into()),
            ..ListOptions::default()
        },
    );
    list(
        "a glob",
        ListOptions {
            glob: Some("run/*/n?7".into()),
            ..ListOptions::default()
        },
    );
    list(
        "all with size",
        ListOptions {
            stat: true,
            ..ListOptions::default()
        },
    );

    let member = [IoSlice::new(b"content")];
    let members: Vec<_> = (0..names).map(|_| (None, Kind::Raw, &member[..])).collect();
    let start = Instant::now();
    let options = PutOptions::named(Name::new("pack").expect("a name"));
    volume.put_many(&members, &options).expect("put_many");
    let each = |start: Instant, n: usize| start.elapsed().as_secs_f64() * 1e6 / n as f64;
    println!(
        "put_many                         {names:9} members {:19.2} µs a member",
        each(start, names)
    );
    let start = Instant::now();
    for i in 0..1000 {
        let key = Name::new(format!("pack/{:08}", i * 7919 % names)).expect("a name");
        volume.get(Key::Name(&key), Mode::CopyOnWrite).expect("get");
    }
    println!(
        "get of a member                  {:36.2} µs",
        each(start, 1000)
    );
}
