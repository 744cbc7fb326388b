//! The chores as somebody types them: what is started is taken down again.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::edge::mentions;

/// `cargo xtask` itself, which is built beside us.
fn xtask() -> Command {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("xtask");
    assert!(built.is_file(), "{} is not built: run `cargo build -p xtask`", built.display());
    let mut command = Command::new(built);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    command
}

#[tokio::test]
async fn ctrl_c_takes_all_of_the_local_world_down() {
    let mark = format!("ihuza-ctrl-c-{}", uuid::Uuid::new_v4());
    let ready = std::env::temp_dir().join(&mark);
    let mut demo = xtask()
        .args(["demo", "--ready-file"])
        .arg(&ready)
        .env("IHUZA_TEST_MARK", &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while !ready.exists() {
        assert!(demo.try_wait().unwrap().is_none(), "it ended before it was up");
        assert!(since.elapsed() < Duration::from_secs(120), "it did not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(mentions(&mark).len() > 3, "database, PostgREST, runtime: {:?}", mentions(&mark));
    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap().success());
    let since = Instant::now();
    loop {
        let left = mentions(&mark);
        if demo.try_wait().unwrap().is_some() && left.is_empty() {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "still there: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its keys are of no use any more, and nobody else looks for them.
    std::fs::remove_file(ready).unwrap_or_default();
}
