//! `cargo xtask`: every chore of the project behind one command.
//!
//! Each subcommand is a module of its own; what they share (running programs, showing progress, knowing where things
//! are) is in `call`, `progress` and `places`.

mod agents;
mod bench;
mod build;
mod call;
mod dead_letters;
mod demo;
mod deploy;
mod dev;
mod eval;
mod export;
mod functions;
mod handoffs;
mod local_world;
mod migrate;
mod places;
mod progress;
mod setup;
mod soak;
mod stats;
mod test;
mod vars_file;
mod wasm_toolchain;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch and build what the project needs; safe to repeat, the second time takes seconds.
    Setup(setup::Options),
    /// Compile the functions to wasm and bundle them for the edge runtime.
    Build(build::Options),
    /// The local world: everything up, and kept up until Ctrl-C.
    Dev(dev::Options),
    /// The local world with a story told in it: a call, its summary, a reply, the AI's answer.
    Demo(demo::Options),
    /// Formatting, lints, licences, unit, property, SQL and end-to-end tests.
    Test(test::Options),
    /// The same tests with large counts, for as long as you like.
    Soak(soak::Options),
    /// Play the scenarios of `scenarios/` against the simulated model, or with --real against OpenAI's, and judge them.
    Eval(eval::Options),
    /// Measure: sizes, cost a request, time to the providers.
    Bench(bench::Options),
    /// Apply the migrations to a database.
    Migrate(migrate::Options),
    /// Take the agents of `agents/` into a database: what each is told, and what it may do.
    Agents(agents::Options),
    /// Work that was given up: list it, put it back, drop it.
    DeadLetters(dead_letters::Options),
    /// People who wait for a person of the team: list them, take one, give back, close.
    Handoffs(handoffs::Options),
    /// Every SMS and call of a period with its cost and revenue, as CSV or JSON lines, for finance.
    Export(export::Options),
    /// How it goes, in tables: deliveries, failures, sessions, what waits, times.
    Stats(stats::Options),
    /// Deploy the functions to Cloudflare, or check a deployment.
    Deploy(deploy::Options),
}

fn main() -> std::process::ExitCode {
    let chore = Arguments::parse().chore;
    let done = match chore {
        Chore::Setup(options) => setup::run(&options),
        Chore::Build(options) => build::run(&options),
        Chore::Dev(options) => dev::run(&options),
        Chore::Demo(options) => demo::run(&options),
        Chore::Test(options) => test::run(&options),
        Chore::Soak(options) => soak::run(&options),
        Chore::Eval(options) => eval::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Migrate(options) => migrate::run(&options),
        Chore::Agents(options) => agents::run(&options),
        Chore::DeadLetters(options) => dead_letters::run(&options),
        Chore::Handoffs(options) => handoffs::run(&options),
        Chore::Export(options) => export::run(&options),
        Chore::Stats(options) => stats::run(&options),
        Chore::Deploy(options) => deploy::run(&options),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            progress::failure(&error);
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_chore_explains_itself() {
        super::Arguments::command().debug_assert();
    }
}
