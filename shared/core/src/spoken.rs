//! In which language the caller speaks, turn by turn. One foreign word changes nothing; a whole sentence does as long as
//! nobody knows the caller, and two turns running do at any time, as they do in the record (`record_voice_events`).

use serde::{Deserialize, Serialize};

use crate::locale::Locale;

/// So many words are a sentence: too many for a borrowed greeting or a name.
const SENTENCE_WORDS: usize = 3;

/// The language of one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Language {
    current: Locale,
    /// The caller has spoken it.
    is_theirs: bool,
    /// The last turn was in another one.
    rival: Option<Locale>,
}

impl Language {
    /// A conversation that begins in this language.
    pub fn new(current: Locale) -> Language {
        Language { current, is_theirs: false, rival: None }
    }

    /// The language that is spoken.
    pub fn current(self) -> Locale {
        self.current
    }

    /// A turn of the caller's, in a language that was recognised; the new language, if it is one now.
    pub fn heard(&mut self, locale: Locale, text: &str) -> Option<Locale> {
        let rival = self.rival.take();
        if locale == self.current {
            self.is_theirs = true;
            return None;
        }
        let is_sentence = text.split_whitespace().nth(SENTENCE_WORDS - 1).is_some();
        if rival != Some(locale) && (self.is_theirs || !is_sentence) {
            self.rival = Some(locale);
            return None;
        }
        (self.current, self.is_theirs) = (locale, true);
        Some(locale)
    }
}

#[cfg(test)]
mod tests {
    use crate::locale::ALL;
    use proptest::prelude::*;

    use super::*;
    use Locale::{En, Fr, Rw};

    /// Turns as `(language, words)`; the language after each.
    fn follow(turns: &[(Locale, &str)]) -> Vec<Locale> {
        let mut language = Language::new(En);
        let follow = |(locale, text): &(Locale, &str)| {
            language.heard(*locale, text);
            language.current()
        };
        turns.iter().map(follow).collect()
    }

    #[test]
    fn the_first_sentence_tells_the_language() {
        assert_eq!(follow(&[(Rw, "Muraho, nshaka inzu i Kigali")]), [Rw]);
        assert_eq!(follow(&[(Rw, "Muraho"), (En, "I look for a house"), (En, "yes")]), [En, En, En]);
    }

    #[test]
    fn one_foreign_turn_changes_nothing_and_two_running_do() {
        let turns = [
            (En, "hello there"),
            (Fr, "merci beaucoup à vous"),
            (En, "and the price?"),
            (Fr, "oui"),
            (Fr, "je préfère le français"),
            (En, "ok"),
        ];
        assert_eq!(follow(&turns), [En, En, En, En, Fr, Fr]);
        assert_eq!(
            follow(&[(En, "hello"), (Fr, "oui"), (Rw, "yego"), (Fr, "oui")]),
            [En, En, En, En],
            "two others are not one"
        );
    }

    proptest! {
        #[test]
        fn a_change_is_told_when_it_happens_and_never_to_what_is_spoken(turns in proptest::collection::vec((0_usize..4, 0_usize..6), 0..40)) {
            let mut language = Language::new(En);
            let mut before = None;
            for (locale, words) in turns {
                let (was, text) = (language.current(), "word ".repeat(words));
                let changed = language.heard(ALL[locale], &text);
                prop_assert_eq!(changed.is_some(), language.current() != was);
                if changed.is_some() {
                    prop_assert_eq!(changed, Some(ALL[locale]));
                    prop_assert!(words >= SENTENCE_WORDS || before == Some(locale));
                }
                before = Some(locale);
            }
        }
    }
}
