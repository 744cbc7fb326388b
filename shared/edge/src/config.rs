//! The settings of one function, read once an isolate: a Worker's variables and secrets never change within one.

use std::{cell::OnceCell, rc::Rc};

use worker::Env;

use crate::{settings::SETTINGS, shell};

/// Values of [`SETTINGS`], defaults filled in. Absent and empty are the same thing.
#[derive(Default)]
pub struct Config {
    values: Vec<Option<String>>,
}

thread_local! {
    static CONFIG: OnceCell<Rc<Config>> = const { OnceCell::new() };
}

impl Config {
    /// The isolate's configuration; the first call reads it.
    pub fn of(env: &Env) -> Rc<Config> {
        CONFIG.with(|cell| {
            cell.get_or_init(|| {
                let names: Vec<&str> = SETTINGS.iter().flat_map(|s| [s.name].into_iter().chain(s.alias)).collect();
                let values = shell::variables(env, &names.join("\n"));
                let values: Vec<&str> = values.split('\0').collect();
                let lookup = |name: &str| {
                    let at = names.iter().position(|known| *known == name)?;
                    values.get(at).map(|value| (*value).to_owned())
                };
                Rc::new(Config::read(lookup))
            })
            .clone()
        })
    }

    /// Reads every setting through `lookup`.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Config {
        let present = |name: &str| lookup(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let values = SETTINGS
            .iter()
            .map(|s| {
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

    /// The secrets that are set among `names`: the present one and, during a rotation, the previous one.
    pub fn secrets<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        names.iter().filter_map(|name| self.find(name)).collect()
    }

    /// Settings that `function` needs and has not got.
    pub fn missing(&self, function: &str) -> Vec<&'static str> {
        SETTINGS
            .iter()
            .filter(|s| s.required_by.contains(&function) && self.find(s.name).is_none())
            .map(|s| s.name)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &'static [(&str, &str)]) -> Config {
        Config::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn an_alias_serves_where_the_name_is_absent_and_blank_is_absent() {
        assert_eq!(config(&[("WHATSAPP_PHONE_ID", "42")]).find("WHATSAPP_PHONE_NUMBER_ID"), Some("42"));
        let both = config(&[("WHATSAPP_PHONE_NUMBER_ID", "41"), ("WHATSAPP_PHONE_ID", "42")]);
        assert_eq!(both.find("WHATSAPP_PHONE_NUMBER_ID"), Some("41"));
        assert_eq!(config(&[("OPENAI_API_KEY", "  ")]).find("OPENAI_API_KEY"), None);
    }

    #[test]
    fn a_number_that_is_none_counts_as_its_default() {
        assert_eq!(config(&[("LEASE_SECONDS", "soon")]).number("LEASE_SECONDS"), 60);
        assert_eq!(config(&[("LEASE_SECONDS", "5")]).number("LEASE_SECONDS"), 5);
    }

    #[test]
    fn missing_names_only_what_this_function_needs() {
        let bare = config(&[("SUPABASE_URL", "http://x"), ("SUPABASE_SERVICE_ROLE_KEY", "k")]);
        assert_eq!(bare.missing("whatsapp-webhook"), ["WHATSAPP_APP_SECRET", "WHATSAPP_VERIFY_TOKEN"]);
    }
}
