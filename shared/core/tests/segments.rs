//! Segments against a second opinion that shares nothing with the code: texts are encoded as on the air (3GPP TS 23.038: the
//! default alphabet and its extension table by code; UTF-16, big-endian), cut into messages of 140 octets with the header of
//! concatenation (TS 23.040 9.2.3.24.1), and every message is decoded again by itself.
//!
//! `cargo xtask soak` tries a million texts, `cargo xtask test` a seeded sample (`IHUZA_SEED`).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on should stop where it is"
)]

use std::collections::HashMap;

use ihuza_core::sms::{Encoding, count, outside_gsm7, parts, prepare, prepare_gsm7, transliterate};

const TEXTS: u32 = 1_000_000;
const SAMPLE: u32 = 10_000;
/// Octets of user data in one message.
const MESSAGE: usize = 140;
/// `05 00 03 RR TT SS`.
const HEADER: usize = 6;

/// Code 0x00 to 0x7F; the space at 0x1B stands for the escape.
const BASIC: &str = concat!(
    "@£$¥èéùìòÇ\nØø\rÅå",
    "Δ_ΦΓΛΩΠΨΣΘΞ\u{1b}ÆæßÉ",
    " !\"#¤%&'()*+,-./",
    "0123456789:;<=>?",
    "¡ABCDEFGHIJKLMNO",
    "PQRSTUVWXYZÄÖÑÜ§",
    "¿abcdefghijklmno",
    "pqrstuvwxyzäöñüà"
);
const ESCAPE: u8 = 0x1b;
/// After the escape.
const EXTENSION: [(u8, char); 10] = [
    (0x0a, '\u{c}'),
    (0x14, '^'),
    (0x28, '{'),
    (0x29, '}'),
    (0x2f, '\\'),
    (0x3c, '['),
    (0x3d, '~'),
    (0x3e, ']'),
    (0x40, '|'),
    (0x65, '€'),
];

/// The alphabet, both ways.
struct Air {
    basic: Vec<char>,
    septets: HashMap<char, Vec<u8>>,
}

impl Air {
    fn new() -> Self {
        let basic: Vec<char> = BASIC.chars().collect();
        assert_eq!(basic.len(), 128);
        let mut septets: HashMap<char, Vec<u8>> =
            basic.iter().zip(0_u8..).map(|(found, code)| (*found, vec![code])).collect();
        septets.remove(&char::from(ESCAPE));
        septets.extend(EXTENSION.map(|(code, found)| (found, vec![ESCAPE, code])));
        assert_eq!(septets.len(), 137);
        Self { basic, septets }
    }

    fn septets(&self, found: char) -> Option<Vec<u8>> {
        self.septets.get(&found).cloned()
    }

    /// The messages of a text as a network would carry them: each a list of septets, or of octets.
    fn messages(&self, text: &str) -> (Encoding, Vec<Vec<u8>>) {
        let septets: Option<Vec<Vec<u8>>> = text.chars().map(|found| self.septets(found)).collect();
        let (encoding, characters, bits) = match septets {
            Some(characters) => (Encoding::Gsm7, characters, 7),
            None => {
                let octets =
                    |found: char| found.encode_utf16(&mut [0; 2]).iter().flat_map(|unit| unit.to_be_bytes()).collect();
                (Encoding::Ucs2, text.chars().map(octets).collect::<Vec<Vec<u8>>>(), 8)
            }
        };
        let whole: usize = characters.iter().map(Vec::len).sum();
        let fits = |units: usize, header: usize| units <= (MESSAGE - header) * 8 / bits;
        if fits(whole, 0) {
            return (encoding, if whole == 0 { vec![] } else { vec![characters.concat()] });
        }
        let mut messages = vec![Vec::new()];
        for character in characters {
            if !fits(messages.last().unwrap().len() + character.len(), HEADER) {
                messages.push(Vec::new());
            }
            messages.last_mut().unwrap().extend(character);
        }
        (encoding, messages)
    }

    /// What a telephone shows of one message; nothing where a character is torn.
    fn shown(&self, encoding: Encoding, message: &[u8]) -> Option<String> {
        if encoding == Encoding::Ucs2 {
            let units: Vec<u16> =
                message.chunks(2).map(|pair| u16::from_be_bytes([pair[0], *pair.get(1).unwrap()])).collect();
            return String::from_utf16(&units).ok();
        }
        let mut text = String::new();
        let mut codes = message.iter();
        while let Some(code) = codes.next() {
            if *code == ESCAPE {
                let extended = codes.next()?;
                text.push(EXTENSION.iter().find(|(code, _)| code == extended)?.1);
            } else {
                text.push(self.basic[usize::from(*code)]);
            }
        }
        Some(text)
    }

    fn check(&self, text: &str) {
        let (encoding, messages) = self.messages(text);
        let counted = count(text);
        let units: usize = messages.iter().map(Vec::len).sum();
        let units = if encoding == Encoding::Ucs2 { units / 2 } else { units };
        assert_eq!((counted.encoding, counted.units, counted.segments), (encoding, units, messages.len()), "{text:?}");
        let shown: Vec<String> = messages.iter().map(|message| self.shown(encoding, message).unwrap()).collect();
        assert_eq!(parts(text), shown, "{text:?}");
        let strangers = outside_gsm7(text, usize::MAX);
        assert_eq!(strangers.is_empty(), encoding == Encoding::Gsm7, "{text:?}");
        assert!(strangers.iter().all(|found| self.septets(*found).is_none() && text.contains(*found)), "{text:?}");
        let without: String = text.chars().filter(|found| !strangers.contains(found)).collect();
        assert_eq!(count(&without).encoding, Encoding::Gsm7, "not all are named: {text:?}");
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn any_char(&mut self) -> char {
        loop {
            if let Some(found) = char::from_u32((self.next() % 0x11_0000) as u32) {
                return found;
            }
        }
    }
}

/// Texts near the borders, where counting goes wrong, of the kinds of characters that meet there.
struct Texts {
    dice: Dice,
    pools: Vec<Vec<char>>,
}

impl Texts {
    fn new(seed: u64) -> Self {
        let basic: Vec<char> = BASIC.chars().filter(|found| *found != '\u{1b}').collect();
        let extension: Vec<char> = EXTENSION.iter().map(|(_, found)| *found).collect();
        let french: Vec<char> = "âçêëîïôœûÿÀÂÈÊ«»’…–\u{a0}\u{202f}".chars().collect();
        let wide: Vec<char> = "😀👍🏽🇷🇼\u{200d}𝒳中你ωЖ\u{301}\u{327}\u{1b}`\t".chars().collect();
        let plain: Vec<char> = ('a'..='z').chain('0'..='9').chain([' ', ' ']).collect();
        Self { dice: Dice(seed), pools: vec![plain, basic, extension, french, wide] }
    }

    fn next(&mut self) -> String {
        const LENGTHS: [(usize, usize); 8] =
            [(0, 12), (64, 12), (128, 14), (150, 16), (196, 14), (300, 14), (455, 12), (0, 500)];
        let (least, more) = self.dice.of(&LENGTHS);
        let length = least + self.dice.below(more);
        // One or two kinds in a text, the second one rare or not.
        let (first, second) = (self.dice.below(self.pools.len()), self.dice.below(self.pools.len()));
        let rarity = self.dice.of(&[1, 2, 10, 100, 400]);
        let wild = self.dice.below(16) == 0;
        (0..length)
            .map(|_| {
                if wild {
                    return self.dice.any_char();
                }
                let pool = if self.dice.below(rarity) == 0 { second } else { first };
                self.dice.of(&self.pools[pool])
            })
            .collect()
    }
}

fn texts() -> u32 {
    if std::env::var_os("IHUZA_IN_FULL").is_some() { TEXTS } else { SAMPLE }
}

fn seed() -> u64 {
    std::env::var("IHUZA_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

#[test]
fn a_million_texts_cost_what_they_cost_on_the_air() {
    let air = Air::new();
    let mut texts_of = Texts::new(seed());
    for _ in 0..texts() {
        air.check(&texts_of.next());
    }
    println!("counted {} texts in segments", texts());
}

#[test]
fn whatever_is_sent_is_no_longer_than_allowed() {
    let air = Air::new();
    let mut texts_of = Texts::new(seed() + 1);
    for n in 0..texts() / 20 {
        let (text, most) = (texts_of.next(), 1 + n as usize % 4);
        for (ready, gsm7) in [(prepare(&text, most), false), (prepare_gsm7(&text, most), true)] {
            let (encoding, messages) = air.messages(&ready.text);
            assert!(messages.len() <= most, "{text:?} became {:?}", ready.text);
            assert_eq!((ready.encoding, ready.segments), (encoding, messages.len()), "{text:?}");
            assert!(!gsm7 || encoding == Encoding::Gsm7, "{text:?}");
        }
    }
}

#[test]
fn the_sixteen_cases_compared_with_live_billing() {
    // The texts are ours, the kinds and results those of TwilioDevEd/message-segment-calculator#66.
    let a = |count| "a".repeat(count);
    let air = Air::new();
    for (text, encoding, segments) in [
        (a(80) + "\r\n" + &a(79), Encoding::Gsm7, 2),
        (a(80) + "\n" + &a(79), Encoding::Gsm7, 1),
        (a(200) + "\r\n" + &a(105), Encoding::Gsm7, 3),
        ("\u{e9}".repeat(70), Encoding::Gsm7, 1),
        ("e\u{301}".repeat(70), Encoding::Ucs2, 3),
        ("e\u{301}".to_owned(), Encoding::Ucs2, 1),
        ("\u{201c}hi\u{201d}".to_owned(), Encoding::Ucs2, 1),
        ("\"hi\"".to_owned(), Encoding::Gsm7, 1),
        ("\u{201a}hi\u{200c}".to_owned(), Encoding::Ucs2, 1),
        ("'hi".to_owned(), Encoding::Gsm7, 1),
        ("😀|".to_owned(), Encoding::Ucs2, 1),
        (a(160), Encoding::Gsm7, 1),
        (a(161), Encoding::Gsm7, 2),
        ("中".repeat(70), Encoding::Ucs2, 1),
        ("中".repeat(71), Encoding::Ucs2, 2),
        ("|".to_owned(), Encoding::Gsm7, 1),
    ] {
        let found = count(&text);
        assert_eq!((found.encoding, found.segments), (encoding, segments), "{text:?}");
        air.check(&text);
    }
    // What goes out is our spelling of them: a line break is one character, and no quotation mark costs the alphabet.
    for (text, sent) in
        [("\u{201c}hi\u{201d}", "\"hi\""), ("\u{201a}hi\u{200c}", "'hi"), ("a\r\nb", "a\nb"), ("e\u{301}", "é")]
    {
        assert_eq!(transliterate(text), sent);
    }
}

/// What a reader makes of a text: its letters without marks and its digits, words apart.
fn read(text: &str) -> Vec<String> {
    const BASES: [(&str, &str); 9] = [
        ("àâäáã", "a"),
        ("çÇ", "c"),
        ("èéêëÈÉÊË", "e"),
        ("îïíì", "i"),
        ("ôöóòõ", "o"),
        ("ùûüú", "u"),
        ("ÿý", "y"),
        ("œŒ", "oe"),
        ("ñ", "n"),
    ];
    let base = |found: char| {
        let known = BASES.iter().find(|(letters, _)| letters.contains(found));
        known.map_or_else(|| found.to_lowercase().to_string(), |(_, base)| (*base).to_owned())
    };
    let is_space = |found: char| found.is_whitespace() || found == '\u{202f}';
    let words =
        text.split(is_space).map(|word| word.chars().filter(|found| found.is_alphanumeric()).map(base).collect());
    words.filter(|word: &String| !word.is_empty()).collect()
}

#[test]
fn transliteration_keeps_every_letter_and_every_figure() {
    const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789àâäçèéêëîïôöùûüÿœŒÇÈÉÊ";
    const BETWEEN: [&str; 12] = [" ", " ", " ", "\u{a0}", "\u{202f}", " – ", "… ", "’ ", " « ", " » ", ", ", "\n"];
    let letters: Vec<char> = LETTERS.chars().collect();
    let mut dice = Dice(seed() + 2);
    for _ in 0..texts() / 10 {
        let text: String = (0..1 + dice.below(60))
            .map(|_| if dice.below(5) == 0 { dice.of(&BETWEEN).to_owned() } else { dice.of(&letters).to_string() })
            .collect();
        let sent = transliterate(&text);
        assert_eq!(count(&sent).encoding, Encoding::Gsm7, "{text:?} became {sent:?}");
        assert_eq!(read(&sent), read(&text), "{text:?} became {sent:?}");
    }
    // Two of our languages need none of it, and other scripts have no other spelling.
    for text in [
        "Muraho! Inzu yawe i Kigali yanditswe. Ingengo y'imari: 300k RWF. Subiza ubu butumwa kugira ngo dukomeze.",
        "Habari! Nyumba yako Kigali imesajiliwa. Bajeti: 300k RWF kwa mwezi. Jibu ujumbe huu kuendelea.",
        "Привет, 你好, ሰላም",
    ] {
        assert_eq!(transliterate(text), text);
    }
}

#[test]
fn whoever_made_a_text_expensive_is_named() {
    assert_eq!(outside_gsm7("We’ll meet: “Café” – ça va, we’ll", 9), ['’', '“', '”', '–', 'ç']);
    assert_eq!(outside_gsm7("We’ll meet: “Café” – ça va, we’ll", 2), ['’', '“']);
    assert_eq!(outside_gsm7("plain {text} at 5€", 9), []);
}
