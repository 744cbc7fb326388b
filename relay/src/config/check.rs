//! What must hold between settings that are each sound.

use std::net::IpAddr;

use super::{Config, ConfigError, Echo, Number, Transport, Trunk, TrunkOutbound};
use crate::media::dtmf::Digit;
use crate::sip::transfer;

impl Config {
    /// Whether the settings, each sound, fit together.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
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
