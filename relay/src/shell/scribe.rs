//! Keeps the record of one call: every entry first to the journal, then to the session function, in order; and does not
//! rest before the function knows of the end.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::journal::{Journal, JournalError, Leftover};
use super::log::{Level, Log};
use super::session_function::{Function, FunctionError, Opening};
use crate::journal::entry::Entry;
use crate::sip::call::EndCause;

/// Entries of one post.
const BATCH: usize = 50;
/// What is new is posted this often.
const POST_EVERY: Duration = Duration::from_secs(1);
/// Waits between attempts grow from the first to the second.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
const MOST_WAITING: usize = 1024;

/// What a scribe works with.
#[derive(Clone)]
pub struct Desk {
    /// The disk.
    pub journal: Journal,
    /// The function.
    pub function: Function,
    /// The log.
    pub log: Log,
}

/// An entry, and who waits for it to be on disk.
pub struct Line {
    entry: Entry,
    kept: Option<oneshot::Sender<bool>>,
}

impl From<Entry> for Line {
    fn from(entry: Entry) -> Line {
        Line { entry, kept: None }
    }
}

impl Line {
    /// An entry that something depends on: whether it is on disk comes by the receiver.
    pub fn kept(entry: Entry) -> (Line, oneshot::Receiver<bool>) {
        let (kept, is_kept) = oneshot::channel();
        (Line { entry, kept: Some(kept) }, is_kept)
    }
}

/// Begins the record of a call.
pub fn begin(desk: Desk, opening: Opening) -> mpsc::Sender<Line> {
    begin_with(desk, opening, Vec::new())
}

/// Begins the record of a call whose first entries are in the journal already.
pub fn begin_with(desk: Desk, opening: Opening, written: Vec<Entry>) -> mpsc::Sender<Line> {
    let (sender, lines) = mpsc::channel(MOST_WAITING);
    let last_at_ms = written.last().and_then(Entry::at_ms).unwrap_or_default();
    let owed: Vec<(u64, Entry)> = (1..).zip(written).collect();
    let last = owed.len() as u64;
    let scribe = Scribe {
        desk,
        opening,
        owed,
        last,
        last_at_ms,
        answered_at_ms: None,
        ended: None,
        unwritten: VecDeque::new(),
        failing: false,
    };
    tokio::spawn(scribe.run(lines));
    sender
}

/// Finishes the record of a call that a former process left behind.
pub fn finish(desk: Desk, leftover: Leftover, now_ms: i64) {
    let Leftover { call, entries, owed } = leftover;
    let opening = entries.iter().find_map(opening_of);
    let Some(opening) = opening.filter(|_| !owed.closed) else {
        // Told completely, or torn before its first entry: a call that was never let in.
        return desk.journal.remove(&call);
    };
    let spoken = entries.iter().rev().find_map(|entry| match entry {
        Entry::Language { locale, .. } => Some(*locale),
        _ => None,
    });
    let opening = Opening { locale: spoken.unwrap_or(opening.locale), ..opening };
    let ended = entries.iter().find_map(end_of);
    let answered_at_ms = entries.iter().find_map(answer_of);
    let mut scribe = Scribe {
        desk,
        opening,
        owed: owed.entries,
        last: owed.last,
        last_at_ms: now_ms,
        answered_at_ms,
        ended,
        unwritten: VecDeque::new(),
        failing: false,
    };
    tokio::spawn(async move {
        if scribe.ended.is_none() {
            // It ended when it was last heard of, not now.
            let at_ms = owed.open_since.unwrap_or(now_ms);
            scribe.write(Entry::Ended { cause: EndCause::RelayRestart, media: Value::Null, at_ms }).await;
        }
        scribe.close().await;
    });
}

fn opening_of(entry: &Entry) -> Option<Opening> {
    match entry {
        Entry::Opened { correlation_id, call_sid, origin, trunk, from, to, locale, direction, reference, .. } => {
            Some(Opening {
                correlation_id: correlation_id.clone(),
                call_sid: call_sid.clone(),
                origin: *origin,
                trunk: trunk.clone(),
                from: from.clone(),
                to: to.clone(),
                agent: String::new(),
                locale: *locale,
                direction: *direction,
                reference: reference.clone(),
            })
        }
        _ => None,
    }
}

fn answer_of(entry: &Entry) -> Option<i64> {
    match entry {
        Entry::Answered { at_ms } => Some(*at_ms),
        _ => None,
    }
}

fn end_of(entry: &Entry) -> Option<(EndCause, Value, i64)> {
    match entry {
        Entry::Ended { cause, media, at_ms } => Some((*cause, media.clone(), *at_ms)),
        _ => None,
    }
}

struct Scribe {
    desk: Desk,
    opening: Opening,
    owed: Vec<(u64, Entry)>,
    /// What the disk did not take yet. The journal stays a beginning of the story: its entries are numbered by their place.
    unwritten: VecDeque<Entry>,
    last: u64,
    last_at_ms: i64,
    answered_at_ms: Option<i64>,
    ended: Option<(EndCause, Value, i64)>,
    /// The function could not be told last time: said once, not at every attempt.
    failing: bool,
}

impl Scribe {
    async fn run(mut self, mut lines: mpsc::Receiver<Line>) {
        let mut post = tokio::time::interval(POST_EVERY);
        post.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    Some(Line { entry, kept }) => {
                        let on_disk = self.write(entry).await;
                        let _ = kept.map(|kept| kept.send(on_disk));
                    }
                    None => break,
                },
                // A failure costs nothing: what is owed stays owed and is tried again.
                _ = post.tick(), if !self.owed.is_empty() || !self.unwritten.is_empty() => {
                    // It is said where it began to fail.
                    let _ = self.write_down().await;
                    self.post().await;
                }
            }
        }
        // The call's task was torn down before it could say why.
        if self.ended.is_none() {
            self.write(Entry::Ended { cause: EndCause::RelayRestart, media: Value::Null, at_ms: self.last_at_ms })
                .await;
        }
        self.close().await;
    }

    /// Whether it is on disk.
    async fn write(&mut self, entry: Entry) -> bool {
        let entry = entry.clipped();
        self.last_at_ms = entry.at_ms().unwrap_or(self.last_at_ms);
        self.answered_at_ms = self.answered_at_ms.or(answer_of(&entry));
        if let Entry::Language { locale, .. } = &entry {
            self.opening.locale = *locale;
        }
        if let Some(end) = end_of(&entry) {
            self.ended = Some(end);
        }
        if entry.is_told() {
            self.last += 1;
            self.owed.push((self.last, entry.clone()));
        }
        self.unwritten.push_back(entry);
        // Said once, not at every entry.
        let was_failing = self.unwritten.len() > 1;
        let written = self.write_down().await;
        match &written {
            Err(error) if !was_failing => self.note("JOURNAL_FAILED", Level::Error, &error.to_string()),
            Ok(()) if was_failing => self.note("JOURNAL_RECOVERED", Level::Info, "the journal is whole again"),
            Ok(()) | Err(_) => {}
        }
        written.is_ok()
    }

    /// Gives the disk what it did not take yet. The call is worth more than its journal: without it, it goes on from memory.
    async fn write_down(&mut self) -> Result<(), JournalError> {
        while let Some(entry) = self.unwritten.front() {
            self.desk.journal.append(&self.opening.correlation_id, entry.clone()).await?;
            self.unwritten.pop_front();
        }
        Ok(())
    }

    async fn post(&mut self) -> bool {
        while !self.owed.is_empty() {
            let batch = self.owed.get(..self.owed.len().min(BATCH)).unwrap_or_default();
            let result = self.desk.function.events(&self.opening, batch).await;
            let posted = batch.len();
            let up_to = batch.last().map_or(0, |(sequence, _)| *sequence);
            if !self.went_through("EVENTS_POST_FAILED", result) {
                return false;
            }
            self.owed.drain(..posted);
            self.write(Entry::Posted { up_to }).await;
        }
        true
    }

    /// Posts what is left and the end, however long it takes.
    async fn close(&mut self) {
        let [mut wait, longest] = RETRY;
        loop {
            if self.post().await && self.end().await {
                break;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(longest);
        }
        self.write(Entry::Closed).await;
        self.desk.journal.remove(&self.opening.correlation_id);
    }

    async fn end(&mut self) -> bool {
        let Some((cause, media, at_ms)) = &self.ended else { return true };
        let result =
            self.desk.function.end(&self.opening, *cause, [self.answered_at_ms, Some(*at_ms)], self.last, media).await;
        self.went_through("END_POST_FAILED", result)
    }

    fn went_through(&mut self, event: &str, result: Result<(), FunctionError>) -> bool {
        let was_failing = std::mem::replace(&mut self.failing, result.is_err());
        if let Err(error) = &result
            && !was_failing
        {
            self.note(event, Level::Warn, &format!("{error}; it is tried again until it is told"));
        }
        result.is_ok()
    }

    fn note(&self, event: &str, level: Level, message: &str) {
        let fields = json!({ "correlation_id": self.opening.correlation_id, "trunk": self.opening.trunk });
        self.desk.log.event(event, level, message, fields);
    }
}
