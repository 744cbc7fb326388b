//! Every scenario of `scenarios/`, with the simulated model: what agents and tools must do for people, told in files.

use std::collections::BTreeSet;

use ihuza_core::tool;
use ihuza_sim::evaluation;
use ihuza_sim::world::WorldConfig;

use crate::stage::{SOON, Stage};

fn files() -> Vec<evaluation::Scenario> {
    evaluation::read(&WorldConfig::default().root.join("scenarios")).unwrap()
}

#[tokio::test]
async fn every_scenario_ends_as_it_must() {
    let stage = Stage::alone("scenarios", WorldConfig::default).await;
    let mut faults = Vec::new();
    for (place, scenario) in files().iter().enumerate() {
        let phone = evaluation::phone_of(place).unwrap();
        let outcome = evaluation::play(&stage, scenario, &phone, true, SOON).await;
        faults.extend(outcome.faults.iter().map(|fault| format!("{}: {fault}", scenario.file)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_scenarios_cover_every_tool_language_and_kind() {
    let files = files();
    assert!(files.len() >= 20, "{}", files.len());
    let covered: BTreeSet<&str> =
        files.iter().flat_map(|scenario| scenario.covers.iter().map(String::as_str)).collect();
    for tool in tool::all().iter().filter(|tool| tool.surfaces.contains(&tool::Surface::Text)) {
        assert!(covered.contains(format!("tool: {}", tool.name).as_str()), "no scenario has {}", tool.name);
    }
    for what in ["handover", "refusal", "injection"] {
        assert!(covered.contains(what), "no scenario has a {what}");
    }
    let languages: BTreeSet<&str> = files.iter().map(|scenario| scenario.language.as_str()).collect();
    assert_eq!(languages.into_iter().collect::<Vec<_>>(), ["en", "fr", "rw", "sw"]);
}
