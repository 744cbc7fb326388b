//! The chores as somebody types them: what is started is taken down again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ihuza_sim::world::{World, WorldConfig};

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

/// A chore that runs. When the test fails, it is interrupted all the same: its world would stay for ever.
struct Chore(Child);

impl Chore {
    fn interrupt(&self) -> bool {
        Command::new("kill").args(["-INT", &self.0.id().to_string()]).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Chore {
    fn drop(&mut self) {
        let since = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            self.interrupt();
            if since.elapsed() > Duration::from_secs(30) {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

#[tokio::test]
async fn ctrl_c_takes_all_of_the_local_world_down() {
    let mark = format!("ihuza-ctrl-c-{}", uuid::Uuid::new_v4());
    let ready = std::env::temp_dir().join(&mark);
    let demo = xtask()
        .args(["demo", "--ready-file"])
        .arg(&ready)
        .env("IHUZA_TEST_MARK", &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut demo = Chore(demo);
    let since = Instant::now();
    while !ready.exists() {
        assert!(demo.0.try_wait().unwrap().is_none(), "it ended before it was up");
        assert!(since.elapsed() < Duration::from_secs(240), "it did not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(mentions(&mark).len() > 3, "database, PostgREST, runtime: {:?}", mentions(&mark));
    assert!(demo.interrupt());
    let since = Instant::now();
    loop {
        let left = mentions(&mark);
        if demo.0.try_wait().unwrap().is_some() && left.is_empty() {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "still there: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its keys are of no use any more, and nobody else looks for them.
    std::fs::remove_file(ready).unwrap_or_default();
}

#[tokio::test]
async fn dead_letters_are_listed_masked_put_back_and_dropped() {
    let world = World::start(WorldConfig { functions: false, ..WorldConfig::default() }).await.unwrap();
    let insert = "select record_dead_letter(jsonb_build_object('queue', 'sms-inbound', 'message_id', $1::text, 'reason', 'retries_exhausted',
                    'correlation_id', $1::text, 'payload', '{\"v\": 1, \"body\": {\"from\": \"+250788123456\", \"text\": \"I look for a house\"}}'::jsonb
                    || jsonb_build_object('correlation_id', $1::text))) ->> 'id'";
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let rows = world.query(insert, &[&name]).await.unwrap();
        ids.push(rows[0].get::<_, String>(0));
    }
    let chore = |arguments: &[&str]| {
        let ran =
            xtask().arg("dead-letters").args(arguments).env("DATABASE_URL", world.database_url()).output().unwrap();
        let told = String::from_utf8(ran.stdout).unwrap();
        assert!(ran.status.success(), "{arguments:?}: {told}{}", String::from_utf8_lossy(&ran.stderr));
        told
    };
    let listed = chore(&["list"]);
    assert!(ids.iter().all(|id| listed.contains(id.as_str())) && listed.contains("replayable"), "{listed}");
    let (shown, whole) = (chore(&["show", &ids[0]]), chore(&["show", &ids[0], "--payload"]));
    for secret in ["788123456", "house"] {
        assert!(
            !listed.contains(secret) && !shown.contains(secret) && whole.contains(secret),
            "{secret}: {listed}{shown}{whole}"
        );
    }
    assert!(chore(&["replay", &ids[0], "--reason", "it is mended", "--by", "keza"]).contains("replayed"));
    assert!(chore(&["drop", &ids[1], "--reason", "a test call"]).contains("dropped"));
    assert_eq!(chore(&["list"]), "");
    let all = chore(&["list", "--all"]);
    assert!(all.contains("  replayed  ") && all.contains("  dropped  "), "{all}");
    let kept =
        world.query("select count(*) from jobs where queue = 'sms-inbound' and status = 'pending'", &[]).await.unwrap();
    assert_eq!(kept[0].get::<_, i64>(0), 1);

    // What is refused is told and fails.
    let refused = xtask()
        .args(["dead-letters", "replay", &ids[1], "--reason", "again"])
        .env("DATABASE_URL", world.database_url())
        .output()
        .unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("dead_letter_dropped"));
}
