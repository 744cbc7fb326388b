//! `ihuza-relay`: reads its settings and does one of four things with them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ihuza_relay::config::Config;
use ihuza_relay::shell::announcements::Announcements;
use ihuza_relay::shell::relay::Relay;
use ihuza_relay::sip::admission::{Admission, Request};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Phone calls over a SIP trunk, answered by a speaking model.
#[derive(Parser)]
#[command(name = "ihuza-relay", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take calls until SIGTERM; then let the running ones finish.
    Run(File),
    /// Say what is wrong with the settings, and end.
    Check(File),
    /// Show the settings with all defaults filled in; there are no secrets among them.
    PrintConfig(File),
    /// Say what would become of a call, without one.
    RouteTest(RouteTest),
}

#[derive(Args)]
struct File {
    /// The settings.
    #[arg(long, default_value = "relay.toml")]
    config: PathBuf,
}

#[derive(Args)]
struct RouteTest {
    #[command(flatten)]
    file: File,
    /// Address that the INVITE would come from.
    #[arg(long)]
    source: IpAddr,
    /// Number that would be called, as the trunk writes it.
    #[arg(long)]
    called: String,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("ihuza-relay: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<String, String> {
    match command {
        Command::Run(file) => serve(load(&file)?),
        Command::Check(file) => {
            let config = load(&file)?;
            Announcements::of(&config).map_err(|error| format!("announcements: {error}"))?;
            let numbers: usize = config.trunks.iter().map(|trunk| trunk.dids.len()).sum();
            Ok(format!("sound: {} trunk(s), {numbers} number(s)", config.trunks.len()))
        }
        Command::PrintConfig(file) => toml::to_string(&load(&file)?).map_err(|error| error.to_string()),
        Command::RouteTest(test) => route_test(&load(&test.file)?, &test),
    }
}

fn serve(config: Config) -> Result<String, String> {
    // With one core there is nobody to share the work with, and a scheduler for many costs a quarter of a call.
    let is_alone = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
    let mut builder = match is_alone {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build().map_err(|error| format!("the runtime does not start: {error}"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let secret = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let relay = Relay::start(config, secret).await.map_err(|error| error.to_string())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        relay.drain().await;
        Ok("ended".to_owned())
    })
}

fn load(file: &File) -> Result<Config, String> {
    let path = file.config.display();
    let text = std::fs::read_to_string(&file.config)
        .map_err(|error| format!("{path} cannot be opened: {error}; name another one with --config"))?;
    Config::parse(&text).map_err(|error| error.to_string())
}

fn route_test(config: &Config, test: &RouteTest) -> Result<String, String> {
    let request = Request { scheme: "sip", called: &test.called, ..Request::default() };
    let routed = Admission::trunk_of(config, test.source).and_then(|trunk| Admission::route(trunk, &request));
    match routed {
        Ok(admitted) => Ok(format!(
            "trunk {}, agent {}, locale {}",
            admitted.trunk.name,
            admitted.did.agent,
            admitted.did.locale.0.as_str()
        )),
        Err(refusal) => Err(match refusal.status() {
            Some(status) => format!("refused with {status}: {}", refusal.as_str()),
            None => format!("dropped without an answer: {}", refusal.as_str()),
        }),
    }
}
