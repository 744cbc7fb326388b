//! Child processes that cannot outlive us, however we end.
//!
//! Every child runs under a few lines of `sh` in a process group of their own. The shell holds the reading end of a
//! pipe whose only writing end is ours: when we drop it, or die by any signal, even `kill -9`, the pipe closes, and the
//! shell stops the child, removes its rubbish and sweeps the group. A parent-death signal would be shorter but is tied
//! to the *thread* that spawned the child, is lost when the child changes its user, and does not exist outside Linux.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Result, Trouble};

/// Arguments: stop signal, folder to remove at the end (or nothing), where the child reads from (`pipe` or `nothing`),
/// then the command. The child gets ten seconds to obey the signal.
const SUPERVISOR: &str = r#"
exec 3<&0
signal=$1 rubbish=$2 input=$3
shift 3
if [ "$input" = pipe ]; then "$@" <&3 3<&- & else "$@" </dev/null 3<&- & fi
child=$!
(
  read -r _ <&3
  kill -s "$signal" "$child"
  tries=0
  while kill -s 0 "$child" && [ "$tries" -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
  kill -s KILL "$child"
) >/dev/null 2>&1 </dev/null &
wait "$child"
echo "[supervisor] ended with status $?" >&2
if [ -n "$rubbish" ]; then rm -rf -- "$rubbish"; fi
kill -s KILL 0
"#;

/// How long we wait for a child before its whole group is killed: a little more than the shell's own patience.
const STOP_PATIENCE: Duration = Duration::from_secs(12);

/// What to run, and how it should end.
pub struct Plan {
    pub name: &'static str,
    pub program: OsString,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub current_dir: Option<PathBuf>,
    /// Standard error, and standard output unless it is `piped`, are appended here.
    pub log: PathBuf,
    pub stop_signal: &'static str,
    /// Removed when the child has ended, also when we are not there any more.
    pub rubbish: Option<PathBuf>,
    /// The child shares the pipe as its standard input and sees it close.
    pub reads_pipe: bool,
    pub stdout_piped: bool,
}

impl Plan {
    pub fn new(name: &'static str, program: impl Into<OsString>, log: impl Into<PathBuf>) -> Self {
        Self {
            name,
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            current_dir: None,
            log: log.into(),
            stop_signal: "TERM",
            rubbish: None,
            reads_pipe: false,
            stdout_piped: false,
        }
    }

    pub fn args<I: IntoIterator<Item = A>, A: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// A running child. Dropping it stops it and waits until it is gone.
pub struct Supervised {
    name: &'static str,
    shell: Child,
    leash: Option<ChildStdin>,
    log: PathBuf,
}

impl Supervised {
    pub fn start(plan: Plan) -> Result<(Self, Option<ChildStdout>)> {
        let log = append(&plan.log)?;
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(SUPERVISOR)
            .arg(format!("ihuza-{}", plan.name))
            .arg(plan.stop_signal)
            .arg(plan.rubbish.as_deref().unwrap_or(Path::new("")))
            .arg(if plan.reads_pipe { "pipe" } else { "nothing" })
            .arg(&plan.program)
            .args(&plan.args)
            .envs(plan.env)
            .stdin(Stdio::piped())
            .stderr(log.try_clone().context("cannot share the log file")?)
            .process_group(0);
        if plan.stdout_piped {
            command.stdout(Stdio::piped());
        } else {
            command.stdout(log);
        }
        if let Some(dir) = &plan.current_dir {
            command.current_dir(dir);
        }
        let mut shell = command
            .spawn()
            .context(format!("cannot start {} through sh: is there a POSIX shell on the PATH?", plan.name))?;
        let leash = shell.stdin.take();
        let stdout = shell.stdout.take();
        let supervised = Self { name: plan.name, shell, leash, log: plan.log };
        Ok((supervised, stdout))
    }

    /// False once the child has ended by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.shell.try_wait(), Ok(None))
    }

    /// An error that shows the end of the child's log.
    pub fn trouble(&self, what: &str) -> Trouble {
        Trouble::new(format!("{}: {what}; the end of {}:\n{}", self.name, self.log.display(), tail(&self.log, 15)))
    }

    /// The process group of the child and all it started.
    pub fn group(&self) -> u32 {
        self.shell.id()
    }

    /// Lets go of the leash: the child begins to stop, and we do not wait.
    pub fn begin_stop(&mut self) {
        self.leash = None;
    }

    /// Stops the child and waits until it is gone.
    pub fn stop(&mut self) {
        self.begin_stop();
        let since = Instant::now();
        while self.is_running() {
            if since.elapsed() > STOP_PATIENCE {
                return self.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `kill -9` to the child and all it started.
    pub fn kill(&mut self) {
        let group = format!("-{}", self.group());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).status();
        let _ = self.shell.wait();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop();
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).context(format!("cannot write the log {}", path.display()))
}

fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all.get(from..).unwrap_or_default().join("\n")
}

/// Runs a short command to its end; its output is in the error when it fails.
pub fn run(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(format!("{what}: cannot start {}", command.get_program().to_string_lossy()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::new(format!(
        "{what}: {} ended with {}\n{text}{errors}",
        command.get_program().to_string_lossy(),
        output.status
    )))
}

/// A port that was free a moment ago. Whoever binds it must be ready to be told otherwise and to ask again.
///
/// Below the range from which systems take ports for outgoing connections, or one of those might have it by then, and
/// above the ports that the tests of the relay take.
pub fn free_port() -> Result<u16> {
    const FIRST: u128 = 20_000;
    const COUNT: u128 = 12_000;
    for _ in 0..50 {
        let port = (FIRST + uuid::Uuid::new_v4().as_u128() % COUNT) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Trouble::new("no free port on 127.0.0.1: is the loopback interface up?"))
}

/// The first file of this name on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
