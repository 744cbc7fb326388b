//! The four languages of the service.

use serde::{Deserialize, Serialize};

use crate::letters::is_of_a_word;
use crate::sms::base_letters;

/// A language we write in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Locale {
    /// English.
    #[default]
    En,
    /// French.
    Fr,
    /// Kinyarwanda.
    Rw,
    /// Swahili.
    Sw,
}

/// Every language, English first.
pub const ALL: [Locale; 4] = [Locale::En, Locale::Fr, Locale::Rw, Locale::Sw];

impl Locale {
    /// The ISO 639-1 code, as in rows, JSON and prompts.
    pub fn as_str(self) -> &'static str {
        match self {
            Locale::En => "en",
            Locale::Fr => "fr",
            Locale::Rw => "rw",
            Locale::Sw => "sw",
        }
    }

    /// Reads a language tag (`rw`, `rw-RW`, `fr_FR`), an ISO 639-2 code or the language's name.
    pub fn from_tag(tag: &str) -> Option<Locale> {
        let first = tag.trim().split(['-', '_', '.']).next().unwrap_or("");
        match first.to_ascii_lowercase().as_str() {
            "en" | "eng" | "english" => Some(Locale::En),
            "fr" | "fra" | "fre" | "french" | "francais" => Some(Locale::Fr),
            "rw" | "kin" | "kinyarwanda" | "ikinyarwanda" => Some(Locale::Rw),
            "sw" | "swa" | "swahili" | "kiswahili" => Some(Locale::Sw),
            _ => None,
        }
    }

    /// The code of the language in WhatsApp templates; Meta knows Kinyarwanda only as `rw_RW`.
    pub fn whatsapp_code(self) -> &'static str {
        match self {
            Locale::En => "en",
            Locale::Fr => "fr",
            Locale::Rw => "rw_RW",
            Locale::Sw => "sw",
        }
    }

    /// The language's name in English, for prompts.
    pub fn english_name(self) -> &'static str {
        match self {
            Locale::En => "English",
            Locale::Fr => "French",
            Locale::Rw => "Kinyarwanda",
            Locale::Sw => "Swahili",
        }
    }
}

/// Words looked at by [`detect`].
const MAX_WORDS: usize = 60;

/// Guesses the language of a short text by its small words; nothing if it cannot be told.
///
/// Cheap and modest on purpose: a wrong guess answers somebody in the wrong language, no guess falls back to the profile.
///
/// ```
/// use ihuza_core::locale::{Locale, detect};
/// assert_eq!(detect("Ndashaka kubona inzu ejo"), Some(Locale::Rw));
/// assert_eq!(detect("250k"), None);
/// ```
pub fn detect(text: &str) -> Option<Locale> {
    let folded = base_letters(text);
    let mut scores = [0_u32; 4];
    for word in folded.split(|found: char| !is_of_a_word(found)).filter(|word| !word.is_empty()).take(MAX_WORDS) {
        for (score, locale) in scores.iter_mut().zip(ALL) {
            *score += weight(locale, word);
        }
    }
    let (best, locale) = scores.into_iter().zip(ALL).max_by_key(|(score, _)| *score)?;
    let rivals = scores.into_iter().filter(|score| *score == best).count();
    (best > 0 && rivals == 1).then_some(locale)
}

fn weight(locale: Locale, word: &str) -> u32 {
    let (strong, weak) = match locale {
        Locale::En => (EN_STRONG, EN_WEAK),
        Locale::Fr => (FR_STRONG, FR_WEAK),
        Locale::Rw => (RW_STRONG, RW_WEAK),
        Locale::Sw => (SW_STRONG, SW_WEAK),
    };
    if strong.contains(&word) {
        return 3;
    }
    if weak.contains(&word) {
        return 1;
    }
    // The beginnings of verbs in the first person, which carry much of a short message in Bantu languages.
    let prefixes: &[&str] = match locale {
        Locale::Rw => &["nda", "ndu", "ndi", "nsha", "mwa", "twa", "kugi", "uko", "ibi", "ama", "umu", "aba", "iki"],
        Locale::Sw => &["nina", "nime", "nita", "nili", "naom", "una", "ume", "tuna", "wana", "hak", "kwa"],
        Locale::En | Locale::Fr => &[],
    };
    u32::from(word.len() >= 5 && prefixes.iter().any(|prefix| word.starts_with(prefix)))
}

const EN_STRONG: &[&str] = &[
    "the",
    "and",
    "you",
    "please",
    "thank",
    "thanks",
    "yes",
    "hello",
    "want",
    "what",
    "when",
    "where",
    "how",
    "much",
    "price",
    "house",
    "would",
    "could",
    "with",
    "from",
    "have",
    "need",
    "this",
    "that",
    "your",
    "still",
    "available",
    "tomorrow",
    "today",
    "call",
    "send",
    "any",
    "updates",
    "are",
    "not",
    "for",
    "change",
];
const EN_WEAK: &[&str] =
    &["i", "my", "is", "it", "to", "of", "in", "me", "a", "we", "can", "do", "no", "hi", "on", "at"];
const FR_STRONG: &[&str] = &[
    "le",
    "les",
    "je",
    "vous",
    "est",
    "et",
    "bonjour",
    "bonsoir",
    "merci",
    "oui",
    "une",
    "des",
    "pour",
    "combien",
    "quand",
    "avec",
    "mon",
    "plait",
    "veux",
    "voudrais",
    "maison",
    "prix",
    "c'est",
    "cela",
    "dans",
    "sur",
    "pas",
    "demain",
    "aujourd",
    "hui",
    "changer",
    "toujours",
    "disponible",
    "ou",
    "suis",
    "avez",
    "cherche",
    "louer",
    "acheter",
    "ce",
    "svp",
    "du",
];
const FR_WEAK: &[&str] =
    &["la", "de", "un", "ma", "il", "en", "au", "ne", "que", "qui", "non", "a", "l", "d", "j", "c", "s"];
const RW_STRONG: &[&str] = &[
    "muraho",
    "mwaramutse",
    "mwiriwe",
    "murakoze",
    "yego",
    "oya",
    "inzu",
    "amafaranga",
    "nde",
    "ubu",
    "ejo",
    "gute",
    "angahe",
    "kubona",
    "nshaka",
    "ndashaka",
    "bite",
    "amakuru",
    "cyangwa",
    "kuri",
    "ariko",
    "nkeneye",
    "mfite",
    "rwose",
    "neza",
    "gukodesha",
    "kugura",
    "munsi",
    "mwambwira",
    "ese",
    "iracyahari",
    "birashoboka",
    "guhindura",
    "ingengo",
    "imari",
    "ntabwo",
    "cyane",
    "none",
    "hehe",
    "ryari",
    "kugira",
    "ngo",
    "yanjye",
    "wanjye",
    "byiza",
    "ndagushimira",
    "turakoherereza",
    "ndabyemeye",
    "oyaa",
    "kandi",
    "mbese",
    "iyo",
    "iyi",
    "uyu",
];
const RW_WEAK: &[&str] = &["ni", "mu", "ku", "i", "y", "bya", "ry", "wa", "ya"];
const SW_STRONG: &[&str] = &[
    "habari",
    "asante",
    "ndiyo",
    "hapana",
    "nataka",
    "nyumba",
    "bei",
    "ninaomba",
    "naomba",
    "tafadhali",
    "leo",
    "kesho",
    "jambo",
    "karibu",
    "kubadilisha",
    "bajeti",
    "ngapi",
    "gani",
    "yangu",
    "kuhusu",
    "niambie",
    "lini",
    "wapi",
    "mimi",
    "sana",
    "sawa",
    "hii",
    "kwa",
    "bado",
    "ipo",
    "inapatikana",
    "ningependa",
    "natafuta",
    "kununua",
    "kukodisha",
    "pesa",
    "wewe",
    "hujambo",
    "shikamoo",
    "mambo",
    "lakini",
    "au",
    "kwamba",
    "je",
    "nini",
    "vipi",
];
const SW_WEAK: &[&str] = &["ni", "ya", "wa", "katika", "za", "la", "cha", "ku"];

impl From<Locale> for crate::json::Part<'_> {
    fn from(locale: Locale) -> Self {
        crate::json::Part::Text(locale.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_messages_tell_their_language() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/languages.json")).unwrap();
        for vector in vectors["cases"].as_array().unwrap() {
            let found = detect(vector["text"].as_str().unwrap()).map(Locale::as_str);
            assert_eq!(found, vector["locale"].as_str(), "{vector}");
        }
    }

    #[test]
    fn tags_are_read_in_every_spelling() {
        for (tag, expected) in [
            ("rw", Some(Locale::Rw)),
            ("rw_RW", Some(Locale::Rw)),
            ("kin", Some(Locale::Rw)),
            ("FR-fr", Some(Locale::Fr)),
            ("en_US", Some(Locale::En)),
            ("Kiswahili", Some(Locale::Sw)),
            ("de", None),
            ("", None),
        ] {
            assert_eq!(Locale::from_tag(tag), expected, "{tag}");
        }
        for locale in ALL {
            assert_eq!(Locale::from_tag(locale.as_str()), Some(locale));
            assert_eq!(Locale::from_tag(locale.whatsapp_code()), Some(locale));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = (detect(&text), Locale::from_tag(&text));
        }
    }
}
