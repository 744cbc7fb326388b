//! Settings that a function cannot do without: known before it is deployed, so that no half-configured one goes live.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ihuza_edge::settings::SETTINGS;
use serde_json::Value;

use super::stage::StageConfig;
use crate::functions::Function;
use crate::places;
use crate::progress;
use crate::setup::Tools;

/// Required settings that are neither variables, nor in the stage's file, nor among `set`.
pub fn missing(function: &Function, config: &StageConfig, set: &[String]) -> Vec<&'static str> {
    let vars = config.vars(function);
    let there = |name: &str| {
        vars.contains(&name) || config.secrets.contains_key(name) || set.iter().any(|secret| secret == name)
    };
    SETTINGS
        .iter()
        .filter(|setting| setting.required_by.contains(&function.name.as_str()) && setting.default.is_none())
        .filter(|setting| !there(setting.name) && !setting.alias.is_some_and(there))
        .map(|setting| setting.name)
        .collect()
}

pub fn check_all(tools: &Tools, config: &StageConfig, chosen: &[Function]) -> Result<()> {
    let mut lacking = Vec::new();
    for function in chosen {
        let worker = config.worker(function);
        for name in missing(function, config, &already_set(tools, config, function)) {
            lacking.push(format!("{name} of {worker}"));
        }
    }
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

/// Secrets that Cloudflare has. A Worker that was never deployed has none, and the listing fails.
fn already_set(tools: &Tools, config: &StageConfig, function: &Function) -> Vec<String> {
    let worker = config.worker(function);
    let call = tools.npm.wrangler(&format!("list the secrets of {worker}"));
    match call.args(["secret", "list", "--name", &worker]).read() {
        Ok(text) => names_in(&text),
        Err(error) => {
            progress::note(&format!("{worker} has no secrets yet ({})", first_line(&error.to_string())));
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
        if config.secrets.is_empty() {
            return Ok(None);
        }
        let path = places::local().join(format!("secrets.{}.json", function.name));
        std::fs::remove_file(&path).ok();
        let text = serde_json::to_vec(&config.secrets).context("could not write the secrets as JSON")?;
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
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_what_wrangler_prints() {
        let said = "Listing secrets\n[\n  {\"name\": \"A\", \"type\": \"secret_text\"},\n  {\"name\": \"B\"}\n]\n";
        assert_eq!(names_in(said), ["A", "B"]);
        assert!(names_in("nothing here").is_empty());
    }
}
