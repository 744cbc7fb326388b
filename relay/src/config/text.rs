//! Settings that are written as text: addresses, numbers, ports, money.

use std::fmt;

use ihuza_core::locale::Locale;
use ihuza_core::phone::E164;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
