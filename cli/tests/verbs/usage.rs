//! Arguments, help, documentation and the errors of a wrong place.

use std::path::Path;
use std::process::Stdio;

use crate::session::{Session, answer};

#[test]
fn every_exit_code_of_the_help_is_in_the_reference() {
    let help = Session::new().run(&["--help"]).ok().text().to_owned();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md");
    let reference = std::fs::read_to_string(page).unwrap().replace('`', "");
    let codes: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Exit codes:")
        .skip(1)
        .collect();
    assert!(codes.len() >= 8, "{help}");
    for line in codes {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        assert!(
            reference.contains(&format!("| {code} | {meaning} |")),
            "not in docs/reference/cli.md: {line}"
        );
    }
}

#[test]
fn every_verb_of_the_help_is_in_the_reference() {
    let help = Session::new().run(&["--help"]).ok().text().to_owned();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md");
    let reference = std::fs::read_to_string(page).unwrap();
    let verbs: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_whitespace()
                .next()
                .filter(|_| line.starts_with("  ") && !line.starts_with("   "))
        })
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() >= 13, "{verbs:?}");
    for verb in verbs {
        assert!(
            reference.contains(&format!("### `{verb}")),
            "{verb} is not in docs/reference/cli.md"
        );
    }
}

#[test]
fn an_empty_path_on_the_command_line_is_no_default() {
    let session = Session::new();
    for arguments in [
        &["--volume", "", "ls"][..],
        &["ls", "--volume", ""],
        &["ls", "--volume="],
        &["put", "-", "name", "--socket", ""],
    ] {
        let answer = session.run(arguments);
        assert_eq!(answer.code, 2, "{arguments:?}");
        assert!(
            answer.err.contains("is empty: name a path"),
            "{}",
            answer.err
        );
    }
    session.put("name", b"content");
    let unset = answer(session.command().env("VINEYARD_SOCKET", "").arg("ls"));
    assert_eq!(
        unset.ok().text(),
        "name\n",
        "an empty variable is as good as none"
    );
}

#[test]
fn wrong_arguments_end_with_2() {
    let session = Session::new();
    for arguments in [
        &["nonsense"][..],
        &["get"],
        &["put", "-"],
        &["ls", "--sort", "colour"],
        &["get", "a", "--timeout", "x"],
    ] {
        assert_eq!(session.run(arguments).code, 2, "{arguments:?}");
    }
}

#[test]
fn a_directory_that_is_no_volume_ends_with_2_and_says_how_to_name_one() {
    let session = Session::new();
    let answer = session.run(&["ls"]);
    assert_eq!(answer.code, 2, "{}", answer.err);
    assert!(answer.err.contains("VINEYARD_VOLUME"), "{}", answer.err);
    let answer = session.run(&["ls", "--volume", "/nonexistent"]);
    assert_eq!(answer.code, 2, "{}", answer.err);
}

#[test]
fn a_name_that_leaves_the_volume_ends_with_2() {
    let session = Session::new();
    session.put("a", b"x");
    for name in ["../a", "/etc/passwd", ".vineyard/format", "a//b"] {
        assert_eq!(session.run(&["get", name]).code, 2, "{name}");
        assert_eq!(session.feed(&["put", "-", name], b"x").code, 2, "{name}");
    }
}

#[test]
fn a_sidecar_that_is_not_there_is_named() {
    let session = Session::new();
    let socket = session.beside("no.sock");
    let answer = session.feed(
        &["--socket", socket.to_str().unwrap(), "put", "-", "a"],
        b"x",
    );
    assert_eq!(answer.code, 1);
    assert!(
        answer.err.contains("no.sock") && answer.err.contains("sidecar"),
        "{}",
        answer.err
    );
}

#[test]
fn an_empty_socket_variable_is_as_good_as_none() {
    let session = Session::new();
    let source = session.beside("source");
    std::fs::write(&source, b"x").unwrap();
    let mut command = session.command();
    command
        .args(["put", source.to_str().unwrap(), "a"])
        .env("VINEYARD_SOCKET", "");
    answer(&mut command).ok();
}

#[test]
fn completions_are_scripts_of_their_shell() {
    let session = Session::new();
    for (shell, mark) in [
        ("bash", "_vineyard()"),
        ("zsh", "#compdef vineyard"),
        ("fish", "complete -c vineyard"),
    ] {
        let script = session.run(&["completions", shell]).ok();
        assert!(script.text().contains(mark), "{shell}");
    }
    let path = session.beside("completions.bash");
    std::fs::write(&path, session.run(&["completions", "bash"]).ok().out).unwrap();
    let check = answer(
        std::process::Command::new("bash")
            .arg("-n")
            .arg(path)
            .stdin(Stdio::null()),
    );
    assert_eq!(check.code, 0, "{}", check.err);
}
