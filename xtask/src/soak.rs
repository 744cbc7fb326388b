//! `cargo xtask soak`: the same tests with large counts, round after round, each with a seed of its own.
//!
//! Tests read `PROPTEST_CASES`, `IHUZA_SOAK_MINUTES` and `IHUZA_SEED`, and print `counted <number> <what>` lines.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::build;
use crate::call::Call;
use crate::progress;
use crate::setup;
use crate::test::{E2E, SQL, Tally, UNIT};

#[derive(clap::Args)]
pub struct Options {
    /// How long to go on; the round that runs then is finished.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Seed of the first round (the next ones count up); drawn when absent, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Property cases a test and round.
    #[arg(long, default_value_t = 100_000)]
    cases: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let tools = setup::ensure()?;
    build::ensure(&tools)?;
    let first_seed = options.seed.unwrap_or_else(drawn_seed);
    let until = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut tally = Tally::default();
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < until {
        let seed = first_seed.wrapping_add(rounds).to_string();
        rounds += 1;
        progress::headline(&format!("Soak: round {rounds}, seed {seed}"));
        let minutes = until.saturating_duration_since(Instant::now()).as_secs().div_ceil(60).max(1).to_string();
        for (name, calls) in [("unit", &UNIT[..]), ("sql", &SQL[..]), ("e2e", &E2E[..])] {
            tally.record(&format!("{name} #{rounds}"), |part| {
                for arguments in calls {
                    let call = tools
                        .for_tests(Call::cargo(&format!("run the {name} tests")))
                        .env("PROPTEST_CASES", options.cases.to_string())
                        .env("PROPTEST_RNG_SEED", &seed)
                        .env("IHUZA_SOAK_MINUTES", &minutes)
                        .env("IHUZA_SEED", &seed)
                        .args(["test", "--no-fail-fast"])
                        .args(*arguments)
                        // Shown also for tests that pass: they say there what they counted.
                        .args(["--", "--show-output"]);
                    if let Err(error) = call.follow(|line| part.read(line)) {
                        part.ended_with(&error);
                    }
                }
            });
        }
        if tally.failed() > 0 {
            progress::warn(&format!("failed with seed {seed}: repeat with `cargo xtask soak --seed {seed}`"));
            break;
        }
    }
    println!("{rounds} rounds, first seed {first_seed}, {} property cases a test and round", options.cases);
    for (what, count) in tally.counts() {
        println!("{count:>12}  {what}");
    }
    tally.close()
}

fn drawn_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() % 1_000_000)
}
