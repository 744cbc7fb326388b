//! What can be said of a call without a model: that it was, when, and that nobody of us heard it.

use chrono::{DateTime, Utc};

use crate::json::clip;
use crate::local_format;
use crate::locale::Locale;
use crate::summary::{CallSummary, slug};

/// What is known of a call without a model.
#[derive(Debug, Clone, Copy)]
pub struct CallFacts<'a> {
    /// The language to write in.
    pub language: Locale,
    /// Who writes.
    pub brand: &'a str,
    /// When the call began.
    pub started_at: Option<DateTime<Utc>>,
    /// How long it lasted.
    pub duration_seconds: Option<u32>,
    /// A short name of what the person wanted, if a tool recorded one.
    pub intent: Option<&'a str>,
    /// Whether we called the person.
    pub is_ours: bool,
    /// What happened to it.
    pub heard: Heard,
}

/// Whether anybody of us was on the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Our agent spoke with the person.
    ByAgent,
    /// It was picked up, but what was said was not noted.
    NotNoted,
    /// Nobody picked it up.
    Missed,
}

impl Heard {
    /// From `voice_calls.origin` and `status`. Over WhatsApp nobody of ours takes part yet: a person may have picked the call
    /// up on a telephone of the business.
    pub fn of(origin: Option<&str>, status: Option<&str>, has_transcript: bool) -> Heard {
        match (origin, status) {
            (_, Some("no_answer" | "busy" | "canceled" | "failed")) => Heard::Missed,
            (Some("whatsapp"), _) if !has_transcript => Heard::NotNoted,
            _ => Heard::ByAgent,
        }
    }
}

impl CallFacts<'_> {
    /// The plain summary for when there is no transcript or no model: true, short, and without a claim about the content.
    pub fn summary(&self) -> CallSummary {
        let mut points = Vec::new();
        points.extend(self.when());
        if self.heard == Heard::NotNoted {
            points.push(String::from(match self.language {
                Locale::En => "We could not note what was said",
                Locale::Fr => "Nous n'avons pas pu noter ce qui a été dit",
                Locale::Rw => "Ntitwabashije kwandika ibyavuzwe",
                Locale::Sw => "Hatukuweza kuandika yaliyosemwa",
            }));
        }
        let next_step = (self.heard != Heard::ByAgent).then(|| {
            String::from(match self.language {
                Locale::En => "Tell us here what you need",
                Locale::Fr => "Écrivez-nous ici ce qu'il vous faut",
                Locale::Rw => "Mutwandikire hano icyo mukeneye",
                Locale::Sw => "Tuandikie hapa unachohitaji",
            })
        });
        CallSummary {
            language: self.language,
            headline: self.headline(),
            points,
            next_step,
            intent: self.intent.and_then(slug),
        }
    }

    fn headline(&self) -> String {
        let thanks = match (self.heard, self.is_ours, self.language) {
            (Heard::Missed, false, Locale::En) => return "Sorry, we missed your call".into(),
            (Heard::Missed, false, Locale::Fr) => return "Désolé, nous avons manqué votre appel".into(),
            (Heard::Missed, false, Locale::Rw) => return "Mwihangane, ntitwabashije kwitaba".into(),
            (Heard::Missed, false, Locale::Sw) => return "Samahani, hatukuweza kupokea simu yako".into(),
            (Heard::Missed, true, Locale::En) => return "We tried to call you".into(),
            (Heard::Missed, true, Locale::Fr) => return "Nous avons essayé de vous appeler".into(),
            (Heard::Missed, true, Locale::Rw) => return "Twagerageje kubahamagara".into(),
            (Heard::Missed, true, Locale::Sw) => return "Tulijaribu kukupigia simu".into(),
            (_, false, Locale::En) => "Thank you for calling ",
            (_, false, Locale::Fr) => "Merci d'avoir appelé ",
            (_, false, Locale::Rw) => "Murakoze guhamagara ",
            (_, false, Locale::Sw) => "Asante kwa kupiga simu ",
            (_, true, Locale::En) => "Thank you for talking with ",
            (_, true, Locale::Fr) => "Merci d'avoir parlé avec ",
            (_, true, Locale::Rw) => "Murakoze kuganira na ",
            (_, true, Locale::Sw) => "Asante kwa kuzungumza na ",
        };
        [thanks, clip(self.brand, 20)].concat()
    }

    fn when(&self) -> Option<String> {
        let at = self.started_at?;
        let call = match (self.is_ours, self.language) {
            (false, Locale::En) => "Your call of ",
            (false, Locale::Fr) => "Votre appel du ",
            (false, Locale::Rw) => "Wahamagaye ku wa ",
            (false, Locale::Sw) => "Simu yako ya ",
            (true, Locale::En) => "Our call of ",
            (true, Locale::Fr) => "Notre appel du ",
            (true, Locale::Rw) => "Twahamagaye ku wa ",
            (true, Locale::Sw) => "Simu yetu ya ",
        };
        let mut point = [call, &local_format::moment(self.language, at)].concat();
        if let Some(seconds) = self.duration_seconds.filter(|seconds| *seconds > 0) {
            point.extend([" (", &seconds.div_ceil(60).to_string(), " min)"]);
        }
        Some(point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::{ReplyPath, sms_text};
    use expect_test::expect;

    fn facts(language: Locale, is_ours: bool, heard: Heard) -> CallFacts<'static> {
        let started_at = DateTime::from_timestamp(1_795_226_400, 0);
        CallFacts { language, brand: "EasyMO", started_at, duration_seconds: None, intent: None, is_ours, heard }
    }

    #[test]
    fn without_a_model_the_plain_facts_are_sent() {
        let mut all = String::new();
        for language in crate::locale::ALL {
            let known = facts(language, false, Heard::ByAgent);
            let summary = CallFacts { duration_seconds: Some(185), intent: Some("House search"), ..known }.summary();
            assert_eq!(summary.intent.as_deref(), Some("house_search"));
            all.push_str(&sms_text(&summary, "EasyMO", &ReplyPath::Direct, 2).text);
            all.push_str("\n\n");
        }
        expect![[r#"
            EasyMO summary:
            1) Thank you for calling EasyMO
            2) Your call of 21/11/2026 at 04:00 (4 min)
            Reply to continue

            Résumé EasyMO :
            1) Merci d'avoir appelé EasyMO
            2) Votre appel du 21/11/2026 à 04:00 (4 min)
            Répondez pour continuer

            Incamake ya EasyMO:
            1) Murakoze guhamagara EasyMO
            2) Wahamagaye ku wa 21/11/2026, 04:00 (4 min)
            Subiza kugira ngo dukomeze

            Muhtasari wa EasyMO:
            1) Asante kwa kupiga simu EasyMO
            2) Simu yako ya 21/11/2026, 04:00 (4 min)
            Jibu ili tuendelee

        "#]]
        .assert_eq(&all);
        let bare = CallFacts { started_at: None, ..facts(Locale::En, false, Heard::ByAgent) };
        assert_eq!(bare.summary().points, Vec::<String>::new());
    }

    #[test]
    fn a_call_that_nobody_took_or_noted_is_said_to_be_so_and_goes_on_by_text() {
        let mut all = String::new();
        for heard in [Heard::Missed, Heard::NotNoted] {
            for language in crate::locale::ALL {
                let sms = sms_text(&facts(language, false, heard).summary(), "EasyMO", &ReplyPath::Direct, 2);
                assert!(sms.segments <= 2 && !sms.shortened, "{sms:?}");
                all.extend([&sms.text, "\n\n"]);
            }
        }
        expect![[r#"
            EasyMO summary:
            1) Sorry, we missed your call
            2) Your call of 21/11/2026 at 04:00
            3) Tell us here what you need
            Reply to continue

            Résumé EasyMO :
            1) Désolé, nous avons manqué votre appel
            2) Votre appel du 21/11/2026 à 04:00
            3) Écrivez-nous ici ce qu'il vous faut
            Répondez pour continuer

            Incamake ya EasyMO:
            1) Mwihangane, ntitwabashije kwitaba
            2) Wahamagaye ku wa 21/11/2026, 04:00
            3) Mutwandikire hano icyo mukeneye
            Subiza kugira ngo dukomeze

            Muhtasari wa EasyMO:
            1) Samahani, hatukuweza kupokea simu yako
            2) Simu yako ya 21/11/2026, 04:00
            3) Tuandikie hapa unachohitaji
            Jibu ili tuendelee

            EasyMO summary:
            1) Thank you for calling EasyMO
            2) Your call of 21/11/2026 at 04:00
            3) We could not note what was said
            4) Tell us here what you need
            Reply to continue

            Résumé EasyMO :
            1) Merci d'avoir appelé EasyMO
            2) Votre appel du 21/11/2026 à 04:00
            3) Nous n'avons pas pu noter ce qui a été dit
            4) Écrivez-nous ici ce qu'il vous faut
            Répondez pour continuer

            Incamake ya EasyMO:
            1) Murakoze guhamagara EasyMO
            2) Wahamagaye ku wa 21/11/2026, 04:00
            3) Ntitwabashije kwandika ibyavuzwe
            4) Mutwandikire hano icyo mukeneye
            Subiza kugira ngo dukomeze

            Muhtasari wa EasyMO:
            1) Asante kwa kupiga simu EasyMO
            2) Simu yako ya 21/11/2026, 04:00
            3) Hatukuweza kuandika yaliyosemwa
            4) Tuandikie hapa unachohitaji
            Jibu ili tuendelee

        "#]]
        .assert_eq(&all);
    }

    #[test]
    fn a_call_of_ours_is_not_called_theirs() {
        let mut all = String::new();
        for heard in [Heard::ByAgent, Heard::Missed] {
            for language in crate::locale::ALL {
                let said = facts(language, true, heard).summary();
                all.extend([&*said.headline, "; ", &said.points.join("; "), "\n"]);
            }
        }
        expect![[r#"
            Thank you for talking with EasyMO; Our call of 21/11/2026 at 04:00
            Merci d'avoir parlé avec EasyMO; Notre appel du 21/11/2026 à 04:00
            Murakoze kuganira na EasyMO; Twahamagaye ku wa 21/11/2026, 04:00
            Asante kwa kuzungumza na EasyMO; Simu yetu ya 21/11/2026, 04:00
            We tried to call you; Our call of 21/11/2026 at 04:00
            Nous avons essayé de vous appeler; Notre appel du 21/11/2026 à 04:00
            Twagerageje kubahamagara; Twahamagaye ku wa 21/11/2026, 04:00
            Tulijaribu kukupigia simu; Simu yetu ya 21/11/2026, 04:00
        "#]]
        .assert_eq(&all);
    }

    #[test]
    fn who_heard_a_call_is_told_by_its_row() {
        assert_eq!(Heard::of(Some("pstn"), Some("no_answer"), false), Heard::Missed);
        assert_eq!(Heard::of(Some("whatsapp"), Some("failed"), true), Heard::Missed);
        assert_eq!(Heard::of(Some("whatsapp"), Some("completed"), false), Heard::NotNoted);
        assert_eq!(Heard::of(Some("whatsapp"), Some("completed"), true), Heard::ByAgent);
        assert_eq!(Heard::of(None, None, false), Heard::ByAgent);
    }
}
