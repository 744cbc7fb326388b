//! Running another program: quietly with progress, in plain sight, or for its output.
//!
//! A failed call says what was being done, shows the end of the program's own words, and where all of them are.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::places;
use crate::progress::{self, Step};
use crate::wasm_toolchain::Policy;

/// Lines of a failed program's output that are shown at once.
const SHOWN_LINES: usize = 60;

pub struct Call {
    command: Command,
    what: String,
    usual: Option<String>,
    hint: Option<String>,
}

impl Call {
    /// `what` completes the sentence "could not …", such as "install the npm packages".
    pub fn new(program: impl AsRef<OsStr>, what: &str) -> Self {
        let mut command = Command::new(program);
        command.current_dir(places::project()).stdin(Stdio::null());
        forget_the_outer_cargo(&mut command);
        if Policy::is_distro() {
            Policy::forbid_downloads(&mut command);
        }
        Self { command, what: what.to_owned(), usual: None, hint: None }
    }

    /// The cargo of the native toolchain (the one that runs this program).
    pub fn cargo(what: &str) -> Self {
        Self::new("cargo", what)
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Put a folder first on the PATH of this program.
    pub fn path_first(mut self, dir: &Path) -> Self {
        let own = self.command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value);
        let path = own.map(OsStr::to_owned).or_else(|| std::env::var_os("PATH")).unwrap_or_default();
        let all = std::iter::once(dir.to_owned()).chain(std::env::split_paths(&path));
        if let Ok(joined) = std::env::join_paths(all) {
            self.command.env("PATH", joined);
        }
        self
    }

    /// How long it takes, such as "about 3 min the first time".
    pub fn usual(mut self, usual: &str) -> Self {
        self.usual = Some(usual.to_owned());
        self
    }

    /// What a person can do when it fails.
    pub fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }

    /// Run with progress; the output goes to a log file and is shown only on failure.
    pub fn run(mut self) -> Result<()> {
        let log = self.log_file()?;
        let file = File::create(&log).with_context(|| format!("could not write {}", log.display()))?;
        let again = file.try_clone().context("could not share the log file with a program")?;
        let mut step = Step::start(&self.what, self.usual.as_deref());
        let mut child = match self.command.stdout(file).stderr(again).spawn() {
            Ok(child) => child,
            Err(error) => return Err(self.not_started(error)),
        };
        let status = loop {
            if let Some(status) = child.try_wait().with_context(|| format!("lost sight of a program: {}", self.what))? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(if step.elapsed() < Duration::from_secs(1) { 10 } else { 200 }));
            step.tick(&last_line(&log));
        };
        if status.success() {
            step.finish();
            return Ok(());
        }
        step.fail();
        eprintln!("{}", tail(&log, SHOWN_LINES));
        Err(self.failed(&format!("{status}; all of its output is in {}", log.display())))
    }

    /// Run in plain sight, and hand every line of its stdout to `each` as well.
    pub fn follow(mut self, mut each: impl FnMut(&str)) -> Result<()> {
        let mut child = match self.command.stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => return Err(self.not_started(error)),
        };
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                each(&line);
            }
        }
        let status = child.wait().with_context(|| format!("lost sight of a program: {}", self.what))?;
        if status.success() { Ok(()) } else { Err(self.failed(&status.to_string())) }
    }

    /// Run silently, and hand every line of its stdout and stderr to `each`, in the order in which they were written.
    pub fn listen(mut self, mut each: impl FnMut(&str)) -> Result<()> {
        let (reader, writer) = std::io::pipe().context("could not open a pipe")?;
        let again = writer.try_clone().context("could not share a pipe with a program")?;
        let mut child = match self.command.stdout(writer).stderr(again).spawn() {
            Ok(child) => child,
            Err(error) => return Err(self.not_started(error)),
        };
        // The command holds the pipe open as long as it exists, and nobody would see its end.
        let _ = self.command.stdout(Stdio::null()).stderr(Stdio::null());
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            each(&String::from_utf8_lossy(&line));
        }
        let status = child.wait().with_context(|| format!("lost sight of a program: {}", self.what))?;
        if status.success() { Ok(()) } else { Err(self.failed(&status.to_string())) }
    }

    /// Run silently and return what it printed on stdout, without the last newline.
    pub fn read(mut self) -> Result<String> {
        match self.command.output() {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()),
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(self.failed(&format!("{}: {words}", output.status)))
            }
            Err(error) => Err(self.not_started(error)),
        }
    }

    fn log_file(&self) -> Result<PathBuf> {
        let dir = places::logs();
        std::fs::create_dir_all(&dir).with_context(|| format!("could not create {}", dir.display()))?;
        let name: String = self.what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        Ok(dir.join(format!("{name}.log")))
    }

    fn failed(&self, how: &str) -> anyhow::Error {
        let hint = self.hint.as_ref().map(|hint| format!("\n  to do: {hint}")).unwrap_or_default();
        anyhow!("could not {}: {how}{hint}", self.what)
    }

    fn not_started(&self, error: std::io::Error) -> anyhow::Error {
        let program = self.command.get_program().to_string_lossy().into_owned();
        self.failed(&format!("`{program}` did not start ({error})"))
    }
}

/// `cargo run` leaves variables behind that describe xtask itself and its toolchain; another cargo would believe them.
fn forget_the_outer_cargo(command: &mut Command) {
    let of_xtask = |name: &str| {
        matches!(
            name,
            "CARGO" | "CARGO_CRATE_NAME" | "CARGO_BIN_NAME" | "CARGO_PRIMARY_PACKAGE" | "RUST_RECURSION_COUNT"
        ) || name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_xtask) {
            command.env_remove(name);
        }
    }
    if let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") {
        let of_rust = |dir: &Path| {
            let dir = dir.to_string_lossy();
            dir.contains("/toolchains/")
                || dir.contains("/lib/rustlib/")
                || dir.contains("/debug")
                || dir.contains("/release")
        };
        let kept: Vec<PathBuf> = std::env::split_paths(&paths).filter(|dir| !of_rust(dir)).collect();
        match std::env::join_paths(&kept) {
            Ok(joined) if !joined.is_empty() => command.env("LD_LIBRARY_PATH", joined),
            _ => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
}

fn last_line(log: &Path) -> String {
    let end = tail_bytes(log, 400);
    end.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

fn tail(log: &Path, lines: usize) -> String {
    let end = tail_bytes(log, 64 * 1024);
    let all: Vec<&str> = end.lines().collect();
    let from = all.len().saturating_sub(lines);
    all.iter().skip(from).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn tail_bytes(log: &Path, at_most: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(at_most)))?;
        let mut bytes = Vec::new();
        file.take(at_most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Hold a lock file while something shared is built, so that two chores at once wait for each other.
pub fn lock(file: &Path) -> Result<File> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
    }
    let lock = File::create(file).with_context(|| format!("could not create {}", file.display()))?;
    if lock.try_lock().is_err() {
        progress::note(&format!("another chore holds {}: waiting for it", file.display()));
        lock.lock().with_context(|| format!("could not lock {}", file.display()))?;
    }
    Ok(lock)
}
