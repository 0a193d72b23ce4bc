//! SIGTERM, SIGINT, and the socket's file.

use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Sidecar, Volume};

#[test]
fn without_clients_a_signal_ends_it_in_order_and_removes_the_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let volume = Volume::shared();
        let mut sidecar = Sidecar::start(&volume, &[]);
        sidecar.signal(signal);
        assert_eq!(sidecar.end().code(), Some(0));
        assert!(!sidecar.socket().exists());
    }
}

#[test]
fn connected_clients_are_served_after_the_signal_and_new_ones_are_not_accepted() {
    let volume = Volume::shared();
    let mut sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    sidecar.signal(Signal::SIGTERM);
    sidecar.logged("stopping");
    assert!(std::os::unix::net::UnixStream::connect(sidecar.socket()).is_err());
    let file = volume.file();
    client.reserve(&[&file], 4096);
    assert_eq!(client.spent(), 4096);
    assert!(sidecar.is_running());
    drop(client);
    assert_eq!(sidecar.end().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_although_a_client_is_connected() {
    let volume = Volume::shared();
    let mut sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    sidecar.signal(Signal::SIGTERM);
    sidecar.logged("stopping");
    std::thread::sleep(Duration::from_millis(100));
    assert!(sidecar.is_running());
    sidecar.signal(Signal::SIGINT);
    assert_eq!(sidecar.end().code(), Some(1));
    client.is_dropped();
}

#[test]
fn a_client_that_the_sidecar_had_to_drop_does_not_keep_it_alive() {
    let volume = Volume::shared();
    let mut sidecar = Sidecar::start(&volume, &["--patience", "0.2"]);
    let mut slow = sidecar.client();
    slow.raw(b"ha").unwrap();
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.end().code(), Some(0));
    slow.is_dropped();
}

#[test]
fn a_successor_on_the_same_path_keeps_its_socket() {
    let volume = Volume::shared();
    let mut first = Sidecar::start(&volume, &[]);
    let client = first.client();
    first.signal(Signal::SIGTERM);
    first.logged("stopping");
    let second = Sidecar::start(&volume, &[]);
    drop(client);
    assert_eq!(first.end().code(), Some(0));
    second.client();
}

#[test]
fn a_stale_socket_is_replaced_and_a_served_one_is_an_error() {
    let volume = Volume::shared();
    drop(UnixListener::bind(volume.side().join("v.sock")).unwrap());
    let sidecar = Sidecar::start(&volume, &[]);
    sidecar.client();
    let second = Command::new(Sidecar::BINARY)
        .arg("--listen")
        .arg(sidecar.socket())
        .arg("--volume")
        .arg(volume.path())
        .args(["--allowance", "1MiB"])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let log = String::from_utf8(second.stderr).unwrap();
    assert!(log.contains("another process serves there"), "{log}");
    sidecar.client();
}

#[test]
fn a_probe_says_whether_a_sidecar_listens() {
    let volume = Volume::shared();
    let mut sidecar = Sidecar::start(&volume, &[]);
    let socket = sidecar.socket().to_owned();
    let probe = || {
        let mut command = Command::new(Sidecar::BINARY);
        command.args(["--probe", "--listen"]).arg(&socket);
        command.output().unwrap()
    };
    assert!(probe().status.success());
    sidecar.client();
    sidecar.signal(Signal::SIGTERM);
    sidecar.end();
    let output = probe();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(socket.to_str().unwrap()), "{error}");
}

#[test]
fn wrong_arguments_are_explained() {
    let run = |arguments: &[&str]| {
        let output = Command::new(Sidecar::BINARY)
            .args(arguments)
            .env_clear()
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let good = [
        "--listen",
        "/dev/shm/x",
        "--volume",
        "/",
        "--allowance",
        "1",
    ];
    assert!(run(&good[..4]).contains("--allowance"));
    for (flag, value) in [
        ("--patience", "0"),
        ("--stock", "much"),
        ("--max-large", "0"),
        ("--log-format", "xml"),
    ] {
        let error = run(&[&good[..], &[flag, value]].concat());
        assert!(error.contains(flag), "{error}");
    }
    let nowhere = ["--volume", "/vineyard-test-nowhere"];
    let error = run(&[&good[..2], &good[4..], &nowhere].concat());
    assert!(error.contains("/vineyard-test-nowhere"), "{error}");
}

#[test]
fn the_log_is_json_on_demand_with_one_object_a_line() {
    let output = Command::new(Sidecar::BINARY)
        .args(["--listen", "/dev/shm/x", "--allowance", "1"])
        .args(["--volume", "/vineyard-test-nowhere", "--log-format", "json"])
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains(r#""level":"ERROR""#), "{log}");
    for line in log.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}
