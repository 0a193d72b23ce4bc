//! `/metrics` and `/healthz`, as a scraper and a probe see them.

use std::collections::BTreeMap;

use vineyard_proto::payer::reply::Body as Reply;

use crate::harness::{Sidecar, Volume};

/// Reads the text format strictly: families with type and help, then their samples, then the end mark.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = Vec::new();
    let mut ended = false;
    for line in text.lines() {
        assert!(!ended, "a line after the end: {line}");
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            families.push(name.to_owned());
        } else if line == "# EOF" {
            ended = true;
        } else if !line.starts_with("# HELP ") && !line.starts_with("# UNIT ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            assert!(
                families
                    .last()
                    .is_some_and(|family| name.starts_with(family.as_str())),
                "{line} outside of its family"
            );
            let old = samples.insert(sample.to_owned(), value.parse().unwrap());
            assert!(old.is_none(), "{sample} twice");
        }
    }
    assert!(ended, "no end mark");
    samples
}

#[test]
fn the_metrics_parse_and_count_what_happened() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    let mut client = sidecar.client();
    let file = volume.file();
    client.reserve(&[&file], 4096);
    client.reserve(&[&file], 1 << 20);
    assert!(matches!(client.reserve(&[&file], 1 << 30), Reply::Full(_)));
    client.give_back(4096);
    let samples = parse(&sidecar.metrics());
    for (sample, value) in [
        ("allowance_bytes", (64 << 20) as f64),
        ("spent_bytes", (1 << 20) as f64),
        ("carried_bytes", 0.0),
        ("connections", 1.0),
        ("reserved_bytes_total", ((1 << 20) + 4096) as f64),
        ("given_back_bytes_total", 4096.0),
        ("requests_total{verb=\"reserve\",outcome=\"ok\"}", 2.0),
        ("requests_total{verb=\"reserve\",outcome=\"full\"}", 1.0),
        ("requests_total{verb=\"hello\",outcome=\"ok\"}", 1.0),
        ("large_request_seconds_count", 2.0),
    ] {
        let found = samples.get(&format!("vineyard_sidecar_{sample}"));
        assert_eq!(found, Some(&value), "{sample}");
    }
}

#[test]
fn health_is_ok_and_other_requests_are_told_what_is_wrong() {
    let volume = Volume::shared();
    let sidecar = Sidecar::start(&volume, &[]);
    for (request, status) in [
        ("GET /healthz HTTP/1.1\r\n\r\n", "200 OK"),
        ("HEAD /healthz HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET /metrics?x=1 HTTP/1.1\r\n\r\n", "200 OK"),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = sidecar.http(request);
        let line = answer.lines().next().unwrap();
        assert_eq!(line, format!("HTTP/1.1 {status}"), "{request:?}");
        assert!(answer.contains("\r\ncontent-length: "));
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
    assert!(sidecar.http(&long).starts_with("HTTP/1.1 400 "));
    assert!(
        sidecar
            .http("HEAD /healthz HTTP/1.1\r\n\r\n")
            .ends_with("\r\n\r\n")
    );
}
