//! What stands in `deploy/relay` fits the relay: figures, labels, ports and times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use ihuza_relay::config::{Config, Limits, Media};
use ihuza_relay::shell::metrics::Metrics;

const DASHBOARD: &str = include_str!("../../deploy/relay/grafana-dashboard.json");
const RULES: &str = include_str!("../../deploy/relay/prometheus-rules.yml");
const UNIT: &str = include_str!("../../deploy/relay/ihuza-relay.service");
const FIREWALL: &str = include_str!("../../deploy/relay/nftables.conf");
const EXAMPLE: &str = include_str!("../relay.example.toml");
const PREFIX: &str = "ihuza_relay_";

/// Every figure that a text asks for, with the conditions on its labels.
fn asked(text: &str) -> Vec<(String, String)> {
    let starts = text.match_indices(PREFIX).map(|(at, _)| at);
    starts
        .map(|at| {
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
            let labels = rest[end..].strip_prefix('{').and_then(|labels| labels.split('}').next()).unwrap_or_default();
            (rest[..end].to_owned(), labels.replace('\\', ""))
        })
        .collect()
}

/// The values of a condition such as `reason=~"a|b"`; those of the scraper are none of ours.
fn values(labels: &str) -> Vec<(String, String)> {
    let conditions = labels.split(',').filter_map(|condition| {
        let (name, value) = condition.split_once('=')?;
        Some((name.trim_end_matches('!').to_owned(), value.trim_matches(['~', '"']).to_owned()))
    });
    let ours = conditions.filter(|(name, _)| !["instance", "job"].contains(&name.as_str()));
    ours.flat_map(|(name, value)| value.split('|').map(|value| (name.clone(), value.to_owned())).collect::<Vec<_>>())
        .collect()
}

#[test]
fn dashboard_and_alerts_ask_only_for_what_is_exported_from_the_start() {
    let exported = Metrics::default().render();
    let mut looked_at = 0;
    for (name, text) in [("dashboard", DASHBOARD), ("rules", RULES)] {
        for (figure, labels) in asked(text) {
            let is_exported =
                |line: &str| line.strip_prefix(figure.as_str()).is_some_and(|rest| rest.starts_with([' ', '{']));
            assert!(exported.lines().any(is_exported), "{name}: {figure} is not exported");
            for (label, value) in values(&labels) {
                let pair = format!("{label}=\"{value}\"");
                let is_there = exported.lines().any(|line| is_exported(line) && line.contains(&pair));
                assert!(is_there, "{name}: {figure} never has {pair}");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 20, "only {looked_at} label values were found in the files");
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 5 && panels.iter().all(|panel| !panel["targets"].as_array().unwrap().is_empty()));
}

#[test]
fn the_service_waits_until_the_relay_has_drained() {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let wait: u64 = line.parse().unwrap();
    // After the deadline there are BYE and the last posts.
    assert!(wait >= Limits::default().drain_seconds + 20, "{wait} s");
    let config = Config::parse(EXAMPLE).unwrap();
    assert!(wait >= config.limits.drain_seconds + 20);
    assert_eq!(config.journal.directory.to_str(), Some("/var/lib/ihuza-relay"), "what StateDirectory makes");
    assert!(UNIT.contains("StateDirectory=ihuza-relay\n"));
}

#[test]
fn the_service_may_open_as_many_files_as_calls_need() {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap();
    let files: usize = line.parse().unwrap();
    // Media, reports, the model, and a post; and as many again.
    assert!(files >= Limits::default().calls * 8, "{files}");
}

#[test]
fn the_firewall_opens_the_ports_of_the_relay() {
    let ports = Media::default().ports.0;
    let range = format!("{}-{}", ports.start(), ports.end());
    assert!(FIREWALL.contains(&format!("udp dport {range} ip saddr @trunk_media accept")), "{range}");
    let config = Config::parse(EXAMPLE).unwrap();
    assert_eq!(config.media.ports.0, ports, "the example has the same");
    let udp = config.sip.udp.unwrap().port();
    assert!(FIREWALL.contains(&format!("@trunk_signalling udp dport {udp} accept")));
    for source in config.trunks[0].sources.iter().chain(&config.trunks[0].media_sources) {
        assert!(FIREWALL.contains(&source.0.to_string()), "the example's {} is in no set", source.0);
    }
}
