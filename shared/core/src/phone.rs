//! Phone numbers: E.164 by the rules of the ITU and, for +250, by the national plan of Rwanda.
//!
//! Parses once, at the door; from there on an [`E164`] is trusted. Prefixes of operators are not looked at beyond
//! "allocated or not": numbers are ported, so a prefix proves nothing.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A phone number in E.164 form: `+` and 8 to 15 digits (ITU-T E.164; 8 is our own lower bound).
///
/// Holding one means it was parsed. `Display` and `Debug` mask it, so that no log shows it by accident; [`E164::as_str`]
/// is the way out. Serialising writes the whole number, because rows and requests need it.
///
/// ```
/// use ihuza_core::phone::E164;
/// let number = E164::parse("0788 123 456").unwrap();
/// assert_eq!(number.as_str(), "+250788123456");
/// assert_eq!(number.to_string(), "+25078****456");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct E164(String);

/// Why a text is not a number we send to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PhoneError {
    /// Nothing was given, or only punctuation.
    #[error("phone number is empty: write it as +250...")]
    Empty,
    /// National digits of a country that cannot be told.
    #[error("phone number is missing its country code: write it as +250..., not 07...")]
    NoCountryCode,
    /// No country code starts with 0.
    #[error("phone number has a country code that starts with 0: no country has one")]
    CountryCode,
    /// Something that is neither digit nor punctuation.
    #[error("phone number has '{found}' at position {at}: only digits may follow the +")]
    NotADigit {
        /// Position in characters, counted from 0.
        at: usize,
        /// The character that stands there.
        found: char,
    },
    /// Too short or too long for any country.
    #[error("phone number has {digits} digits, E.164 allows 8 to 15: check for a missing or doubled part")]
    Length {
        /// How many there are, country code included.
        digits: usize,
    },
    /// A Rwandan number with a digit too many or too few.
    #[error(
        "Rwandan phone number has {digits} digits after +250, there must be 9: check for a missing or doubled digit"
    )]
    RwandaLength {
        /// How many follow the country code.
        digits: usize,
    },
    /// A Rwandan number outside the ranges the regulator has given out.
    #[error("Rwandan phone numbers do not begin with 0{prefix}: mobiles begin with 072, 073, 077, 078 or 079")]
    RwandaPrefix {
        /// The first two national digits.
        prefix: String,
    },
    /// Satellite and international premium ranges, refused for their cost.
    #[error("phone number is in the satellite or premium range {prefix}: we do not send there")]
    Premium {
        /// The range, as `+881`.
        prefix: String,
    },
}

impl PhoneError {
    /// A stable name for logs and metrics; never holds a part of the number.
    pub fn code(&self) -> &'static str {
        match self {
            PhoneError::Empty => "phone_empty",
            PhoneError::NoCountryCode => "phone_no_country_code",
            PhoneError::CountryCode => "phone_country_code",
            PhoneError::NotADigit { .. } => "phone_not_a_digit",
            PhoneError::Length { .. } => "phone_length",
            PhoneError::RwandaLength { .. } => "phone_rwanda_length",
            PhoneError::RwandaPrefix { .. } => "phone_rwanda_prefix",
            PhoneError::Premium { .. } => "phone_premium",
        }
    }
}

/// Longest text looked at; a number with every separator and scheme fits many times.
const MAX_INPUT_CHARS: usize = 64;

const PREMIUM: [&str; 4] = ["881", "882", "883", "979"];

impl E164 {
    /// Reads a number as people, carriers and SIP headers write it.
    ///
    /// `tel:`, `whatsapp:` and `sip:` are taken off, punctuation and spaces dropped, full-width and Arabic digits read as
    /// ASCII; then `+...` and `00...` are international, and `2507########`, `07########`, `7########` are Rwandan.
    pub fn parse(text: &str) -> Result<E164, PhoneError> {
        let (plus, digits) = clean(text)?;
        let international = international(plus, &digits)?;
        check(&international)?;
        let mut number = String::with_capacity(international.len() + 1);
        number.push('+');
        number.push_str(&international);
        Ok(E164(number))
    }

    /// Reads a number from a carrier's MSISDN field: like [`E164::parse`], and digits without `+` that are not Rwandan are
    /// taken as international, which is how carriers write everybody's number.
    ///
    /// ```
    /// use ihuza_core::phone::E164;
    /// assert!(E164::parse("254712345678").is_err());
    /// assert_eq!(E164::parse_msisdn("254712345678").unwrap().as_str(), "+254712345678");
    /// ```
    pub fn parse_msisdn(text: &str) -> Result<E164, PhoneError> {
        match E164::parse(text) {
            Err(PhoneError::NoCountryCode) => {
                let (_, digits) = clean(text)?;
                if digits.len() < 10 || digits.starts_with('0') {
                    return Err(PhoneError::NoCountryCode);
                }
                E164::parse(&["+", &digits].concat())
            }
            other => other,
        }
    }

    /// The whole number with its `+`. Not for logs.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits without `+`, as carriers write an MSISDN. Not for logs.
    pub fn msisdn(&self) -> &str {
        self.0.strip_prefix('+').unwrap_or(&self.0)
    }

    /// Whether the number belongs to Rwanda.
    pub fn is_rwandan(&self) -> bool {
        self.0.starts_with("+250")
    }

    /// Whether an SMS can arrive: false for Rwandan fixed and free-phone numbers; of foreign numbers we do not know better.
    pub fn can_receive_sms(&self) -> bool {
        !self.is_rwandan() || self.0.starts_with("+2507")
    }

    /// The number as logs show it.
    pub fn masked(&self) -> String {
        mask(&self.0)
    }
}

impl std::fmt::Display for E164 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.masked())
    }
}

impl std::fmt::Debug for E164 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.masked())
    }
}

impl std::str::FromStr for E164 {
    type Err = PhoneError;
    fn from_str(text: &str) -> Result<E164, PhoneError> {
        E164::parse(text)
    }
}

impl Serialize for E164 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for E164 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<E164, D::Error> {
        let text = String::deserialize(deserializer)?;
        E164::parse(&text).map_err(|error| serde::de::Error::custom(error.code()))
    }
}

/// Who an inbound message or call says it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A person's number: may be answered.
    Subscriber(E164),
    /// A service such as `8080`: never answered.
    ShortCode(String),
    /// A name such as `EasyMO`: cannot be answered.
    Alphanumeric(String),
    /// The number was withheld.
    None,
}

impl Address {
    /// Tells subscribers from services. A number that looks like a subscriber's but is wrong is an error, with its reason.
    /// Digits without `+` are read as carriers write them, see [`E164::parse_msisdn`].
    pub fn parse(text: &str) -> Result<Address, PhoneError> {
        let bare = strip_scheme(text.trim());
        if bare.is_empty() || WITHHELD.iter().any(|word| bare.eq_ignore_ascii_case(word)) {
            return Ok(Address::None);
        }
        if is_short_code(bare) {
            return Ok(Address::ShortCode(bare.to_owned()));
        }
        if is_sender_name(bare) {
            return Ok(Address::Alphanumeric(bare.to_owned()));
        }
        E164::parse_msisdn(bare).map(Address::Subscriber)
    }
}

/// Words that carriers put where a number is withheld.
const WITHHELD: [&str; 6] = ["anonymous", "unavailable", "restricted", "private", "unknown", "withheld"];

/// Whether `text` is a service number of 3 to 6 digits, such as `8080`.
pub fn is_short_code(text: &str) -> bool {
    (3..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `text` is a name that carriers accept as a sender: at most 11 letters, digits and spaces, with a letter.
pub fn is_sender_name(text: &str) -> bool {
    (1..=11).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b' ')
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// Masks anything that looks like a number: the first five digits (and the `+`), four stars, the last three digits.
///
/// Short codes of up to six characters are no personal data and stay; what is shorter than ten shows less.
pub fn mask(text: &str) -> String {
    let count = text.chars().count();
    let head = usize::from(text.starts_with('+')) + 5;
    let (head, tail) = match count {
        0..=6 if is_short_code(text) => return text.to_owned(),
        0..=6 => (0, 0),
        7..=9 => (2, 2),
        _ => (head, 3),
    };
    let mut out: String = text.chars().take(head).collect();
    out.push_str("****");
    out.extend(text.chars().skip(count.saturating_sub(tail)));
    out
}

fn strip_scheme(text: &str) -> &str {
    let mut rest = text.trim();
    for scheme in ["tel:", "whatsapp:", "sip:", "sips:", "sms:"] {
        if let (Some(head), Some(tail)) = (rest.get(..scheme.len()), rest.get(scheme.len()..))
            && head.eq_ignore_ascii_case(scheme)
        {
            rest = tail;
            break;
        }
    }
    // The user part of a SIP address or jid, and no parameters.
    rest.split(['@', ';']).next().unwrap_or(rest).trim()
}

fn clean(text: &str) -> Result<(bool, String), PhoneError> {
    let mut plus = false;
    let mut digits = String::with_capacity(16);
    for (at, found) in strip_scheme(text).chars().enumerate() {
        if at >= MAX_INPUT_CHARS {
            return Err(PhoneError::Length { digits: digits.len() });
        }
        match found {
            '0'..='9' => digits.push(found),
            '+' | '\u{ff0b}' if digits.is_empty() && !plus => plus = true,
            ' ' | '-' | '.' | '(' | ')' | '/' | '\t' => {}
            '\u{a0}' | '\u{202f}' | '\u{2000}'..='\u{200f}' | '\u{2010}'..='\u{2015}' | '\u{2060}' | '\u{feff}' => {}
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            _ => match foreign_digit(found) {
                Some(digit) => digits.push(digit),
                None => return Err(PhoneError::NotADigit { at, found }),
            },
        }
    }
    if digits.is_empty() {
        return Err(PhoneError::Empty);
    }
    Ok((plus, digits))
}

/// Full-width, Arabic-Indic and extended Arabic-Indic digits.
fn foreign_digit(found: char) -> Option<char> {
    let zero = match found {
        '\u{ff10}'..='\u{ff19}' => 0xff10,
        '\u{660}'..='\u{669}' => 0x660,
        '\u{6f0}'..='\u{6f9}' => 0x6f0,
        _ => return None,
    };
    char::from_digit(u32::from(found).checked_sub(zero)?, 10)
}

fn international(plus: bool, digits: &str) -> Result<String, PhoneError> {
    if plus {
        return Ok(without_trunk_zero(digits));
    }
    if let Some(rest) = digits.strip_prefix("00") {
        return Ok(without_trunk_zero(rest));
    }
    if digits.starts_with("2507") && digits.len() == 12 {
        return Ok(digits.to_owned());
    }
    let national = digits.strip_prefix('0').unwrap_or(digits);
    if national.starts_with('7') && (8..=10).contains(&national.len()) {
        let mut whole = String::from("250");
        whole.push_str(national);
        return Ok(whole);
    }
    Err(PhoneError::NoCountryCode)
}

/// `+250 0788...` is a common slip: the trunk zero stays in front of the national number.
fn without_trunk_zero(digits: &str) -> String {
    match digits.strip_prefix("2500") {
        Some(national) if digits.len() == 13 => {
            let mut whole = String::from("250");
            whole.push_str(national);
            whole
        }
        _ => digits.to_owned(),
    }
}

fn check(digits: &str) -> Result<(), PhoneError> {
    if digits.starts_with('0') {
        return Err(PhoneError::CountryCode);
    }
    if let Some(prefix) = premium_prefix(digits) {
        return Err(PhoneError::Premium { prefix: prefix.to_owned() });
    }
    if let Some(national) = digits.strip_prefix("250") {
        return check_rwandan(national);
    }
    if !(8..=15).contains(&digits.len()) {
        return Err(PhoneError::Length { digits: digits.len() });
    }
    Ok(())
}

fn check_rwandan(national: &str) -> Result<(), PhoneError> {
    if national.len() != 9 {
        return Err(PhoneError::RwandaLength { digits: national.len() });
    }
    let mut start = national.bytes();
    let known = match (start.next(), start.next()) {
        (Some(b'7'), Some(second)) => matches!(second, b'2' | b'3' | b'7'..=b'9'),
        // Fixed lines (02xx), free phone (0800) and shared cost (0900): they call, though no SMS reaches them.
        (Some(b'2' | b'8' | b'9'), Some(_)) => true,
        _ => false,
    };
    if known {
        return Ok(());
    }
    Err(PhoneError::RwandaPrefix { prefix: national.chars().take(2).collect() })
}

fn premium_prefix(digits: &str) -> Option<&'static str> {
    PREMIUM.into_iter().find(|prefix| digits.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let read = match E164::parse(text) {
            Ok(number) => number.as_str().to_owned(),
            Err(error) => error.code().to_owned(),
        };
        assert_eq!(read, expected, "{text:?}");
    }

    #[test]
    fn the_shared_vectors_hold() {
        let text = include_str!("../../../tests/vectors/phones.json");
        let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
        for vector in vectors["parse"].as_array().unwrap() {
            check(vector["input"].as_str().unwrap(), vector["result"].as_str().unwrap());
        }
        for vector in vectors["address"].as_array().unwrap() {
            let kind = match Address::parse(vector["input"].as_str().unwrap()) {
                Ok(Address::Subscriber(_)) => "subscriber",
                Ok(Address::ShortCode(_)) => "short_code",
                Ok(Address::Alphanumeric(_)) => "alphanumeric",
                Ok(Address::None) => "none",
                Err(error) => error.code(),
            };
            assert_eq!(kind, vector["kind"].as_str().unwrap(), "{vector}");
        }
        for vector in vectors["mask"].as_array().unwrap() {
            assert_eq!(mask(vector["input"].as_str().unwrap()), vector["result"].as_str().unwrap());
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        assert_eq!(
            E164::parse("0748123456").unwrap_err().to_string(),
            "Rwandan phone numbers do not begin with 074: mobiles begin with 072, 073, 077, 078 or 079"
        );
        assert_eq!(E164::parse("+25078x").unwrap_err(), PhoneError::NotADigit { at: 6, found: 'x' });
    }

    #[test]
    fn no_log_shows_the_number_by_accident() {
        let number = E164::parse("+250788123456").unwrap();
        assert_eq!(format!("{number} {number:?}"), "+25078****456 +25078****456");
        assert_eq!(serde_json::to_string(&number).unwrap(), "\"+250788123456\"");
        assert_eq!(serde_json::from_str::<E164>("\"0788 123 456\"").unwrap(), number);
        let refused = serde_json::from_str::<E164>("\"+25078812345\"").unwrap_err().to_string();
        assert!(!refused.contains("78812"), "{refused}");
    }

    #[test]
    fn fixed_lines_call_but_get_no_sms() {
        assert!(!E164::parse("+250252123456").unwrap().can_receive_sms());
        assert!(E164::parse("0788123456").unwrap().can_receive_sms());
        assert!(E164::parse("+12025550123").unwrap().can_receive_sms());
    }

    proptest! {
        #[test]
        fn nothing_read_panics(text in "\\PC{0,80}") {
            let _ = (E164::parse(&text), E164::parse_msisdn(&text), Address::parse(&text), mask(&text));
        }

        #[test]
        fn what_was_parsed_parses_to_itself(digits in "[1-9][0-9]{7,14}", prefix in "(\\+|00|tel:\\+)") {
            if let Ok(number) = E164::parse(&format!("{prefix}{digits}")) {
                prop_assert_eq!(E164::parse(number.as_str()).unwrap(), number.clone());
                prop_assert_eq!(E164::parse(&format!("00{}", number.msisdn())).unwrap(), number);
            }
        }

        #[test]
        fn every_spelling_of_a_rwandan_mobile_is_one_number(tail in "[0-9]{7}", second in "[23789]") {
            let whole = format!("+2507{second}{tail}");
            for text in [format!("07{second}{tail}"), format!("7{second}{tail}"), format!("2507{second}{tail}"),
                format!("(+250) 07{second} {tail}"), format!("sip:+2507{second}{tail}@mtn.example;user=phone")] {
                let parsed = E164::parse(&text).unwrap();
                prop_assert_eq!(parsed.as_str(), whole.as_str());
            }
        }
    }
}
