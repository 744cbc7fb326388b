//! `relay.toml`: read once at the start, checked whole, and never half accepted.
//!
//! No secret stands in the file: where one is needed, the file names the environment variable that holds it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::media::g711::Law;

mod check;
mod defaults;
mod text;

pub use text::*;

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
    fn a_file_without_a_trunk_is_refused() {
        let text = problem(|text| text.split("[[trunk]]").next().unwrap().to_owned());
        assert!(text.contains("add a [[trunk]]"), "{text}");
    }
}
