//! What holds where the file says nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{AudioFormat, Codec, Echo, Http, Limits, Media, Model, Ports, Recording, TurnDetection};

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
