//! A relay with everything around it: a model, a session function, and a caller, all on this machine.
#![allow(dead_code, reason = "each of the tests that share it uses a part of it")]

pub mod callee;
mod ports;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ihuza_core::realtime;
use ihuza_relay::config::{Config, Peer, PeerAddress, Transport};
use ihuza_relay::media::rtp::Packet;
use ihuza_relay::shell::relay::Relay;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_websockets::{ClientBuilder, Message, ServerBuilder, WebSocketStream};

pub use ports::free_address;

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

/// What the session function was told.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<(String, Value)>>>);

impl Told {
    /// Bodies that were posted to paths with this end, in order.
    pub fn to(&self, end: &str) -> Vec<Value> {
        self.0.lock().unwrap().iter().filter(|(path, _)| path.ends_with(end)).map(|(_, body)| body.clone()).collect()
    }

    /// All events, in order.
    pub fn events(&self) -> Vec<Value> {
        self.to("/events").iter().flat_map(|body| body["events"].as_array().unwrap().clone()).collect()
    }

    /// Kinds of all events.
    pub fn kinds(&self) -> Vec<String> {
        self.events().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    }
}

/// At paths with this end, the next answer has this status, or is this late.
struct Fault {
    end: String,
    status: Option<u16>,
    delay: Duration,
}

type Faults = Arc<Mutex<VecDeque<Fault>>>;

/// The function's own reader takes the request.
fn reads(path: &str, body: &Value) {
    let refused = match path.rsplit('/').next() {
        Some("events") => realtime::events_fields(body).err(),
        Some("tools") => realtime::tool_run(body).err(),
        Some("trunks") => {
            for trunk in body["trunks"].as_array().unwrap() {
                // What the table of reports takes, and nothing besides.
                assert!(["active", "down"].contains(&trunk["status"].as_str().unwrap()), "{body}");
            }
            realtime::trunk_fields(body).err()
        }
        Some("end") => {
            assert!(realtime::CAUSES.contains(&body["cause"].as_str().unwrap()), "{body}");
            realtime::end_fields(body).err()
        }
        _ => realtime::call_fields(body).err(),
    };
    assert!(refused.is_none(), "{path}: {refused:?}");
}

async fn function(told: Told, faults: Faults) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (told, faults) = (told.clone(), faults.clone());
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (told, faults) = (told.clone(), faults.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    assert_eq!(request.headers()["authorization"], "Bearer function-key");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    reads(&path, &serde_json::from_slice(&body).unwrap());
                    let fault = {
                        let mut faults = faults.lock().unwrap();
                        let at = faults.iter().position(|fault| path.ends_with(&fault.end));
                        at.and_then(|at| faults.remove(at))
                    };
                    let mut response = Response::new(Full::new(Bytes::from_static(if path.ends_with("/tools") {
                        &br#"{"ok":true,"result":{"found":3}}"#[..]
                    } else {
                        br#"{"callId":"1","resumed":false,"locale":null,"greeting":"greet","session":{"instructions":"be brief","tools":[]}}"#
                                .as_slice()
                    })));
                    if body.windows(17).any(|text| text == b"transfer_to_human") {
                        *response.body_mut() =
                            Full::new(Bytes::from_static(br#"{"ok":true,"result":{"transfer_to":"+250788123000"}}"#));
                    }
                    // An agent whose model is opened with a key of the call's own.
                    if path.ends_with("/openai-realtime") && body.windows(7).any(|text| text == b"\"keyed\"") {
                        *response.body_mut() = Full::new(Bytes::from_static(
                            br#"{"ephemeralKey":"model-key","greeting":"greet","session":{"instructions":"be brief","tools":[]}}"#,
                        ));
                    }
                    if let Some(fault) = &fault {
                        tokio::time::sleep(fault.delay).await;
                    }
                    match fault.and_then(|fault| fault.status) {
                        Some(status) => *response.status_mut() = StatusCode::from_u16(status).unwrap(),
                        None => told.0.lock().unwrap().push((path, serde_json::from_slice(&body).unwrap())),
                    }
                    Ok::<_, hyper::Error>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// What the model heard and was told.
#[derive(Clone, Default)]
pub struct Model {
    /// Messages, sound left out.
    pub messages: Arc<Mutex<Vec<Value>>>,
    /// Sound, as the base64 that came.
    pub heard: Arc<Mutex<Vec<String>>>,
    say: Arc<Mutex<Option<mpsc::UnboundedSender<Option<Value>>>>>,
    gone: Arc<AtomicBool>,
}

impl Model {
    /// Types of the messages that came.
    pub fn types(&self) -> Vec<String> {
        self.messages.lock().unwrap().iter().map(|message| message["type"].as_str().unwrap().to_owned()).collect()
    }

    /// Sends an event.
    pub fn say(&self, event: Value) {
        self.say.lock().unwrap().as_ref().unwrap().send(Some(event)).unwrap();
    }

    /// Cuts the connection.
    pub fn cut(&self) {
        self.say.lock().unwrap().take().unwrap().send(None).unwrap();
    }

    /// Cuts the connection, and takes no other.
    pub fn go(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// Speaks for that many milliseconds, as fast as it can.
    pub fn speak(&self, name: &str, words: &str, ms: usize) {
        let audio = base64(&vec![0x31; ms * 8]);
        self.say(json!({ "type": "response.created", "response": { "id": name } }));
        self.say(
            json!({ "type": "response.output_audio.delta", "response_id": name, "item_id": name, "delta": audio }),
        );
        self.say(json!({ "type": "response.output_audio_transcript.done", "response_id": name, "item_id": name, "transcript": words }));
        self.say(json!({ "type": "response.output_audio.done", "response_id": name, "item_id": name }));
        self.say(json!({ "type": "response.done", "response": { "id": name, "status": "completed" } }));
    }
}

pub fn base64(bytes: &[u8]) -> String {
    ihuza_relay::backend::audio::Converter::Untouched.to_model(bytes)
}

async fn model(model: Model) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let model = model.clone();
            if model.gone.load(Ordering::Relaxed) {
                continue;
            }
            tokio::spawn(async move {
                let Ok((request, mut socket)) = ServerBuilder::new().accept(stream).await else { return };
                assert_eq!(request.headers()["authorization"], "Bearer model-key");
                assert!(request.headers().get("openai-beta").is_none());
                let (say, mut said) = mpsc::unbounded_channel();
                *model.say.lock().unwrap() = Some(say.clone());
                say.send(Some(json!({ "type": "session.created" }))).unwrap();
                loop {
                    tokio::select! {
                        event = said.recv() => match event.flatten() {
                            Some(event) => socket.send(Message::text(event.to_string())).await.unwrap(),
                            None => return,
                        },
                        message = socket.next() => {
                            let Some(Ok(message)) = message else { return };
                            let Some(text) = message.as_text() else { continue };
                            let value: Value = serde_json::from_str(text).unwrap();
                            match value["type"].as_str().unwrap() {
                                "input_audio_buffer.append" => {
                                    model.heard.lock().unwrap().push(value["audio"].as_str().unwrap().to_owned());
                                    continue;
                                }
                                "session.update" => say.send(Some(json!({ "type": "session.updated", "session": value["session"] }))).unwrap(),
                                _ => {}
                            }
                            model.messages.lock().unwrap().push(value);
                        }
                    }
                }
            });
        }
    });
    address
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
                    if let Some(status) = process.0.try_wait().unwrap() {
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
        Caller {
            sip: UdpSocket::bind(address).await.unwrap(),
            rtp: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            relay: self.sip,
            media: None,
            to_tag: String::new(),
            call_id: format!("call-{:08x}", ihuza_relay::shell::call::dice()),
            cseq: 1,
            sent: 0,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A relay of its own; it does not outlive its test.
pub struct Process(std::process::Child, Arc<Mutex<Vec<Value>>>);

impl Process {
    fn new(mut child: std::process::Child) -> Process {
        let lines = Arc::new(Mutex::new(Vec::new()));
        if let Some(out) = child.stdout.take() {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in std::io::BufRead::lines(std::io::BufReader::new(out)).map_while(Result::ok) {
                    lines.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::Null));
                }
            });
        }
        Process(child, lines)
    }

    /// What an ended process complained of.
    fn complaints(&mut self) -> String {
        let mut text = String::new();
        if let Some(err) = &mut self.0.stderr {
            std::io::Read::read_to_string(err, &mut text).unwrap();
        }
        text
    }

    /// What it logged, if that is kept.
    pub fn log(&self) -> Vec<Value> {
        self.1.lock().unwrap().clone()
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// As a service manager ends it; whether it ended well.
    pub async fn terminate(&mut self) -> bool {
        let id = self.0.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        until("the process ends", || self.0.try_wait().unwrap()).await.success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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

/// What gateways show.
pub const GATEWAY_SECRET: &str = "gateway-secret";

/// A gateway that streams media over a WebSocket.
pub struct Gateway {
    socket: WebSocketStream<TcpStream>,
    chunk: u64,
}

impl World {
    /// A gateway that shows this in the head of its request, or nothing; a refusal is an error.
    pub async fn gateway_with(&self, secret: Option<&str>) -> Result<Gateway, tokio_websockets::Error> {
        let uri = format!("ws://{}/mtn-media", self.http).parse().unwrap();
        let mut client = ClientBuilder::from_uri(uri);
        if let Some(secret) = secret {
            let header = format!("Bearer {secret}").parse().unwrap();
            client = client.add_header(hyper::header::AUTHORIZATION, header).unwrap();
        }
        let stream = TcpStream::connect(self.http).await.unwrap();
        Ok(Gateway { socket: client.connect_on(stream).await?.0, chunk: 0 })
    }

    /// A gateway that shows its secret.
    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(Some(GATEWAY_SECRET)).await.unwrap()
    }
}

impl Gateway {
    pub async fn say(&mut self, message: Value) {
        self.text(&message.to_string()).await;
    }

    pub async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text.to_owned())).await.unwrap();
    }

    /// Says something that may not be taken any more.
    pub async fn try_say(&mut self, message: Value) -> Result<(), tokio_websockets::Error> {
        self.socket.send(Message::text(message.to_string())).await
    }

    /// Names its call.
    pub async fn start(&mut self, call_sid: &str, more: Value) {
        let mut start = json!({
            "callSid": call_sid, "from": "+250788123456", "to": "+250788000400",
            "mediaFormat": { "encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1 },
        });
        for (name, value) in more.as_object().unwrap() {
            start[name] = value.clone();
        }
        self.say(json!({ "event": "connected", "protocol": "Call", "version": "1.0.0" })).await;
        self.say(json!({ "event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": start })).await;
    }

    /// Frames of voice, each filled with one byte.
    pub async fn speak(&mut self, byte: u8, frames: usize) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..frames {
            tick.tick().await;
            self.chunk += 1;
            let (chunk, timestamp) = (self.chunk.to_string(), (self.chunk * 20).to_string());
            let media =
                json!({ "track": "inbound", "chunk": chunk, "timestamp": timestamp, "payload": base64(&[byte; 160]) });
            self.say(json!({ "event": "media", "streamSid": "MZ1", "media": media })).await;
        }
    }

    /// Sends a mark back.
    pub async fn echo(&mut self, mark: &Value) {
        self.say(json!({ "event": "mark", "streamSid": "MZ1", "mark": mark["mark"] })).await;
    }

    /// The next message.
    pub async fn next(&mut self) -> Value {
        let waited = tokio::time::timeout(SOON, async {
            loop {
                let message = self.socket.next().await.expect("the socket is open").unwrap();
                if let Some(text) = message.as_text() {
                    return serde_json::from_str(text).unwrap();
                }
                assert!(!message.is_close(), "closed: {:?}", message.as_close());
            }
        });
        waited.await.expect("a message in time")
    }

    /// The next message of this kind, and the sound that came before it.
    pub async fn until(&mut self, event: &str) -> (Value, Vec<u8>) {
        let mut sound = Vec::new();
        loop {
            let message = self.next().await;
            if message["event"] == "media" {
                sound.extend(from_base64(message["media"]["payload"].as_str().unwrap()));
            }
            if message["event"] == event {
                return (message, sound);
            }
        }
    }

    /// The number with which the relay closes the socket.
    pub async fn closed(&mut self) -> u16 {
        let waited = tokio::time::timeout(SOON, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(message)) if message.is_close() => return message.as_close().unwrap().0.into(),
                    Some(Ok(_)) => {}
                    other => panic!("no closing frame, but {other:?}"),
                }
            }
        });
        waited.await.expect("the socket is closed in time")
    }
}

pub fn from_base64(text: &str) -> Vec<u8> {
    ihuza_relay::backend::audio::Converter::Untouched.from_model(text).unwrap().to_vec()
}

/// A telephone.
pub struct Caller {
    sip: UdpSocket,
    pub rtp: UdpSocket,
    relay: SocketAddr,
    pub media: Option<SocketAddr>,
    to_tag: String,
    pub call_id: String,
    cseq: u32,
    sent: u16,
}

/// A message of SIP, as far as a telephone in a test needs it.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().take_while(|line| !line.is_empty()).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Caller {
    pub fn description(&self, extra: &str) -> String {
        let port = self.rtp.local_addr().unwrap().port();
        format!(
            "v=0\r\no=t 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0 8 101\r\n\
             a=rtpmap:101 telephone-event/8000\r\n{extra}"
        )
    }

    pub async fn send(&self, method: &str, cseq: u32, headers: &str, body: &str) {
        let local = self.sip.local_addr().unwrap();
        let to_tag = if self.to_tag.is_empty() { String::new() } else { format!(";tag={}", self.to_tag) };
        let branch = if method == "CANCEL" { format!("INVITE{cseq}") } else { format!("{method}{cseq}") };
        let text = format!(
            "{method} sip:+250788000100@{relay} SIP/2.0\r\nVia: SIP/2.0/UDP {local};rport;branch=z9hG4bK{id}{branch}\r\n\
             From: <sip:+250788123456@mtn>;tag=caller\r\nTo: <sip:+250788000100@relay>{to_tag}\r\nCall-ID: {id}\r\n\
             CSeq: {cseq} {cseq_method}\r\nContact: <sip:t@{local}>\r\nMax-Forwards: 70\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len(),
            relay = self.relay,
            id = self.call_id,
            cseq_method = method,
        );
        self.sip.send_to(text.as_bytes(), self.relay).await.unwrap();
    }

    /// Where it takes requests.
    pub fn address(&self) -> SocketAddr {
        self.sip.local_addr().unwrap()
    }

    /// The next message of that kind: a status, or a method.
    pub async fn expect(&mut self, first: &str) -> Reply {
        let mut buffer = vec![0; 8192];
        let mut seen = Vec::new();
        let waited = tokio::time::timeout(SOON, async {
            loop {
                let (length, _) = self.sip.recv_from(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let line = text.lines().next().unwrap_or_default().to_owned();
                let what = line.strip_prefix("SIP/2.0 ").unwrap_or(&line).to_owned();
                if what.starts_with(first) {
                    return text;
                }
                seen.push(line);
            }
        });
        let Ok(text) = waited.await else { panic!("waited for {first:?}, saw {seen:?}") };
        let status = text.strip_prefix("SIP/2.0 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
        Reply { status, text }
    }

    /// The next message, if it is of that kind.
    pub async fn next_of(&mut self, first: &str) -> Option<Reply> {
        let mut buffer = vec![0; 8192];
        let (length, _) = self.sip.recv_from(&mut buffer).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let status = text.strip_prefix("SIP/2.0 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0);
        text.starts_with(first).then_some(Reply { status, text })
    }

    /// Answers a request of the relay's.
    pub async fn reply(&self, request: &Reply, status: &str) {
        let mut text = format!("SIP/2.0 {status}\r\n");
        for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
            text.push_str(&format!("{name}: {}\r\n", request.header(name).unwrap()));
        }
        text.push_str("Content-Length: 0\r\n\r\n");
        self.sip.send_to(text.as_bytes(), self.relay).await.unwrap();
    }

    /// Tells what became of a REFER.
    pub async fn notify(&mut self, status: &str) {
        let cseq = self.next_cseq();
        let headers = "Event: refer\r\nSubscription-State: active\r\nContent-Type: message/sipfrag\r\n";
        self.send("NOTIFY", cseq, headers, &format!("SIP/2.0 {status}")).await;
        self.expect("200").await;
    }

    pub async fn nothing_comes(&self) {
        let mut buffer = [0; 2048];
        let waited = tokio::time::timeout(Duration::from_millis(300), self.sip.recv_from(&mut buffer)).await;
        assert!(waited.is_err(), "an answer where none should be");
    }

    pub async fn invite(&self, headers: &str, description: &str) {
        let headers = if description.is_empty() {
            headers.to_owned()
        } else {
            format!("{headers}Content-Type: application/sdp\r\n")
        };
        self.send("INVITE", self.cseq, &headers, description).await;
    }

    /// From INVITE to ACK.
    pub async fn connect(&mut self) -> Reply {
        self.invite("", &self.description("")).await;
        let answer = self.expect("200").await;
        self.take(&answer);
        self.send("ACK", self.cseq, "", "").await;
        answer
    }

    pub fn take(&mut self, answer: &Reply) {
        let to = answer.header("To").unwrap();
        self.to_tag = to.split_once("tag=").unwrap().1.to_owned();
        let media = answer.text.lines().find_map(|line| line.strip_prefix("m=audio ")).unwrap();
        let port = media.split(' ').next().unwrap().parse().unwrap();
        self.media = Some(SocketAddr::from(([127, 0, 0, 1], port)));
    }

    pub async fn hang_up(&mut self) {
        self.cseq += 1;
        self.send("BYE", self.cseq, "", "").await;
        self.expect("200").await;
    }

    pub fn next_cseq(&mut self) -> u32 {
        self.cseq += 1;
        self.cseq
    }

    /// Frames of voice, each filled with one byte.
    pub async fn speak(&mut self, byte: u8, frames: usize) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..frames {
            tick.tick().await;
            self.packet(8, u32::from(self.sent) * 160, &[byte; 160]).await;
        }
    }

    /// This sound, in frames of 20 ms.
    pub async fn speak_all(&mut self, sound: &[u8]) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for frame in sound.chunks(160) {
            tick.tick().await;
            self.packet(8, u32::from(self.sent) * 160, frame).await;
        }
    }

    pub async fn packet(&mut self, payload_type: u8, timestamp: u32, payload: &[u8]) {
        let packet = Packet { marker: false, payload_type, sequence_number: self.sent, timestamp, ssrc: 77, payload };
        self.rtp.send_to(&packet.to_bytes(), self.media.unwrap()).await.unwrap();
        self.sent = self.sent.wrapping_add(1);
    }

    /// Listens for that many packets; all of their sound.
    pub async fn listen_to_all(&self, packets: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut buffer = [0; 2048];
        for _ in 0..packets {
            let waited = tokio::time::timeout(SOON, self.rtp.recv_from(&mut buffer)).await;
            let (length, _) = waited.expect("a packet in time").unwrap();
            heard.extend_from_slice(Packet::parse(&buffer[..length]).unwrap().payload);
        }
        heard
    }

    /// Listens for that many packets; a byte of each.
    pub async fn listen(&self, packets: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut buffer = [0; 2048];
        while heard.len() < packets {
            let waited = tokio::time::timeout(SOON, self.rtp.recv_from(&mut buffer)).await;
            let (length, from) = waited.unwrap_or_else(|_| panic!("heard only {} packets", heard.len())).unwrap();
            assert_eq!(Some(from), self.media, "media comes from where it goes to");
            heard.push(Packet::parse(&buffer[..length]).unwrap().payload[3]);
        }
        heard
    }
}
