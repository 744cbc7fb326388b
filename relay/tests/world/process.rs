//! A relay in a process of its own.

use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::until;

/// A relay of its own; it does not outlive its test.
pub struct Process(std::process::Child, Arc<Mutex<Vec<Value>>>);

impl Process {
    pub(super) fn new(mut child: std::process::Child) -> Process {
        let lines = Arc::new(Mutex::new(Vec::new()));
        if let Some(out) = child.stdout.take() {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in std::io::BufRead::lines(std::io::BufReader::new(out)).map_while(Result::ok) {
                    lines.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::Null));
                }
            });
        }
        Process(child, lines)
    }

    /// What an ended process complained of.
    pub(super) fn complaints(&mut self) -> String {
        let mut text = String::new();
        if let Some(err) = &mut self.0.stderr {
            std::io::Read::read_to_string(err, &mut text).unwrap();
        }
        text
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// What it logged, if that is kept.
    pub fn log(&self) -> Vec<Value> {
        self.1.lock().unwrap().clone()
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// As a service manager ends it; whether it ended well.
    pub async fn terminate(&mut self) -> bool {
        let id = self.0.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        until("the process ends", || self.ended()).await.success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
