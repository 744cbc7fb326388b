//! Settings that a function cannot do without: known before it is deployed, so that no half-configured one goes live.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ihuza_edge::settings::{Need, SETTINGS, Setting};
use serde_json::Value;

use super::stage::{StageConfig, reads};
use crate::functions::Function;
use crate::places;
use crate::progress;
use crate::setup::Tools;

/// What the chosen functions lack, and whether the deployment speaks by SMS alone.
#[derive(Debug, PartialEq)]
pub struct Audit {
    /// No setting of the WhatsApp account is anywhere.
    pub whatsapp_is_off: bool,
    /// Function by function, in the order chosen.
    pub lacking: Vec<Vec<&'static str>>,
}

/// `set` has, for each of the `chosen`, the secrets that Cloudflare has already.
pub fn audit(chosen: &[Function], config: &StageConfig, set: &[Vec<String>]) -> Audit {
    let has = |function: &Function, set: &[String], name: &str| {
        config.vars(function).contains(&name)
            || config.secrets.contains_key(name)
            || set.iter().any(|secret| secret == name)
    };
    let there = |function: &Function, set: &[String], setting: &Setting| {
        has(function, set, setting.name) || setting.alias.is_some_and(|alias| has(function, set, alias))
    };
    let each = || chosen.iter().zip(set.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..])));
    let account = || SETTINGS.iter().filter(|setting| setting.need == Need::WhatsappAccount);
    let whatsapp_is_off = !each().any(|(function, set)| account().any(|setting| there(function, set, setting)));
    let needed = |setting: &Setting| match setting.need {
        Need::Required => true,
        Need::WhatsappAccount => !whatsapp_is_off,
        Need::Optional => false,
    };
    let lacks = |(function, set): (&Function, &[String])| {
        SETTINGS
            .iter()
            .filter(|setting| setting.is_read_by(&function.name) && needed(setting) && !there(function, set, setting))
            .map(|setting| setting.name)
            .collect()
    };
    Audit { whatsapp_is_off, lacking: each().map(lacks).collect() }
}

pub fn check_all(tools: &Tools, config: &StageConfig, chosen: &[Function]) -> Result<()> {
    let set: Vec<Vec<String>> = chosen.iter().map(|function| already_set(tools, config, function)).collect();
    for (function, set) in chosen.iter().zip(&set) {
        let unread: Vec<&str> = set.iter().map(String::as_str).filter(|name| !reads(function, name)).collect();
        if !unread.is_empty() {
            let worker = config.worker(function);
            progress::warn(&format!(
                "{worker} holds secrets that it does not read: {}. `npx wrangler secret delete NAME --name {worker}`",
                unread.join(", ")
            ));
        }
    }
    let audit = audit(chosen, config, &set);
    if audit.whatsapp_is_off {
        progress::warn(WHATSAPP_IS_OFF);
    }
    let lacking: Vec<String> = chosen
        .iter()
        .zip(&audit.lacking)
        .flat_map(|(function, names)| names.iter().map(|name| format!("{name} of {}", config.worker(function))))
        .collect();
    if lacking.is_empty() {
        progress::done("all required settings are there");
        return Ok(());
    }
    let list = lacking.join("\n    ");
    bail!(
        "settings are missing, nothing was deployed:\n    {list}\n  to do: write them as NAME=value into the stage's \
         .vars file, or `npx wrangler secret put NAME --name WORKER`; docs/configuration.md says what each is"
    )
}

pub const WHATSAPP_IS_OFF: &str = "WhatsApp is off: SMS alone (no setting of the WhatsApp account is there)";

/// Secrets that Cloudflare has. A Worker that was never deployed has none, and the listing fails.
fn already_set(tools: &Tools, config: &StageConfig, function: &Function) -> Vec<String> {
    let worker = config.worker(function);
    let call = tools.npm.wrangler(&format!("list the secrets of {worker}"));
    match call.args(["secret", "list", "--name", &worker]).read() {
        Ok(text) => names_in(&text),
        Err(error) => {
            let why = first_line(&error.to_string()).to_owned();
            progress::note(&format!("{worker}: taken as one without secrets, which a new Worker is ({why})"));
            Vec::new()
        }
    }
}

/// `[{"name": "X", "type": "secret_text"}]`, perhaps after other words.
fn names_in(said: &str) -> Vec<String> {
    let json = said.find('[').and_then(|start| said.get(start..)).unwrap_or("[]");
    let list: Vec<Value> = serde_json::from_str(json).unwrap_or_default();
    list.iter().filter_map(|secret| secret.get("name")?.as_str().map(str::to_owned)).collect()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Secrets on their way to wrangler: a file that only we can read, gone as soon as it is dropped.
pub struct File(PathBuf);

impl File {
    /// None when the stage's file has no secret for this function.
    pub fn write(function: &Function, config: &StageConfig) -> Result<Option<Self>> {
        let secrets = config.secrets_of(function);
        if secrets.is_empty() {
            return Ok(None);
        }
        std::fs::create_dir_all(places::local()).context("could not create the folder .local")?;
        let path = places::local().join(format!("secrets.{}.json", function.name));
        std::fs::remove_file(&path).ok();
        let text = serde_json::to_vec(&secrets).context("could not write the secrets as JSON")?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("could not create {}", path.display()))?;
        let written = Self(path);
        file.write_all(&text).context("could not write the secrets for wrangler")?;
        Ok(Some(written))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::indexing_slicing)]
mod tests {
    use super::super::stage::Stage;
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> StageConfig {
        let settings = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        StageConfig::of(Stage::Staging, &settings).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn functions(names: &[&str]) -> Vec<Function> {
        names.iter().map(|name| Function { name: (*name).to_owned() }).collect()
    }

    const SMS_ALONE: [(&str, &str); 6] = [
        ("SUPABASE_URL", "https://x"),
        ("SUPABASE_SERVICE_ROLE_KEY", "k"),
        ("MTN_SMS_API_KEY", "k"),
        ("MTN_SMS_API_SECRET", "s"),
        ("MTN_WEBHOOK_SECRET", "s"),
        ("OPENAI_API_KEY", "k"),
    ];
    const ALL: [&str; 9] = [
        "post-call-notify",
        "call-summary",
        "sms-inbound-webhook",
        "conversation",
        "delivery-retry",
        "delivery-status-webhook",
        "whatsapp-webhook",
        "openai-realtime-sip",
        "openai-sip-webhook",
    ];

    #[test]
    fn each_function_is_given_the_secrets_that_it_reads_and_no_other() {
        let config = config(&[&SMS_ALONE[..], &[("WHATSAPP_APP_SECRET", "a"), ("INTERNAL_API_KEY", "i")]].concat());
        let given: Vec<String> =
            functions(&ALL).iter().map(|f| config.secrets_of(f).into_keys().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            given,
            [
                "INTERNAL_API_KEY SUPABASE_SERVICE_ROLE_KEY",
                "MTN_SMS_API_KEY MTN_SMS_API_SECRET OPENAI_API_KEY SUPABASE_SERVICE_ROLE_KEY",
                "MTN_WEBHOOK_SECRET SUPABASE_SERVICE_ROLE_KEY",
                "MTN_SMS_API_KEY MTN_SMS_API_SECRET OPENAI_API_KEY SUPABASE_SERVICE_ROLE_KEY",
                "INTERNAL_API_KEY MTN_SMS_API_KEY MTN_SMS_API_SECRET SUPABASE_SERVICE_ROLE_KEY",
                "MTN_WEBHOOK_SECRET SUPABASE_SERVICE_ROLE_KEY",
                "SUPABASE_SERVICE_ROLE_KEY WHATSAPP_APP_SECRET",
                "INTERNAL_API_KEY OPENAI_API_KEY SUPABASE_SERVICE_ROLE_KEY",
                "OPENAI_API_KEY SUPABASE_SERVICE_ROLE_KEY",
            ]
        );
    }

    #[test]
    fn what_is_handed_to_wrangler_is_the_functions_own() {
        let config = config(&SMS_ALONE);
        let hook = Function { name: "delivery-status-webhook".to_owned() };
        let file = File::write(&hook, &config).ok().flatten();
        let text = file.as_ref().and_then(|file| std::fs::read_to_string(file.path()).ok());
        assert_eq!(text.as_deref(), Some(r#"{"MTN_WEBHOOK_SECRET":"s","SUPABASE_SERVICE_ROLE_KEY":"k"}"#));
    }

    #[test]
    fn without_a_whatsapp_account_nothing_of_it_is_missing_and_with_half_of_one_the_rest_is() {
        let alone = audit(&functions(&ALL), &config(&SMS_ALONE), &[]);
        assert_eq!(alone, Audit { whatsapp_is_off: true, lacking: vec![vec![]; 9] });

        let half = config(&[&SMS_ALONE[..], &[("WHATSAPP_PHONE_ID", "42")]].concat());
        let half = audit(&functions(&ALL), &half, &[]);
        let token = vec!["WHATSAPP_ACCESS_TOKEN"];
        let webhook = vec!["WHATSAPP_APP_SECRET", "WHATSAPP_VERIFY_TOKEN"];
        assert_eq!(
            half.lacking,
            [vec![], token.clone(), vec![], token.clone(), token, vec![], webhook, vec![], vec![]]
        );
        assert!(!half.whatsapp_is_off);

        // One that Cloudflare has already counts for the whole deployment, and for its own function as there.
        let there = audit(
            &functions(&["call-summary", "delivery-retry"]),
            &config(&SMS_ALONE),
            &[vec!["WHATSAPP_ACCESS_TOKEN".to_owned()]],
        );
        let both = vec!["WHATSAPP_ACCESS_TOKEN", "WHATSAPP_PHONE_NUMBER_ID"];
        assert_eq!(there.lacking, [vec!["WHATSAPP_PHONE_NUMBER_ID"], both]);
    }

    #[test]
    fn names_are_read_from_what_wrangler_prints() {
        let said = "Listing secrets\n[\n  {\"name\": \"A\", \"type\": \"secret_text\"},\n  {\"name\": \"B\"}\n]\n";
        assert_eq!(names_in(said), ["A", "B"]);
        assert!(names_in("nothing here").is_empty());
    }
}
