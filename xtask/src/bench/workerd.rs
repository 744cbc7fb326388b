//! The edge runtime by itself, as bare as it can be run: no Miniflare around it, so that what is measured is the Workers.
//!
//! Every Worker is an isolate of one process and has a socket of its own; the queue is a Worker that forgets.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use ihuza_sim::process::{Plan, Supervised};
use serde::Deserialize;

use crate::functions;
use crate::places;

/// Which Worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Our wasm.
    Ours,
    /// The same in TypeScript.
    Peer,
    /// The least that a Worker can do: what the runtime costs.
    Floor,
}

/// What a Worker is loaded from.
#[derive(Clone, Debug)]
pub struct Worker {
    pub name: String,
    /// Names of files in the stage; the first is the main module.
    modules: Vec<String>,
    /// Another socket for this named export.
    export: Option<&'static str>,
}

impl Worker {
    pub fn of(side: Side, function: &str) -> Self {
        match side {
            Side::Ours => {
                Self { name: format!("ours-{function}"), modules: ours(function, &["index.js"]), export: None }
            }
            Side::Peer => {
                Self { name: format!("peer-{function}"), modules: vec![format!("peer/{function}.js")], export: None }
            }
            Side::Floor => Self { name: "floor".to_owned(), modules: vec!["peer/floor.js".to_owned()], export: None },
        }
    }

    /// Ours with a counter between wasm and JavaScript, which the socket `<name>/Crossings` shows.
    pub fn counted(function: &str) -> Self {
        Self {
            name: format!("ours-{function}"),
            modules: ours(function, &["crossings.js", "count.js", "index.js"]),
            export: Some("Crossings"),
        }
    }
}

fn ours(function: &str, scripts: &[&str]) -> Vec<String> {
    let files = scripts.iter().chain(&["index_bg.wasm"]);
    files.map(|file| format!("{function}/{file}")).collect()
}

/// A folder with all that the runtime loads. Gone when dropped.
pub struct Stage {
    dir: PathBuf,
    binary: PathBuf,
    /// Variables of every Worker.
    pub vars: BTreeMap<String, String>,
}

/// Bindings of the queues that the accept paths send to.
const QUEUES: [&str; 4] = ["POST_CALL_NOTIFY", "SMS_INBOUND", "DELIVERY_STATUS", "WHATSAPP_UPDATES"];
const QUEUE: &str = "queue";

impl Stage {
    /// Puts the functions as they are built into a new folder, and the peers' scripts beside them.
    /// `measured` have a peer, those `alone` have none. `readable`: the peers' functions keep their names, for a profile.
    pub fn set(
        esbuild: &Path,
        measured: &[&str],
        alone: &[&str],
        vars: BTreeMap<String, String>,
        readable: bool,
    ) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("ihuza-bench-{}", std::process::id()));
        let stage = Self { dir, binary: binary()?, vars };
        let sources = places::project().join("tests/bench/peer");
        let mut call = crate::call::Call::new(esbuild, "bundle the TypeScript peers")
            .args(["--bundle", "--format=esm", "--target=es2024", "--log-level=warning"])
            .args((!readable).then_some("--minify"))
            .arg(format!("--outdir={}", stage.dir.join("peer").display()));
        for name in measured.iter().chain(&["floor", QUEUE]) {
            call = call.arg(sources.join(format!("{name}.ts")));
        }
        call.run()?;
        for function in
            functions::chosen(&measured.iter().chain(alone).map(|name| (*name).to_owned()).collect::<Vec<_>>())?
        {
            let folder = stage.dir.join(&function.name);
            std::fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
            let scripts = ["crossings.js", "count.js"].map(|file| sources.join(file));
            for file in function.outputs().iter().chain(&scripts) {
                let name = file.file_name().unwrap_or_default();
                std::fs::copy(file, folder.join(name))
                    .with_context(|| format!("could not copy {}: build first", file.display()))?;
            }
        }
        Ok(stage)
    }

    /// Starts one runtime with these Workers and the queue.
    pub fn start(&self, workers: &[Worker], inspector: bool) -> Result<Workerd> {
        // The queue comes last: when its socket listens, all do.
        let queue = Worker { name: QUEUE.to_owned(), modules: vec![format!("peer/{QUEUE}.js")], export: None };
        let all: Vec<&Worker> = workers.iter().chain([&queue]).collect();
        let config = self.config(&all)?;
        let file = self.dir.join("workerd.capnp");
        std::fs::write(&file, config).with_context(|| format!("could not write {}", file.display()))?;
        Workerd::start(self, &all, inspector)
    }

    fn config(&self, workers: &[&Worker]) -> Result<String> {
        let date = functions::wrangler_toml()?
            .get("compatibility_date")
            .and_then(|date| date.as_str().map(str::to_owned))
            .context("wrangler.toml has no compatibility_date")?;
        let mut bindings: Vec<String> =
            self.vars.iter().map(|(name, value)| format!("(name = {name:?}, text = {value:?})")).collect();
        bindings.extend(QUEUES.iter().map(|name| format!("(name = {name:?}, queue = {QUEUE:?})")));
        let bindings = bindings.join(", ");
        let mut services = Vec::new();
        let mut sockets = Vec::new();
        for worker in workers {
            let modules: Vec<String> = worker.modules.iter().map(|file| module(file)).collect();
            let bound = if worker.name == QUEUE { "" } else { &bindings };
            services.push(format!(
                "    (name = {:?}, worker = (modules = [{}], compatibilityDate = {date:?}, bindings = [{bound}]))",
                worker.name,
                modules.join(", ")
            ));
            let socket = |name: &str, entrypoint: &str| {
                format!(
                    "    (name = {name:?}, address = \"127.0.0.1:0\", http = (), service = (name = {:?}{entrypoint}))",
                    worker.name
                )
            };
            if let Some(export) = worker.export {
                let entrypoint = format!(", entrypoint = {export:?}");
                sockets.push(socket(&format!("{}/{export}", worker.name), &entrypoint));
            }
            sockets.push(socket(&worker.name, ""));
        }
        Ok(format!(
            "using Workerd = import \"/workerd/workerd.capnp\";\n\
             const config :Workerd.Config = (\n  services = [\n{}\n  ],\n  sockets = [\n{}\n  ]\n);\n",
            services.join(",\n"),
            sockets.join(",\n")
        ))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A module is known to the others of its Worker by its bare name.
fn module(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    let kind = if name.ends_with(".wasm") { "wasm" } else { "esModule" };
    format!("(name = {name:?}, {kind} = embed {file:?})")
}

/// The runtime that Miniflare brought, for whatever machine this is.
fn binary() -> Result<PathBuf> {
    let dir = places::node_modules().join("@cloudflare");
    let packages = std::fs::read_dir(&dir).with_context(|| format!("could not list {}", dir.display()))?;
    packages
        .flatten()
        .map(|package| package.path().join("bin/workerd"))
        .find(|file| file.is_file())
        .with_context(|| format!("no workerd below {}: run `cargo xtask setup`", dir.display()))
}

/// Tells its process id, then becomes the runtime. What Workers log goes nowhere.
const LAUNCH: &str =
    r#"exec 3>&1 >/dev/null; echo "{\"event\":\"pid\",\"pid\":$$}" >&3; exec "$0" "$@" --control-fd=3"#;

/// A running runtime. Dropping it ends it.
pub struct Workerd {
    _process: Supervised,
    pid: u32,
    /// When the runtime's program was begun.
    pub begun: Instant,
    ports: BTreeMap<String, u16>,
    pub inspector: Option<u16>,
}

#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Told {
    Pid { pid: u32 },
    Listen { socket: String, port: u16 },
    ListenInspector { port: u16 },
}

impl Workerd {
    fn start(stage: &Stage, workers: &[&Worker], inspector: bool) -> Result<Self> {
        let mut plan = Plan::new("workerd", "sh", stage.dir.join("workerd.log")).args(["-c", LAUNCH]);
        plan = plan.args([stage.binary.as_os_str()]).args(["serve", "workerd.capnp"]);
        if inspector {
            plan = plan.args(["--inspector-addr=127.0.0.1:0"]);
        }
        plan.current_dir = Some(stage.dir.clone());
        plan.stdout_piped = true;
        plan.stop_signal = "KILL";
        let (process, stdout) = Supervised::start(plan).map_err(|trouble| anyhow!("{trouble:?}"))?;
        let mut lines = BufReader::new(stdout.context("the runtime has no output")?).lines();
        let sockets = workers.iter().map(|worker| 1 + usize::from(worker.export.is_some())).sum();
        let mut runtime =
            Self { _process: process, pid: 0, begun: Instant::now(), ports: BTreeMap::new(), inspector: None };
        while runtime.pid == 0 || runtime.ports.len() < sockets || (inspector && runtime.inspector.is_none()) {
            let Some(Ok(line)) = lines.next() else {
                bail!("{}", runtime._process.trouble("the runtime did not start"));
            };
            match serde_json::from_str(&line) {
                Ok(Told::Pid { pid }) => {
                    runtime.pid = pid;
                    runtime.begun = Instant::now();
                }
                Ok(Told::Listen { socket, port }) => drop(runtime.ports.insert(socket, port)),
                Ok(Told::ListenInspector { port }) => runtime.inspector = Some(port),
                Err(_) => {}
            }
        }
        Ok(runtime)
    }

    /// The port of a Worker, or of `<Worker>/<export>`, or of the queue.
    pub fn port(&self, socket: &str) -> Result<u16> {
        self.ports.get(socket).copied().with_context(|| format!("the runtime has no socket {socket}"))
    }

    pub fn queue_port(&self) -> Result<u16> {
        self.port(QUEUE)
    }

    /// Processor time of all its threads so far, in nanoseconds. None where the system does not tell (only Linux does).
    pub fn cpu_ns(&self) -> Option<u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let times = tasks.flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        let nanoseconds: u64 = times.sum();
        if nanoseconds > 0 { Some(nanoseconds) } else { self.cpu_ticks().map(|ticks| ticks * 10_000_000) }
    }

    /// utime + stime of /proc/<pid>/stat, in hundredths of a second (proc(5): fields 14 and 15).
    fn cpu_ticks(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workers_modules_know_each_other_by_bare_names() {
        assert_eq!(
            module("post-call-notify/index_bg.wasm"),
            r#"(name = "index_bg.wasm", wasm = embed "post-call-notify/index_bg.wasm")"#
        );
        assert_eq!(module("peer/floor.js"), r#"(name = "floor.js", esModule = embed "peer/floor.js")"#);
        assert_eq!(Worker::counted("a").modules, ["a/crossings.js", "a/count.js", "a/index.js", "a/index_bg.wasm"]);
    }

    #[test]
    fn what_the_runtime_tells_is_understood() {
        let told = |line| serde_json::from_str::<Told>(line).ok();
        assert!(matches!(
            told(r#"{"event":"listen","socket":"floor","port":42303}"#),
            Some(Told::Listen { port: 42303, .. })
        ));
        assert!(matches!(
            told(r#"{"event":"listen-inspector","port":9229}"#),
            Some(Told::ListenInspector { port: 9229 })
        ));
        assert!(told(r#"{"event":"something else"}"#).is_none());
    }
}
