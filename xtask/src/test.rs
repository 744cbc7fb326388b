//! `cargo xtask test`: everything that must hold before a change goes in, in the order that finds faults soonest.

mod tally;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::build;
use crate::call::Call;
use crate::progress;
use crate::setup::{self, Tools};

pub use tally::Tally;

#[derive(clap::Args)]
#[command(after_help = "\
Large counts run as a seeded sample here and in full under `cargo xtask soak`.
Parts: fmt, clippy, deny, unit (with properties and documentation examples), sql, relay, e2e.
Tests of relay and e2e wait for real processes, sockets and clocks. One of them that fails is tried once more, alone, and
the summary names it if it passes then: that is a test to look at, but no reason to hold a change back. `cargo xtask soak`
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
}

pub fn run(options: &Options) -> Result<()> {
    let tools = setup::ensure_for_tests()?;
    let mut tally = Tally::default();
    for part in ALL.into_iter().filter(|part| options.wants(*part)) {
        match part {
            Part::Fmt => check(&mut tally, part, fmt()),
            Part::Clippy => check(&mut tally, part, clippy()),
            Part::Deny => check(&mut tally, part, deny(&tools)),
            Part::Unit | Part::Sql | Part::Relay | Part::E2e => {
                if part == Part::E2e
                    && let Err(error) = build::ensure(&tools).and_then(|()| build::relay())
                {
                    tally.record(part.name(), |part| part.fail("functions or relay were not built", &error));
                    continue;
                }
                let attempts = if matches!(part, Part::Relay | Part::E2e) { 2 } else { 1 };
                tests(&mut tally, part.name(), part, &tools, attempts, |call| call.args(&options.filter));
            }
        }
    }
    if let Some(name) = &options.filter
        && tally.passed() + tally.failed() == 0
    {
        bail!("no test has {name:?} in its name");
    }
    tally.close()
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

/// Run the tests of a part, those that fail up to `attempts` times; `more` adds to the first call of cargo.
pub fn tests(tally: &mut Tally, name: &str, part: Part, tools: &Tools, attempts: u32, more: impl Fn(Call) -> Call) {
    progress::headline(&format!("Tests: {name}"));
    tally.record(name, |counts| {
        let calls = match targets(part) {
            Ok(calls) => calls,
            Err(error) => return counts.fail("the tests could not be listed", &error),
        };
        for targets in calls {
            if let Err(error) = more(test_call(name, tools, &targets)).follow(|line| counts.read(line)) {
                counts.ended_with(&error);
            }
            for _ in 1..attempts {
                let again = counts.failures().to_vec();
                // So many at once are no accident.
                if again.is_empty() || again.len() > MOST_TRIED_AGAIN {
                    break;
                }
                progress::warn(&format!("{} failed and {}", again.join(", "), "will be tried once more, alone"));
                let alone = ["--", "--exact", "--test-threads=1"].into_iter().map(str::to_owned).chain(again);
                let mut second = tally::Part::default();
                // Its failure is read from its lines.
                let _ = test_call(name, tools, &targets).args(alone).follow(|line| second.read(line));
                counts.second_attempt(&second);
            }
        }
    });
}

/// More failures than this are looked at by people.
const MOST_TRIED_AGAIN: usize = 3;

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
    /// Print the summary; an error when something failed.
    pub fn close(self) -> Result<()> {
        progress::headline("Summary");
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
