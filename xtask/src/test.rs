//! `cargo xtask test`: everything that must hold before a change goes in, in the order that finds faults soonest.

mod block;
mod tally;

use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::build;
use crate::call::Call;
use crate::places;
use crate::progress;
use crate::setup::{self, Tools};

use block::Block;
pub use tally::Tally;

#[derive(clap::Args)]
#[command(after_help = "\
Large counts run as a seeded sample here and in full under `cargo xtask soak`.
Parts: fmt, clippy, deny, unit (with properties and documentation examples), sql, relay, e2e.
The parts sql and relay run beside e2e, which mostly waits: the lines of e2e come as they are written, those of the others
when a test binary has ended. RUST_TEST_THREADS says how many tests of a binary run at once (e2e: 6 unless it is set).
Tests of relay and e2e wait for real processes, sockets and clocks. One of them that fails is tried once more, alone, when
everything else is over, and the summary names it if it passes then: that is a test to look at, but no reason to hold a change back. `cargo xtask soak`
tries nothing twice.")]
pub struct Options {
    /// Run only these parts, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Run only tests whose name contains this; parts that have no names (fmt, clippy, deny) only if --only says so.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Part {
    /// Formatting.
    Fmt,
    /// Lints of all crates, warnings denied.
    Clippy,
    /// Licences, banned crates and sources of dependencies.
    Deny,
    /// Rules, codecs and properties; no process is started.
    Unit,
    /// Migrations, rights and functions on a real Postgres.
    Sql,
    /// Whole calls over real sockets.
    Relay,
    /// Whole stories on the real edge runtime.
    E2e,
}

const ALL: [Part; 7] = [Part::Fmt, Part::Deny, Part::Clippy, Part::Unit, Part::Sql, Part::Relay, Part::E2e];

/// Parts that mostly wait run beside each other, those of a lane one after the other. What the first lane says is shown
/// as it comes: it takes longest.
const LANES: [&[Part]; 3] = [&[Part::E2e], &[Part::Sql], &[Part::Relay]];

/// The package of the media relay, whose integration tests are the part `relay`.
const RELAY: &str = "ihuza-relay";

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Deny => "deny",
            Self::Unit => "unit",
            Self::Sql => "sql",
            Self::Relay => "relay",
            Self::E2e => "e2e",
        }
    }

    /// Whether its tests wait for real processes, sockets and clocks, which a busy machine can disturb.
    fn is_of_clocks(self) -> bool {
        matches!(self, Self::Relay | Self::E2e)
    }
}

pub fn run(options: &Options) -> Result<()> {
    let tools = setup::ensure_for_tests()?;
    let started = Instant::now();
    let mut tally = Tally::default();
    for part in ALL.into_iter().filter(|part| options.wants(*part)) {
        match part {
            Part::Fmt => check(&mut tally, part, fmt()),
            Part::Clippy => check(&mut tally, part, clippy()),
            Part::Deny => check(&mut tally, part, deny(&tools)),
            Part::Unit => {
                progress::headline(&format!("Tests: {}", part.name()));
                let filtered = |call: Call| call.args(&options.filter);
                tally.add(tests(part.name(), part, &tools, Shown::AsItComes, filtered));
            }
            // In their lanes.
            Part::Sql | Part::Relay | Part::E2e => {}
        }
    }
    let lanes = LANES.map(|lane| lane.iter().copied().filter(|part| options.wants(*part)).collect::<Vec<_>>());
    beside_each_other(&mut tally, &lanes, &tools, options);
    if let Some(name) = &options.filter
        && tally.passed() + tally.failed() == 0
    {
        bail!("no test has {name:?} in its name");
    }
    tally.close(started.elapsed())
}

/// Runs the lanes and then, when nothing else runs any more, what failed once more.
fn beside_each_other(tally: &mut Tally, lanes: &[Vec<Part>], tools: &Tools, options: &Options) {
    let parts = lanes.concat();
    if parts.is_empty() {
        return;
    }
    if let Err(error) = compile(&parts) {
        for part in parts {
            tally.record(part.name(), |counts| counts.fail("the tests were not compiled", &error));
        }
        return;
    }
    let names = |lane: &Vec<Part>| lane.iter().map(|part| part.name()).collect::<Vec<_>>().join(" and then ");
    let names: Vec<String> = lanes.iter().filter(|lane| !lane.is_empty()).map(names).collect();
    progress::headline(&format!("Tests: {}", names.join(", beside it ")));
    let mut ran: Vec<(Part, tally::Part)> = std::thread::scope(|scope| {
        let mut shown = Shown::AsItComes;
        let mut running = Vec::new();
        for lane in lanes.iter().filter(|lane| !lane.is_empty()) {
            running.push(scope.spawn(move || {
                let ran = lane.iter().map(|part| (*part, in_lane(*part, tools, shown, options)));
                ran.collect::<Vec<_>>()
            }));
            shown = Shown::InBlocks;
        }
        let end = |lane: ScopedJoinHandle<'_, Vec<_>>| lane.join().unwrap_or_else(|panic| resume_unwind(panic));
        running.into_iter().flat_map(end).collect()
    });
    ran.sort_by_key(|(part, _)| ALL.iter().position(|each| each == part));
    for (part, mut counts) in ran {
        if part.is_of_clocks() {
            counts.take(|counts| try_again(counts, part, tools));
        }
        tally.add(counts);
    }
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        let named = matches!(part, Part::Unit | Part::Sql | Part::Relay | Part::E2e);
        if self.only.is_empty() { named || self.filter.is_none() } else { self.only.contains(&part) }
    }
}

fn fmt() -> Call {
    Call::cargo("check the formatting").args(["fmt", "--all", "--", "--check"]).hint("run `cargo fmt --all`")
}

fn clippy() -> Call {
    Call::cargo("lint all crates")
        .args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
        .usual("about 3 min the first time")
}

fn deny(tools: &Tools) -> Call {
    Call::new(&tools.cargo_deny, "check licences, bans and sources")
        .args(["--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
        .hint("deny.toml says what is allowed and why")
}

/// A check without tests of its own counts as one.
fn check(tally: &mut Tally, part: Part, call: Call) {
    tally.record(part.name(), |counts| match call.run() {
        Ok(()) => counts.pass(1),
        Err(error) => counts.fail(part.name(), &error),
    });
}

/// How the words of the test runner are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Every line at once.
    AsItComes,
    /// What a test binary says together, when it has ended: other parts run beside it.
    InBlocks,
}

/// Runs the tests of a part; `more` adds to the call of cargo.
pub fn tests(name: &str, part: Part, tools: &Tools, shown: Shown, more: impl Fn(Call) -> Call) -> tally::Part {
    tally::Part::measured(name, |counts| {
        let calls = match targets(part) {
            Ok(calls) => calls,
            Err(error) => return counts.fail("the tests could not be listed", &error),
        };
        for targets in calls {
            let call = more(test_call(name, tools, &targets));
            let ended = match shown {
                Shown::AsItComes => call.follow(|line| counts.read(line)),
                Shown::InBlocks => {
                    let mut block = Block::of(name);
                    let ended = call.listen(|line| {
                        counts.read(line);
                        block.read(line);
                    });
                    block.show();
                    ended
                }
            };
            if let Err(error) = ended {
                counts.ended_with(&error);
            }
        }
    })
}

/// A part that has a lane.
fn in_lane(part: Part, tools: &Tools, shown: Shown, options: &Options) -> tally::Part {
    if part == Part::E2e
        && let Err(error) = build::ensure(tools)
    {
        return tally::Part::measured(part.name(), |part| part.fail("the functions were not built", &error));
    }
    tests(part.name(), part, tools, shown, |call| {
        let call = call.args(&options.filter);
        // Whoever sets it knows better.
        if part == Part::E2e && places::set(THREADS).is_none() { call.env(THREADS, E2E_AT_ONCE) } else { call }
    })
}

/// What failed runs once more, alone.
fn try_again(counts: &mut tally::Part, part: Part, tools: &Tools) {
    let again = counts.failures().to_vec();
    // So many at once are no accident.
    if again.is_empty() || again.len() > MOST_TRIED_AGAIN {
        return;
    }
    // A runner that never ran is no test that failed.
    let Ok(calls) = targets(part) else { return };
    progress::warn(&format!("{} failed and will be tried once more, alone", again.join(", ")));
    let mut second = tally::Part::default();
    for targets in calls {
        let alone = ["--", "--exact", "--test-threads=1"].into_iter().map(str::to_owned).chain(again.iter().cloned());
        // Its failure is read from its lines.
        let _ = test_call(part.name(), tools, &targets).args(alone).follow(|line| second.read(line));
    }
    counts.second_attempt(&second);
}

/// More failures than this are looked at by people.
const MOST_TRIED_AGAIN: usize = 3;

/// How many tests the test runner has run at the same time.
const THREADS: &str = "RUST_TEST_THREADS";
/// End-to-end tests wait for processes, timers and each other's worlds three quarters of their time: there are more of
/// them at once than cores.
const E2E_AT_ONCE: &str = "6";

/// Compiles the tests of these parts, and the relay that those of e2e call, before any of them runs: cargo compiles one
/// thing at a time, and parts would wait for each other.
fn compile(parts: &[Part]) -> Result<()> {
    let mut call = Call::cargo("compile the tests").args(["test", "--workspace", "--no-run"]);
    for part in parts {
        call = call.args(targets(*part)?.concat());
    }
    call.usual("about 4 min the first time").run()?;
    if parts.contains(&Part::E2e) { build::relay() } else { Ok(()) }
}

fn test_call(name: &str, tools: &Tools, targets: &[String]) -> Call {
    tools
        .for_tests(Call::cargo(&format!("run the {name} tests")))
        // Always the whole workspace: another selection means other features, and everything compiled again.
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(targets)
}

/// What each call of `cargo test` selects. Whatever belongs to no other part is a unit test.
fn targets(part: Part) -> Result<Vec<Vec<String>>> {
    let own = |name: &str| vec!["--test".to_owned(), name.to_owned()];
    let calls = match part {
        Part::Sql => vec![own(Part::Sql.name())],
        Part::E2e => vec![own(Part::E2e.name())],
        Part::Relay => {
            let tests = integration_tests()?;
            vec![tests.iter().filter(|test| test.package == RELAY).flat_map(|test| own(&test.name)).collect()]
        }
        _ => {
            let mut first = vec!["--lib".to_owned(), "--bins".to_owned()];
            let others = integration_tests()?;
            let others = others
                .iter()
                .filter(|test| test.package != RELAY && test.name != Part::Sql.name() && test.name != Part::E2e.name());
            first.extend(others.flat_map(|test| own(&test.name)));
            vec![first, vec!["--doc".to_owned()]]
        }
    };
    Ok(calls)
}

/// A file of integration tests.
struct TestTarget {
    package: String,
    name: String,
}

/// All integration tests of the workspace.
fn integration_tests() -> Result<Vec<TestTarget>> {
    let text =
        Call::cargo("list the crates").args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).read()?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata names no packages")?;
    let word = |value: &Value, field: &str| Some(value.get(field)?.as_str()?.to_owned());
    let mut tests = Vec::new();
    for package in packages {
        for target in package.get("targets").and_then(Value::as_array).into_iter().flatten() {
            let kinds = target.get("kind").and_then(Value::as_array);
            let is_test = kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
            if let (true, Some(package), Some(name)) = (is_test, word(package, "name"), word(target, "name")) {
                tests.push(TestTarget { package, name });
            }
        }
    }
    Ok(tests)
}

impl Tally {
    /// Print the summary of what took so long; an error when something failed.
    pub fn close(self, took: Duration) -> Result<()> {
        progress::headline(&format!("Summary, after {}", progress::seconds(took)));
        for line in self.lines() {
            println!("{line}");
        }
        let (passed, failed) = (self.passed(), self.failed());
        println!("{passed} passed, {failed} failed");
        // The summary is the last word, also of a failed run.
        if failed > 0 { Err(progress::AlreadyTold.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_where_there_are_names() {
        let wanted = |only: &[Part], filter: Option<&str>| {
            let options = Options { only: only.to_vec(), filter: filter.map(str::to_owned) };
            ALL.into_iter().filter(|part| options.wants(*part)).map(Part::name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(wanted(&[], None), "fmt deny clippy unit sql relay e2e");
        assert_eq!(wanted(&[], Some("resend")), "unit sql relay e2e");
        assert_eq!(wanted(&[Part::Fmt, Part::Sql], Some("resend")), "fmt sql");
    }
}
