//! Keeps the record of one call: every entry first to the journal, then to the session function, in order; and does not
//! rest before the function knows of the end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::clock::Clock;
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
/// Calls that are over and could not be told to the end: so many are kept in memory. Of more only the names are, and what
/// is owed for them is in their journals.
const MOST_UNTOLD: usize = 64;

/// What a scribe works with.
#[derive(Clone)]
pub struct Desk {
    /// The disk.
    pub journal: Journal,
    /// The function.
    pub function: Function,
    /// The log.
    pub log: Log,
    untold: Untold,
}

/// Calls that are over and could not be told to the end.
#[derive(Clone)]
struct Untold {
    /// For those that are kept in memory.
    seats: Arc<Semaphore>,
    most: usize,
    /// Names of the others; each is read from its journal when there is a seat.
    names: mpsc::UnboundedSender<String>,
    waiting: Arc<AtomicUsize>,
}

impl Desk {
    /// Where scribes work from now on; what is left to the journals is taken up again from there.
    pub fn new(journal: Journal, function: Function, log: Log, clock: Clock) -> Desk {
        Desk::with(journal, function, log, clock, MOST_UNTOLD)
    }

    fn with(journal: Journal, function: Function, log: Log, clock: Clock, most: usize) -> Desk {
        let (names, left) = mpsc::unbounded_channel();
        let untold = Untold { seats: Arc::new(Semaphore::new(most)), most, names, waiting: Arc::default() };
        let desk = Desk { journal, function, log, untold };
        tokio::spawn(take_up(desk.clone(), clock, left));
        desk
    }

    /// Tells of a call what is owed for it by its journal, as soon as it is its turn.
    pub fn leave_to_journal(&self, call: String) {
        self.untold.waiting.fetch_add(1, Ordering::Relaxed);
        let _ = self.untold.names.send(call);
    }

    /// Calls that are over and could not be told to the end yet.
    pub fn untold(&self) -> usize {
        self.untold.most - self.untold.seats.available_permits() + self.untold.waiting.load(Ordering::Relaxed)
    }
}

/// Takes up what was left to the journals, one call after another as there are seats.
async fn take_up(desk: Desk, clock: Clock, mut left: mpsc::UnboundedReceiver<String>) {
    while let Some(call) = left.recv().await {
        let Ok(seat) = desk.untold.seats.clone().acquire_owned().await else { return };
        match desk.journal.read(&call).await {
            Ok(leftover) => {
                desk.untold.waiting.fetch_sub(1, Ordering::Relaxed);
                finish(desk.clone(), leftover, clock.unix_ms(clock.now()), seat);
            }
            Err(error) => {
                let fields = json!({ "correlation_id": call });
                desk.log.event("JOURNAL_UNREADABLE", Level::Error, &error.to_string(), fields);
                drop(seat);
                // Its turn comes again; meanwhile a disk that refuses everything is not asked without a pause.
                let _ = desk.untold.names.send(call);
                tokio::time::sleep(RETRY[0]).await;
            }
        }
    }
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

/// Begins the record of a call, of which these entries are in the journal already.
pub fn begin(desk: Desk, opening: Opening, written: Vec<Entry>) -> mpsc::Sender<Line> {
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

/// Finishes the record of a call that is over, by its journal.
fn finish(desk: Desk, leftover: Leftover, now_ms: i64, seat: OwnedSemaphorePermit) {
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
        scribe.close(Some(seat)).await;
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
        self.close(None).await;
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

    /// Posts what is left and the end, however long it takes: from memory if there is a seat for it, else from the journal.
    async fn close(mut self, mut seat: Option<OwnedSemaphorePermit>) {
        let [mut wait, longest] = RETRY;
        while !(self.post().await && self.end().await) {
            let untold = &self.desk.untold;
            seat = seat.or_else(|| untold.seats.clone().try_acquire_owned().ok());
            // Whoever was tried for so long lets others have their turn.
            let makes_room = wait == longest && untold.waiting.load(Ordering::Relaxed) > 0;
            // What the disk did not take is nowhere else but here.
            let is_kept = self.write_down().await.is_ok();
            if is_kept && (seat.is_none() || makes_room) {
                self.desk.journal.close(&self.opening.correlation_id);
                drop(seat);
                return self.desk.leave_to_journal(self.opening.correlation_id);
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use ihuza_core::locale::Locale;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::SessionFunction;
    use crate::journal::entry::{Direction, Origin};

    /// Posts that were taken, by the call and the end of the path.
    #[derive(Default)]
    struct Fake {
        is_up: AtomicBool,
        taken: Mutex<HashMap<(String, String), usize>>,
    }

    /// A function that refuses everything until it is up.
    async fn function(fake: Arc<Fake>) -> Function {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = fake.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let up = fake.is_up.load(Ordering::Relaxed);
                    if up {
                        let call = request.headers()["x-correlation-id"].to_str().unwrap().to_owned();
                        let key = (call, request.uri().path().to_owned());
                        *fake.taken.lock().unwrap().entry(key).or_default() += 1;
                    }
                    let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
                    *response.status_mut() = if up { hyper::StatusCode::OK } else { hyper::StatusCode::BAD_GATEWAY };
                    async move { Ok::<_, hyper::Error>(response) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let settings = SessionFunction { url, key_env: "KEY".into(), timeout_ms: 1000, relay_name: "relay".into() };
        Function::new(&settings, "key".into()).unwrap()
    }

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what}"));
    }

    #[tokio::test]
    async fn calls_that_cannot_be_told_are_kept_in_memory_by_few_and_told_once_each() {
        const CALLS: usize = 7;
        let directory = std::env::temp_dir().join(format!("ihuza-relay-untold-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let clock = Clock::start();
        let (journal, _) = Journal::open(&directory, clock).unwrap();
        let fake = Arc::new(Fake::default());
        let desk = Desk::with(journal, function(fake.clone()).await, Log::new(clock), clock, 2);
        for n in 0..CALLS {
            let opening = Opening {
                correlation_id: format!("call-{n}"),
                call_sid: format!("sid-{n}"),
                origin: Origin::MtnSip,
                trunk: "mtn".into(),
                from: None,
                to: "+250788000100".into(),
                agent: "concierge".into(),
                locale: Locale::En,
                direction: Direction::Inbound,
                reference: None,
            };
            let opened = opening.entry(1);
            let record = begin(desk.clone(), opening, Vec::new());
            let ended = Entry::Ended { cause: EndCause::CallerHungUp, media: Value::Null, at_ms: 3 };
            for entry in [opened, Entry::Answered { at_ms: 2 }, ended] {
                record.send(entry.into()).await.unwrap();
            }
        }
        let waiting = || desk.untold.waiting.load(Ordering::Relaxed);
        until("all calls but two are left to the journal", || waiting() == CALLS - 2 && desk.untold() == CALLS).await;
        let journals = || std::fs::read_dir(&directory).unwrap().count();
        assert_eq!(journals(), CALLS);
        fake.is_up.store(true, Ordering::Relaxed);
        until("every call is told", || desk.untold() == 0 && journals() == 0).await;
        let taken = fake.taken.lock().unwrap().clone();
        assert_eq!(taken.len(), CALLS * 2, "{taken:?}");
        assert!(taken.values().all(|times| *times == 1), "{taken:?}");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
