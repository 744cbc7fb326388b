//! The summary of a call, made from the facts in its transcript.

use serde_json::{Map, Value, json};

use super::answer::{object, short};
use super::facts::{Facts, Pick, RIDES, capital, is_ride};
use super::input::{Line, asked_language, items, transcript};
use super::words::Language;

/// A value for every property that a summary may have.
pub fn summary(body: &Value) -> Map<String, Value> {
    let given = items(body).into_iter().map(|item| item.text).collect::<Vec<_>>().join("\n");
    let lines = transcript(&given);
    let caller: Vec<&str> = lines.iter().filter(|line| line.caller).map(|line| line.text.as_str()).collect();
    let all = lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n");
    let language = asked_language(body, &given).or_else(|| Language::detect(&all)).unwrap_or(Language::En);
    let together = |facts: Facts, text: &&str| facts.then(Facts::of(text, Pick::Last));
    // A ride beside something else is a point of its own.
    let besides = caller.iter().filter(|text| !is_ride(text)).fold(Facts::default(), together);
    let ride = caller.iter().find_map(|text| ride(text)).filter(|_| besides.thing.is_some());
    let facts = if ride.is_some() { besides } else { caller.iter().fold(Facts::default(), together) };
    let facts = if facts.nothing() { Facts::of(&all, Pick::Last) } else { facts };
    let subject = facts.subject(language);
    let headline = if facts.nothing() {
        let first = caller.first().copied().unwrap_or_default();
        let spoke = language.of([
            "We spoke by phone",
            "Nous avons parlé au téléphone",
            "Twavuganye kuri telefone",
            "Tulizungumza kwa simu",
        ]);
        if first.is_empty() { spoke.to_owned() } else { short(first, 70) }
    } else if facts.offers {
        match language {
            Language::En => format!("Your {subject} is registered"),
            Language::Fr => format!("Enregistré : {subject}"),
            Language::Rw => format!("Byanditswe: {subject}"),
            Language::Sw => format!("Imesajiliwa: {subject}"),
        }
    } else {
        match language {
            Language::En => format!("Looking for: {subject}"),
            Language::Fr => format!("Recherche : {subject}"),
            Language::Rw => format!("Urashaka: {subject}"),
            Language::Sw => format!("Unatafuta: {subject}"),
        }
    };
    let mut points = facts.points(language);
    if facts.nothing() {
        points = caller.iter().skip(1).take(3).map(|text| short(text, 60)).collect();
    }
    if let Some(ride) = ride {
        points.push(format!("{}: {}", capital(language.of(RIDES)), short(&ride, 50)));
    }
    let next_step = promise(&lines).unwrap_or_else(|| {
        let default = [
            "We will send you matches soon",
            "Nous vous enverrons bientôt des propositions",
            "Turakoherereza ibihuye vuba",
            "Tutakutumia zinazofaa hivi karibuni",
        ];
        language.of(default).to_owned()
    });
    let sms = [vec![headline.clone()], points.clone(), vec![next_step.clone()]].concat().join(". ");
    let intent = if facts.offers { "property_listing" } else { "property_search" };
    object(json!({"language": language.code(), "headline": headline, "points": points, "next_step": next_step,
                  "sms": short(&sms, 290), "intent": intent, "sentiment": "neutral", "needs_human": false,
                  "memories": memories(&caller)}))
}

/// What callers say they prefer, in whichever language.
fn memories(caller: &[&str]) -> Vec<Value> {
    const PREFER: [&str; 4] = ["prefer", "préfère", "nkunda", "napendelea"];
    let said = caller.iter().flat_map(|text| sentences(text));
    let preferred = said.filter(|sentence| PREFER.iter().any(|word| sentence.to_lowercase().contains(word)));
    let last = preferred.map(|sentence| short(&sentence, 120)).next_back();
    let memory = |value| json!({"kind": "preference", "key": "preference", "value": value, "confidence": 95});
    last.map(memory).into_iter().collect()
}

/// `Kimironko to the airport, tomorrow at 8`, of who asks to be taken there.
fn ride(text: &str) -> Option<String> {
    let (_, way) = text.split_once(" from ").filter(|_| is_ride(text))?;
    way.contains(" to ").then(|| way.trim_end_matches(['.', '!', '?']).to_owned())
}

/// What the agent said it would do, last.
fn promise(lines: &[Line]) -> Option<String> {
    const PROMISES: [&str; 11] = [
        "i will ",
        "i'll ",
        "we will ",
        "we'll ",
        "nous vous ",
        "nous allons ",
        "je vous ",
        "tura",
        "tuza",
        "tuta",
        "nita",
    ];
    let said = lines.iter().filter(|line| !line.caller).flat_map(|line| sentences(&line.text));
    let promised = said.filter(|sentence| {
        let lower = sentence.to_lowercase();
        PROMISES.iter().any(|promise| lower.starts_with(promise) || lower.contains(&format!(" {promise}")))
    });
    promised.map(|sentence| short(&sentence, 90)).reduce(|_, later| later)
}

fn sentences(text: &str) -> Vec<String> {
    let pieces = text.split_inclusive(['.', '!', '?']);
    pieces.map(|piece| piece.trim().trim_end_matches('.').to_owned()).filter(|piece| piece.len() > 3).collect()
}
