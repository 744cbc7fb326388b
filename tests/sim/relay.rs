//! The media relay as a process of its own, between a telephone and the world's functions and model.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::edge::client;
use crate::error::{Context, Result, Trouble};
use crate::process::{Plan, Supervised, free_port};

/// Its binary, unless this variable names another.
const BINARY: &str = "ihuza-relay";
const BINARY_VARIABLE: &str = "IHUZA_RELAY_BIN";
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Ports for media: one call takes two.
const MEDIA_PORTS: u16 = 400;

/// What a relay is started with.
pub struct RelayConfig<'a> {
    /// The repository: holds the announcements.
    pub root: &'a Path,
    /// Base of the function `openai-realtime-sip`.
    pub function: &'a str,
    /// Opens that function.
    pub key: &'a str,
    /// The number that is answered.
    pub number: &'a str,
    /// Folder for settings and log.
    pub folder: &'a Path,
    /// Folder for the journal. What it holds belongs to the database: a call that is left in it is told of there.
    pub journal: &'a Path,
    /// A fixed port for SIP; 0 takes a free one.
    pub port: u16,
}

/// The running relay. Dropping it ends it as a service manager would.
pub struct Relay {
    process: Mutex<Supervised>,
    /// Where SIP is spoken, over UDP and TCP.
    pub sip: SocketAddr,
    /// Where `/healthz` and `/metrics` are.
    pub http: SocketAddr,
    /// The number that is answered.
    pub number: String,
    log: PathBuf,
    settings: PathBuf,
    key: String,
}

impl Relay {
    /// When this returns it takes calls.
    pub async fn start(config: RelayConfig<'_>) -> Result<Self> {
        let mut last = None;
        for _ in 0..3 {
            match Self::attempt(&config).await {
                Ok(relay) => return Ok(relay),
                // A port was taken in the meantime.
                Err(trouble) => last = Some(trouble),
            }
        }
        Err(last.unwrap_or_else(|| Trouble::new("the relay did not start")))
    }

    async fn attempt(config: &RelayConfig<'_>) -> Result<Self> {
        let sip =
            SocketAddr::from((Ipv4Addr::LOCALHOST, if config.port == 0 { free_udp_port()? } else { config.port }));
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let file = config.folder.join("relay.toml");
        std::fs::write(&file, settings(config, sip, http)?).context("cannot write relay.toml")?;
        let log = config.folder.join("relay.jsonl");
        let process = Mutex::new(launch(&log, &file, config.key)?);
        let (number, key) = (config.number.to_owned(), config.key.to_owned());
        let relay = Self { process, sip, http, number, log, settings: file, key };
        relay.ready().await?;
        Ok(relay)
    }

    async fn ready(&self) -> Result<()> {
        let http = client()?;
        let url = format!("http://{}/healthz", self.http);
        let since = std::time::Instant::now();
        while !http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            if !self.process().is_running() || since.elapsed() > START_PATIENCE {
                return Err(self.process().trouble("the relay does not become healthy"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// `kill -9`, and back again with the same settings and the journal that is left.
    pub async fn crash(&self) -> Result<()> {
        self.process().kill();
        *self.process() = launch(&self.log, &self.settings, &self.key)?;
        self.ready().await
    }

    fn process(&self) -> MutexGuard<'_, Supervised> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every line it logged so far, oldest first.
    pub fn logs(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

fn launch(log: &Path, settings: &Path, key: &str) -> Result<Supervised> {
    let plan = Plan::new("relay", binary()?, log)
        .args(["run", "--config"])
        .args([settings])
        .env("INTERNAL_API_KEY", key)
        // Only what the function gives opens the model.
        .env("OPENAI_API_KEY", "");
    Supervised::start(plan).map(|(process, _)| process)
}

/// `relay.toml`.
fn settings(config: &RelayConfig<'_>, sip: SocketAddr, http: SocketAddr) -> Result<String> {
    let media = free_port()? / 2 * 2;
    let mut text = String::new();
    let mut table = |name: &str, fields: &[(&str, String)]| {
        let _ = writeln!(text, "[{name}]");
        for (field, value) in fields {
            let _ = writeln!(text, "{field} = {value}");
        }
    };
    // Of TOML's strings and JSON's the ones are the others here: no path of ours has control characters.
    let quoted = |value: &str| Value::from(value).to_string();
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let address = |address: SocketAddr| quoted(&address.to_string());
    table("sip", &[("udp", address(sip)), ("tcp", address(sip))]);
    table(
        "media",
        &[
            ("bind", quoted("127.0.0.1")),
            ("ports", quoted(&format!("{media}-{}", media + MEDIA_PORTS))),
            ("announcements", path(&config.root.join("relay/announcements"))),
        ],
    );
    table("limits", &[("calls_per_minute_and_caller", "1000".to_owned()), ("drain_seconds", "0".to_owned())]);
    let url = format!("{}/openai-realtime", config.function);
    // The first request after the start of the functions compiles them.
    table("session", &[("url", quoted(&url)), ("timeout_ms", "8000".to_owned())]);
    table("journal", &[("directory", path(config.journal))]);
    table("http", &[("listen", address(http))]);
    text.push_str("[[trunk]]\n");
    let _ = writeln!(text, "name = \"mtn\"\nsources = [\"127.0.0.1\"]\ntransfer_prefixes = [\"+25078\"]");
    let _ =
        writeln!(text, "[[trunk.did]]\nnumber = {}\nagent = \"call-center\"\nlocale = \"en\"", quoted(config.number));
    Ok(text)
}

/// Where cargo put it, beside the program that runs: `target/<profile>/`, and tests are one folder below.
fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(named.into());
    }
    let this = std::env::current_exe().context("cannot find out where this program is")?;
    let found = this.ancestors().skip(1).take(2).map(|folder| folder.join(BINARY)).find(|file| file.is_file());
    found.ok_or_else(|| {
        Trouble::new(format!(
            "there is no {BINARY} beside {}: run `cargo build -p ihuza-relay`, or name one with {BINARY_VARIABLE}",
            this.display()
        ))
    })
}

/// Free for UDP and TCP alike, a moment ago.
fn free_udp_port() -> Result<u16> {
    for _ in 0..50 {
        let port = free_port()?;
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Trouble::new("no UDP port is free on 127.0.0.1"))
}
