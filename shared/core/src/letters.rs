//! Which characters are letters or digits, and their lower case, without the tables that Unicode's whole answer takes (7 KB of
//! every function that asks): exact for Latin, Greek and Cyrillic, a guess for other scripts, none of which we write.

/// Whether this belongs to a word or a number, rather than between them.
///
/// ```
/// use ihuza_core::letters::is_of_a_word;
/// assert!("aÉœЖ7".chars().all(is_of_a_word) && !" .’«—•😀".chars().any(is_of_a_word));
/// ```
pub fn is_of_a_word(found: char) -> bool {
    match found {
        '\0'..='\x7f' => found.is_ascii_alphanumeric(),
        'ª' | '²' | '³' | 'µ' | '¹' | 'º' | '¼'..='¾' => true,
        // The rest of Latin-1's signs; punctuation, arrows, signs and drawings; punctuation of Chinese; halves of signs; emoji.
        '\u{80}'..='¿' | '×' | '÷' | '\u{2000}'..='\u{2bff}' | '\u{3000}'..='\u{3003}' | '\u{3008}'..='\u{3020}' => {
            false
        }
        '\u{e000}'..='\u{f8ff}' | '\u{fe00}'..='\u{fe6f}' | '\u{fff0}'..='\u{ffff}' | '\u{1f000}'.. => false,
        _ => true,
    }
}

/// The small letter of a large one; anything else as it is.
///
/// ```
/// assert!("ÉŸŁΩЖé5".chars().map(ihuza_core::letters::lower).eq("éÿłωжé5".chars()));
/// ```
pub fn lower(found: char) -> char {
    let code = u32::from(found);
    let small = match found {
        'A'..='Z' | 'À'..='Ö' | 'Ø'..='Þ' | 'Α'..='Ρ' | 'Σ'..='Ϋ' | 'А'..='Я' => code + 32,
        'Ѐ'..='Џ' => code + 80,
        'Ÿ' => 0xff,
        // Pairs of a large and a small letter: the large one is even, in two stretches odd.
        'Ā'..='Į' | 'Ĳ'..='Ķ' | 'Ŋ'..='Ŷ' => code | 1,
        'Ĺ'..='Ň' | 'Ź'..='Ž' => code + code % 2,
        _ => code,
    };
    char::from_u32(small).unwrap_or(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Unicode says, where a character has one small letter.
    fn known(found: char) -> char {
        let mut small = found.to_lowercase();
        small.next().filter(|_| small.next().is_none()).unwrap_or(found)
    }

    #[test]
    fn latin_has_the_small_letters_of_unicode() {
        for found in '\0'..='ſ' {
            // Turkish: a capital of two characters.
            let expected = if found == 'İ' { 'İ' } else { known(found) };
            assert_eq!(lower(found), expected, "{found}");
        }
        for found in ('Α'..='Ϋ').chain('ά'..='ώ').chain('Ѐ'..='џ') {
            assert_eq!(lower(found), known(found), "{found}");
        }
    }

    #[test]
    fn a_small_letter_stays_as_it_is() {
        for found in '\0'..=char::MAX {
            let small = lower(found);
            assert_eq!(lower(small), small, "{found}");
            assert!(small == found || small == known(found), "{found}");
        }
    }

    #[test]
    fn words_of_our_alphabets_are_told_from_what_stands_between_them() {
        for found in ('\0'..='\u{2af}').chain('Ά'..='Ώ').chain('ΐ'..='ώ').chain('Ѐ'..='ҁ') {
            // Greek's point and some modifiers among the letters, and what is not assigned.
            if !matches!(found, '·' | '\u{2c2}'..) && (found < '\u{370}' || found.is_alphanumeric()) {
                assert_eq!(is_of_a_word(found), found.is_alphanumeric(), "{found:?}");
            }
        }
        for found in '\0'..=char::MAX {
            assert!(!(found.is_whitespace() && found != '\u{1680}' && is_of_a_word(found)), "{found:?}");
        }
        for script in ["ማለዳ", "سلام", "你好", "नमस्त"] {
            assert!(script.chars().filter(|found| found.is_alphanumeric()).all(is_of_a_word), "{script}");
        }
    }
}
