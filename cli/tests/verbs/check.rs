//! fsck and doctor.

use std::os::unix::fs::symlink;

use crate::session::Session;

#[test]
fn a_sound_volume_has_no_problems() {
    let session = Session::new();
    session.put("a", b"x");
    session.put("b/c", &[0; 300_000]);
    let report = &session.run(&["fsck", "--json"]).ok().json()[0];
    assert_eq!(
        (&report["objects"], &report["names"]),
        (&2.into(), &2.into())
    );
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
}

#[test]
fn a_lost_name_is_found_and_repaired() {
    let session = Session::new();
    session.put("kept", b"x");
    session.put("lost", b"y");
    let id = session.run(&["stat", "lost", "--json"]).ok().json()[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    std::fs::remove_file(session.volume().join(format!(".vineyard/objects/{id}.raw"))).unwrap();
    let got = session.run(&["get", "lost"]);
    assert_eq!(got.code, 3);
    assert!(
        got.err.contains("lost") && got.err.contains("fsck --repair"),
        "{}",
        got.err
    );

    let found = session.run(&["fsck", "--json"]);
    assert_eq!(found.code, 6);
    assert_eq!(found.json()[0]["problems"][0]["path"], "lost");
    assert_eq!(session.run(&["fsck"]).code, 6);
    session.run(&["fsck", "--repair"]).ok();
    assert_eq!(session.run(&["ls"]).ok().text(), "kept\n");
    session.run(&["fsck"]).ok();
}

#[test]
fn a_symlink_to_elsewhere_is_reported_and_never_followed() {
    let session = Session::new();
    session.put("a", b"x");
    symlink("/etc/passwd", session.volume().join("planted")).unwrap();
    assert_ne!(session.run(&["get", "planted"]).code, 0);
    let found = session.run(&["fsck", "--repair", "--json"]);
    assert_eq!(found.code, 6);
    assert_eq!(found.json()[0]["problems"][0]["path"], "planted");
}

#[test]
fn malformed_content_is_found() {
    let session = Session::new();
    session
        .feed(&["put", "-", "array", "--kind", "npy"], b"no array")
        .ok();
    let found = session.run(&["fsck"]);
    assert_eq!(found.code, 6);
    assert!(
        found.text().contains("malformed content"),
        "{}",
        found.text()
    );
}

#[test]
fn the_doctor_looks_at_kernel_process_volume_and_sidecar() {
    let session = Session::new();
    session.put("a", b"x");
    let report = &session.run(&["doctor", "--json"]).json()[0];
    let areas: Vec<&str> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["area"].as_str().unwrap())
        .collect();
    for area in ["kernel and privileges", "process", "volume", "sidecar"] {
        assert!(areas.contains(&area), "{report}");
    }
}

#[test]
fn the_doctor_finds_a_missing_volume_and_a_missing_sidecar() {
    let session = Session::new();
    let socket = session.beside("no.sock");
    let found = session.run(&["doctor", "--json", "--socket", socket.to_str().unwrap()]);
    assert_eq!(found.code, 6);
    let report = &found.json()[0];
    assert_eq!(report["is_healthy"], false);
    let problems: Vec<&str> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["status"] == "problem")
        .map(|check| check["area"].as_str().unwrap())
        .collect();
    assert!(
        problems.contains(&"volume") && problems.contains(&"sidecar"),
        "{report}"
    );
}
