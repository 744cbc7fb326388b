//! Every error code that a vendor lists has a class, and every class that we give is written down in a table of its own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on should stop where it is")]

use std::collections::{BTreeMap, BTreeSet};

use ihuza_core::channel::Provider;
use ihuza_core::error_class::is_known;
use serde_json::Value;

const PROVIDERS: [Provider; 5] =
    [Provider::Mtn, Provider::Whatsapp, Provider::Openai, Provider::AfricasTalking, Provider::Twilio];

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Codes by provider, as the vendors list them; a range whole.
fn listed() -> BTreeMap<&'static str, BTreeSet<String>> {
    let list = json(include_str!("../../../tests/vectors/vendor_codes.json"));
    let codes = |provider: Provider| {
        let words = list[provider.as_str()].as_array().unwrap().iter().map(|code| code.as_str().unwrap());
        let each = words.flat_map(|word| match word.split_once('-') {
            Some((first, last)) => {
                (first.parse::<u32>().unwrap()..=last.parse().unwrap()).map(|code| code.to_string()).collect()
            }
            None => vec![word.to_owned()],
        });
        (provider.as_str(), each.collect())
    };
    PROVIDERS.map(codes).into()
}

/// Codes by provider whose class is written down.
fn written_down() -> BTreeMap<String, BTreeSet<String>> {
    let table = json(include_str!("../../../tests/vectors/error_codes.json"));
    let mut codes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in table["codes"].as_array().unwrap() {
        let is_new =
            codes.entry(row[0].as_str().unwrap().to_owned()).or_default().insert(row[1].as_str().unwrap().into());
        assert!(is_new, "twice: {row}");
    }
    codes
}

/// A range of Meta's codes means one thing; its ends and one between stand for it.
fn of_the_range(provider: &str, code: &str) -> bool {
    provider == "whatsapp" && code.parse().is_ok_and(|code| (200..=299).contains(&code))
}

#[test]
fn no_code_of_a_vendor_is_without_a_class() {
    let written = written_down();
    for (provider, codes) in listed() {
        for code in codes {
            assert!(
                is_known(Provider::parse(provider).unwrap(), &code),
                "{provider} {code} has no class in error_class.rs"
            );
            assert!(
                written[provider].contains(&code) || of_the_range(provider, &code),
                "{provider} {code} is not in tests/vectors/error_codes.json: say what it means"
            );
        }
    }
}

#[test]
fn no_class_is_given_to_a_code_that_no_table_has() {
    let written = written_down();
    let listed = listed();
    for provider in PROVIDERS {
        let written = &written[provider.as_str()];
        for code in (0..200_000_u32).map(|code| code.to_string()).filter(|code| is_known(provider, code)) {
            assert!(written.contains(&code) || of_the_range(provider.as_str(), &code), "{provider:?} {code}");
        }
        let unlisted: Vec<_> = written.difference(&listed[provider.as_str()]).collect();
        assert!(unlisted.is_empty(), "{provider:?}: of no vendor's list: {unlisted:?}");
    }
}
