//! `cargo xtask test`: everything that must hold before a change goes in, in the order that finds faults soonest.

mod tally;

use anyhow::Result;
use clap::ValueEnum;

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
    /// Run only tests whose name contains this.
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

pub fn run(options: &Options) -> Result<()> {
    let parts: Vec<Part> =
        ALL.into_iter().filter(|part| options.only.is_empty() || options.only.contains(part)).collect();
    let tools = setup::ensure()?;
    let mut tally = Tally::default();
    for part in parts {
        let filter = options.filter.as_deref();
        match part {
            Part::Fmt => check(&mut tally, "fmt", fmt()),
            Part::Clippy => check(&mut tally, "clippy", clippy()),
            Part::Deny => check(&mut tally, "deny", deny(&tools)),
            Part::Unit => tests(&mut tally, "unit", &tools, &UNIT, filter),
            Part::Sql => tests(&mut tally, "sql", &tools, &SQL, filter),
            Part::E2e => end_to_end(&mut tally, &tools, filter),
        }
    }
    tally.close()
}

/// What `cargo test` is asked to run for a part; one call each.
pub const UNIT: [&[&str]; 2] = [&["--workspace", "--exclude", "ihuza-tests"], &["-p", "ihuza-tests", "--lib"]];
pub const SQL: [&[&str]; 1] = [&["-p", "ihuza-tests", "--test", "sql"]];
pub const E2E: [&[&str]; 1] = [&["-p", "ihuza-tests", "--test", "e2e"]];

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
fn check(tally: &mut Tally, name: &str, call: Call) {
    tally.record(name, |part| match call.run() {
        Ok(()) => part.pass(1),
        Err(error) => part.fail(name, &error),
    });
}

fn end_to_end(tally: &mut Tally, tools: &Tools, filter: Option<&str>) {
    if let Err(error) = build::ensure(tools) {
        tally.record("e2e", |part| part.fail("the functions were not built", &error));
        return;
    }
    tests(tally, "e2e", tools, &E2E, filter);
}

pub fn tests(tally: &mut Tally, name: &str, tools: &Tools, calls: &[&[&str]], filter: Option<&str>) {
    progress::headline(&format!("Tests: {name}"));
    tally.record(name, |part| {
        for arguments in calls {
            let call = tools
                .for_tests(Call::cargo(&format!("run the {name} tests")))
                .args(["test", "--no-fail-fast"])
                .args(*arguments)
                .args(filter);
            if let Err(error) = call.follow(|line| part.read(line)) {
                part.ended_with(&error);
            }
        }
    });
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
