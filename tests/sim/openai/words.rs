//! The four languages of our callers, as far as a stand-in for a model needs them.

/// A language that callers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    En,
    Fr,
    Rw,
    Sw,
}

use Language::{En, Fr, Rw, Sw};

impl Language {
    pub const ALL: [Language; 4] = [En, Fr, Rw, Sw];

    pub fn code(self) -> &'static str {
        self.of(["en", "fr", "rw", "sw"])
    }

    /// The text for this language, given in the order English, French, Kinyarwanda, Swahili.
    pub fn of<T: Copy>(self, [en, fr, rw, sw]: [T; 4]) -> T {
        match self {
            En => en,
            Fr => fr,
            Rw => rw,
            Sw => sw,
        }
    }

    /// The language whose small words are most in `text`; nothing when there is none of them.
    pub fn detect(text: &str) -> Option<Self> {
        let words: Vec<String> = words(text).collect();
        let count = |known: &[&str]| words.iter().filter(|word| known.contains(&word.as_str())).count();
        let counts = Self::ALL.map(|language| (count(language.of(COMMON)), language));
        let best = counts.into_iter().rev().max_by_key(|(count, _)| *count)?;
        (best.0 > 0).then_some(best.1)
    }
}

/// Lower case, without punctuation at the ends.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| c.is_whitespace() || ",;:!?()\"“”«»".contains(c))
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase())
        .filter(|word| !word.is_empty())
}

const COMMON: [&[&str]; 4] = [
    &[
        "the", "a", "is", "i", "you", "my", "and", "to", "for", "want", "need", "please", "hello", "yes", "thanks",
        "thank", "what", "how", "change", "we", "will", "your", "house", "looking", "budget", "of", "it", "me", "can",
    ],
    &[
        "je", "vous", "le", "la", "les", "une", "un", "et", "est", "mon", "ma", "pour", "bonjour", "merci", "oui",
        "cherche", "maison", "combien", "nous", "voudrais", "changer", "à", "au", "du", "des", "votre", "suis", "quel",
        "mois",
    ],
    &[
        "ndashaka",
        "muraho",
        "murakoze",
        "inzu",
        "yego",
        "oya",
        "ku",
        "mu",
        "ya",
        "ni",
        "na",
        "nshaka",
        "amafaranga",
        "ibihumbi",
        "kwezi",
        "turaboherereza",
        "turakoherereza",
        "ejo",
        "neza",
        "kandi",
        "hindura",
        "guhindura",
        "nifuza",
        "gukodesha",
        "kugura",
        "angahe",
        "nde",
        "iki",
        "ryari",
        "mwiriwe",
        "mwaramutse",
        "yanjye",
        "wanjye",
        "cyangwa",
    ],
    &[
        "nataka",
        "nyumba",
        "habari",
        "asante",
        "ndiyo",
        "hapana",
        "kwa",
        "ya",
        "na",
        "ni",
        "katika",
        "bei",
        "mwezi",
        "tafadhali",
        "natafuta",
        "badilisha",
        "gani",
        "ngapi",
        "kesho",
        "yangu",
        "wangu",
        "tutakutumia",
        "jambo",
        "elfu",
        "kupanga",
        "au",
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_is_told_from_the_others() {
        assert_eq!(Language::detect("Change budget to 250k"), Some(En));
        assert_eq!(Language::detect("Je cherche une maison à Kimironko"), Some(Fr));
        assert_eq!(Language::detect("Ndashaka kubona inzu i Kimironko"), Some(Rw));
        assert_eq!(Language::detect("Natafuta nyumba ya kupanga"), Some(Sw));
        assert_eq!(Language::detect("250k"), None);
    }
}
