//! What a person sees while a chore runs: one line a step, the time it took, and a sign of life while it lasts.
//! Everything goes to stderr; stdout is kept for results that another program may read.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a step that is still running says so, where lines cannot be rewritten.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

pub fn headline(text: &str) {
    eprintln!("{}", bold(text));
}

/// A step that is finished as soon as it is named.
pub fn note(text: &str) {
    eprintln!("  {text}");
}

pub fn done(text: &str) {
    eprintln!("  ✓ {text}");
}

pub fn warn(text: &str) {
    eprintln!("  ! {text}");
}

/// The error of a chore that has told all about its failure: it only sets the exit code.
#[derive(Debug)]
pub struct AlreadyTold;

impl std::fmt::Display for AlreadyTold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("something failed, as told above")
    }
}

impl std::error::Error for AlreadyTold {}

pub fn failure(error: &anyhow::Error) {
    if error.is::<AlreadyTold>() {
        return;
    }
    eprintln!("\n{}", bold(&format!("error: {error}")));
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
}

fn bold(text: &str) -> String {
    if std::io::stderr().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// A step that lasts. Say what it does and, when it is long, how long it usually takes.
pub struct Step {
    what: String,
    started: Instant,
    last_sign: Instant,
    rewrites: bool,
}

impl Step {
    pub fn start(what: &str, usual: Option<&str>) -> Self {
        let rewrites = std::io::stderr().is_terminal();
        let long = usual.map(|usual| format!(" ({usual})")).unwrap_or_default();
        eprintln!("  … {what}{long}");
        let now = Instant::now();
        Self { what: what.to_owned(), started: now, last_sign: now, rewrites }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Call it now and then while the step runs; `detail` is the newest thing known about it.
    pub fn tick(&mut self, detail: &str) {
        let seconds = self.started.elapsed().as_secs();
        if self.rewrites {
            if self.last_sign.elapsed() >= Duration::from_millis(500) {
                let detail: String = detail.chars().filter(|c| !c.is_control()).take(70).collect();
                eprint!("\r\x1b[2K    {seconds} s  {detail}");
                std::io::stderr().flush().ok();
                self.last_sign = Instant::now();
            }
        } else if self.last_sign.elapsed() >= SIGN_OF_LIFE {
            eprintln!("    {seconds} s: still at it: {}", self.what);
            self.last_sign = Instant::now();
        }
    }

    pub fn finish(self) {
        self.clear();
        eprintln!("  ✓ {} ({})", self.what, seconds(self.elapsed()));
    }

    pub fn fail(self) {
        self.clear();
        eprintln!("  ✗ {} (after {})", self.what, seconds(self.elapsed()));
    }

    fn clear(&self) {
        if self.rewrites {
            eprint!("\r\x1b[2K");
        }
    }
}

/// `0.4 s`, `12.3 s`, `3 min 05 s`.
pub fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_a_person_would_say_them() {
        assert_eq!(seconds(Duration::from_millis(400)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 05 s");
    }
}
