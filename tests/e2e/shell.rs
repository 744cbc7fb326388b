//! The little of the functions that is JavaScript, by itself: `shell/shell.test.mjs`, in Node's own test runner.

use std::path::Path;
use std::process::Command;

#[test]
fn the_script_does_what_the_functions_count_on() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let node = ihuza_sim::edge::node(tests.parent().unwrap()).unwrap();
    let ran = Command::new(node).arg("--test").arg(tests.join("e2e/shell/shell.test.mjs")).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    let counted = said.lines().find_map(|line| line.rsplit_once("pass ")?.1.trim().parse::<u32>().ok());
    assert!(counted.is_some_and(|passed| passed >= 12), "{said}");
}
