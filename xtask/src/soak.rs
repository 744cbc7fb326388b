//! `cargo xtask soak`: the same tests with large counts, round after round, each with a seed of its own.
//!
//! Tests read `PROPTEST_CASES`, `BOLERO_RANDOM_TEST_TIME_MS`, `RELAY_KILLS`, `IHUZA_SOAK_MINUTES`, `IHUZA_IN_FULL` and `IHUZA_SEED`, and print
//! `counted <number> <what>` lines.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::build;
use crate::progress;
use crate::setup;
use crate::test::{Part, Shown, Tally, tests};

/// Property cases a test in the first round.
const FIRST_CASES: u64 = 1_000;
/// Each round has so many times the cases of the round before.
const GROWTH: u64 = 4;
/// A case that goes through a database costs about so many cases that do not.
const DATABASE_CASE: u64 = 20;
/// A fuzz target has this part of the time that is left, and at most two minutes of a round.
const FUZZ_SHARE: u64 = 50;
const MOST_FUZZ_MS: u64 = 120_000;
/// The relay is killed so often in a round; `test` has a sample.
const RELAY_KILLS: u32 = 200;

/// Only what the many cases go through is optimised: the rest would take longer to compile than it saves.
const OPTIMISED: [&str; 2] = ["profile.dev.package.ihuza-core.opt-level=2", "profile.dev.package.proptest.opt-level=2"];

#[derive(clap::Args)]
pub struct Options {
    /// How long to go on; the round that runs then is finished.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Seed of the first round (the next ones count up); drawn when absent, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Most property cases a test and round; rounds grow up to it.
    #[arg(long, default_value_t = 1_000_000)]
    cases: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let tools = setup::ensure_for_tests()?;
    let started = Instant::now();
    build::ensure(&tools)?;
    build::relay()?;
    let first_seed = options.seed.unwrap_or_else(drawn_seed);
    let until = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut tally = Tally::default();
    let (mut rounds, mut all_cases) = (0, 0);
    while rounds == 0 || Instant::now() < until {
        let seed = first_seed.wrapping_add(rounds);
        let grown = FIRST_CASES.saturating_mul(GROWTH.saturating_pow(u32::try_from(rounds).unwrap_or(u32::MAX)));
        let cases = grown.min(options.cases);
        rounds += 1;
        all_cases += cases;
        progress::headline(&format!("Soak: round {rounds}, seed {seed}, {cases} cases a property"));
        let minutes = until.saturating_duration_since(Instant::now()).as_secs().div_ceil(60).max(1);
        for part in [Part::Unit, Part::Sql, Part::Relay, Part::E2e] {
            let part_cases = if part == Part::Unit { cases } else { (cases / DATABASE_CASE).max(1) };
            let name = format!("{} #{rounds}", part.name());
            progress::headline(&format!("Tests: {name}"));
            tally.add(tests(&name, part, &tools, Shown::AsItComes, |call| {
                // What is counted out rather than drawn is the same in every round.
                let call = if rounds == 1 { call.env("IHUZA_IN_FULL", "1") } else { call };
                call.args(OPTIMISED.iter().flat_map(|setting| ["--config", setting]))
                    .env("PROPTEST_CASES", part_cases.to_string())
                    .env("PROPTEST_RNG_SEED", seed.to_string())
                    .env("BOLERO_RANDOM_TEST_TIME_MS", (minutes * 60_000 / FUZZ_SHARE).min(MOST_FUZZ_MS).to_string())
                    .env("RELAY_KILLS", RELAY_KILLS.to_string())
                    .env("IHUZA_SOAK_MINUTES", minutes.to_string())
                    .env("IHUZA_SEED", seed.to_string())
                    // Shown also for tests that pass: they say there what they counted.
                    .arg("--")
                    .arg("--show-output")
            }));
        }
        if tally.failed() > 0 {
            progress::warn(&format!("failed with seed {seed}: repeat with `cargo xtask soak --seed {seed}`"));
            break;
        }
    }
    println!("{rounds} rounds from seed {first_seed}, {all_cases} cases a property");
    for (what, count) in tally.counts() {
        println!("{count:>12}  {what}");
    }
    tally.close(started.elapsed())
}

fn drawn_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() % 1_000_000)
}
