//! `relay.toml`: read once at the start, checked whole, and never half accepted.
//!
//! No secret stands in the file: where one is needed, the file names the environment variable that holds it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ihuza_core::locale::Locale;
use ihuza_core::phone::E164;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::media::dtmf::Digit;
use crate::media::g711::Law;
use crate::media::source::Network;
use crate::sip::transfer;

/// A setting that is taken from text and written back as text.
macro_rules! by_text {
    ($name:ident($inner:ty), $parse:expr, $show:expr, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = String::deserialize(deserializer)?;
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(&text).map($name).map_err(|problem| de::Error::custom(format!("{text:?} {problem}")))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let show: fn(&$inner) -> String = $show;
                serializer.serialize_str(&show(&self.0))
            }
        }
    };
}

by_text!(
    Range(Network),
    |text| text.parse().map_err(|problem: crate::media::source::NotANetwork| problem.to_string()),
    Network::to_string,
    "Addresses, as `192.0.2.0/24` or a single one."
);
by_text!(
    Number(E164),
    |text| E164::parse(text).map_err(|problem| format!("is no telephone number: {problem}")),
    |number| number.as_str().to_owned(),
    "A telephone number in E.164."
);
by_text!(
    Language(Locale),
    |text| Locale::from_tag(text).ok_or_else(|| "is none of rw, sw, fr, en".to_owned()),
    |locale| locale.as_str().to_owned(),
    "A language that the agents speak."
);
by_text!(
    Ports(std::ops::RangeInclusive<u16>),
    |text| {
        let parsed = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
        match parsed {
            Some((low, high)) if low >= 1024 && high > low => Ok(low..=high),
            _ => Err("is no range of ports: write it as 20000-40000, from 1024 up".to_owned()),
        }
    },
    |ports| format!("{}-{}", ports.start(), ports.end()),
    "UDP ports, as `20000-40000`."
);
by_text!(
    Peer(PeerAddress),
    PeerAddress::parse,
    PeerAddress::to_string,
    "Where a trunk takes requests, as `udp:192.0.2.3:5060`."
);

by_text!(
    Amount(u64),
    amount,
    |micros| {
        let text = format!("{}.{:06}", micros / MICROS, micros % MICROS);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    },
    "Money, in millionths of the currency's unit; written as `15` or `0.0450`."
);

/// Millionths in a unit of a currency.
const MICROS: u64 = 1_000_000;

fn amount(text: &str) -> Result<u64, String> {
    let wrong = || "is no amount of money: write it as 15 or 0.0450, with at most six decimals".to_owned();
    let (units, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(units) || !digits(decimals) || units.len() > 12 || decimals.len() > 6 {
        return Err(wrong());
    }
    let units: u64 = units.parse().map_err(|_| wrong())?;
    let millionths: u64 = format!("{decimals:0<6}").parse().map_err(|_| wrong())?;
    Ok(units * MICROS + millionths)
}

/// How SIP is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
    /// A stream that nobody else reads.
    Tls,
}

/// Where a trunk takes requests of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// How.
    pub transport: Transport,
    /// A name or an address; one of version 6 without its brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl PeerAddress {
    fn parse(text: &str) -> Result<PeerAddress, String> {
        let wrong = || "is no address of a trunk: write it as udp:192.0.2.3:5060, tcp: or tls:".to_owned();
        let (transport, rest) = text.split_once(':').ok_or_else(wrong)?;
        let transport = match transport {
            "udp" => Transport::Udp,
            "tcp" => Transport::Tcp,
            "tls" => Transport::Tls,
            _ => return Err(wrong()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let is_v6 = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .filter(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let host = match is_v6 {
            Some(host) => host,
            None if !host.is_empty() && host.len() <= 253 && host.chars().all(is_name) => host,
            None => return Err(wrong()),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        Ok(PeerAddress { transport, host: host.to_owned(), port })
    }

    /// Host and port as they stand in a SIP address.
    pub fn host_and_port(&self) -> String {
        let PeerAddress { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        };
        write!(f, "{transport}:{}", self.host_and_port())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix())
    }
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where SIP is spoken.
    pub sip: Sip,
    /// RTP.
    #[serde(default)]
    pub media: Media,
    /// What this machine bears.
    #[serde(default)]
    pub limits: Limits,
    /// The speaking model.
    #[serde(default)]
    pub model: Model,
    /// The function that opens, keeps and closes the records of calls.
    pub session: SessionFunction,
    /// The journal.
    pub journal: Journal,
    /// Recordings, on trunks that record.
    #[serde(default)]
    pub recording: Recording,
    /// `/healthz`, `/metrics` and `/mtn-media`.
    #[serde(default)]
    pub http: Http,
    /// Calls that this relay is asked to place; without it, it places none.
    pub outbound: Option<Outbound>,
    /// From where calls come.
    #[serde(default, rename = "trunk")]
    pub trunks: Vec<Trunk>,
}

/// Where SIP is spoken.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sip {
    /// UDP address to listen on.
    #[serde(default = "defaults::sip_listen")]
    pub udp: Option<SocketAddr>,
    /// TCP address to listen on.
    #[serde(default = "defaults::sip_listen")]
    pub tcp: Option<SocketAddr>,
    /// TLS.
    pub tls: Option<Tls>,
    /// The address that carriers reach this machine at, where it is not the one it listens on.
    pub advertised: Option<IpAddr>,
    /// How long a call is answered after its INVITE at the latest, even if the model is not there yet.
    #[serde(default = "defaults::answer_within_ms")]
    pub answer_within_ms: u64,
}

/// TLS for SIP.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// PEM file with the certificate chain.
    pub certificate: PathBuf,
    /// PEM file with the key, as PKCS#8 or PKCS#1.
    pub key: PathBuf,
}

/// RTP.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Media {
    /// Address that media ports are opened on.
    pub bind: IpAddr,
    /// The address that is written into session descriptions.
    pub advertised: Option<IpAddr>,
    /// Ports; a call takes an even one and its neighbour, so half of them is the most calls there can be.
    pub ports: Ports,
    /// Directory of what the relay says itself, as `apology.rw.alaw`; tones where there is none.
    pub announcements: Option<PathBuf>,
    /// A call on which nothing comes for so long is ended.
    pub silence_limit_s: u64,
    /// An echo of the agent is at most so loud, in decibels against what it said; `"off"` where the carrier cancels echoes.
    pub echo: Echo,
}

/// The echo guard's setting.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Echo {
    /// At most so loud, in decibels.
    Decibels(f32),
    /// No guard.
    Off(Off),
}

/// The word `off`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Off {
    /// Switched off.
    Off,
}

/// What this machine bears. Beyond it new calls are refused and running ones are not touched.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Calls at a time.
    pub calls: usize,
    /// New calls a second and trunk.
    pub calls_per_second: u32,
    /// New calls a minute and caller.
    pub calls_per_minute_and_caller: u32,
    /// A call is ended after so long.
    pub call_minutes: u64,
    /// After SIGTERM running calls may go on for so long.
    pub drain_seconds: u64,
}

/// The speaking model.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// WebSocket address without its query.
    pub url: String,
    /// Its name.
    pub name: String,
    /// Its voice.
    pub voice: String,
    /// How audio is exchanged with it.
    pub format: AudioFormat,
    /// How the ends of turns are found.
    pub turn_detection: TurnDetection,
    /// Environment variable with the API key; used when the session function gives no key of its own.
    pub api_key_env: String,
    /// After so long the model's session is replaced by a new one.
    pub roll_over_minutes: u64,
    /// PEM file with certificates that may vouch for the model's server besides the public ones: for a proxy that opens TLS.
    pub ca_file: Option<PathBuf>,
}

/// How audio is exchanged with the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AudioFormat {
    /// The bytes of the trunk, untouched.
    G711,
    /// 16-bit PCM at 24 kHz.
    Pcm16,
}

/// How the ends of turns are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnDetection {
    /// By silence.
    ServerVad,
    /// By what is said.
    SemanticVad,
}

/// The function that keeps the records of calls.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFunction {
    /// Its address; `/events`, `/tools` and `/end` are below it.
    pub url: String,
    /// Environment variable with the key for it.
    #[serde(default = "defaults::session_key_env")]
    pub key_env: String,
    /// An answer is waited for at most so long before the call goes on without.
    #[serde(default = "defaults::session_timeout_ms")]
    pub timeout_ms: u64,
    /// This relay's name there, among others that may serve the same trunks.
    #[serde(default = "defaults::relay_name")]
    pub relay_name: String,
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Directory; one file a call.
    pub directory: PathBuf,
}

/// Recordings, on trunks that record.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recording {
    /// Directory; one WAV file a call, with the caller on the left track and the agent on the right.
    pub directory: Option<PathBuf>,
    /// Where a trunk has a `refuse_key`, it is waited for so long after the announcement before anything is recorded.
    pub refusal_wait_ms: u64,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address to listen on.
    pub listen: SocketAddr,
}

/// Calls that this relay is asked to place, on all trunks together.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// Environment variable with the key that `POST /calls` wants.
    pub key_env: String,
    /// Calls at a time.
    #[serde(default = "defaults::outbound_calls")]
    pub calls: usize,
    /// New calls a minute.
    #[serde(default = "defaults::outbound_per_minute")]
    pub calls_per_minute: u32,
}

/// Calls that may be placed on one trunk.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrunkOutbound {
    /// Our number that is shown; one of the trunk's, whose agent and language are taken unless a request says otherwise.
    pub caller: Number,
    /// Beginnings of numbers that may be called, in E.164. No other number is.
    pub prefixes: Vec<String>,
    /// Calls at a time.
    #[serde(default = "defaults::outbound_calls")]
    pub calls: usize,
    /// New calls a minute.
    #[serde(default = "defaults::outbound_per_minute")]
    pub calls_per_minute: u32,
    /// The most that the calls of a day (UTC) may cost.
    pub daily_budget: Amount,
    /// A call is ended after so long; so much of the budget is kept for it while it runs.
    #[serde(default = "defaults::outbound_minutes")]
    pub longest_minutes: u64,
    /// The telephone rings for so long at most.
    #[serde(default = "defaults::ring_seconds")]
    pub ring_seconds: u64,
    /// Credentials that the trunk asks us for.
    pub digest: Option<Digest>,
    /// What a begun minute costs, by the longest prefix that fits.
    pub prices: Vec<Price>,
}

/// What calls to some numbers cost.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// How the numbers begin, in E.164.
    pub prefix: String,
    /// A begun minute.
    pub per_minute: Amount,
}

/// From where calls come.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Trunk {
    /// A short name, for records, logs and metrics.
    pub name: String,
    /// Addresses of its signalling. Packets of others are dropped before they are read.
    #[serde(default)]
    pub sources: Vec<Range>,
    /// Where it takes requests of ours; without it, it is believed to be there as long as it calls.
    pub peer: Option<Peer>,
    /// How often it is asked, by OPTIONS, whether it is there.
    #[serde(default = "defaults::qualify_seconds")]
    pub qualify_seconds: u64,
    /// Addresses of its media besides the one that its session description names.
    #[serde(default)]
    pub media_sources: Vec<Range>,
    /// Codecs, best first.
    #[serde(default = "defaults::codecs")]
    pub codecs: Vec<Codec>,
    /// Calls at a time.
    #[serde(default = "defaults::trunk_calls")]
    pub calls: usize,
    /// Credentials that its requests must carry besides.
    pub digest: Option<Digest>,
    /// Its calls are recorded, after an announcement (`consent.<language>.alaw`) that nobody can interrupt.
    #[serde(default)]
    pub record: bool,
    /// The key by which a caller refuses to be recorded, as `"2"`; the announcement has to say so.
    pub refuse_key: Option<char>,
    /// A gateway may bring its calls over a WebSocket, `/mtn-media`.
    pub gateway: Option<Gateway>,
    /// Beginnings of numbers that calls may be handed over to, in E.164; none if it is left out.
    #[serde(default)]
    pub transfer_prefixes: Vec<String>,
    /// Whom a call is handed over to when the model is gone, after the apology; without it the call ends. One of
    /// `transfer_prefixes` must allow it.
    pub fallback: Option<Number>,
    /// Calls that may be placed on it; none if it is left out.
    pub outbound: Option<TrunkOutbound>,
    /// The numbers that are ours.
    #[serde(rename = "did")]
    pub dids: Vec<Did>,
}

/// How a gateway proves that it is of this trunk.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Environment variable with the secret that it shows, or that tokens are signed with.
    pub secret_env: String,
}

/// A codec of a trunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// G.711 A-law.
    Pcma,
    /// G.711 mu-law.
    Pcmu,
}

impl Codec {
    /// Its law.
    pub fn law(self) -> Law {
        match self {
            Codec::Pcma => Law::A,
            Codec::Pcmu => Law::Mu,
        }
    }
}

/// Credentials for digest authentication (RFC 7616).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// Who.
    pub username: String,
    /// Environment variable with the password.
    pub password_env: String,
    /// Asks for MD5 alone; for a trunk that stops at the stronger challenge, which otherwise stands before it.
    #[serde(default)]
    pub md5_only: bool,
}

/// A number of ours and who answers it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Did {
    /// The number that is called.
    pub number: Number,
    /// The agent that answers, by its slug.
    pub agent: String,
    /// The language that the greeting is in.
    pub locale: Language,
    /// Calls at a time; no more than the trunk's if it is left out.
    pub calls: Option<usize>,
}

mod defaults {
    use std::net::SocketAddr;

    use super::Codec;

    pub fn sip_listen() -> Option<SocketAddr> {
        Some(SocketAddr::from(([0, 0, 0, 0], 5060)))
    }

    pub fn answer_within_ms() -> u64 {
        10_000
    }

    pub fn session_key_env() -> String {
        "INTERNAL_API_KEY".into()
    }

    pub fn session_timeout_ms() -> u64 {
        3000
    }

    pub fn relay_name() -> String {
        "relay".into()
    }

    pub fn qualify_seconds() -> u64 {
        20
    }

    pub fn codecs() -> Vec<Codec> {
        vec![Codec::Pcma, Codec::Pcmu]
    }

    pub fn outbound_calls() -> usize {
        10
    }

    pub fn outbound_per_minute() -> u32 {
        20
    }

    pub fn outbound_minutes() -> u64 {
        30
    }

    pub fn ring_seconds() -> u64 {
        45
    }

    pub fn trunk_calls() -> usize {
        100
    }
}

impl Default for Media {
    fn default() -> Media {
        Media {
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            advertised: None,
            ports: Ports(20_000..=40_000),
            announcements: None,
            silence_limit_s: 30,
            echo: Echo::Decibels(-6.0),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            calls: 200,
            calls_per_second: 20,
            calls_per_minute_and_caller: 5,
            call_minutes: 120,
            drain_seconds: 600,
        }
    }
}

impl Default for Model {
    fn default() -> Model {
        Model {
            url: "wss://api.openai.com/v1/realtime".into(),
            name: "gpt-realtime-2.1-mini".into(),
            voice: "marin".into(),
            format: AudioFormat::G711,
            turn_detection: TurnDetection::ServerVad,
            api_key_env: "OPENAI_API_KEY".into(),
            roll_over_minutes: 50,
            ca_file: None,
        }
    }
}

impl Default for Recording {
    fn default() -> Recording {
        Recording { directory: None, refusal_wait_ms: 3000 }
    }
}

impl Default for Http {
    fn default() -> Http {
        Http { listen: SocketAddr::from(([127, 0, 0, 1], 8088)) }
    }
}

impl Echo {
    /// The loudest echo, if there is a guard.
    pub fn decibels(self) -> Option<f32> {
        match self {
            Echo::Decibels(decibels) => Some(decibels),
            Echo::Off(Off::Off) => None,
        }
    }
}

impl Limits {
    /// The longest call.
    pub fn longest_call(&self) -> Duration {
        Duration::from_secs(self.call_minutes * 60)
    }
}

/// Why a configuration is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// It is no TOML, or a field is missing, unknown or of the wrong kind; the text shows the line.
    #[error("relay.toml cannot be read: {0}")]
    Syntax(String),
    /// Each field is sound, but they do not fit together.
    #[error("relay.toml: {field}: {problem}")]
    Value {
        /// Path to the field, as `trunk[0].did[2].number`.
        field: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Config {
    /// Reads and checks the whole file.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| ConfigError::Syntax(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field: String, problem: &str| Err(ConfigError::Value { field, problem: problem.to_owned() });
        if self.sip.udp.is_none() && self.sip.tcp.is_none() && self.sip.tls.is_none() {
            return wrong("sip".into(), "listens nowhere: give udp, tcp or tls an address");
        }
        if self.limits.calls > self.media.ports.0.len() / 2 {
            return wrong("media.ports".into(), "are too few: each call of limits.calls takes two");
        }
        if let Echo::Decibels(decibels) = self.media.echo
            && !(-40.0..=0.0).contains(&decibels)
        {
            return wrong("media.echo".into(), "must lie between -40 and 0 decibels, or be \"off\"");
        }
        for (field, url, schemes) in [
            ("model.url", &self.model.url, ["wss://", "ws://"]),
            ("session.url", &self.session.url, ["https://", "http://"]),
        ] {
            if !schemes.iter().any(|scheme| url.starts_with(scheme)) {
                return wrong(field.into(), &format!("must begin with {}", schemes.join(" or ")));
            }
        }
        if self.session.relay_name.is_empty() || self.session.relay_name.len() > 100 {
            return wrong("session.relay_name".into(), "must be 1 to 100 bytes long");
        }
        if !(1..=55).contains(&self.model.roll_over_minutes) {
            return wrong(
                "model.roll_over_minutes".into(),
                "must lie between 1 and 55: the model ends a session after 60",
            );
        }
        if self.trunks.is_empty() {
            return wrong("trunk".into(), "there is none, so nobody could call: add a [[trunk]]");
        }
        let mut owners: Vec<(&str, String)> = Vec::new();
        for (n, trunk) in self.trunks.iter().enumerate() {
            let at = format!("trunk[{n}]");
            // As the session function takes it (`trunk_reports_trunk_is_a_name`).
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let begins = trunk.name.starts_with(|c: char| c.is_ascii_lowercase());
            if !begins || trunk.name.len() > 32 || !trunk.name.chars().all(is_name) {
                return wrong(
                    format!("{at}.name"),
                    "must be 1 to 32 small letters, digits or _, the first a letter: it is a metric's label",
                );
            }
            if self.trunks.iter().take(n).any(|other| other.name == trunk.name) {
                return wrong(format!("{at}.name"), "is the name of another trunk already");
            }
            if trunk.sources.is_empty() && trunk.gateway.is_none() {
                return wrong(
                    format!("{at}.sources"),
                    "is empty: without addresses every packet of this trunk is dropped",
                );
            }
            let peer_address = trunk.peer.as_ref().and_then(|peer| peer.0.host.parse().ok());
            if peer_address.is_some_and(|ip: IpAddr| !trunk.sources.iter().any(|range| range.0.contains(ip))) {
                return wrong(format!("{at}.peer"), "is none of its sources, so that its answers would be dropped");
            }
            if !(1..=3600).contains(&trunk.qualify_seconds) {
                return wrong(format!("{at}.qualify_seconds"), "must lie between 1 and 3600");
            }
            if trunk.codecs.is_empty() {
                return wrong(format!("{at}.codecs"), "is empty: give pcma, pcmu or both");
            }
            if let Some(outbound) = &trunk.outbound {
                self.check_outbound(trunk, outbound)
                    .map_err(|(field, problem)| ConfigError::Value { field: format!("{at}.{field}"), problem })?;
            }
            if trunk.record && self.recording.directory.is_none() {
                return wrong("recording.directory".into(), &format!("is missing, and trunk {} records", trunk.name));
            }
            if trunk.record && self.media.announcements.is_none() {
                let problem = format!("is missing, and trunk {} may not record without announcing it", trunk.name);
                return wrong("media.announcements".into(), &problem);
            }
            if let Some(Number(number)) = &trunk.fallback
                && transfer::target(number.as_str(), &trunk.transfer_prefixes).is_none()
            {
                return wrong(
                    format!("{at}.fallback"),
                    "begins with none of transfer_prefixes: add its beginning there",
                );
            }
            if trunk.refuse_key.is_some_and(|key| Digit::from_char(key).is_none()) {
                return wrong(format!("{at}.refuse_key"), "is no key of a telephone: give one of 0 to 9, * or #");
            }
            for (m, did) in trunk.dids.iter().enumerate() {
                let field = format!("{at}.did[{m}].number");
                let number = did.number.0.as_str();
                if let Some((_, owner)) = owners.iter().find(|(known, _)| *known == number) {
                    return wrong(field, &format!("belongs to {owner} already"));
                }
                owners.push((number, field));
            }
        }
        Ok(())
    }

    /// The field and what is wrong with it.
    fn check_outbound(&self, trunk: &Trunk, outbound: &TrunkOutbound) -> Result<(), (&'static str, String)> {
        let is_prefix = |text: &str| {
            text.strip_prefix('+')
                .is_some_and(|rest| (1..=15).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let wrong = |field, problem: &str| Err((field, problem.to_owned()));
        if self.outbound.is_none() {
            return wrong("outbound", "has no [outbound] to go with it: nobody could ask for a call");
        }
        if trunk.peer.as_ref().is_none_or(|peer| peer.0.transport == Transport::Udp && self.sip.udp.is_none()) {
            return wrong("peer", "is needed to place calls, and a transport that sip listens on");
        }
        if !trunk.dids.iter().any(|did| did.number == outbound.caller) {
            return wrong("outbound.caller", "is none of the trunk's numbers");
        }
        if outbound.prefixes.is_empty() || !outbound.prefixes.iter().all(|prefix| is_prefix(prefix)) {
            return wrong("outbound.prefixes", "must be beginnings of numbers such as +25078, at least one");
        }
        if !outbound.prices.iter().all(|price| is_prefix(&price.prefix)) {
            return wrong("outbound.prices", "must have prefixes such as +250");
        }
        let priced = |prefix: &String| outbound.prices.iter().any(|price| prefix.starts_with(&price.prefix));
        if let Some(prefix) = outbound.prefixes.iter().find(|prefix| !priced(prefix)) {
            return Err((
                "outbound.prices",
                format!("say nothing of {prefix}, so that its calls could not be counted"),
            ));
        }
        if !(5..=180).contains(&outbound.ring_seconds) {
            return wrong("outbound.ring_seconds", "must lie between 5 and 180");
        }
        if !(1..=720).contains(&outbound.longest_minutes) {
            return wrong("outbound.longest_minutes", "must lie between 1 and 720");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub const EXAMPLE: &str = include_str!("../relay.example.toml");

    fn problem(change: impl FnOnce(String) -> String) -> String {
        Config::parse(&change(EXAMPLE.to_owned())).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_sound_and_printing_it_reads_the_same_again() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!((config.trunks.len(), config.trunks[0].dids[0].number.0.as_str()), (1, "+250788000100"));
        let printed = toml::to_string(&config).unwrap();
        assert_eq!(Config::parse(&printed).unwrap(), config);
    }

    #[test]
    fn a_wrong_field_is_named_with_its_line() {
        let unknown = problem(|text| text.replace("[limits]", "[limits]\ncals = 3"));
        assert!(unknown.contains("cals") && unknown.contains("line"), "{unknown}");
        let number = problem(|text| text.replace("+250788000100", "+25078"));
        assert!(number.contains("+25078") && number.contains("line"), "{number}");
        let range = problem(|text| text.replace("192.0.2.0/28", "192.0.2.0/99"));
        assert!(range.contains("192.0.2.0/99") && range.contains("network"), "{range}");
    }

    #[test]
    fn fields_that_do_not_fit_together_are_named() {
        for (from, to, field) in [
            ("ports = \"20000-40000\"", "ports = \"20000-20100\"", "media.ports"),
            ("echo = -6.0", "echo = 3.0", "media.echo"),
            ("roll_over_minutes = 50", "roll_over_minutes = 60", "model.roll_over_minutes"),
            ("url = \"https://", "url = \"ftp://", "session.url"),
            ("name = \"mtn_sip\"", "name = \"MTN Rwanda\"", "trunk[0].name"),
            ("sources = [\"192.0.2.0/28\"]", "sources = []", "trunk[0].sources"),
            ("codecs = [\"pcma\", \"pcmu\"]", "codecs = []", "trunk[0].codecs"),
            ("calls = 100", "calls = 100\nfallback = \"+250722000000\"", "trunk[0].fallback"),
            ("udp:192.0.2.3:5060", "udp:198.51.100.3:5060", "trunk[0].peer"),
            ("qualify_seconds = 20", "qualify_seconds = 0", "trunk[0].qualify_seconds"),
            ("caller = \"+250788000100\"", "caller = \"+250788000199\"", "trunk[0].outbound.caller"),
            ("prefixes = [\"+25078\", \"+25079\"]", "prefixes = []", "trunk[0].outbound.prefixes"),
            ("prefix = \"+2507\"", "prefix = \"+2508\"", "trunk[0].outbound.prices: say nothing of +25078"),
            ("ring_seconds = 45", "ring_seconds = 500", "trunk[0].outbound.ring_seconds"),
            ("peer = \"udp:192.0.2.3:5060\"", "", "trunk[0].peer"),
            ("relay_name = \"kigali-1\"", "relay_name = \"\"", "session.relay_name"),
            ("+250788000101", "0788000100", "trunk[0].did[1].number: belongs to trunk[0].did[0].number"),
        ] {
            assert!(EXAMPLE.contains(from), "the example has no {from:?}");
            let text = problem(|text| text.replace(from, to));
            assert!(text.contains(&format!("relay.toml: {field}")), "{from:?} -> {to:?}: {text}");
        }
    }

    #[test]
    fn money_is_read_to_the_millionth_and_written_the_same() {
        for (text, micros) in
            [("15", 15_000_000), ("0.045", 45_000), ("0", 0), ("20000", 20_000_000_000), ("1.000001", 1_000_001)]
        {
            assert_eq!(amount(text), Ok(micros));
            assert!(
                toml::to_string(&std::collections::HashMap::from([("a", Amount(micros))]))
                    .unwrap()
                    .contains(&format!("\"{text}\""))
            );
        }
        for text in ["", ".", "1.", "-1", "1,5", "1.0000001", "9999999999999", "1e3", "+1"] {
            assert!(amount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_peer_is_read_in_every_form_and_written_the_same() {
        for text in ["udp:192.0.2.3:5060", "tcp:sbc.mtn.example:5060", "tls:[2001:db8::1]:5061"] {
            assert_eq!(PeerAddress::parse(text).unwrap().to_string(), text);
        }
        for text in
            ["", "192.0.2.3:5060", "udp:192.0.2.3", "sctp:a:1", "udp:a b:5060", "udp:a:0", "udp::5060", "udp:[x]:1"]
        {
            assert!(PeerAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_without_a_trunk_is_refused() {
        let text = problem(|text| text.split("[[trunk]]").next().unwrap().to_owned());
        assert!(text.contains("add a [[trunk]]"), "{text}");
    }
}
