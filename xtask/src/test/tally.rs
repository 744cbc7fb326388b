//! Counting what passed and failed, from the words of cargo's test runner.

use std::time::{Duration, Instant};

use crate::progress;

#[derive(Default)]
pub struct Tally {
    parts: Vec<Part>,
}

/// One part of a test run.
#[derive(Default)]
pub struct Part {
    name: String,
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Names of what failed.
    failures: Vec<String>,
    /// Names of what failed at first and passed when it was tried again.
    second_attempts: Vec<String>,
    /// What tests said they counted, such as cases or kills.
    counts: Vec<(String, u64)>,
    took: Duration,
}

impl Tally {
    pub fn record(&mut self, name: &str, run: impl FnOnce(&mut Part)) {
        self.add(Part::measured(name, run));
    }

    pub fn add(&mut self, part: Part) {
        self.parts.push(part);
    }

    pub fn passed(&self) -> u64 {
        self.parts.iter().map(|part| part.passed).sum()
    }

    pub fn failed(&self) -> u64 {
        self.parts.iter().map(|part| part.failed).sum()
    }

    /// Sums over all parts of what the tests counted, by name.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let mut sums: Vec<(String, u64)> = Vec::new();
        for (name, count) in self.parts.iter().flat_map(|part| &part.counts) {
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += count,
                None => sums.push((name.clone(), *count)),
            }
        }
        sums
    }

    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for part in &self.parts {
            let ignored = if part.ignored > 0 { format!(", {} ignored", part.ignored) } else { String::new() };
            let took = progress::seconds(part.took);
            lines.push(format!("{:>8}  {} passed, {} failed{ignored} ({took})", part.name, part.passed, part.failed));
            lines.extend(part.failures.iter().map(|failure| format!("{:>8}  failed: {failure}", "")));
            lines
                .extend(part.second_attempts.iter().map(|name| format!("{:>8}  only at a second attempt: {name}", "")));
        }
        lines
    }
}

impl Part {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A part, and how long it took to run.
    pub fn measured(name: &str, run: impl FnOnce(&mut Self)) -> Self {
        let mut part = Self::new(name);
        part.take(run);
        part
    }

    /// More of this part, which takes its time as well.
    pub fn take(&mut self, run: impl FnOnce(&mut Self)) {
        let started = Instant::now();
        run(self);
        self.took += started.elapsed();
    }

    pub fn pass(&mut self, count: u64) {
        self.passed += count;
    }

    pub fn fail(&mut self, what: &str, error: &anyhow::Error) {
        self.failed += 1;
        let error = error.to_string();
        self.failures.push(format!("{what}: {}", error.lines().next().unwrap_or_default()));
    }

    /// What has failed so far, by the names of the test runner.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// What failed here was run again; what passed there counts as passed, and is named.
    pub fn second_attempt(&mut self, second: &Part) {
        // A run that did not run them all says nothing.
        if second.passed + second.failed < self.failures.len() as u64 {
            return;
        }
        let (failed, passed) =
            std::mem::take(&mut self.failures).into_iter().partition(|name| second.failures.contains(name));
        self.failures = failed;
        let passed: Vec<String> = passed;
        let count = passed.len() as u64;
        self.failed = self.failed.saturating_sub(count);
        self.passed += count;
        self.second_attempts.extend(passed);
    }

    /// One line of a test runner's output: `test <name> ... FAILED`, `test result: ok. 3 passed; …`, or our own
    /// `counted <number> <what>`, which a test prints to say how much it did.
    pub fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |what: &str| {
                result
                    .split(&['.', ';'][..])
                    .find_map(|piece| piece.trim().strip_suffix(what)?.trim().parse::<u64>().ok())
                    .unwrap_or(0)
            };
            self.passed += number("passed");
            self.failed += number("failed");
            self.ignored += number("ignored");
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        } else if let Some((count, what)) = line.strip_prefix("counted ").and_then(|rest| rest.split_once(' '))
            && let Ok(count) = count.parse()
        {
            self.counts.push((what.to_owned(), count));
        }
    }

    /// The runner failed. When it named no failed test (it did not compile, it crashed), that is one failure.
    pub fn ended_with(&mut self, error: &anyhow::Error) {
        if self.failed == 0 {
            let name = self.name.clone();
            self.fail(&format!("{name} tests did not run to their end"), error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_are_summed_and_failures_named() {
        let mut part = Part::new("unit");
        for line in [
            "test phone::short ... ok",
            "test phone::long ... FAILED",
            "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.25s",
            "counted 1000 kills of the runtime",
        ] {
            part.read(line);
        }
        assert_eq!((part.passed, part.failed, part.ignored), (10, 1, 2));
        assert_eq!(part.failures, ["phone::long"]);
        assert_eq!(part.counts, [("kills of the runtime".to_owned(), 1000)]);
    }

    #[test]
    fn what_passes_at_a_second_attempt_is_passed_and_named() {
        let read = |lines: &[&str]| {
            let mut part = Part::new("e2e");
            lines.iter().for_each(|line| part.read(line));
            part
        };
        let first = || {
            read(&[
                "test calls::hold ... FAILED",
                "test calls::rain ... FAILED",
                "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            ])
        };
        let second = read(&[
            "test calls::hold ... FAILED",
            "test calls::rain ... ok",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s",
        ]);
        let mut part = first();
        part.second_attempt(&second);
        assert_eq!((part.passed, part.failed), (8, 1));
        assert_eq!((part.failures, part.second_attempts), (vec!["calls::hold".into()], vec!["calls::rain".into()]));

        let mut part = first();
        part.second_attempt(&Part::new("did not run"));
        assert_eq!((part.passed, part.failed, part.second_attempts.len()), (7, 2, 0));
    }

    #[test]
    fn a_runner_that_died_without_a_word_is_a_failure() {
        let mut part = Part::new("e2e");
        part.ended_with(&anyhow::anyhow!("signal 9"));
        assert_eq!(part.failed, 1);
    }
}
