//! A relay with everything around it: a model, a session function, and a caller, all on this machine.
#![allow(dead_code, unused_imports, reason = "each of the tests that share it uses a part of it")]

pub mod callee;
mod caller;
mod function;
mod gateway;
mod model;
mod ports;
mod process;

use std::net::SocketAddr;
use std::time::Duration;

use ihuza_relay::config::{Config, Peer, PeerAddress, Transport};
use ihuza_relay::shell::relay::Relay;

pub use caller::{Caller, Reply};
pub use function::Told;
use function::{Fault, Faults, function};
pub use gateway::{GATEWAY_SECRET, Gateway};
pub use model::Model;
use model::model;
pub use ports::free_address;
pub use process::Process;

/// Nothing on one machine takes longer.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for a state, and says what it saw when it never came.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(SOON, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

pub fn base64(bytes: &[u8]) -> String {
    ihuza_relay::backend::audio::Converter::Untouched.to_model(bytes)
}

pub fn from_base64(text: &str) -> Vec<u8> {
    ihuza_relay::backend::audio::Converter::Untouched.from_model(text).unwrap().to_vec()
}

/// A relay, and what stands around it.
pub struct World {
    pub relay: Option<Relay>,
    pub http: SocketAddr,
    pub sip: SocketAddr,
    pub told: Told,
    pub model: Model,
    pub directory: std::path::PathBuf,
    faults: Faults,
    pub config: Config,
}

impl World {
    /// With a relay in this process.
    pub async fn start() -> World {
        World::start_with(|_, _| {}).await
    }

    /// With a relay in this process, with other settings; the directory is the world's own.
    pub async fn start_with(change: impl FnOnce(&mut Config, &std::path::Path)) -> World {
        let mut world = World::without_relay().await;
        let directory = world.directory.clone();
        world.begin(|config| change(config, &directory)).await;
        world
    }

    /// Starts the relay, its settings changed.
    pub async fn begin(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        let relay = Relay::start(self.config.clone(), secret).await.unwrap();
        self.http = relay.http;
        self.relay = Some(relay);
    }

    /// All but the relay.
    pub async fn without_relay() -> World {
        let (told, faults, fake) = (Told::default(), Faults::default(), Model::default());
        let function = function(told.clone(), faults.clone()).await;
        let model = model(fake.clone()).await;
        let sip = free_address();
        let http = free_address();
        let media = 20_000 + ihuza_relay::shell::call::dice() % 10 * 2000;
        let own = ihuza_relay::shell::call::dice();
        let directory = std::env::temp_dir().join(format!("ihuza-relay-world-{}-{own:08x}", std::process::id()));
        let text = format!(
            r#"
            sip = {{ udp = "{sip}", tcp = "{sip}" }}
            media = {{ bind = "127.0.0.1", ports = "{media}-{}" }}
            limits = {{ calls = 4, drain_seconds = 1, calls_per_second = 1000, calls_per_minute_and_caller = 100000 }}
            model = {{ url = "ws://{model}/v1/realtime", api_key_env = "MODEL_KEY" }}
            session = {{ url = "http://{function}/openai-realtime", key_env = "FUNCTION_KEY", timeout_ms = 1000 }}
            journal = {{ directory = "{}" }}
            http = {{ listen = "{http}" }}
            [[trunk]]
            name = "mtn"
            sources = ["127.0.0.1"]
            transfer_prefixes = ["+250788123"]
            did = [{{ number = "+250788000100", agent = "concierge", locale = "en" }}]
            [[trunk]]
            name = "guarded"
            sources = ["127.0.0.2"]
            digest = {{ username = "trunk", password_env = "TRUNK_PASSWORD" }}
            did = [{{ number = "+250788000200", agent = "concierge", locale = "en" }}]
            [[trunk]]
            name = "old"
            sources = ["127.0.0.3"]
            digest = {{ username = "trunk", password_env = "TRUNK_PASSWORD", md5_only = true }}
            did = [{{ number = "+250788000300", agent = "concierge", locale = "en" }}]
            [[trunk]]
            name = "mtn_ws"
            gateway = {{ secret_env = "GATEWAY_SECRET" }}
            did = [{{ number = "+250788000400", agent = "concierge", locale = "en" }}]
            "#,
            media + 1999,
            directory.display(),
        );
        let config = Config::parse(&text).unwrap();
        World { http, relay: None, sip, told, model: fake, directory, faults, config }
    }

    /// The relay to come listens for TLS as well; where.
    pub fn listen_for_tls(&mut self) -> SocketAddr {
        let listen = free_address();
        let file = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pjsip").join(name);
        let tls = ihuza_relay::config::Tls { listen, certificate: file("tls.crt"), key: file("tls.key") };
        self.config.sip.tls = Some(tls);
        listen
    }

    /// A relay as a process of its own, ready for calls.
    pub async fn process(&self) -> Process {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ihuza-relay"));
        command.stdout(std::process::Stdio::null());
        self.start_process(command).await
    }

    /// One whose files cannot grow beyond so many blocks of 512 bytes: what is written further is refused (EFBIG), as by a
    /// disk that is full. Its log is kept.
    pub async fn process_with_disk(&self, blocks: u32) -> Process {
        let mut command = std::process::Command::new("sh");
        // Without the trap the first refusal would end the process.
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_ihuza-relay")]).stdout(std::process::Stdio::piped());
        self.start_process(command).await
    }

    async fn start_process(&self, mut command: std::process::Command) -> Process {
        std::fs::create_dir_all(&self.directory).unwrap();
        let file = self.directory.join("relay.toml");
        std::fs::write(&file, toml::to_string(&self.config).unwrap()).unwrap();
        command.args(["run", "--config"]).arg(file);
        for name in ["MODEL_KEY", "FUNCTION_KEY", "TRUNK_PASSWORD", "CALLS_KEY", "GATEWAY_SECRET"] {
            command.env(name, secret(name).unwrap());
        }
        command.stderr(std::process::Stdio::piped());
        let url = format!("http://{}/healthz", self.http);
        // A port that was free may be somebody else's for a moment, while nobody of ours holds it.
        for _ in 0..10 {
            let mut process = Process::new(command.spawn().unwrap());
            let healthy = async {
                while reqwest::get(&url).await.is_err() {
                    if let Some(status) = process.ended() {
                        return Err(status);
                    }
                }
                Ok(())
            };
            match tokio::time::timeout(SOON, healthy).await.expect("the process becomes healthy or ends") {
                Ok(()) => return process,
                Err(status) => {
                    let complaints = process.complaints();
                    assert!(complaints.contains("cannot listen"), "{status}: {complaints}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        panic!("others listen where the relay should");
    }

    /// Calls of which something is still owed.
    pub fn journals(&self) -> usize {
        let files = std::fs::read_dir(&self.directory).unwrap();
        files
            .filter(|file| {
                file.as_ref().is_ok_and(|file| file.path().extension().is_some_and(|kind| kind == "journal"))
            })
            .count()
    }

    /// The function answers with this status, that often, at paths with this end.
    pub fn function_fails(&self, end: &str, status: u16, times: usize) {
        let fault = || Fault { end: end.to_owned(), status: Some(status), delay: Duration::ZERO };
        self.faults.lock().unwrap().extend((0..times).map(|_| fault()));
    }

    /// From now on it answers as it should.
    pub fn function_recovers(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// The next answer at a path with this end is so late.
    pub fn function_is_slow(&self, end: &str, delay: Duration) {
        self.faults.lock().unwrap().push_back(Fault { end: end.to_owned(), status: None, delay });
    }

    /// Another relay on somebody else's journal, as after a crash.
    pub async fn adopt(&mut self, journal: &std::path::Path) {
        let elsewhere = free_address();
        self.config.sip.udp = Some(elsewhere);
        self.config.sip.tcp = None;
        self.config.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        self.config.journal.directory = journal.to_owned();
        self.relay = Some(Relay::start(self.config.clone(), secret).await.unwrap());
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("http://{}{path}", self.http)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn caller(&self) -> Caller {
        self.caller_at("127.0.0.1:0").await
    }

    /// A telephone with another address.
    pub async fn caller_at(&self, address: &str) -> Caller {
        Caller::new(address, self.sip).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A trunk that takes requests there.
pub fn peer(address: SocketAddr) -> Peer {
    Peer(PeerAddress { transport: Transport::Udp, host: address.ip().to_string(), port: address.port() })
}

pub fn secret(name: &str) -> Option<String> {
    match name {
        "MODEL_KEY" => Some("model-key".into()),
        "TRUNK_PASSWORD" => Some("secret".into()),
        "CALLS_KEY" => Some("calls-key".into()),
        "FUNCTION_KEY" => Some("function-key".into()),
        "GATEWAY_SECRET" => Some(GATEWAY_SECRET.into()),
        _ => None,
    }
}
