//! What somebody at a terminal sees.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Exit code, output and complaints together.
fn relay(arguments: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_ihuza-relay"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    (out.status.code().unwrap(), text)
}

const EXAMPLE: [&str; 2] = ["--config", "relay.example.toml"];

#[test]
fn help_names_every_command() {
    let (code, text) = relay(&["--help"]);
    assert_eq!(code, 0);
    for command in ["run", "check", "print-config", "route-test"] {
        assert!(text.contains(command), "{text}");
    }
}

#[test]
fn the_example_is_sound_and_is_printed_with_its_defaults() {
    assert_eq!(relay(&["check", EXAMPLE[0], EXAMPLE[1]]), (0, "sound: 1 trunk(s), 2 number(s)\n".into()));
    let (code, text) = relay(&["print-config", EXAMPLE[0], EXAMPLE[1]]);
    assert!(code == 0 && text.contains("answer_within_ms = 10000"), "{text}");
}

#[test]
fn a_route_is_shown_or_the_reason_why_there_is_none() {
    let route = |source, called| relay(&["route-test", EXAMPLE[0], EXAMPLE[1], "--source", source, "--called", called]);
    assert_eq!(route("192.0.2.3", "0788000100"), (0, "trunk mtn_sip, agent concierge, locale rw\n".into()));
    let (code, text) = route("192.0.2.3", "0788000199");
    assert!(code == 1 && text.contains("404: unknown_number"), "{text}");
    let (code, text) = route("198.51.100.1", "0788000100");
    assert!(code == 1 && text.contains("dropped without an answer: unknown_source"), "{text}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let (code, text) = relay(&["check", "--config", "nowhere.toml"]);
    assert!(code == 1 && text.contains("nowhere.toml") && text.contains("--config"), "{text}");
}
