//! Which calls were placed, on disk before a telephone rings: a request that comes again after a kill finds its call, and
//! the day's budget survives.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::journal::record;
use crate::sip::call::EndCause;

/// Older lines are forgotten: nobody repeats a request for so long, and a budget is one of a day.
const KEPT_MS: i64 = 48 * 3_600_000;
/// A longer file is written anew, without what is forgotten.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Line {
    /// A call is about to be placed.
    Placed {
        /// Its id.
        id: String,
        /// Hash of the idempotency key.
        key: String,
        /// Hash of what was asked for.
        request: String,
        /// The trunk.
        trunk: String,
        /// What is kept of the budget, in millionths.
        reserved: u64,
        /// When, in milliseconds since 1970.
        at_ms: i64,
    },
    /// It is over.
    Ended {
        /// Which.
        id: String,
        /// Why.
        cause: EndCause,
        /// What it cost, in millionths.
        cost: u64,
        /// When, in milliseconds since 1970.
        at_ms: i64,
    },
}

impl Line {
    fn at_ms(&self) -> i64 {
        match self {
            Line::Placed { at_ms, .. } | Line::Ended { at_ms, .. } => *at_ms,
        }
    }
}

/// The file.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Made with the first line.
    file: Option<File>,
    lines: Vec<Line>,
    /// Number of the next record, and bytes written.
    next: u64,
    length: usize,
}

impl Ledger {
    /// Opens it; what is torn at its end or too old is left out.
    pub fn open(directory: &Path, now_ms: i64) -> io::Result<(Ledger, Vec<Line>)> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join("placed.ledger");
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let inner = Inner { file: None, lines: Vec::new(), next: 1, length: 0 };
                return Ok((Ledger { path, inner: Mutex::new(inner) }, Vec::new()));
            }
            read => read?,
        };
        let scan = record::scan(&bytes);
        let lines: Vec<Line> =
            scan.records.iter().filter_map(|(_, payload)| serde_json::from_slice(payload).ok()).collect();
        let kept = kept(&lines, now_ms);
        // A disk that is full takes no new file: then the old one serves on.
        let anew = if kept.len() < lines.len() { rewrite(&path, kept.clone()).ok() } else { None };
        let inner = match anew {
            Some(inner) => inner,
            None => {
                let file = OpenOptions::new().append(true).open(&path)?;
                file.set_len(scan.sound_bytes as u64)?;
                let next = scan.records.len() as u64 + 1;
                Inner { file: Some(file), lines, next, length: scan.sound_bytes }
            }
        };
        Ok((Ledger { path, inner: Mutex::new(inner) }, kept))
    }

    /// Appends; when this returns the line is on disk. Waits for the disk: not for a task that others wait for.
    pub fn append(&self, line: Line) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.length > MOST_BYTES {
            *inner = rewrite(&self.path, kept(&inner.lines, line.at_ms()))?;
        }
        let bytes = framed(inner.next, &line)?;
        let length = inner.length as u64;
        let file = match &mut inner.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).append(true).open(&self.path)?),
        };
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            // Half a line would hide all that follow it.
            file.set_len(length)?;
            return Err(error);
        }
        inner.next += 1;
        inner.length += bytes.len();
        inner.lines.push(line);
        Ok(())
    }
}

fn kept(lines: &[Line], now_ms: i64) -> Vec<Line> {
    lines.iter().filter(|line| now_ms - line.at_ms() < KEPT_MS).cloned().collect()
}

fn framed(sequence: u64, line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    record::write(&mut bytes, sequence, &serde_json::to_vec(line)?).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Writes a file of these lines beside the old one, and puts it in its place.
fn rewrite(path: &Path, lines: Vec<Line>) -> io::Result<Inner> {
    let mut bytes = Vec::new();
    for (sequence, line) in (1..).zip(&lines) {
        bytes.extend(framed(sequence, line)?);
    }
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    std::fs::rename(&beside, path)?;
    let file = Some(OpenOptions::new().append(true).open(path)?);
    Ok(Inner { file, next: lines.len() as u64 + 1, length: bytes.len(), lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(id: &str, at_ms: i64) -> Line {
        let text = || "x".to_owned();
        Line::Placed { id: id.into(), key: text(), request: text(), trunk: text(), reserved: 5, at_ms }
    }

    #[test]
    fn what_was_written_is_found_again_without_what_is_torn_or_old() {
        let directory = std::env::temp_dir().join(format!("ihuza-relay-ledger-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let (ledger, found) = Ledger::open(&directory, 0).unwrap();
        assert!(found.is_empty());
        let ended = Line::Ended { id: "a".into(), cause: EndCause::Busy, cost: 0, at_ms: 10 };
        for line in [placed("a", 0), ended.clone(), placed("b", KEPT_MS)] {
            ledger.append(line).unwrap();
        }
        let path = directory.join("placed.ledger");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 3);
        std::fs::write(&path, &bytes).unwrap();
        let (ledger, found) = Ledger::open(&directory, 5).unwrap();
        assert_eq!(found, [placed("a", 0), ended], "the last one was torn");
        ledger.append(placed("c", KEPT_MS)).unwrap();
        drop(ledger);
        let (_, found) = Ledger::open(&directory, KEPT_MS + 20).unwrap();
        assert_eq!(found, [placed("c", KEPT_MS)]);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
