//! put, get, ls, rm, stat, wait.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::session::Session;

#[test]
fn what_is_put_comes_back_from_a_pipe_and_from_a_file() {
    let session = Session::new();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (source, copy) = (session.beside("source"), session.beside("copy"));
    std::fs::write(&source, &content).unwrap();
    session.put("by/pipe", &content);
    session
        .run(&["put", source.to_str().unwrap(), "by/file"])
        .ok();
    assert_eq!(session.run(&["get", "by/file"]).ok().out, content);
    session
        .run(&["get", "by/pipe", "-o", copy.to_str().unwrap()])
        .ok();
    assert_eq!(std::fs::read(copy).unwrap(), content);
}

#[test]
fn an_empty_object_is_an_object() {
    let session = Session::new();
    session.put("empty", b"");
    assert_eq!(session.run(&["get", "empty"]).ok().out, b"");
    assert_eq!(
        session.run(&["stat", "empty", "--json"]).ok().json()[0]["bytes"],
        0
    );
}

#[test]
fn the_kind_follows_the_extension_and_can_be_said() {
    let session = Session::new();
    let array = session.beside("a.npy");
    std::fs::write(&array, b"\x93NUMPY").unwrap();
    session.run(&["put", array.to_str().unwrap(), "a"]).ok();
    session
        .run(&["put", array.to_str().unwrap(), "b", "--kind", "raw"])
        .ok();
    let kinds = session.run(&["stat", "a", "b", "--json"]).ok().json();
    assert_eq!([&kinds[0]["kind"], &kinds[1]["kind"]], ["npy", "raw"]);
}

#[test]
fn text_that_is_not_utf_8_is_refused_and_leaves_nothing() {
    let session = Session::new();
    let answer = session.feed(&["put", "-", "t", "--kind", "text"], b"ab\xff");
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("UTF-8"), "{}", answer.err);
    assert_eq!(session.run(&["get", "t"]).code, 3);
}

#[test]
fn no_overwrite_keeps_what_is_there() {
    let session = Session::new();
    session.put("a", b"first");
    let answer = session.feed(&["put", "-", "a", "--no-overwrite"], b"second");
    assert_eq!(answer.code, 1, "{}", answer.err);
    assert_eq!(session.run(&["get", "a"]).ok().out, b"first");
    session.put("a", b"third");
    assert_eq!(session.run(&["get", "a"]).ok().out, b"third");
}

#[test]
fn a_missing_name_ends_with_3_and_says_what_to_do() {
    let session = Session::new();
    session.put("a", b"x");
    let answer = session.run(&["get", "b", "--json"]);
    assert_eq!((answer.code, answer.error()["code"].as_i64()), (3, Some(3)));
    assert!(
        answer.error()["advice"]
            .as_str()
            .unwrap()
            .contains("vineyard ls")
    );
}

#[test]
fn ls_finds_by_prefix_and_by_glob() {
    let session = Session::new();
    for name in ["runs/1/model", "runs/1/scores", "runs/2/model", "readme"] {
        session.put(name, name.as_bytes());
    }
    let names = |arguments: &[&str]| {
        let rows = session
            .run(&[&["ls", "--json"], arguments].concat())
            .ok()
            .json();
        let mut names: Vec<String> = rows
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        names(&[]),
        ["readme", "runs/1/model", "runs/1/scores", "runs/2/model"]
    );
    assert_eq!(names(&["runs/1/"]), ["runs/1/model", "runs/1/scores"]);
    assert_eq!(names(&["runs/*/model"]), ["runs/1/model", "runs/2/model"]);
    assert_eq!(names(&["nothing"]), [""; 0]);
}

#[test]
fn ls_sorts_by_size_for_people_and_escapes_control_characters() {
    let session = Session::new();
    session.put("small", b"1");
    session.put("large\u{1b}[31m", &[0; 5000]);
    let text = session
        .run(&["ls", "--long", "--sort", "size"])
        .ok()
        .text()
        .to_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("NAME"), "{text}");
    assert!(lines[1].starts_with("large\\u{1b}[31m"), "{text}");
    assert!(lines[1].contains("4.9 KiB"), "{text}");
    assert!(lines[2].starts_with("small"), "{text}");
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    let session = Session::new();
    session.put("large", &vec![7; 8 << 20]);
    let mut child = session
        .command()
        .args(["get", "large"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn rm_removes_names_prefixes_and_ids() {
    let session = Session::new();
    for name in ["a", "runs/1", "runs/2", "c"] {
        session.put(name, b"x");
    }
    let id = session.run(&["stat", "c", "--json"]).ok().json()[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        session.run(&["rm", "a", "--json"]).ok().json()[0]["removed"],
        1
    );
    assert_eq!(
        session
            .run(&["rm", "--prefix", "runs/", "--json"])
            .ok()
            .json()[0]["removed"],
        2
    );
    session.run(&["rm", &id]).ok();
    assert_eq!(session.run(&["get", "c"]).code, 3);
    assert_eq!(session.run(&["rm", "a"]).code, 3);
    session.run(&["rm", "--force", "a"]).ok();
}

#[test]
fn stat_without_a_name_is_about_the_volume() {
    let session = Session::new();
    session.put("a", &[1; 100_000]);
    let volume = &session.run(&["stat", "--json"]).ok().json()[0];
    assert!(volume["used_bytes"].as_u64().unwrap() >= 100_000);
    assert_eq!(volume["trash_objects"], 0);
}

#[test]
fn wait_ends_with_5_when_the_time_is_over() {
    let session = Session::new();
    session.put("a", b"x");
    session.run(&["wait", "a", "--timeout", "60"]).ok();
    assert_eq!(
        session.run(&["wait", "a", "b", "--timeout", "0.05"]).code,
        5
    );
}

#[test]
fn wait_and_get_return_when_the_name_appears() {
    let session = Session::new();
    session.put("a", b"x");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| session.run(&["wait", "later", "--timeout", "60"]));
        let getting = scope.spawn(|| session.run(&["get", "later", "--timeout", "60"]));
        thread::sleep(Duration::from_millis(100));
        session.put("later", b"here");
        assert_eq!(waiting.join().unwrap().code, 0);
        assert_eq!(getting.join().unwrap().ok().out, b"here");
    });
}

#[test]
fn an_object_with_a_ttl_says_nothing_else_than_another() {
    let session = Session::new();
    session.feed(&["put", "-", "a", "--ttl", "10m"], b"x").ok();
    assert_eq!(session.run(&["get", "a"]).ok().out, b"x");
    assert_eq!(
        session
            .feed(&["put", "-", "b", "--ttl", "tomorrow"], b"x")
            .code,
        2
    );
}

#[test]
fn rm_expired_removes_what_is_past_its_time() {
    let session = Session::new();
    session.put("kept", b"x");
    session
        .feed(&["put", "-", "short", "--ttl", "0"], b"x")
        .ok();
    let started = std::time::Instant::now();
    loop {
        let removed = session.run(&["rm", "--expired", "--json"]).ok().json();
        if removed[0]["expired"] == 1 {
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it never expired"
        );
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(session.run(&["ls"]).ok().text(), "kept\n");
}

#[test]
fn top_looks_once_and_again() {
    let session = Session::new();
    session.put("large", &[0; 9000]);
    session.put("small", b"x");
    let look = &session.run(&["top", "--once", "--json"]).ok().json()[0];
    assert_eq!(look["objects"][0]["name"], "large");
    let mut child = session
        .command()
        .args(["top", "--json", "--interval", "0.05"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let look: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert!(look["used_bytes"].as_u64().unwrap() > 0);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
