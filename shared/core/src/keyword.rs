//! STOP, START, HELP, the choice of a channel, and what people ask about themselves (FORGET ME, MY DATA): recognised before any model sees the text, and answered with fixed words.
//!
//! The English words are Twilio's default list and the words AWS requires; the Kinyarwanda and Swahili ones are our
//! choice and wait for a native speaker's and the operator's review. Only a whole message counts: "please stop by
//! tomorrow" is no opt-out, "Stop. Thank you" is one.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::channel::Channel;
use crate::letters;
use crate::locale::Locale;
use crate::sms::{self, SmsText, base_letters};

/// What the person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keyword {
    /// No more messages.
    Stop,
    /// Messages again.
    Start,
    /// Who are you, and how do I stop this?
    Help,
    /// Write to me by SMS alone.
    SmsOnly,
    /// Write to me on WhatsApp alone, where that is possible.
    WhatsappOnly,
    /// Write to me on both.
    Both,
    /// Delete what you know about me.
    ForgetMe,
    /// Yes, delete it.
    ForgetConfirm,
    /// What do you know about me?
    MyData,
}

/// Every keyword.
pub const ALL: [Keyword; 9] = [
    Keyword::Stop,
    Keyword::Start,
    Keyword::Help,
    Keyword::SmsOnly,
    Keyword::WhatsappOnly,
    Keyword::Both,
    Keyword::ForgetMe,
    Keyword::ForgetConfirm,
    Keyword::MyData,
];

impl Keyword {
    /// The word in rows, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Keyword::Stop => "stop",
            Keyword::Start => "start",
            Keyword::Help => "help",
            Keyword::SmsOnly => "sms_only",
            Keyword::WhatsappOnly => "whatsapp_only",
            Keyword::Both => "both",
            Keyword::ForgetMe => "forget_me",
            Keyword::ForgetConfirm => "forget_confirm",
            Keyword::MyData => "my_data",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Keyword> {
        ALL.into_iter().find(|keyword| keyword.as_str() == word)
    }
}

/// A keyword found, and the language of the word (none for the international STOP, START, HELP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What is asked for.
    pub keyword: Keyword,
    /// The word's language, if it tells.
    pub locale: Option<Locale>,
    /// The word may as well answer a question of the agent (CANCEL), or means nothing to whoever has not opted out (YES). The
    /// claim decides, which knows what was said last and whether they have: `begin_sms_turn`.
    pub may_answer: bool,
}

/// Longer messages are no keyword; the longest phrase with its politeness fits twice.
const MAX_CHARS: usize = 80;

/// Recognises a message that is nothing but a keyword.
///
/// ```
/// use ihuza_core::keyword::{Keyword, detect};
/// let found = |text| detect(text).map(|found| found.keyword);
/// assert_eq!(found("Stop. Thank you"), Some(Keyword::Stop));
/// assert_eq!(found("Please stop by tomorrow"), None);
/// ```
pub fn detect(text: &str) -> Option<Found> {
    if text.chars().nth(MAX_CHARS).is_some() {
        return None;
    }
    let folded = base_letters(text);
    let mut words: Vec<&str> =
        folded.split(|found: char| !found.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.is_empty() || folded.chars().any(|found| letters::is_of_a_word(found) && !found.is_ascii()) {
        return None;
    }
    // What is said besides out of politeness, longest phrase first.
    let politeness: Vec<Vec<&str>> = POLITE.iter().map(|phrase| phrase.split(' ').collect()).collect();
    while let Some(phrase) = politeness
        .iter()
        .find(|phrase| words.len() > phrase.len() && (words.starts_with(phrase) || words.ends_with(phrase)))
    {
        if words.ends_with(phrase) {
            words.truncate(words.len() - phrase.len());
        } else {
            words.drain(..phrase.len());
        }
    }
    // "STOP STOP!!"
    words.dedup();
    // "S T O P"
    let spelled = words.len() > 2 && words.iter().all(|word| word.len() == 1);
    let whole = words.join(if spelled { "" } else { " " });
    // "STOOOPP" is meant as well; no two keywords differ by a repeated letter alone.
    let same = |word: &str| once_each(word).eq(once_each(&whole));
    let (word, keyword, locale) = WORDS.iter().find(|(word, _, _)| same(word))?;
    Some(Found { keyword: *keyword, locale: *locale, may_answer: MAY_ANSWER.contains(word) })
}

/// The letters of a word, each run of the same one once.
fn once_each(word: &str) -> impl Iterator<Item = u8> + '_ {
    let mut last = 0;
    word.bytes().filter(move |letter| std::mem::replace(&mut last, *letter) != *letter)
}

const POLITE: &[&str] = &[
    "s il vous plait",
    "s il te plait",
    "thank you very much",
    "thank you",
    "thanks",
    "thx",
    "please",
    "pls",
    "merci",
    "svp",
    "murakoze cyane",
    "murakoze",
    "mwihangane",
    "asante sana",
    "asante",
    "tafadhali",
    "now",
];

/// Those of [`WORDS`] that people also answer questions with.
const MAY_ANSWER: &[&str] = &["cancel", "end", "remove", "yes", "both", "les deux", "byombi", "zote mbili"];

const WORDS: &[(&str, Keyword, Option<Locale>)] = &[
    ("stop", Keyword::Stop, None),
    ("stopall", Keyword::Stop, None),
    ("stop all", Keyword::Stop, None),
    ("stop sms", Keyword::Stop, None),
    ("stop messages", Keyword::Stop, Some(Locale::En)),
    ("unsubscribe", Keyword::Stop, Some(Locale::En)),
    ("quit", Keyword::Stop, Some(Locale::En)),
    ("revoke", Keyword::Stop, Some(Locale::En)),
    ("optout", Keyword::Stop, Some(Locale::En)),
    ("opt out", Keyword::Stop, Some(Locale::En)),
    ("remove", Keyword::Stop, Some(Locale::En)),
    ("remove me", Keyword::Stop, Some(Locale::En)),
    ("cancel", Keyword::Stop, None),
    ("end", Keyword::Stop, None),
    ("arret", Keyword::Stop, Some(Locale::Fr)),
    ("arreter", Keyword::Stop, Some(Locale::Fr)),
    ("arretez", Keyword::Stop, Some(Locale::Fr)),
    ("desabonner", Keyword::Stop, Some(Locale::Fr)),
    ("desinscrire", Keyword::Stop, Some(Locale::Fr)),
    ("hagarika", Keyword::Stop, Some(Locale::Rw)),
    ("hagarara", Keyword::Stop, Some(Locale::Rw)),
    ("muhagarike", Keyword::Stop, Some(Locale::Rw)),
    ("kuvamo", Keyword::Stop, Some(Locale::Rw)),
    ("acha", Keyword::Stop, Some(Locale::Sw)),
    ("sitisha", Keyword::Stop, Some(Locale::Sw)),
    ("simama", Keyword::Stop, Some(Locale::Sw)),
    ("ondoa", Keyword::Stop, Some(Locale::Sw)),
    ("start", Keyword::Start, None),
    ("unstop", Keyword::Start, None),
    ("subscribe", Keyword::Start, Some(Locale::En)),
    ("yes", Keyword::Start, None),
    ("reprendre", Keyword::Start, Some(Locale::Fr)),
    ("debut", Keyword::Start, Some(Locale::Fr)),
    ("tangira", Keyword::Start, Some(Locale::Rw)),
    ("anza", Keyword::Start, Some(Locale::Sw)),
    ("help", Keyword::Help, None),
    ("info", Keyword::Help, None),
    ("aide", Keyword::Help, Some(Locale::Fr)),
    ("ubufasha", Keyword::Help, Some(Locale::Rw)),
    ("fasha", Keyword::Help, Some(Locale::Rw)),
    ("msaada", Keyword::Help, Some(Locale::Sw)),
    ("sms only", Keyword::SmsOnly, Some(Locale::En)),
    ("only sms", Keyword::SmsOnly, Some(Locale::En)),
    ("just sms", Keyword::SmsOnly, Some(Locale::En)),
    ("sms seulement", Keyword::SmsOnly, Some(Locale::Fr)),
    ("seulement sms", Keyword::SmsOnly, Some(Locale::Fr)),
    ("uniquement sms", Keyword::SmsOnly, Some(Locale::Fr)),
    ("sms uniquement", Keyword::SmsOnly, Some(Locale::Fr)),
    ("sms gusa", Keyword::SmsOnly, Some(Locale::Rw)),
    ("sms tu", Keyword::SmsOnly, Some(Locale::Sw)),
    ("sms pekee", Keyword::SmsOnly, Some(Locale::Sw)),
    ("whatsapp only", Keyword::WhatsappOnly, Some(Locale::En)),
    ("only whatsapp", Keyword::WhatsappOnly, Some(Locale::En)),
    ("just whatsapp", Keyword::WhatsappOnly, Some(Locale::En)),
    ("whatsapp seulement", Keyword::WhatsappOnly, Some(Locale::Fr)),
    ("seulement whatsapp", Keyword::WhatsappOnly, Some(Locale::Fr)),
    ("uniquement whatsapp", Keyword::WhatsappOnly, Some(Locale::Fr)),
    ("whatsapp uniquement", Keyword::WhatsappOnly, Some(Locale::Fr)),
    ("whatsapp gusa", Keyword::WhatsappOnly, Some(Locale::Rw)),
    ("whatsapp tu", Keyword::WhatsappOnly, Some(Locale::Sw)),
    ("whatsapp pekee", Keyword::WhatsappOnly, Some(Locale::Sw)),
    ("both", Keyword::Both, Some(Locale::En)),
    ("sms and whatsapp", Keyword::Both, Some(Locale::En)),
    ("whatsapp and sms", Keyword::Both, Some(Locale::En)),
    ("les deux", Keyword::Both, Some(Locale::Fr)),
    ("sms et whatsapp", Keyword::Both, Some(Locale::Fr)),
    ("whatsapp et sms", Keyword::Both, Some(Locale::Fr)),
    ("byombi", Keyword::Both, Some(Locale::Rw)),
    // Kinyarwanda and Swahili both say `na`.
    ("sms na whatsapp", Keyword::Both, None),
    ("whatsapp na sms", Keyword::Both, None),
    ("zote mbili", Keyword::Both, Some(Locale::Sw)),
    ("forget me", Keyword::ForgetMe, Some(Locale::En)),
    ("forget about me", Keyword::ForgetMe, Some(Locale::En)),
    ("delete my data", Keyword::ForgetMe, Some(Locale::En)),
    ("erase my data", Keyword::ForgetMe, Some(Locale::En)),
    ("oubliez moi", Keyword::ForgetMe, Some(Locale::Fr)),
    ("oublie moi", Keyword::ForgetMe, Some(Locale::Fr)),
    ("effacez mes donnees", Keyword::ForgetMe, Some(Locale::Fr)),
    ("supprimez mes donnees", Keyword::ForgetMe, Some(Locale::Fr)),
    ("munyibagirwe", Keyword::ForgetMe, Some(Locale::Rw)),
    ("nyibagirwa", Keyword::ForgetMe, Some(Locale::Rw)),
    ("musibe amakuru yanjye", Keyword::ForgetMe, Some(Locale::Rw)),
    ("siba amakuru yanjye", Keyword::ForgetMe, Some(Locale::Rw)),
    ("nisahau", Keyword::ForgetMe, Some(Locale::Sw)),
    ("nisahauni", Keyword::ForgetMe, Some(Locale::Sw)),
    ("futa data yangu", Keyword::ForgetMe, Some(Locale::Sw)),
    ("futa taarifa zangu", Keyword::ForgetMe, Some(Locale::Sw)),
    ("erase all", Keyword::ForgetConfirm, Some(Locale::En)),
    ("effacer tout", Keyword::ForgetConfirm, Some(Locale::Fr)),
    ("siba byose", Keyword::ForgetConfirm, Some(Locale::Rw)),
    ("futa yote", Keyword::ForgetConfirm, Some(Locale::Sw)),
    ("my data", Keyword::MyData, Some(Locale::En)),
    ("mes donnees", Keyword::MyData, Some(Locale::Fr)),
    ("amakuru yanjye", Keyword::MyData, Some(Locale::Rw)),
    ("data yangu", Keyword::MyData, Some(Locale::Sw)),
    ("taarifa zangu", Keyword::MyData, Some(Locale::Sw)),
];

/// The fixed answer, one GSM-7 segment; STOP and START are for the channel they came on.
///
/// `contact` is a phone number people can call, named in the answer to HELP; `held` is `{messages, calls, notes}`, how much there
/// is of the person, for the answer to MY DATA.
pub fn reply(
    keyword: Keyword,
    channel: Channel,
    locale: Locale,
    brand: &str,
    contact: Option<&str>,
    held: &Value,
) -> SmsText {
    let whatsapp = channel == Channel::Whatsapp;
    let mut text = String::with_capacity(160);
    text.push_str(crate::json::clip(brand, 20));
    text.push_str(": ");
    text.push_str(match (keyword, locale) {
        (Keyword::Stop, Locale::En) if whatsapp => "You will get no more WhatsApp messages from us. Send START to resume.",
        (Keyword::Stop, Locale::En) => "You will get no more SMS from us. Send START to resume.",
        (Keyword::Stop, Locale::Fr) if whatsapp => "Vous ne recevrez plus nos messages WhatsApp. Envoyez START pour reprendre.",
        (Keyword::Stop, Locale::Fr) => "Vous ne recevrez plus nos SMS. Envoyez START pour reprendre.",
        (Keyword::Stop, Locale::Rw) if whatsapp => "Ntabwo uzongera kwakira ubutumwa bwacu bwa WhatsApp. Ohereza START kugira ngo wongere.",
        (Keyword::Stop, Locale::Rw) => "Ntabwo uzongera kwakira SMS zacu. Ohereza START kugira ngo wongere.",
        (Keyword::Stop, Locale::Sw) if whatsapp => "Hutapokea ujumbe wetu wa WhatsApp tena. Tuma START kuanza tena.",
        (Keyword::Stop, Locale::Sw) => "Hutapokea SMS zetu tena. Tuma START kuanza tena.",
        (Keyword::Start, Locale::En) if whatsapp => "You will get our WhatsApp messages again. Send STOP at any time to end them.",
        (Keyword::Start, Locale::En) => "You will get our SMS again. Send STOP at any time to end them.",
        (Keyword::Start, Locale::Fr) if whatsapp => "Vous recevrez de nouveau nos messages WhatsApp. Envoyez STOP pour ne plus en recevoir.",
        (Keyword::Start, Locale::Fr) => "Vous recevrez de nouveau nos SMS. Envoyez STOP pour ne plus en recevoir.",
        (Keyword::Start, Locale::Rw) if whatsapp => "Uzongera kwakira ubutumwa bwacu bwa WhatsApp. Ohereza STOP igihe ushaka ko buhagarara.",
        (Keyword::Start, Locale::Rw) => "Uzongera kwakira SMS zacu. Ohereza STOP igihe ushaka ko zihagarara.",
        (Keyword::Start, Locale::Sw) if whatsapp => "Utapokea ujumbe wetu wa WhatsApp tena. Tuma STOP wakati wowote kuuacha.",
        (Keyword::Start, Locale::Sw) => "Utapokea SMS zetu tena. Tuma STOP wakati wowote kuziacha.",
        (Keyword::Help, Locale::En) if whatsapp => "We text you after your calls and answer your questions. Send STOP to end our WhatsApp messages.",
        (Keyword::Help, Locale::En) => "We text you after your calls and answer your questions. Send STOP to end our SMS.",
        (Keyword::Help, Locale::Fr) if whatsapp => "Nous vous écrivons après vos appels et répondons à vos questions. Envoyez STOP pour ne plus recevoir de messages.",
        (Keyword::Help, Locale::Fr) => {
            "Nous vous écrivons après vos appels et répondons à vos questions. Envoyez STOP pour ne plus recevoir de SMS."
        }
        (Keyword::Help, Locale::Rw) if whatsapp => "Tukwandikira nyuma yo guhamagara kandi dusubiza ibibazo byawe. Ohereza STOP niba utagishaka ubutumwa bwacu.",
        (Keyword::Help, Locale::Rw) => {
            "Tukwandikira nyuma yo guhamagara kandi dusubiza ibibazo byawe. Ohereza STOP niba utagishaka SMS zacu."
        }
        (Keyword::Help, Locale::Sw) if whatsapp => "Tunakuandikia baada ya simu yako na kujibu maswali yako. Tuma STOP ili usipokee ujumbe wetu tena.",
        (Keyword::Help, Locale::Sw) => {
            "Tunakuandikia baada ya simu yako na kujibu maswali yako. Tuma STOP ili usipokee SMS zetu tena."
        }
        (Keyword::SmsOnly, Locale::En) => "From now on we write to you by SMS only. Send BOTH for WhatsApp as well.",
        (Keyword::SmsOnly, Locale::Fr) => {
            "Désormais nous vous écrivons seulement par SMS. Envoyez LES DEUX pour WhatsApp aussi."
        }
        (Keyword::SmsOnly, Locale::Rw) => {
            "Guhera ubu tuzajya tukwandikira kuri SMS gusa. Ohereza BYOMBI niba ushaka na WhatsApp."
        }
        (Keyword::SmsOnly, Locale::Sw) => {
            "Kuanzia sasa tutakuandikia kwa SMS tu. Tuma ZOTE MBILI ukitaka WhatsApp pia."
        }
        (Keyword::WhatsappOnly, Locale::En) => {
            "From now on we write to you on WhatsApp, by SMS only where it cannot. Send BOTH for SMS as well."
        }
        (Keyword::WhatsappOnly, Locale::Fr) => {
            "Désormais nous vous écrivons sur WhatsApp, par SMS seulement à défaut. Envoyez LES DEUX pour les SMS aussi."
        }
        (Keyword::WhatsappOnly, Locale::Rw) => {
            "Guhera ubu tuzajya tukwandikira kuri WhatsApp, kuri SMS niba bidashobotse. Ohereza BYOMBI niba ushaka na SMS."
        }
        (Keyword::WhatsappOnly, Locale::Sw) => {
            "Kuanzia sasa tutakuandikia WhatsApp, kwa SMS tu ikishindikana. Tuma ZOTE MBILI ukitaka SMS pia."
        }
        (Keyword::Both, Locale::En) => {
            "From now on we write to you by SMS and on WhatsApp. Send SMS ONLY or WHATSAPP ONLY to choose one."
        }
        (Keyword::Both, Locale::Fr) => {
            "Désormais nous vous écrivons par SMS et sur WhatsApp. Envoyez SMS SEULEMENT ou WHATSAPP SEULEMENT pour choisir."
        }
        (Keyword::Both, Locale::Rw) => {
            "Guhera ubu tuzajya tukwandikira kuri SMS no kuri WhatsApp. Ohereza SMS GUSA cyangwa WHATSAPP GUSA uhitemo."
        }
        (Keyword::Both, Locale::Sw) => {
            "Kuanzia sasa tutakuandikia kwa SMS na WhatsApp. Tuma SMS TU au WHATSAPP TU kuchagua moja."
        }
        (Keyword::ForgetMe, Locale::En) => {
            "To delete for good all we know about you, send ERASE ALL within 24 hours. To keep it, do nothing."
        }
        (Keyword::ForgetMe, Locale::Fr) => {
            "Pour effacer à jamais tout ce que nous savons de vous, envoyez EFFACER TOUT dans les 24 heures. Sinon, ne faites rien."
        }
        (Keyword::ForgetMe, Locale::Rw) => {
            "Niba ushaka ko dusiba burundu ibyo tukuziho byose, ohereza SIBA BYOSE mu masaha 24. Nutabikora, bizagumaho."
        }
        (Keyword::ForgetMe, Locale::Sw) => {
            "Kufuta kabisa yote tunayojua kukuhusu, tuma FUTA YOTE ndani ya saa 24. Usipotuma, yatabaki."
        }
        (Keyword::ForgetConfirm, Locale::En) => {
            "Done: all we know about you is being deleted now, for good. This is our last message."
        }
        (Keyword::ForgetConfirm, Locale::Fr) => {
            "C'est fait : tout ce que nous savons de vous est effacé à l'instant, à jamais. C'est notre dernier message."
        }
        (Keyword::ForgetConfirm, Locale::Rw) => {
            "Byakozwe: ibyo tukuziho byose birimo gusibwa burundu. Ubu ni bwo butumwa bwacu bwa nyuma."
        }
        (Keyword::ForgetConfirm, Locale::Sw) => {
            "Tayari: yote tunayojua kukuhusu yanafutwa sasa kabisa. Huu ni ujumbe wetu wa mwisho."
        }
        (Keyword::MyData, Locale::En) => {
            "We hold {m} messages, {c} calls and {n} notes of you. Within 30 days we contact you to give you a copy."
        }
        (Keyword::MyData, Locale::Fr) => {
            "Nous avons de vous {m} messages, {c} appels et {n} notes. Sous 30 jours, nous vous contactons pour vous en donner copie."
        }
        (Keyword::MyData, Locale::Rw) => {
            "Tukubitseho ubutumwa {m}, telefone {c} n'inyandiko {n}. Mu minsi 30 tuzakuvugisha tuguhe kopi yabyo."
        }
        (Keyword::MyData, Locale::Sw) => {
            "Tuna ujumbe {m}, simu {c} na kumbukumbu {n} kukuhusu. Ndani ya siku 30 tutawasiliana nawe kukupa nakala."
        }
    });
    if keyword == Keyword::MyData {
        for (place, name) in [("{m}", "messages"), ("{c}", "calls"), ("{n}", "notes")] {
            text = text.replace(place, &crate::json::u32_at(held, name).unwrap_or(0).to_string());
        }
    }
    if let (Keyword::Help, Some(contact)) = (keyword, contact.filter(|contact| contact.len() <= 20)) {
        text.push_str(match locale {
            Locale::En => " Call: ",
            Locale::Fr => " Tél. : ",
            Locale::Rw => " Hamagara: ",
            Locale::Sw => " Piga: ",
        });
        text.push_str(contact);
    }
    sms::prepare_gsm7(&text, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sms::Encoding;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn the_phrases_of_people_are_understood() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/keywords.json")).unwrap();
        for vector in vectors["cases"].as_array().unwrap() {
            let found = detect(vector["text"].as_str().unwrap());
            assert_eq!(found.map(|found| found.keyword.as_str()), vector["keyword"].as_str(), "{vector}");
            let may_answer = vector.get("may_answer").is_some();
            assert_eq!(found.is_some_and(|found| found.may_answer), may_answer, "{vector}");
        }
    }

    #[test]
    fn a_letter_too_many_tells_no_two_keywords_from_each_other() {
        for (word, keyword, _) in WORDS {
            let alike = WORDS.iter().find(|(other, _, _)| once_each(other).eq(once_each(word)));
            assert_eq!(alike.map(|(other, found, _)| (*other, *found)), Some((*word, *keyword)));
        }
    }

    #[test]
    fn a_word_tells_its_language() {
        let locale = |text| detect(text).unwrap().locale;
        assert_eq!(locale("ARRÊT"), Some(Locale::Fr));
        assert_eq!(locale("hagarika"), Some(Locale::Rw));
        assert_eq!(locale("STOP"), None);
    }

    #[test]
    fn answers_are_one_cheap_segment_each() {
        let mut all = String::new();
        let held = serde_json::json!({"messages": 12_345, "calls": 678, "notes": 90});
        for channel in [Channel::Sms, Channel::Whatsapp] {
            for keyword in ALL {
                for locale in crate::locale::ALL {
                    let answer = reply(keyword, channel, locale, "EasyMO", Some("+250788000000"), &held);
                    assert_eq!(
                        (answer.encoding, answer.segments, answer.shortened),
                        (Encoding::Gsm7, 1, false),
                        "{answer:?}"
                    );
                    all.extend([answer.text.as_str(), "\n"]);
                }
            }
        }
        expect![[r#"
            EasyMO: You will get no more SMS from us. Send START to resume.
            EasyMO: Vous ne recevrez plus nos SMS. Envoyez START pour reprendre.
            EasyMO: Ntabwo uzongera kwakira SMS zacu. Ohereza START kugira ngo wongere.
            EasyMO: Hutapokea SMS zetu tena. Tuma START kuanza tena.
            EasyMO: You will get our SMS again. Send STOP at any time to end them.
            EasyMO: Vous recevrez de nouveau nos SMS. Envoyez STOP pour ne plus en recevoir.
            EasyMO: Uzongera kwakira SMS zacu. Ohereza STOP igihe ushaka ko zihagarara.
            EasyMO: Utapokea SMS zetu tena. Tuma STOP wakati wowote kuziacha.
            EasyMO: We text you after your calls and answer your questions. Send STOP to end our SMS. Call: +250788000000
            EasyMO: Nous vous écrivons après vos appels et répondons à vos questions. Envoyez STOP pour ne plus recevoir de SMS. Tél. : +250788000000
            EasyMO: Tukwandikira nyuma yo guhamagara kandi dusubiza ibibazo byawe. Ohereza STOP niba utagishaka SMS zacu. Hamagara: +250788000000
            EasyMO: Tunakuandikia baada ya simu yako na kujibu maswali yako. Tuma STOP ili usipokee SMS zetu tena. Piga: +250788000000
            EasyMO: From now on we write to you by SMS only. Send BOTH for WhatsApp as well.
            EasyMO: Désormais nous vous écrivons seulement par SMS. Envoyez LES DEUX pour WhatsApp aussi.
            EasyMO: Guhera ubu tuzajya tukwandikira kuri SMS gusa. Ohereza BYOMBI niba ushaka na WhatsApp.
            EasyMO: Kuanzia sasa tutakuandikia kwa SMS tu. Tuma ZOTE MBILI ukitaka WhatsApp pia.
            EasyMO: From now on we write to you on WhatsApp, by SMS only where it cannot. Send BOTH for SMS as well.
            EasyMO: Désormais nous vous écrivons sur WhatsApp, par SMS seulement à défaut. Envoyez LES DEUX pour les SMS aussi.
            EasyMO: Guhera ubu tuzajya tukwandikira kuri WhatsApp, kuri SMS niba bidashobotse. Ohereza BYOMBI niba ushaka na SMS.
            EasyMO: Kuanzia sasa tutakuandikia WhatsApp, kwa SMS tu ikishindikana. Tuma ZOTE MBILI ukitaka SMS pia.
            EasyMO: From now on we write to you by SMS and on WhatsApp. Send SMS ONLY or WHATSAPP ONLY to choose one.
            EasyMO: Désormais nous vous écrivons par SMS et sur WhatsApp. Envoyez SMS SEULEMENT ou WHATSAPP SEULEMENT pour choisir.
            EasyMO: Guhera ubu tuzajya tukwandikira kuri SMS no kuri WhatsApp. Ohereza SMS GUSA cyangwa WHATSAPP GUSA uhitemo.
            EasyMO: Kuanzia sasa tutakuandikia kwa SMS na WhatsApp. Tuma SMS TU au WHATSAPP TU kuchagua moja.
            EasyMO: To delete for good all we know about you, send ERASE ALL within 24 hours. To keep it, do nothing.
            EasyMO: Pour effacer à jamais tout ce que nous savons de vous, envoyez EFFACER TOUT dans les 24 heures. Sinon, ne faites rien.
            EasyMO: Niba ushaka ko dusiba burundu ibyo tukuziho byose, ohereza SIBA BYOSE mu masaha 24. Nutabikora, bizagumaho.
            EasyMO: Kufuta kabisa yote tunayojua kukuhusu, tuma FUTA YOTE ndani ya saa 24. Usipotuma, yatabaki.
            EasyMO: Done: all we know about you is being deleted now, for good. This is our last message.
            EasyMO: C'est fait : tout ce que nous savons de vous est effacé à l'instant, à jamais. C'est notre dernier message.
            EasyMO: Byakozwe: ibyo tukuziho byose birimo gusibwa burundu. Ubu ni bwo butumwa bwacu bwa nyuma.
            EasyMO: Tayari: yote tunayojua kukuhusu yanafutwa sasa kabisa. Huu ni ujumbe wetu wa mwisho.
            EasyMO: We hold 12345 messages, 678 calls and 90 notes of you. Within 30 days we contact you to give you a copy.
            EasyMO: Nous avons de vous 12345 messages, 678 appels et 90 notes. Sous 30 jours, nous vous contactons pour vous en donner copie.
            EasyMO: Tukubitseho ubutumwa 12345, telefone 678 n'inyandiko 90. Mu minsi 30 tuzakuvugisha tuguhe kopi yabyo.
            EasyMO: Tuna ujumbe 12345, simu 678 na kumbukumbu 90 kukuhusu. Ndani ya siku 30 tutawasiliana nawe kukupa nakala.
            EasyMO: You will get no more WhatsApp messages from us. Send START to resume.
            EasyMO: Vous ne recevrez plus nos messages WhatsApp. Envoyez START pour reprendre.
            EasyMO: Ntabwo uzongera kwakira ubutumwa bwacu bwa WhatsApp. Ohereza START kugira ngo wongere.
            EasyMO: Hutapokea ujumbe wetu wa WhatsApp tena. Tuma START kuanza tena.
            EasyMO: You will get our WhatsApp messages again. Send STOP at any time to end them.
            EasyMO: Vous recevrez de nouveau nos messages WhatsApp. Envoyez STOP pour ne plus en recevoir.
            EasyMO: Uzongera kwakira ubutumwa bwacu bwa WhatsApp. Ohereza STOP igihe ushaka ko buhagarara.
            EasyMO: Utapokea ujumbe wetu wa WhatsApp tena. Tuma STOP wakati wowote kuuacha.
            EasyMO: We text you after your calls and answer your questions. Send STOP to end our WhatsApp messages. Call: +250788000000
            EasyMO: Nous vous écrivons après vos appels et répondons à vos questions. Envoyez STOP pour ne plus recevoir de messages. Tél. : +250788000000
            EasyMO: Tukwandikira nyuma yo guhamagara kandi dusubiza ibibazo byawe. Ohereza STOP niba utagishaka ubutumwa bwacu. Hamagara: +250788000000
            EasyMO: Tunakuandikia baada ya simu yako na kujibu maswali yako. Tuma STOP ili usipokee ujumbe wetu tena. Piga: +250788000000
            EasyMO: From now on we write to you by SMS only. Send BOTH for WhatsApp as well.
            EasyMO: Désormais nous vous écrivons seulement par SMS. Envoyez LES DEUX pour WhatsApp aussi.
            EasyMO: Guhera ubu tuzajya tukwandikira kuri SMS gusa. Ohereza BYOMBI niba ushaka na WhatsApp.
            EasyMO: Kuanzia sasa tutakuandikia kwa SMS tu. Tuma ZOTE MBILI ukitaka WhatsApp pia.
            EasyMO: From now on we write to you on WhatsApp, by SMS only where it cannot. Send BOTH for SMS as well.
            EasyMO: Désormais nous vous écrivons sur WhatsApp, par SMS seulement à défaut. Envoyez LES DEUX pour les SMS aussi.
            EasyMO: Guhera ubu tuzajya tukwandikira kuri WhatsApp, kuri SMS niba bidashobotse. Ohereza BYOMBI niba ushaka na SMS.
            EasyMO: Kuanzia sasa tutakuandikia WhatsApp, kwa SMS tu ikishindikana. Tuma ZOTE MBILI ukitaka SMS pia.
            EasyMO: From now on we write to you by SMS and on WhatsApp. Send SMS ONLY or WHATSAPP ONLY to choose one.
            EasyMO: Désormais nous vous écrivons par SMS et sur WhatsApp. Envoyez SMS SEULEMENT ou WHATSAPP SEULEMENT pour choisir.
            EasyMO: Guhera ubu tuzajya tukwandikira kuri SMS no kuri WhatsApp. Ohereza SMS GUSA cyangwa WHATSAPP GUSA uhitemo.
            EasyMO: Kuanzia sasa tutakuandikia kwa SMS na WhatsApp. Tuma SMS TU au WHATSAPP TU kuchagua moja.
            EasyMO: To delete for good all we know about you, send ERASE ALL within 24 hours. To keep it, do nothing.
            EasyMO: Pour effacer à jamais tout ce que nous savons de vous, envoyez EFFACER TOUT dans les 24 heures. Sinon, ne faites rien.
            EasyMO: Niba ushaka ko dusiba burundu ibyo tukuziho byose, ohereza SIBA BYOSE mu masaha 24. Nutabikora, bizagumaho.
            EasyMO: Kufuta kabisa yote tunayojua kukuhusu, tuma FUTA YOTE ndani ya saa 24. Usipotuma, yatabaki.
            EasyMO: Done: all we know about you is being deleted now, for good. This is our last message.
            EasyMO: C'est fait : tout ce que nous savons de vous est effacé à l'instant, à jamais. C'est notre dernier message.
            EasyMO: Byakozwe: ibyo tukuziho byose birimo gusibwa burundu. Ubu ni bwo butumwa bwacu bwa nyuma.
            EasyMO: Tayari: yote tunayojua kukuhusu yanafutwa sasa kabisa. Huu ni ujumbe wetu wa mwisho.
            EasyMO: We hold 12345 messages, 678 calls and 90 notes of you. Within 30 days we contact you to give you a copy.
            EasyMO: Nous avons de vous 12345 messages, 678 appels et 90 notes. Sous 30 jours, nous vous contactons pour vous en donner copie.
            EasyMO: Tukubitseho ubutumwa 12345, telefone 678 n'inyandiko 90. Mu minsi 30 tuzakuvugisha tuguhe kopi yabyo.
            EasyMO: Tuna ujumbe 12345, simu 678 na kumbukumbu 90 kukuhusu. Ndani ya siku 30 tutawasiliana nawe kukupa nakala.
        "#]].assert_eq(&all);
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = detect(&text);
        }

        #[test]
        fn a_longer_sentence_is_no_keyword(word in "(stop|help|start|hagarika)", tail in "[b-d]{2,9} [b-d]{2,9}") {
            prop_assert_eq!(detect(&format!("{word} {tail}")), None);
        }

        #[test]
        fn answers_stay_one_segment_for_any_brand(brand in "\\PC{0,40}", contact in "\\PC{0,30}") {
            for locale in crate::locale::ALL {
                let answer = reply(Keyword::Help, Channel::Sms, locale, &brand, Some(&contact), &Value::Null);
                prop_assert!(answer.segments == 1 && answer.encoding == Encoding::Gsm7);
            }
        }
    }
}
