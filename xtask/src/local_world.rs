//! The local world as `dev` and `demo` start it: set-up and build before, progress on the way, and its end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ihuza_sim::postgres::Data;
use ihuza_sim::world::{Provider, World, WorldConfig};

use crate::build;
use crate::functions;
use crate::places;
use crate::progress;
use crate::setup;
use crate::vars_file::{self, Vars};

/// The platform's cron has this resolution.
const CRON_EVERY: Duration = Duration::from_secs(60);

/// Besides the functions: what may have a port of its own choice.
const OTHER_PARTS: [&str; 6] = ["gateway", "postgres", "mtn", "whatsapp", "openai", "relay"];

#[derive(clap::Args)]
pub struct WorldOptions {
    /// Where each part is and every secret of it, as JSON (docs/local-world.schema.json); written when all is up.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// A fixed port for a part: a function, gateway, postgres, mtn, whatsapp, openai or relay (SIP). The others get free ones.
    #[arg(long = "port", value_name = "PART=PORT", value_parser = part_and_port)]
    ports: Vec<(String, u16)>,
}

fn part_and_port(text: &str) -> Result<(String, u16), String> {
    let (part, port) = text.split_once('=').ok_or("write PART=PORT, such as sms-inbound-webhook=8787")?;
    let functions = functions::all().map_err(|error| format!("{error:#}"))?;
    let parts: Vec<&str> = functions.iter().map(|function| function.name.as_str()).chain(OTHER_PARTS).collect();
    if !parts.contains(&part) {
        return Err(format!("there is no part {part:?}: choose from {}", parts.join(", ")));
    }
    let port = port.parse().map_err(|_| format!("{port:?} is no port: write a number from 1 to 65535"))?;
    Ok((part.to_owned(), port))
}

/// Which carriers and models are the real ones, because their keys are in `.dev.vars`.
pub struct Keys {
    vars: Vars,
    pub real: Vec<Provider>,
}

impl Keys {
    fn read(data: &Data) -> Result<Self> {
        let mut vars = vars_file::read(&places::project().join(".dev.vars"))?;
        if matches!(data, Data::Fresh) {
            // What is told of a fresh database is read back from it: a project in the cloud would not do.
            vars.retain(|name, _| !name.starts_with("SUPABASE_"));
        }
        let signs = [
            ("MTN_SMS_API_KEY", Provider::Mtn),
            ("WHATSAPP_ACCESS_TOKEN", Provider::WhatsApp),
            ("OPENAI_API_KEY", Provider::OpenAi),
        ];
        let has = |name: &str| vars.get(name).is_some_and(|value| !value.is_empty());
        let real = signs.into_iter().filter(|(name, _)| has(name)).map(|(_, provider)| provider).collect();
        Ok(Self { vars, real })
    }

    pub fn is_real(&self, provider: Provider) -> bool {
        self.real.contains(&provider)
    }

    /// Only the model is the real one: nobody gets a message.
    pub fn model_alone(&mut self) {
        self.real.retain(|provider| *provider == Provider::OpenAi);
        self.vars.retain(|name, _| name.starts_with("OPENAI_"));
    }

    /// Nothing is real.
    pub fn simulated(&mut self) {
        self.real.clear();
        self.vars.retain(|_, _| false);
    }

    fn tell(&self) {
        for provider in &self.real {
            progress::warn(&format!("{}: the real one, with the keys of .dev.vars", name_of(*provider)));
        }
    }
}

pub fn name_of(provider: Provider) -> &'static str {
    match provider {
        Provider::Mtn => "MTN",
        Provider::WhatsApp => "WhatsApp",
        Provider::OpenAi => "OpenAI",
    }
}

/// How a world came to its end, when nothing went wrong.
#[derive(PartialEq, Eq)]
pub enum End {
    /// Its life was over.
    Natural,
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

/// Run `life` in a world; when it ends, or Ctrl-C or SIGTERM comes, the world is taken down.
pub fn run<L>(options: &WorldOptions, data: Data, life: L) -> Result<End>
where
    L: AsyncFnOnce(&World, &Keys) -> Result<()>,
{
    run_with(options, data, |_| Ok(()), life)
}

/// As [`run`], with the keys that `choose` leaves.
pub fn run_with<L>(
    options: &WorldOptions,
    data: Data,
    choose: impl FnOnce(&mut Keys) -> Result<()>,
    life: L,
) -> Result<End>
where
    L: AsyncFnOnce(&World, &Keys) -> Result<()>,
{
    let tools = setup::ensure()?;
    tools.tell_the_world()?;
    build::ensure(&tools)?;
    build::relay()?;
    let mut keys = Keys::read(&data)?;
    choose(&mut keys)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the asynchronous runtime")?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        // One of an earlier world would send readers to nowhere.
        if let Some(file) = &options.ready_file {
            std::fs::remove_file(file).ok();
        }
        let world = tokio::select! {
            world = start(options, data, &keys) => world?,
            () = signals.any() => bail!("stopped while the local world was starting"),
        };
        if let Some(file) = &options.ready_file {
            world.write_ready_file(file)?;
        }
        let outcome = tokio::select! {
            outcome = Box::pin(life(&world, &keys)) => outcome.map(|()| End::Natural),
            () = minutes(&world) => Ok(End::Natural),
            () = signals.any() => Ok(End::Interrupted),
        };
        if let Some(file) = &options.ready_file {
            std::fs::remove_file(file).ok();
        }
        progress::note("taking the local world down");
        drop(world);
        outcome
    });
    // The world's own threads may still be closing sockets; nothing waits for them.
    runtime.shutdown_background();
    outcome
}

async fn start(options: &WorldOptions, data: Data, keys: &Keys) -> Result<World> {
    progress::headline("Local world");
    keys.tell();
    let config = WorldConfig {
        data,
        dev_vars: true,
        relay: true,
        vars: keys.vars.clone(),
        real: keys.real.clone(),
        ports: options.ports.iter().cloned().collect(),
        logs: Some(places::local().join("logs")),
        ..WorldConfig::default()
    };
    let config = config.on_progress(|part| {
        if part.done {
            progress::done(&format!("{} ({}): {}", part.part, progress::seconds(part.elapsed), part.detail));
        }
    });
    // Boxed: the world's future is larger than a compiler likes to lay out inside others.
    Ok(Box::pin(World::start(config)).await?)
}

/// Nothing else fires cron triggers here.
async fn minutes(world: &World) {
    loop {
        tokio::time::sleep(CRON_EVERY).await;
        if let Err(error) = world.cron().await {
            progress::warn(&format!("the minute's sweep did not run: {error}"));
        }
    }
}

/// What ends a chore that stays up.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("could not listen for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("could not listen for SIGTERM")?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Where everything answers, and how to try it.
pub fn tell_addresses(world: &World) -> Result<()> {
    let edge = world.edge()?;
    progress::headline("Everything is up");
    for (name, url) in edge.functions() {
        println!("  {name:<26} {url}");
    }
    println!("  {:<26} {}", "SUPABASE_URL", world.secret("SUPABASE_URL")?);
    println!("  {:<26} {}", "database", world.database_url());
    println!("  {:<26} {}", "simulated MTN", world.mtn().url());
    println!("  {:<26} {}", "simulated WhatsApp", world.whatsapp().url());
    println!("  {:<26} {}", "simulated OpenAI", world.openai().url());
    let relay = world.relay()?;
    println!("  {:<26} sip:{}@{}", "relay", relay.number, relay.sip);
    println!("  {:<26} {}", "logs", world.log_folder().display());
    if let (Ok(secret), Ok(code)) = (world.secret("MTN_WEBHOOK_SECRET"), world.secret("MTN_SMS_SERVICE_CODE")) {
        println!("\nText the agent:");
        println!(
            "  curl -X POST {} -H 'Authorization: Bearer {secret}' -H 'Content-Type: application/json' \\\n       \
             -d '{{\"from\":\"+250788300300\",\"to\":\"{code}\",\"message\":\"Looking for a house in Remera\"}}'",
            edge.url("sms-inbound-webhook")?
        );
        println!("and see the answer:\n  curl {}/control/requests", world.mtn().url());
    }
    println!("\nCtrl-C takes all of it down.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_not_there_gets_no_port() {
        assert_eq!(part_and_port("mtn=8080"), Ok(("mtn".to_owned(), 8080)));
        assert_eq!(part_and_port("sms-inbound-webhook=1").map(|(part, _)| part), Ok("sms-inbound-webhook".to_owned()));
        let error = part_and_port("sms-inbound=8787").err().unwrap_or_default();
        assert!(error.contains("sms-inbound-webhook") && error.contains("gateway"), "{error}");
        assert!(part_and_port("mtn=http").is_err() && part_and_port("mtn").is_err());
    }
}
