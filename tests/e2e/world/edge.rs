//! The edge runtime with small workers of our own: queues, cron, logs, and how it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ihuza_sim::edge::{Edge, EdgeConfig, client};
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

const WRANGLER: &str = r#"
name = "small"
compatibility_date = "2026-11-01"
send_metrics = false
[env.front]
name = "front"
main = "front/index.js"
vars = { FROM_FILE = "file", OVERRIDDEN = "file" }
[[env.front.queues.producers]]
queue = "work"
binding = "WORK"
[env.back]
name = "back"
main = "back/index.js"
triggers = { crons = ["* * * * *"] }
[[env.back.queues.consumers]]
queue = "work"
max_batch_size = 10
max_batch_timeout = 0
max_retries = 1
dead_letter_queue = "work-dlq"
[[env.back.queues.consumers]]
queue = "work-dlq"
max_batch_timeout = 0
"#;

const FRONT: &str = r#"export default { async fetch(request, env) {
  console.log(JSON.stringify({ event: "ASKED" }));
  if (env.WORK) await env.WORK.send(await request.text(), { contentType: "text" });
  return Response.json({ file: env.FROM_FILE, overridden: env.OVERRIDDEN, secret: env.SECRET, queue: !!env.WORK });
} };"#;

const BACK: &str = r#"let seen = []; let runs = 0;
export default {
  async fetch() { return Response.json({ seen, runs }); },
  async queue(batch) { for (const m of batch.messages) {
    seen.push([batch.queue, m.body, m.attempts]);
    if (m.body === "poison" && batch.queue === "work") m.retry(); else m.ack();
  } },
  async scheduled() { runs += 1; },
};"#;

struct Small {
    folder: PathBuf,
    edge: Edge,
}

impl Small {
    async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("ihuza-small-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("wrangler.toml", WRANGLER);
        write("front/index.js", FRONT);
        write("back/index.js", BACK);
        write(".dev.vars", "SECRET=from the developer\nOTHER=x\n");
        let vars = [("OVERRIDDEN", "world"), ("SECRET", "s3")];
        let edge = Edge::start(EdgeConfig {
            root: WorldConfig::default().root,
            wrangler: Some(folder.join("wrangler.toml")),
            vars: vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            dev_vars: false,
            withhold: Vec::new(),
            limits: BTreeMap::new(),
            ports: BTreeMap::new(),
            logs: folder.clone(),
        })
        .await
        .unwrap();
        Self { folder, edge }
    }

    async fn front(&self, message: &str) -> Value {
        let request = client().unwrap().post(self.edge.url("front").unwrap()).body(message.to_owned());
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn back(&self) -> Value {
        let request = client().unwrap().get(self.edge.url("back").unwrap());
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn wait_until_seen(&self, expected: Value) {
        let since = Instant::now();
        while self.back().await["seen"] != expected {
            assert!(since.elapsed() < Duration::from_secs(10), "{}", self.back().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn queues_cron_and_variables_work_and_the_runtime_survives_its_death() {
    let small = Small::start().await;
    let vars = small.front("poison").await;
    assert_eq!(vars, json!({"file": "file", "overridden": "world", "secret": "s3", "queue": true}));
    small.wait_until_seen(json!([["work", "poison", 1], ["work", "poison", 2], ["work-dlq", "poison", 1]])).await;
    small.edge.scheduled("back", "* * * * *").await.unwrap();
    assert_eq!(small.back().await["runs"], 1);
    assert_eq!(small.edge.logs().unwrap()[0].event().as_deref(), Some("ASKED"));

    let address = small.edge.url("front").unwrap().to_owned();
    small.edge.kill().await.unwrap();
    assert_eq!(small.back().await, json!({"seen": [], "runs": 0}), "nothing was kept");
    assert_eq!(small.edge.url("front").unwrap(), address);
    small.edge.enqueue("front", "WORK", "again").await.unwrap();
    small.wait_until_seen(json!([["work", "again", 1]])).await;

    small.edge.withhold(&["work"]).await.unwrap();
    assert_eq!(small.front("lost").await["queue"], false);
    assert!(small.edge.url("nowhere").unwrap_err().to_string().contains("back, front"));
}

/// Not a test by itself: the next one runs it as a process and kills that.
#[tokio::test]
#[ignore = "helper of nothing_outlives_a_killed_process"]
async fn start_a_world_and_wait_to_be_killed() {
    let Ok(report) = std::env::var("IHUZA_TEST_REPORT") else {
        return;
    };
    let world =
        ihuza_sim::world::World::start(WorldConfig { functions: true, ..WorldConfig::default() }).await.unwrap();
    let row = world.query("show data_directory", &[]).await.unwrap();
    let directory: String = row[0].get(0);
    std::fs::write(&report, format!("{}\n{directory}\n{}\n", world.database_url(), world.log_folder().display()))
        .unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
}

#[tokio::test]
async fn nothing_outlives_a_killed_process() {
    let report = std::env::temp_dir().join(format!("ihuza-killed-{}", std::process::id()));
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "world::edge::start_a_world_and_wait_to_be_killed", "--ignored", "--nocapture"])
        .env("IHUZA_TEST_REPORT", &report)
        .spawn()
        .unwrap();
    let since = Instant::now();
    let text = loop {
        // Written line by line by the other process.
        let text = std::fs::read_to_string(&report).unwrap_or_default();
        if text.lines().count() == 3 && text.ends_with('\n') {
            break text;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "the world did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let [database, directory, logs] = text.lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(!mentions(directory).is_empty(), "the server's command line names its folder");

    victim.kill().unwrap();
    victim.wait().unwrap();
    let since = Instant::now();
    while Path::new(directory).exists() || !mentions(directory).is_empty() || !mentions(logs).is_empty() {
        let left = [mentions(directory), mentions(logs)].concat();
        assert!(since.elapsed() < Duration::from_secs(15), "still there: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ihuza_sim::postgres::connect(database).await.is_err());
    std::fs::remove_file(report).unwrap();
    std::fs::remove_dir_all(logs).unwrap();
}

/// Processes whose command line or environment names `what`, except ourselves.
pub fn mentions(what: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == std::process::id().to_string() || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let text = [read("cmdline"), read("environ")].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if text.contains(what) {
            found.push(format!("{pid} {}", String::from_utf8_lossy(&read("cmdline"))));
        }
    }
    found
}
