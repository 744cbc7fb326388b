//! What a message is about, by its words alone: enough to send it to the agent that knows, and silent when in doubt.
//!
//! Words are looked for in English, French, Kinyarwanda and Swahili at once, because people mix them. A short one must stand
//! whole, since it begins too many others (`nyumba` a house, `nyumbani` at home; `safari`, `Safaricom`); of a longer one the
//! beginning is enough. Kinyarwanda and Swahili change the beginning of a word with its class (`inzu`, `amazu`; `tatizo`,
//! `matatizo`), so each form stands in the list. What people say without meaning it ("no problem") is taken out before.
//! A model that understands more says so with `session_update_status`.

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

    /// Its words, in lower case and without accents; of one with a `*` the beginning.
    fn words(self) -> &'static [&'static str] {
        match self {
            Intent::Housing => &[
                "house",
                "houses",
                "housing",
                "apartment*",
                "flat",
                "flats",
                "rent",
                "rents",
                "renting",
                "landlord*",
                "bedroom*",
                "plot",
                "plots",
                "maison",
                "maisons",
                "appartement*",
                "loyer*",
                "louer",
                "chambre",
                "chambres",
                "parcelle*",
                "inzu",
                "amazu",
                "ubukode*",
                "gukodesha",
                "nkodesha",
                "icyumba",
                "ibyumba",
                "ikibanza",
                "ibibanza",
                "nyumba",
                "manyumba",
                "kodi",
                "ya kupanga",
                "chumba",
                "vyumba",
                "kiwanja",
                "viwanja",
            ],
            Intent::Ride => &[
                "ride",
                "rides",
                "taxi*",
                "moto",
                "motos",
                "driver",
                "drivers",
                "pick me",
                "pickup",
                "pick-up",
                "cab",
                "cabs",
                "une course",
                "ma course",
                "la course",
                "chauffeur*",
                "trajet*",
                "umushoferi",
                "imodoka",
                "amodoka",
                "urugendo",
                "kuntwara",
                "untware",
                "safari",
                "dereva",
                "gari",
                "magari",
                "pikipiki",
                "bodaboda*",
                "nichukue*",
            ],
            Intent::Support => &[
                "complain*",
                "refund*",
                "problem",
                "problems",
                "not working",
                "broken",
                "wrong",
                "plainte*",
                "rembours*",
                "probleme",
                "problemes",
                "panne",
                "pannes",
                "ikibazo",
                "ibibazo",
                "ikirego",
                "gusubizwa",
                "ntibikora",
                "byanze",
                "tatizo",
                "matatizo",
                "lalamik*",
                "malalamiko",
                "kurudishiwa",
                "haifanyi*",
            ],
        }
    }
}

/// What people say without meaning what its words are about, in lower case and without accents.
const SAID_IN_PASSING: &[&str] = &[
    "no problem",
    "no problems",
    "not a problem",
    "without problem",
    "nothing wrong",
    "wrong number",
    "pas de probleme",
    "aucun probleme",
    "sans probleme",
    "nta kibazo",
    "nta ikibazo",
    "hakuna tatizo",
    "hakuna matatizo",
    "hamna tatizo",
    "si tatizo",
    "bila tatizo",
    "of course",
    "rental car",
    "rental cars",
    "car rental",
    "rent a car",
    "rent a moto",
    "louer une voiture",
    "flat tire",
    "flat tyre",
    "a la maison",
    "driver license",
    "driver licence",
];

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
    let mut text = plain(clip(text, LOOKED_AT));
    for passing in SAID_IN_PASSING {
        // What stands around it does not come together.
        while let Some(at) = place_of(&text, passing) {
            text.replace_range(at..at + passing.len(), "|");
        }
    }
    let mut best = None;
    let mut most = 0;
    for intent in ALL {
        let found = intent.words().iter().filter(|word| place_of(&text, word).is_some()).count();
        if found > most {
            (best, most) = (Some(intent), found);
        } else if found == most {
            best = None;
        }
    }
    best
}

/// Where a word stands, in bytes: whole, or with a `*` at the beginning of another.
fn place_of(text: &str, word: &str) -> Option<usize> {
    let beginning = word.strip_suffix('*');
    let sought = beginning.unwrap_or(word);
    let is_letter = |found: Option<char>| found.is_some_and(is_of_a_word);
    text.match_indices(sought).map(|(at, _)| at).find(|at| {
        let before = text.get(..*at).and_then(|before| before.chars().next_back());
        let after = text.get(at + sought.len()..).and_then(|after| after.chars().next());
        !is_letter(before) && (beginning.is_some() || !is_letter(after))
    })
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
            ("Of course, I need two bedrooms", Some(Intent::Housing)),
            ("Of course: there is a problem", Some(Intent::Support)),
            ("Please cancel my taxi", Some(Intent::Ride)),
            ("Je voudrais une course pour l'aéroport", Some(Intent::Ride)),
            ("The driver's phone", Some(Intent::Ride)),
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
            // What begins like a word and is another.
            "Je vais faire mes courses",
            "my Safaricom line and my Motorola",
            "Niko nyumbani",
            "Agahinda k'inzuki",
            "the cabbage has a household name",
            // What is said in passing.
            "Of course",
            "No problem",
            "No problem, no problem!",
            "Pas de problème",
            "Hakuna tatizo",
            "Nta kibazo",
            "my rental car",
            "je suis à la maison",
            // To cancel is no complaint, and of whatever was agreed.
            "Please cancel",
            "Annuler svp",
        ] {
            assert_eq!(detect(text), None, "{text}");
        }
    }

    #[test]
    fn words_are_written_as_texts_are_compared() {
        for intent in ALL {
            for word in intent.words() {
                assert_eq!(plain(word), **word, "{}", intent.as_str());
                assert_eq!(detect(word.trim_end_matches('*')), Some(intent), "{word}");
            }
        }
        for passing in SAID_IN_PASSING {
            assert_eq!(plain(passing), **passing);
            assert_eq!(detect(passing), None, "{passing}");
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
            let word = intent.words()[0].to_uppercase();
            prop_assert_eq!(detect(&[&before, &*word, &after].concat()), Some(intent));
        }
    }
}
