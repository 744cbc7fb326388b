//! `cargo xtask deploy`: every function to Cloudflare, under the names of a stage.
//!
//! One wrangler.toml describes the functions; a stage's own file is derived from it (`stage`). Queues are created,
//! secrets checked or uploaded, functions deployed, and `--verify` asks the deployed ones whether they work.

mod queues;
mod secrets;
mod stage;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ihuza_core::phone::E164;

use crate::build;
use crate::functions::{self, Function};
use crate::places;
use crate::progress;
use crate::setup::{self, Tools};
use stage::{Stage, StageConfig};

#[derive(clap::Args)]
#[command(after_help = "\
Settings of a stage come from the file .vars.<stage> (NAME=value lines, kept out of git): each secret in it goes to the
functions that read it and to no other, the rest become variables. Secrets that are set already with `wrangler secret put`
need not be in it. --dry-run shows which function is given what.
Wrangler must be allowed in: `npx wrangler login`, or CLOUDFLARE_API_TOKEN and CLOUDFLARE_ACCOUNT_ID.

  cargo xtask deploy --dry-run                    what would be deployed, without a network
  cargo xtask deploy --stage staging              deploy
  cargo xtask deploy --stage staging --verify     check what is deployed, deploy nothing")]
pub struct Options {
    /// Deploy only these functions.
    functions: Vec<String>,
    /// Which deployment: the names of production's Workers and queues are the plain ones, staging's end in -staging.
    #[arg(long, value_enum, default_value = "staging")]
    stage: Stage,
    /// Build and check everything here, change nothing there; works without a network.
    #[arg(long, conflicts_with = "verify")]
    dry_run: bool,
    /// Check health, tables, functions, secrets and one signed inbound SMS of what is deployed; deploys nothing.
    #[arg(long)]
    verify: bool,
    /// With --verify: where the functions answer, with {function} for the name; learnt at deployment when absent.
    #[arg(long, value_name = "URL", requires = "verify")]
    base_url: Option<String>,
    /// With --verify: let this number send a HELP, and wait for the answer in the delivery log. It gets one SMS.
    #[arg(long, value_name = "NUMBER", requires = "verify", value_parser = e164)]
    phone: Option<String>,
}

/// A phone number of the command line, as everybody else writes it.
pub fn e164(text: &str) -> Result<String, String> {
    E164::parse(text).map(|number| number.as_str().to_owned()).map_err(|error| error.to_string())
}

pub fn run(options: &Options) -> Result<()> {
    let chosen = functions::chosen(&options.functions)?;
    let settings = stage::settings(options.stage)?;
    if options.verify {
        return verify::run(options.stage, &chosen, &settings, options.base_url.as_deref(), options.phone.as_deref());
    }
    let tools = setup::ensure()?;
    build::ensure(&tools)?;
    let config = StageConfig::derive(options.stage, &settings)?;
    progress::headline(&format!("Deployment to {}", options.stage.name()));
    if options.dry_run { dry_run(&tools, &config, &chosen) } else { deploy(&tools, &config, &chosen, options.stage) }
}

fn dry_run(tools: &Tools, config: &StageConfig, chosen: &[Function]) -> Result<()> {
    let audit = secrets::audit(chosen, config, &[]);
    for (function, lacking) in chosen.iter().zip(&audit.lacking) {
        tools
            .npm
            .wrangler(&format!("check {}", config.worker(function)))
            .args(["deploy", "--dry-run", "--env", &function.name, "--config"])
            .arg(&config.file)
            .run()?;
        let given: Vec<String> = config.secrets_of(function).into_keys().collect();
        progress::note(&match given.as_slice() {
            [] => "is given no secret from here".to_owned(),
            names => format!("is given the secrets: {}", names.join(", ")),
        });
        if !lacking.is_empty() {
            progress::note(&format!("needs, unless set already: {}", lacking.join(", ")));
        }
    }
    if audit.whatsapp_is_off {
        progress::note(&format!("unless set already: {}", secrets::WHATSAPP_IS_OFF));
    }
    progress::note(&format!("queues: {}", config.queues()?.join(", ")));
    progress::done("nothing was changed");
    Ok(())
}

fn deploy(tools: &Tools, config: &StageConfig, chosen: &[Function], stage: Stage) -> Result<()> {
    check_login(tools)?;
    secrets::check_all(tools, config, chosen)?;
    queues::ensure(tools, config)?;
    let mut urls = known_urls(stage)?;
    for function in chosen {
        let secrets = secrets::File::write(function, config)?;
        let mut call = tools
            .npm
            .wrangler(&format!("deploy {}", config.worker(function)))
            .args(["deploy", "--env", &function.name, "--config"])
            .arg(&config.file);
        if let Some(file) = &secrets {
            call = call.arg("--secrets-file").arg(file.path());
        }
        let said = call.read()?;
        let url = said.split_whitespace().find(|word| word.starts_with("https://") && word.contains(".workers.dev"));
        progress::done(&format!(
            "{} is deployed{}",
            function.name,
            url.map(|url| format!(": {url}")).unwrap_or_default()
        ));
        if let Some(url) = url {
            urls.insert(function.name.clone(), url.trim_end_matches('/').to_owned());
            // At once: the next one may fail, and this one answers all the same.
            remember_urls(stage, &urls)?;
        }
    }
    progress::note(&format!("next: cargo xtask deploy --stage {} --verify", stage.name()));
    Ok(())
}

/// Wrangler ends well even when nobody is logged in.
fn check_login(tools: &Tools) -> Result<()> {
    const TO_DO: &str =
        "Cloudflare does not know us: run `npx wrangler login`, or set CLOUDFLARE_API_TOKEN and CLOUDFLARE_ACCOUNT_ID";
    let said = tools.npm.wrangler("ask Cloudflare who we are").arg("whoami").read().context(TO_DO)?;
    if said.contains("not authenticated") {
        bail!(TO_DO);
    }
    Ok(())
}

fn urls_file(stage: Stage) -> PathBuf {
    places::local().join(format!("deployed.{}.json", stage.name()))
}

/// Where each function answered when it was deployed from here.
fn known_urls(stage: Stage) -> Result<BTreeMap<String, String>> {
    let file = urls_file(stage);
    match std::fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: remove it and deploy again", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("could not read {}", file.display())),
    }
}

fn remember_urls(stage: Stage, urls: &BTreeMap<String, String>) -> Result<()> {
    let file = urls_file(stage);
    let text = serde_json::to_string_pretty(urls).context("could not write the addresses as JSON")?;
    std::fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))
}
