//! The settings of one function, read once an isolate: a Worker's variables and secrets never change within one.

use std::{cell::OnceCell, rc::Rc};

use ihuza_core::openai;
use worker::Env;

use crate::{
    settings::{Need, SETTINGS, Setting},
    shell,
};

/// Values of [`SETTINGS`], defaults filled in. Absent and empty are the same thing.
#[derive(Default)]
pub struct Config {
    values: Vec<Option<String>>,
}

thread_local! {
    static CONFIG: OnceCell<Rc<Config>> = const { OnceCell::new() };
}

impl Config {
    /// The isolate's configuration, of the one function that it runs; the first call reads it.
    pub fn of(env: &Env, function: &str) -> Rc<Config> {
        CONFIG.with(|cell| {
            cell.get_or_init(|| {
                let names: Vec<&str> = SETTINGS.iter().flat_map(|s| [s.name].into_iter().chain(s.alias)).collect();
                let values = shell::variables(env, &names.join("\n"));
                let values: Vec<&str> = values.split('\0').collect();
                let lookup = |name: &str| {
                    let at = names.iter().position(|known| *known == name)?;
                    values.get(at).map(|value| (*value).to_owned())
                };
                Rc::new(Config::read(function, lookup))
            })
            .clone()
        })
    }

    /// Reads through `lookup` what the table says that `function` reads. Nothing else is found later, so that the table
    /// cannot lack a reader and a deployment cannot lack a secret without a test that notices.
    pub fn read(function: &str, lookup: impl Fn(&str) -> Option<String>) -> Config {
        let present = |name: &str| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let values = SETTINGS
            .iter()
            .map(|s| {
                if !s.is_read_by(function) {
                    return None;
                }
                present(s.name)
                    .or_else(|| s.alias.and_then(present))
                    .or_else(|| s.default.filter(|d| !d.is_empty()).map(str::to_owned))
            })
            .collect();
        Config { values }
    }

    /// The value of a setting, or `None` when it is absent and has no default.
    pub fn find(&self, name: &str) -> Option<&str> {
        let index = SETTINGS.iter().position(|s| s.name == name);
        debug_assert!(index.is_some(), "{name} is not in SETTINGS");
        self.values.get(index?)?.as_deref()
    }

    /// The value of a setting, or empty.
    pub fn text(&self, name: &str) -> &str {
        self.find(name).unwrap_or_default()
    }

    /// A whole number; a value that is none counts as its default, and as 0 where that is none either.
    pub fn number(&self, name: &str) -> u32 {
        let default = || SETTINGS.iter().find(|s| s.name == name).and_then(|s| s.default?.parse().ok());
        self.find(name).and_then(|v| v.parse().ok()).or_else(default).unwrap_or_default()
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1" | "yes" | "on")
    }

    /// The longest that one piece of work takes by its time limits, when nothing has to be asked twice: a summary, or an answer with every round of tools; then
    /// the carrier, whose token may be withdrawn once, twice over, since every message may have to wait for a connection; then
    /// the record.
    pub fn longest_work_ms(&self) -> u32 {
        let model = self.number("MODEL_TIMEOUT_MS").saturating_add(self.number("DATABASE_TIMEOUT_MS"));
        let answer = model.saturating_mul(openai::MAX_ROUNDS).saturating_add(self.number("BURST_WAIT_MS"));
        let carrier = self.number("PROVIDER_TIMEOUT_MS").saturating_mul(2 * 4);
        let record = self.number("DATABASE_TIMEOUT_MS");
        self.number("SUMMARY_TIMEOUT_MS").max(answer).saturating_add(carrier).saturating_add(record)
    }

    /// Whether a claim outlives the work that it is for; else a second consumer would begin beside the first.
    pub fn lease_outlives_work(&self) -> bool {
        self.number("LEASE_SECONDS").saturating_mul(1000) > self.longest_work_ms()
    }

    /// The secrets that are set among `names`: the present one and, during a rotation, the previous one.
    pub fn secrets<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        names.iter().filter_map(|name| self.find(name)).collect()
    }

    /// Settings that `function` needs and has not got. Of the WhatsApp account all are needed as soon as one is there.
    pub fn missing(&self, function: &str) -> Vec<&'static str> {
        let needed = |s: &Setting| match s.need {
            Need::Required => true,
            Need::WhatsappAccount => !self.whatsapp_is_off(function),
            Need::Optional => false,
        };
        SETTINGS
            .iter()
            .filter(|s| s.is_read_by(function) && self.find(s.name).is_none() && needed(s))
            .map(|s| s.name)
            .collect()
    }

    /// Whether all is there that `function` needs of the account whose settings begin with `prefix`; none where it has
    /// nothing to do with that account.
    pub fn account(&self, function: &str, prefix: &str) -> Option<bool> {
        let mut needed = SETTINGS
            .iter()
            .filter(|s| s.need != Need::Optional && s.name.starts_with(prefix) && s.is_read_by(function))
            .peekable();
        needed.peek()?;
        Some(needed.all(|s| self.find(s.name).is_some()))
    }

    /// No setting of the WhatsApp account is there, of those that `function` reads: SMS alone. False for a function that
    /// has nothing to do with WhatsApp.
    pub fn whatsapp_is_off(&self, function: &str) -> bool {
        let mut account =
            SETTINGS.iter().filter(|s| s.need == Need::WhatsappAccount && s.is_read_by(function)).peekable();
        account.peek().is_some() && account.all(|s| self.find(s.name).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(function: &str, pairs: &'static [(&str, &str)]) -> Config {
        Config::read(function, |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn an_alias_serves_where_the_name_is_absent_and_blank_is_absent() {
        let config = |pairs| config("call-summary", pairs);
        assert_eq!(config(&[("WHATSAPP_PHONE_ID", "42")]).find("WHATSAPP_PHONE_NUMBER_ID"), Some("42"));
        let both = config(&[("WHATSAPP_PHONE_NUMBER_ID", "41"), ("WHATSAPP_PHONE_ID", "42")]);
        assert_eq!(both.find("WHATSAPP_PHONE_NUMBER_ID"), Some("41"));
        assert_eq!(config(&[("OPENAI_API_KEY", "  ")]).find("OPENAI_API_KEY"), None);
    }

    #[test]
    fn a_number_that_is_none_counts_as_its_default() {
        assert_eq!(config("delivery-retry", &[("LEASE_SECONDS", "soon")]).number("LEASE_SECONDS"), 180);
        assert_eq!(config("delivery-retry", &[("LEASE_SECONDS", "5")]).number("LEASE_SECONDS"), 5);
    }

    #[test]
    fn what_a_function_does_not_read_it_does_not_find() {
        let all = &[("OPENAI_API_KEY", "sk"), ("MTN_WEBHOOK_SECRET", "s")];
        assert_eq!(config("delivery-status-webhook", all).find("OPENAI_API_KEY"), None);
        assert_eq!(config("post-call-notify", all).find("MTN_WEBHOOK_SECRET"), None);
        assert_eq!(config("sms-inbound-webhook", all).secrets(&["OPENAI_API_KEY", "MTN_WEBHOOK_SECRET"]), ["s"]);
    }

    const BASE: [(&str, &str); 5] = [
        ("SUPABASE_URL", "http://x"),
        ("SUPABASE_SERVICE_ROLE_KEY", "k"),
        ("MTN_SMS_API_KEY", "k"),
        ("MTN_SMS_API_SECRET", "s"),
        ("OPENAI_API_KEY", "sk"),
    ];

    fn with(function: &str, more: &'static [(&str, &str)]) -> Config {
        Config::read(function, |name| BASE.iter().chain(more).find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn a_lease_outlives_the_longest_work() {
        for function in ["call-summary", "conversation", "delivery-retry"] {
            let plain = config(function, &[]);
            assert!(plain.lease_outlives_work(), "{function}: {} ms", plain.longest_work_ms());
        }
        for (function, name, value) in [
            ("delivery-retry", "LEASE_SECONDS", "120"),
            ("conversation", "MODEL_TIMEOUT_MS", "30000"),
            ("call-summary", "SUMMARY_TIMEOUT_MS", "120000"),
            ("delivery-retry", "PROVIDER_TIMEOUT_MS", "20000"),
        ] {
            let config = Config::read(function, |known| (known == name).then(|| value.to_owned()));
            assert!(!config.lease_outlives_work(), "{name}={value}");
        }
    }

    #[test]
    fn missing_names_only_what_this_function_needs() {
        assert_eq!(
            config("call-summary", &[("SUPABASE_URL", "http://x")]).missing("call-summary"),
            ["SUPABASE_SERVICE_ROLE_KEY", "MTN_SMS_API_KEY", "MTN_SMS_API_SECRET", "OPENAI_API_KEY"]
        );
        assert_eq!(with("delivery-status-webhook", &[]).missing("delivery-status-webhook"), ["MTN_WEBHOOK_SECRET"]);
    }

    #[test]
    fn without_any_whatsapp_setting_whatsapp_is_off_and_with_one_all_are_needed() {
        for function in ["call-summary", "delivery-retry", "whatsapp-webhook"] {
            let config = with(function, &[]);
            assert!(config.missing(function).is_empty() && config.whatsapp_is_off(function), "{function}");
        }
        let half = with("call-summary", &[("WHATSAPP_PHONE_ID", "42")]);
        assert!(!half.whatsapp_is_off("call-summary"));
        assert_eq!(half.missing("call-summary"), ["WHATSAPP_ACCESS_TOKEN"]);
        let hook = with("whatsapp-webhook", &[("WHATSAPP_APP_SECRET", "s")]);
        assert_eq!(hook.missing("whatsapp-webhook"), ["WHATSAPP_PHONE_NUMBER_ID", "WHATSAPP_VERIFY_TOKEN"]);
        assert!(!with("delivery-status-webhook", &[]).whatsapp_is_off("delivery-status-webhook"));
        let account = |function, prefix| with(function, &[]).account(function, prefix);
        assert_eq!(account("call-summary", "MTN_"), Some(true));
        assert_eq!(account("call-summary", "WHATSAPP_"), Some(false));
        // A door holds no key of a carrier's or a model's account.
        for prefix in ["MTN_SMS_", "WHATSAPP_", "OPENAI_"] {
            assert_eq!(account("post-call-notify", prefix), None, "{prefix}");
            assert_eq!(account("sms-inbound-webhook", prefix), None, "{prefix}");
        }
        assert_eq!(account("delivery-status-webhook", "WHATSAPP_"), None);
    }
}
