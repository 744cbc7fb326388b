//! A stage's own wrangler file, derived from the one in the project.
//!
//! Production has the plain names. Any other stage adds `-<stage>` to Workers and queues, so that both can live in one
//! account. Settings of `.vars.<stage>` override the variables of the file.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use ihuza_edge::settings::{SETTINGS, Setting};
use toml::{Table, Value};

use crate::functions::{self, Function};
use crate::places;
use crate::vars_file::{self, Vars};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Stage {
    Staging,
    Production,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Staging => "-staging",
            Self::Production => "",
        }
    }
}

/// What `.vars.<stage>` says.
pub fn settings(stage: Stage) -> Result<Vars> {
    let file = format!(".vars.{}", stage.name());
    let settings = vars_file::read(&places::project().join(&file))?;
    refuse_unknown(&settings).with_context(|| format!("{file} was not taken"))?;
    Ok(settings)
}

/// A misspelt secret would go up as a variable that everybody with access to the account can read.
fn refuse_unknown(settings: &Vars) -> Result<()> {
    let unknown: Vec<&str> = settings.keys().map(String::as_str).filter(|name| setting(name).is_none()).collect();
    ensure!(
        unknown.is_empty(),
        "no function reads {}: take it out, or correct the name; docs/configuration.md lists every setting",
        unknown.join(", ")
    );
    Ok(())
}

fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name || setting.alias == Some(name))
}

/// Whether a setting is a secret: uploaded as one, never written into a configuration.
fn is_secret(name: &str) -> bool {
    setting(name).is_some_and(|setting| setting.secret)
}

/// Whether a function has any use for a setting.
pub fn reads(function: &Function, name: &str) -> bool {
    setting(name).is_some_and(|setting| setting.is_read_by(&function.name))
}

pub struct StageConfig {
    /// The derived file, below `.local`.
    pub file: PathBuf,
    pub secrets: Vars,
    config: Table,
    suffix: &'static str,
}

impl StageConfig {
    pub fn derive(stage: Stage, settings: &Vars) -> Result<Self> {
        let derived = Self::of(stage, settings)?;
        let (file, config) = (&derived.file, &derived.config);
        std::fs::create_dir_all(places::local()).context("could not create the folder .local")?;
        let head = "# Derived from wrangler.toml at each deployment: change that file, not this one.\n";
        std::fs::write(file, format!("{head}{config}"))
            .with_context(|| format!("could not write {}", file.display()))?;
        Ok(derived)
    }

    /// The same, not written yet.
    pub fn of(stage: Stage, settings: &Vars) -> Result<Self> {
        let (secrets, vars): (Vars, Vars) = settings.clone().into_iter().partition(|(name, _)| is_secret(name));
        let mut config = functions::wrangler_toml()?;
        rename(&mut config, stage.suffix(), &vars)?;
        let file = places::local().join(format!("wrangler.{}.toml", stage.name()));
        Ok(Self { file, secrets, config, suffix: stage.suffix() })
    }

    /// The secrets of the stage's file that a function reads.
    pub fn secrets_of(&self, function: &Function) -> Vars {
        let mut secrets = self.secrets.clone();
        secrets.retain(|name, _| reads(function, name));
        secrets
    }

    pub fn worker(&self, function: &Function) -> String {
        format!("{}{}", function.name, self.suffix)
    }

    /// Names of the variables that a function gets.
    pub fn vars(&self, function: &Function) -> Vec<&str> {
        let section = self.config.get("env").and_then(|env| env.get(&function.name));
        let vars = section.and_then(|section| section.get("vars")).and_then(Value::as_table);
        vars.map(|vars| vars.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    /// Every queue that any function reads from or writes to, each once, sorted.
    pub fn queues(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let sections = self.config.get("env").and_then(Value::as_table).context("wrangler.toml has no functions")?;
        for section in sections.values() {
            for queue in queue_tables(section) {
                let named = ["queue", "dead_letter_queue"].into_iter().filter_map(|key| queue.get(key)?.as_str());
                names.extend(named.map(str::to_owned));
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

fn queue_tables(section: &Value) -> impl Iterator<Item = &Table> {
    ["producers", "consumers"]
        .into_iter()
        .filter_map(|kind| section.get("queues")?.get(kind)?.as_array())
        .flatten()
        .filter_map(Value::as_table)
}

fn rename(config: &mut Table, suffix: &str, vars: &Vars) -> Result<()> {
    let sections = config.get_mut("env").and_then(Value::as_table_mut).context("wrangler.toml has no functions")?;
    for (function, section) in sections.iter_mut() {
        let section = section.as_table_mut().with_context(|| format!("[env.{function}] is not a table"))?;
        section.insert("name".into(), Value::String(format!("{function}{suffix}")));
        // The derived file lies one folder below the project.
        section.insert("main".into(), Value::String(format!("../functions/{function}/build/index.js")));
        for kind in ["producers", "consumers"] {
            let queues =
                section.get_mut("queues").and_then(|queues| queues.get_mut(kind)).and_then(Value::as_array_mut);
            for queue in queues.into_iter().flatten() {
                for key in ["queue", "dead_letter_queue"] {
                    if let Some(Value::String(name)) = queue.get_mut(key) {
                        *name = queue_name(name, suffix);
                    }
                }
            }
        }
        for limit in section.get_mut("ratelimits").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(Value::String(id)) = limit.get_mut("namespace_id") {
                *id = namespace_id(id, suffix);
            }
        }
        if !vars.is_empty() {
            let all = section.entry("vars").or_insert_with(|| Value::Table(Table::new()));
            let all = all.as_table_mut().with_context(|| format!("[env.{function}] vars is not a table"))?;
            all.extend(vars.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))));
        }
    }
    Ok(())
}

/// A dead-letter queue keeps its `-dlq` at the end: the function that reads them all knows them by it.
fn queue_name(name: &str, suffix: &str) -> String {
    match name.strip_suffix("-dlq") {
        Some(of) => format!("{of}{suffix}-dlq"),
        None => format!("{name}{suffix}"),
    }
}

/// A counter is its number, in the whole account: a trial on staging must not use up what people may write to production.
fn namespace_id(id: &str, suffix: &str) -> String {
    if suffix.is_empty() { id.to_owned() } else { format!("9{id}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn derived(suffix: &str, vars: &[(&str, &str)]) -> Table {
        let text = "[env.a]\nname = \"a\"\nmain = \"functions/a/build/index.js\"\nvars = { X = \"1\", Y = \"2\" }\n\
                    [[env.a.queues.consumers]]\nqueue = \"q\"\ndead_letter_queue = \"q-dlq\"\n\
                    [[env.a.queues.producers]]\nqueue = \"q\"\nbinding = \"Q\"\n\
                    [[env.a.ratelimits]]\nname = \"L\"\nnamespace_id = \"7\"\nsimple = { limit = 3, period = 60 }\n";
        let mut config = text.parse::<Table>().unwrap_or_default();
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert!(rename(&mut config, suffix, &vars).is_ok());
        config
    }

    fn text(config: &Table, path: &str) -> Option<String> {
        let mut value = config.get("env")?.get("a")?;
        for part in path.split('.') {
            value = match part.parse::<usize>() {
                Ok(index) => value.get(index)?,
                Err(_) => value.get(part)?,
            };
        }
        value.as_str().map(str::to_owned)
    }

    #[test]
    fn staging_has_names_of_its_own_and_production_the_plain_ones() {
        let staging = derived("-staging", &[]);
        assert_eq!(text(&staging, "name").as_deref(), Some("a-staging"));
        assert_eq!(text(&staging, "queues.consumers.0.queue").as_deref(), Some("q-staging"));
        assert_eq!(text(&staging, "queues.consumers.0.dead_letter_queue").as_deref(), Some("q-staging-dlq"));
        assert_eq!(text(&staging, "queues.producers.0.queue").as_deref(), Some("q-staging"));
        assert_eq!(text(&staging, "queues.producers.0.binding").as_deref(), Some("Q"));
        assert_eq!(text(&derived("", &[]), "name").as_deref(), Some("a"));
    }

    /// `function binding limit period` of each counter, with its number.
    fn counters(stage: Stage) -> BTreeMap<String, String> {
        let config = StageConfig::of(stage, &Vars::new()).map(|derived| derived.config).unwrap_or_default();
        let mut all = BTreeMap::new();
        for (function, section) in config.get("env").and_then(Value::as_table).into_iter().flatten() {
            for limit in section.get("ratelimits").and_then(Value::as_array).into_iter().flatten() {
                let text =
                    |key: &str| limit.get(key).map(|value| value.to_string().replace('"', "")).unwrap_or_default();
                all.insert(format!("{function} {} {}", text("name"), text("simple")), text("namespace_id"));
            }
        }
        all
    }

    #[test]
    fn each_stage_and_function_counts_senders_on_its_own() {
        let (staging, production) = (counters(Stage::Staging), counters(Stage::Production));
        assert_eq!(production.len(), 4, "{production:?}");
        assert!(staging.keys().eq(production.keys()), "the same limits under the same names: {staging:?}");
        let mut ids: Vec<&String> = staging.values().chain(production.values()).collect();
        // Cloudflare takes whole numbers above zero.
        assert!(ids.iter().all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{ids:?}");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 8, "a number is one counter: {ids:?}");
        assert_eq!(text(&derived("-staging", &[]), "ratelimits.0.namespace_id").as_deref(), Some("97"));
        assert_eq!(text(&derived("", &[]), "ratelimits.0.namespace_id").as_deref(), Some("7"));
    }

    #[test]
    fn settings_of_the_stage_win_over_the_files() {
        let config = derived("", &[("Y", "9"), ("Z", "3")]);
        let values = ["vars.X", "vars.Y", "vars.Z"].map(|path| text(&config, path).unwrap_or_default());
        assert_eq!(values, ["1", "9", "3"]);
    }

    #[test]
    fn keys_are_secrets_and_addresses_are_not() {
        assert!(is_secret("SUPABASE_SERVICE_ROLE_KEY") && is_secret("MTN_WEBHOOK_SECRET"));
        assert!(!is_secret("SUPABASE_URL"));
    }

    #[test]
    fn a_misspelt_name_is_refused_and_no_value_is_shown() {
        let settings = |name: &str| Vars::from([(name.to_owned(), "hidden".to_owned())]);
        assert!(refuse_unknown(&settings("WHATSAPP_PHONE_ID")).is_ok(), "an alias is known");
        let error = refuse_unknown(&settings("MTN_SMS_API_SECRT")).map_err(|error| error.to_string());
        let error = error.err().unwrap_or_default();
        assert!(error.contains("MTN_SMS_API_SECRT") && !error.contains("hidden"), "{error}");
    }
}
