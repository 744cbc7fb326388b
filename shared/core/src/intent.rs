//! What a message is about, by its words alone: enough to send it to the agent that knows, and silent when in doubt.
//!
//! Words are looked for by how they begin, in English, French, Kinyarwanda and Swahili at once, because people mix them.
//! Kinyarwanda and Swahili change the beginning of a word with its class (`inzu`, `amazu`; `nyumba`, `manyumba`), so each form
//! stands in the list. A model that understands more says so with `session_update_status`.

use crate::json::clip;
use crate::letters::{is_of_a_word, lower};

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intent {
    /// A house, a flat, a plot: to let, to buy, to sell.
    Housing,
    /// To be taken somewhere, or something to be brought.
    Ride,
    /// Something went wrong: a complaint, a refund, an account.
    Support,
}

/// Every intent.
pub const ALL: [Intent; 3] = [Intent::Housing, Intent::Ride, Intent::Support];

impl Intent {
    /// The word in rows: `ai_agents.intents`, `omnichannel_sessions.last_intent`.
    pub fn as_str(self) -> &'static str {
        match self {
            Intent::Housing => "housing",
            Intent::Ride => "ride",
            Intent::Support => "support",
        }
    }

    /// How words of it begin, in lower case and without accents.
    fn beginnings(self) -> &'static [&'static str] {
        match self {
            Intent::Housing => &[
                "house",
                "apartment",
                "flat",
                "rent",
                "landlord",
                "bedroom",
                "plot",
                "maison",
                "appartement",
                "loyer",
                "louer",
                "chambre",
                "parcelle",
                "inzu",
                "amazu",
                "ubukode",
                "gukodesha",
                "nkodesha",
                "icyumba",
                "ibyumba",
                "ikibanza",
                "nyumba",
                "manyumba",
                "kodi",
                "kupanga",
                "chumba",
                "vyumba",
                "kiwanja",
            ],
            Intent::Ride => &[
                "ride",
                "taxi",
                "moto",
                "driver",
                "pick me",
                "pickup",
                "pick-up",
                "cab",
                "course",
                "chauffeur",
                "trajet",
                "umushoferi",
                "imodoka",
                "amodoka",
                "urugendo",
                "kuntwara",
                "untware",
                "safari",
                "dereva",
                "gari",
                "pikipiki",
                "bodaboda",
                "nichukue",
            ],
            Intent::Support => &[
                "complain",
                "refund",
                "problem",
                "not working",
                "broken",
                "cancel",
                "wrong",
                "plainte",
                "rembours",
                "probleme",
                "panne",
                "annuler",
                "ikibazo",
                "ibibazo",
                "ikirego",
                "gusubizwa",
                "ntibikora",
                "byanze",
                "tatizo",
                "matatizo",
                "lalamik",
                "malalamiko",
                "kurudishiwa",
                "haifanyi",
            ],
        }
    }
}

/// Longest part of a message that is looked at, in characters.
const LOOKED_AT: usize = 1_000;

/// What a message is about; none when it says nothing of the kind, or as much of two.
///
/// ```
/// use ihuza_core::intent::{Intent, detect};
/// assert_eq!(detect("Ndashaka inzu yo gukodesha i Remera"), Some(Intent::Housing));
/// assert_eq!(detect("Merci beaucoup"), None);
/// ```
pub fn detect(text: &str) -> Option<Intent> {
    let text = plain(clip(text, LOOKED_AT));
    let mut best = None;
    let mut most = 0;
    for intent in ALL {
        let found = intent.beginnings().iter().filter(|beginning| begins_a_word(&text, beginning)).count();
        if found > most {
            (best, most) = (Some(intent), found);
        } else if found == most {
            best = None;
        }
    }
    best
}

fn begins_a_word(text: &str, beginning: &str) -> bool {
    text.match_indices(beginning)
        .any(|(at, _)| !text.get(..at).and_then(|before| before.chars().next_back()).is_some_and(is_of_a_word))
}

/// Lower case, without the accents of French.
fn plain(text: &str) -> String {
    text.chars()
        .map(lower)
        .map(|found| match found {
            'à' | 'â' => 'a',
            'é' | 'è' | 'ê' | 'ë' => 'e',
            'î' | 'ï' => 'i',
            'ô' => 'o',
            'ù' | 'û' => 'u',
            'ç' => 'c',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_are_understood_in_four_languages() {
        let cases = [
            ("I need a 2 bedroom house in Kimironko", Some(Intent::Housing)),
            ("Je cherche une maison à louer", Some(Intent::Housing)),
            ("Ndashaka inzu yo gukodesha i Remera", Some(Intent::Housing)),
            ("Natafuta nyumba ya kupanga Kigali", Some(Intent::Housing)),
            ("Can a driver pick me up at 8?", Some(Intent::Ride)),
            ("Il me faut un taxi pour l'aéroport", Some(Intent::Ride)),
            ("Nkeneye imodoka yo kuntwara ku kibuga cy'indege", Some(Intent::Ride)),
            ("Nahitaji gari kwenda uwanja wa ndege", Some(Intent::Ride)),
            ("I want a refund, the app is not working", Some(Intent::Support)),
            ("J'ai un problème, je veux un remboursement", Some(Intent::Support)),
            ("Mfite ikibazo", Some(Intent::Support)),
            ("Nina tatizo na malalamiko", Some(Intent::Support)),
        ];
        for (text, expected) in cases {
            assert_eq!(detect(text), expected, "{text}");
        }
    }

    #[test]
    fn in_doubt_nothing_is_said() {
        for text in [
            "",
            "Hello",
            "Change budget to 250k",
            "Yego murakoze",
            "A taxi to the house",
            // In the middle of other words: parent, override, Margaret.
            "my parent will override it with Margaret",
        ] {
            assert_eq!(detect(text), None, "{text}");
        }
    }

    #[test]
    fn beginnings_are_written_as_texts_are_compared() {
        for intent in ALL {
            for beginning in intent.beginnings() {
                assert_eq!(plain(beginning), **beginning, "{}", intent.as_str());
                assert_eq!(detect(beginning), Some(intent), "{beginning}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>()) {
            detect(&text);
        }

        #[test]
        fn case_and_what_stands_around_change_nothing(intent in 0..ALL.len(), before in "[ .,!?(]{1,5}", after in "[ .,!?)]{1,5}") {
            let intent = ALL[intent];
            let word = intent.beginnings()[0].to_uppercase();
            prop_assert_eq!(detect(&[&before, &*word, &after].concat()), Some(intent));
        }
    }
}
