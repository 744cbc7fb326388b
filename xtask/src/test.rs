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
Parts: fmt, clippy, deny, unit (with properties and documentation examples), sql, e2e.")]
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
    /// Whole stories on the real edge runtime.
    E2e,
}

const ALL: [Part; 6] = [Part::Fmt, Part::Deny, Part::Clippy, Part::Unit, Part::Sql, Part::E2e];

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Deny => "deny",
            Self::Unit => "unit",
            Self::Sql => "sql",
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
            Part::Unit | Part::Sql | Part::E2e => {
                if part == Part::E2e
                    && let Err(error) = build::ensure(&tools)
                {
                    tally.record(part.name(), |part| part.fail("the functions were not built", &error));
                    continue;
                }
                tests(&mut tally, part.name(), part, &tools, |call| call.args(&options.filter));
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
        let named = matches!(part, Part::Unit | Part::Sql | Part::E2e);
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

/// Run the tests of a part; `more` adds to each call of cargo.
pub fn tests(tally: &mut Tally, name: &str, part: Part, tools: &Tools, more: impl Fn(Call) -> Call) {
    progress::headline(&format!("Tests: {name}"));
    tally.record(name, |counts| {
        let calls = match targets(part) {
            Ok(calls) => calls,
            Err(error) => return counts.fail("the tests could not be listed", &error),
        };
        for targets in calls {
            let call = tools
                .for_tests(Call::cargo(&format!("run the {name} tests")))
                // Always the whole workspace: another selection means other features, and everything compiled again.
                .args(["test", "--workspace", "--no-fail-fast"])
                .args(targets);
            if let Err(error) = more(call).follow(|line| counts.read(line)) {
                counts.ended_with(&error);
            }
        }
    });
}

/// What each call of `cargo test` selects. Whatever is neither the SQL nor the end-to-end tests is a unit test.
fn targets(part: Part) -> Result<Vec<Vec<String>>> {
    let own = |name: &str| vec!["--test".to_owned(), name.to_owned()];
    let calls = match part {
        Part::Sql => vec![own(Part::Sql.name())],
        Part::E2e => vec![own(Part::E2e.name())],
        _ => {
            let mut first = vec!["--lib".to_owned(), "--bins".to_owned()];
            let others = integration_tests()?;
            let others = others.iter().filter(|name| *name != Part::Sql.name() && *name != Part::E2e.name());
            first.extend(others.flat_map(|name| own(name)));
            vec![first, vec!["--doc".to_owned()]]
        }
    };
    Ok(calls)
}

/// Names of all integration tests of the workspace.
fn integration_tests() -> Result<Vec<String>> {
    let text =
        Call::cargo("list the crates").args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).read()?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo metadata names no packages")?;
    let targets = packages.iter().filter_map(|package| package.get("targets")?.as_array()).flatten();
    let tests = targets.filter(|target| {
        let kinds = target.get("kind").and_then(Value::as_array);
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"))
    });
    Ok(tests.filter_map(|target| target.get("name")?.as_str().map(str::to_owned)).collect())
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
        assert_eq!(wanted(&[], None), "fmt deny clippy unit sql e2e");
        assert_eq!(wanted(&[], Some("resend")), "unit sql e2e");
        assert_eq!(wanted(&[Part::Fmt, Part::Sql], Some("resend")), "fmt sql");
    }
}
