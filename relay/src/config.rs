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

use crate::media::g711::Law;
use crate::media::source::Network;

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
    /// `/healthz`, `/metrics` and `/mtn-media`.
    #[serde(default)]
    pub http: Http,
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
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Directory; one file a call.
    pub directory: PathBuf,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address to listen on.
    pub listen: SocketAddr,
}

/// From where calls come.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Trunk {
    /// A short name, for records, logs and metrics.
    pub name: String,
    /// Addresses of its signalling. Packets of others are dropped before they are read.
    pub sources: Vec<Range>,
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
    /// Beginnings of numbers that calls may be handed over to, in E.164; none if it is left out.
    #[serde(default)]
    pub transfer_prefixes: Vec<String>,
    /// The numbers that are ours.
    #[serde(rename = "did")]
    pub dids: Vec<Did>,
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

    pub fn codecs() -> Vec<Codec> {
        vec![Codec::Pcma, Codec::Pcmu]
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
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
            if trunk.name.is_empty() || trunk.name.len() > 32 || !trunk.name.chars().all(is_name) {
                return wrong(
                    format!("{at}.name"),
                    "must be 1 to 32 small letters, digits, - or _: it is a metric's label",
                );
            }
            if self.trunks.iter().take(n).any(|other| other.name == trunk.name) {
                return wrong(format!("{at}.name"), "is the name of another trunk already");
            }
            if trunk.sources.is_empty() {
                return wrong(
                    format!("{at}.sources"),
                    "is empty: without addresses every packet of this trunk is dropped",
                );
            }
            if trunk.codecs.is_empty() {
                return wrong(format!("{at}.codecs"), "is empty: give pcma, pcmu or both");
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
            ("name = \"mtn\"", "name = \"MTN Rwanda\"", "trunk[0].name"),
            ("sources = [\"192.0.2.0/28\"]", "sources = []", "trunk[0].sources"),
            ("codecs = [\"pcma\", \"pcmu\"]", "codecs = []", "trunk[0].codecs"),
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
