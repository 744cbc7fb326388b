//! Facts that callers of a marketplace mention: what they look for, where, for how much, how large and when.

use super::words::{Language, words};

/// What one text says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Index into [`THINGS`].
    pub thing: Option<usize>,
    pub place: Option<String>,
    /// As a person writes it: `300k RWF`.
    pub budget: Option<String>,
    /// The budget is by the month.
    pub monthly: bool,
    pub rooms: Option<u64>,
    pub day: Option<usize>,
    /// The caller offers something rather than looks for it.
    pub offers: bool,
}

/// Of several amounts in one text, which counts: people say "from 300k to 250k", we answer "250k instead of 300k".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    First,
    Last,
}

impl Facts {
    pub fn of(text: &str, pick: Pick) -> Self {
        let words: Vec<String> = words(&join_digits(text)).collect();
        let mut amounts = amounts(&words);
        let budget = match pick {
            Pick::First => amounts.next(),
            Pick::Last => amounts.last(),
        };
        Self {
            thing: THINGS.iter().position(|thing| thing.words.iter().any(|known| has(&words, known))),
            place: place(text),
            monthly: MONTHLY.iter().any(|phrase| text.to_lowercase().contains(phrase)),
            budget,
            rooms: rooms(&words),
            day: DAYS.iter().position(|day| day.iter().any(|name| has(&words, name))),
            offers: OFFERS.iter().any(|known| has(&words, known)),
        }
    }

    /// What was said later counts.
    pub fn then(mut self, later: Facts) -> Self {
        if later.budget.is_some() {
            self.monthly = later.monthly || self.monthly;
        }
        self.thing = later.thing.or(self.thing);
        self.place = later.place.or(self.place);
        self.budget = later.budget.or(self.budget);
        self.rooms = later.rooms.or(self.rooms);
        self.day = later.day.or(self.day);
        self.offers |= later.offers;
        self
    }

    pub fn nothing(&self) -> bool {
        self.thing.is_none()
            && self.place.is_none()
            && self.budget.is_none()
            && self.rooms.is_none()
            && self.day.is_none()
    }

    /// `a house in Kimironko`, without the article.
    pub fn subject(&self, language: Language) -> String {
        let thing = self.thing.and_then(|index| THINGS.get(index)).map(|thing| language.of(thing.names));
        let request = language.of(["request", "demande", "icyifuzo", "ombi"]);
        let mut subject = thing.unwrap_or(request).to_owned();
        if let Some(place) = &self.place {
            subject.push_str(language.of([" in ", " à ", " i ", " huko "]));
            subject.push_str(place);
        }
        subject
    }

    /// `300k RWF/month`
    pub fn price(&self, language: Language) -> Option<String> {
        let budget = self.budget.as_ref()?;
        let month = if self.monthly { language.of(["/month", "/mois", "/ukwezi", "/mwezi"]) } else { "" };
        Some(format!("{budget}{month}"))
    }

    /// `budget`, or `price` of something offered.
    pub fn price_label(&self, language: Language) -> &'static str {
        if self.offers {
            language.of(["price", "prix", "igiciro", "bei"])
        } else {
            language.of(["budget", "budget", "ingengo y'imari", "bajeti"])
        }
    }

    /// Everything but the subject, one line each.
    pub fn points(&self, language: Language) -> Vec<String> {
        let mut points = Vec::new();
        if let Some(price) = self.price(language) {
            let label = capital(self.price_label(language));
            points.push(format!("{label}: {price}"));
        }
        if let Some(rooms) = self.rooms {
            points.push(match language {
                Language::En => format!("{rooms} bedrooms"),
                Language::Fr => format!("{rooms} chambres"),
                Language::Rw => format!("Ibyumba {rooms}"),
                Language::Sw => format!("Vyumba {rooms}"),
            });
        }
        if let Some(day) = self.day.and_then(|index| DAYS.get(index)) {
            let label = language.of(["Day", "Jour", "Umunsi", "Siku"]);
            let name: String = language.of([day[0], day[1], day[2], day[3]]).to_owned();
            points.push(format!("{label}: {name}"));
        }
        points
    }
}

/// With a capital letter in front.
pub fn capital(word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if let Some(first) = letters.first_mut() {
        *first = first.to_ascii_uppercase();
    }
    String::from_iter(letters)
}

struct Thing {
    words: &'static [&'static str],
    names: [&'static str; 4],
}

const RIDE: [&str; 6] = ["ride", "trip", "moto", "trajet", "urugendo", "safari"];
/// What a ride is called, in the order of [`Language::of`].
pub const RIDES: [&str; 4] = ["ride", "trajet", "urugendo", "safari"];

/// The first that fits counts, so the particular comes before the general.
const THINGS: [Thing; 7] = [
    Thing {
        words: &["apartment", "apartments", "flat", "appartement", "fleti"],
        names: ["apartment", "appartement", "apartema", "fleti"],
    },
    Thing {
        words: &["plot", "land", "terrain", "parcelle", "ikibanza", "kiwanja"],
        names: ["plot", "terrain", "ikibanza", "kiwanja"],
    },
    Thing {
        words: &["house", "houses", "maison", "inzu", "nyumba", "home"],
        names: ["house", "maison", "inzu", "nyumba"],
    },
    Thing { words: &["property", "bien", "umutungo", "mali"], names: ["property", "bien", "umutungo", "mali"] },
    Thing { words: &["car", "voiture", "imodoka", "gari"], names: ["car", "voiture", "imodoka", "gari"] },
    Thing { words: &RIDE, names: RIDES },
    Thing {
        words: &["insurance", "assurance", "ubwishingizi", "bima"],
        names: ["insurance", "assurance", "ubwishingizi", "bima"],
    },
];

const OFFERS: [&str; 18] = [
    "enregistré",
    "enregistrée",
    "byanditswe",
    "imesajiliwa",
    "sell",
    "selling",
    "list",
    "listing",
    "register",
    "registered",
    "vendre",
    "enregistrer",
    "kugurisha",
    "kwandikisha",
    "kuuza",
    "sajili",
    "offer",
    "publish",
];

const MONTHLY: [&str; 10] =
    ["/mwezi", "/month", "per month", "a month", "monthly", "par mois", "/mois", "ku kwezi", "/ukwezi", "kwa mwezi"];

const PLACES: [&str; 26] = [
    "Kimironko",
    "Kicukiro",
    "Remera",
    "Nyamirambo",
    "Gikondo",
    "Kacyiru",
    "Kibagabaga",
    "Gisozi",
    "Nyarutarama",
    "Kanombe",
    "Nyarugenge",
    "Gasabo",
    "Kimihurura",
    "Kagugu",
    "Rebero",
    "Kabeza",
    "Zindiro",
    "Musanze",
    "Huye",
    "Rubavu",
    "Gisenyi",
    "Rwamagana",
    "Bugesera",
    "Muhanga",
    "Nyagatare",
    "Kigali",
];

const DAYS: [[&str; 4]; 9] = [
    ["Monday", "lundi", "kuwa mbere", "Jumatatu"],
    ["Tuesday", "mardi", "kuwa kabiri", "Jumanne"],
    ["Wednesday", "mercredi", "kuwa gatatu", "Jumatano"],
    ["Thursday", "jeudi", "kuwa kane", "Alhamisi"],
    ["Friday", "vendredi", "kuwa gatanu", "Ijumaa"],
    ["Saturday", "samedi", "kuwa gatandatu", "Jumamosi"],
    ["Sunday", "dimanche", "ku cyumweru", "Jumapili"],
    ["tomorrow", "demain", "ejo", "kesho"],
    ["today", "aujourd'hui", "uyu munsi", "leo"],
];

/// `300,000` and `300 000` are one number each.
fn join_digits(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let digits = |from: usize, count: usize| {
        let slice = chars.get(from..from + count);
        slice.is_some_and(|slice| slice.iter().all(char::is_ascii_digit))
    };
    let mut joined = String::with_capacity(text.len());
    for (index, c) in chars.iter().enumerate() {
        let after_digit = index > 0 && digits(index - 1, 1);
        let three_follow = digits(index + 1, 3) && !digits(index + 1, 4);
        if !(matches!(c, ',' | ' ' | '\u{a0}' | '\u{202f}') && after_digit && three_follow) {
            joined.push(*c);
        }
    }
    joined
}

/// Whether `phrase`, of one word or more, is in `words`.
fn has(words: &[String], phrase: &str) -> bool {
    let phrase: Vec<String> = phrase.split(' ').map(str::to_lowercase).collect();
    words.windows(phrase.len()).any(|window| window == phrase.as_slice())
}

/// The last place named, a district rather than the whole city.
fn place(text: &str) -> Option<String> {
    let lower = text.to_lowercase();
    let named = |name: &&&str| lower.contains(&name.to_lowercase());
    let last = |name: &&&str| lower.rfind(&name.to_lowercase());
    let districts = PLACES.iter().filter(named).filter(|name| **name != "Kigali").max_by_key(|name| last(name));
    let found = districts.or_else(|| PLACES.iter().find(named))?;
    Some((*found).to_owned())
}

fn rooms(words: &[String]) -> Option<u64> {
    const ROOMS: [&str; 8] = ["bedroom", "bedrooms", "rooms", "room", "chambres", "chambre", "ibyumba", "vyumba"];
    let at = words.iter().position(|word| ROOMS.contains(&word.as_str()))?;
    let before = at.checked_sub(1).and_then(|index| words.get(index));
    let after = words.get(at + 1);
    [before, after].into_iter().flatten().find_map(|word| small_number(word))
}

fn small_number(word: &str) -> Option<u64> {
    const NAMES: [(u64, &[&str]); 5] = [
        (1, &["one", "une", "kimwe", "kimoja", "moja"]),
        (2, &["two", "deux", "bibiri", "viwili", "mbili"]),
        (3, &["three", "trois", "bitatu", "vitatu", "tatu"]),
        (4, &["four", "quatre", "bine", "vinne", "nne"]),
        (5, &["five", "cinq", "bitanu", "vitano", "tano"]),
    ];
    let named = NAMES.iter().find(|(_, names)| names.contains(&word)).map(|(number, _)| *number);
    named.or_else(|| word.parse().ok().filter(|number| *number < 20))
}

/// The last amount of money that a text names, in whole units.
pub fn amount(text: &str) -> Option<u64> {
    let words: Vec<String> = words(&join_digits(text)).collect();
    numbers(&words).last().copied()
}

/// Whether it is about being taken somewhere.
pub fn is_ride(text: &str) -> bool {
    let words: Vec<String> = words(text).collect();
    RIDE.iter().any(|known| has(&words, known))
}

/// Every amount of money in the text, in order, as people write it.
fn amounts(words: &[String]) -> impl Iterator<Item = String> {
    let currency = if words.iter().any(|word| word == "usd" || word == "dollars") { "USD" } else { "RWF" };
    numbers(words).into_iter().map(move |amount| show(amount, currency))
}

fn numbers(words: &[String]) -> Vec<u64> {
    const THOUSAND: [&str; 4] = ["thousand", "mille", "ibihumbi", "elfu"];
    const MILLION: [&str; 5] = ["million", "millions", "miliyoni", "milioni", "m"];
    let is = |index: usize, names: &[&str]| words.get(index).is_some_and(|word| names.contains(&word.as_str()));
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let scale = if is(index + 1, &THOUSAND) || index.checked_sub(1).is_some_and(|before| is(before, &THOUSAND[2..]))
        {
            1_000
        } else if is(index + 1, &MILLION) {
            1_000_000
        } else {
            1
        };
        let amount = written(word).map(|amount| amount * scale).or_else(|| spoken(words, index));
        if let Some(amount) = amount.filter(|amount| (1_000..100_000_000_000).contains(amount)) {
            found.push(amount);
        }
    }
    found
}

/// `300k`, `300,000`, `1.2m`, `300.000rwf`
fn written(word: &str) -> Option<u64> {
    let word = word.trim_end_matches("/month").trim_end_matches("rwf").trim_end_matches("frw");
    let (digits, scale) = match word.strip_suffix('k') {
        Some(digits) => (digits, 1_000),
        None => match word.strip_suffix('m') {
            Some(digits) => (digits, 1_000_000),
            None => (word, 1),
        },
    };
    // Longer, or with a leading zero, it is somebody's phone number.
    if !digits.starts_with(|c: char| matches!(c, '1'..='9')) || digits.len() > 8 {
        return None;
    }
    let parts: Vec<&str> = digits.split(['.', '\'', '_']).collect();
    match parts.as_slice() {
        [whole] => whole.parse::<u64>().ok().map(|number| number * scale),
        [whole, tenths] if scale > 1 && tenths.len() == 1 => {
            let (whole, tenths): (u64, u64) = (whole.parse().ok()?, tenths.parse().ok()?);
            Some(whole * scale + tenths * scale / 10)
        }
        groups if groups.iter().skip(1).all(|group| group.len() == 3) => {
            groups.concat().parse::<u64>().ok().map(|number| number * scale)
        }
        _ => None,
    }
}

/// `three hundred thousand`, `two hundred and fifty thousand`, `ibihumbi magana atatu`, `laki tatu` begin at `index`.
fn spoken(words: &[String], index: usize) -> Option<u64> {
    const ONES: [&str; 9] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    const TENS: [(&str, u64); 5] = [("ten", 10), ("twenty", 20), ("thirty", 30), ("fifty", 50), ("eighty", 80)];
    const MAGANA: [&str; 8] = ["abiri", "atatu", "ane", "atanu", "atandatu", "arindwi", "inani", "icyenda"];
    let word = |offset: usize| words.get(index + offset).map(String::as_str);
    if word(0) == Some("ibihumbi") && word(1) == Some("magana") {
        let hundreds = MAGANA.iter().position(|name| Some(*name) == word(2))?;
        return Some((hundreds as u64 + 2) * 100_000);
    }
    let ones = ONES.iter().position(|name| Some(*name) == word(0))? as u64 + 1;
    if word(1) != Some("hundred") {
        return (word(1) == Some("thousand")).then_some(ones * 1_000);
    }
    let next = if word(2) == Some("and") { 3 } else { 2 };
    let tens = TENS.iter().find(|(name, _)| Some(*name) == word(next)).map(|(_, tens)| *tens);
    let end = if tens.is_some() { next + 1 } else { next };
    (word(end) == Some("thousand")).then_some((ones * 100 + tens.unwrap_or(0)) * 1_000)
}

/// As a person writes it: `300k RWF`.
pub fn show(amount: u64, currency: &str) -> String {
    if amount.is_multiple_of(100_000) && amount >= 1_000_000 {
        let (whole, tenth) = (amount / 1_000_000, amount / 100_000 % 10);
        return if tenth == 0 { format!("{whole}M {currency}") } else { format!("{whole}.{tenth}M {currency}") };
    }
    if amount.is_multiple_of(1_000) {
        return format!("{}k {currency}", amount / 1_000);
    }
    format!("{amount} {currency}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn budget(text: &str, expected: &str) {
        let facts = Facts::of(text, Pick::Last);
        assert_eq!(facts.price(Language::En).as_deref().unwrap_or("nothing"), expected, "{text}");
    }

    #[test]
    fn amounts_are_read_as_people_write_and_say_them() {
        budget("My budget is 300k a month", "300k RWF/month");
        budget("Budget 300,000 RWF", "300k RWF");
        budget("300 000 francs par mois", "300k RWF/month");
        budget("up to 1.2m", "1.2M RWF");
        budget("two hundred and fifty thousand per month", "250k RWF/month");
        budget("ibihumbi magana atatu ku kwezi", "300k RWF/month");
        budget("ibihumbi 300", "300k RWF");
        budget("elfu 300 kwa mwezi", "300k RWF/month");
        budget("Change it from 300k to 250k", "250k RWF");
        budget("call me on 0788123456", "nothing");
        budget("2 bedrooms", "nothing");
    }

    #[test]
    fn places_things_rooms_and_days_are_found() {
        let facts = Facts::of("I want a 2 bedroom house in Kimironko, Kigali, visit on Saturday", Pick::Last);
        assert_eq!(facts.subject(Language::En), "house in Kimironko");
        assert_eq!(facts.points(Language::En), ["2 bedrooms", "Day: Saturday"]);
        assert_eq!(facts.subject(Language::Rw), "inzu i Kimironko");
    }

    #[test]
    fn later_words_count() {
        let first = Facts::of("house in Remera for 300k a month", Pick::Last);
        let both = first.then(Facts::of("make it 250k in Gisozi", Pick::Last));
        assert_eq!(both.price(Language::En).as_deref(), Some("250k RWF/month"));
        assert_eq!(both.subject(Language::En), "house in Gisozi");
    }
}
