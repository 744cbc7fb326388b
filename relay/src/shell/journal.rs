//! Journals on disk: one thread writes for all calls, and one `fsync` serves all that was written within 20 ms.
//!
//! What the disk refuses leaves no trace: the file is cut back to what it held before, so that it is always a beginning of
//! the call's story, and whoever was refused may try the same entry again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::clock::Clock;
use crate::journal::entry::{self, Entry, Owed};
use crate::journal::record;

const SUFFIX: &str = "journal";
/// What is written within this time is made durable together.
const GROUP: Duration = Duration::from_millis(20);
/// Appends that wait for the disk. Beyond it the disk is too slow, and the call goes on without.
const MOST_WAITING: usize = 4096;

/// A disk that refused is tried so often, when no call does it anyway, with so many bytes.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_BYTES: usize = 4096;

/// Why an entry is not on disk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The disk refuses.
    #[error("journal cannot be written: {0}; the call goes on, but would be lost with this process")]
    Disk(String),
    /// The disk does not keep up, or the relay ends.
    #[error("journal does not keep up with what is to be written")]
    Busy,
}

enum Order {
    Append { call: String, entry: Box<Entry>, done: oneshot::Sender<Result<u64, JournalError>> },
    Close { call: String },
    Read { call: String, done: oneshot::Sender<io::Result<Leftover>> },
    Remove { call: String },
}

/// The door to the writer.
#[derive(Clone)]
pub struct Journal {
    orders: SyncSender<Order>,
    condition: Arc<Condition>,
}

/// How the disk is, by its last answer.
#[derive(Debug, Default)]
struct Condition {
    failing: AtomicBool,
    failures: AtomicU64,
}

impl Condition {
    fn note(&self, went_well: bool) {
        self.failing.store(!went_well, Ordering::Relaxed);
        if !went_well {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A journal of which something may still be owed: left behind by a former process, or by a call that is over.
#[derive(Debug)]
pub struct Leftover {
    /// The call's name, as it was given to `append`.
    pub call: String,
    /// All of its entries that can be understood.
    pub entries: Vec<Entry>,
    /// What is owed.
    pub owed: Owed,
}

impl Journal {
    /// Opens the directory and starts the writer. The names of the calls that were left behind come with it.
    pub fn open(directory: &Path, clock: Clock) -> io::Result<(Journal, Vec<String>)> {
        std::fs::create_dir_all(directory)?;
        let mut leftovers = Vec::new();
        for found in std::fs::read_dir(directory)? {
            leftovers.extend(call_of(&found?.path()));
        }
        leftovers.sort();
        let (orders, inbox) = sync_channel(MOST_WAITING);
        let condition = Arc::new(Condition::default());
        let directory = directory.to_owned();
        let writer = Writer { directory, files: HashMap::new(), clock, condition: condition.clone() };
        std::thread::Builder::new().name("journal".into()).spawn(move || writer.run(&inbox))?;
        Ok((Journal { orders, condition }, leftovers))
    }

    /// Whether the disk refused the last entry that it was given.
    pub fn is_failing(&self) -> bool {
        self.condition.failing.load(Ordering::Relaxed)
    }

    /// How often the disk refused.
    pub fn failures(&self) -> u64 {
        self.condition.failures.load(Ordering::Relaxed)
    }

    /// Writes an entry; when this returns it is on disk, under the number it gives.
    pub async fn append(&self, call: &str, entry: Entry) -> Result<u64, JournalError> {
        let (done, result) = oneshot::channel();
        let order = Order::Append { call: call.to_owned(), entry: Box::new(entry), done };
        self.orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => JournalError::Busy,
        })?;
        result.await.map_err(|_| JournalError::Busy)?
    }

    /// What is in the journal of a call that nobody writes to now. What was torn is cut off.
    pub async fn read(&self, call: &str) -> Result<Leftover, JournalError> {
        let (done, result) = oneshot::channel();
        self.orders.try_send(Order::Read { call: call.to_owned(), done }).map_err(|_| JournalError::Busy)?;
        let read = result.await.map_err(|_| JournalError::Busy)?;
        read.map_err(|error| JournalError::Disk(error.to_string()))
    }

    /// Nothing is written to this journal for a while: its file needs not be open.
    pub fn close(&self, call: &str) {
        // If the writer is busy it stays open until it is read again.
        let _ = self.orders.try_send(Order::Close { call: call.to_owned() });
    }

    /// Removes a journal of which nothing is owed any more.
    pub fn remove(&self, call: &str) {
        // If the writer is busy the file stays, and the next start removes it.
        let _ = self.orders.try_send(Order::Remove { call: call.to_owned() });
    }
}

fn call_of(path: &Path) -> Option<String> {
    let is_ours = path.extension().is_some_and(|extension| extension == SUFFIX);
    is_ours.then(|| path.file_stem()?.to_str().map(str::to_owned))?
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Cuts off what was torn and reads the rest.
fn mend(path: &Path, call: String) -> io::Result<(Leftover, u64)> {
    let bytes = std::fs::read(path)?;
    let scan = record::scan(&bytes);
    if scan.sound_bytes < bytes.len() {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(scan.sound_bytes as u64)?;
        file.sync_data()?;
    }
    let next = scan.records.len() as u64 + 1;
    let read: Vec<Option<Entry>> =
        scan.records.iter().map(|(_, payload)| serde_json::from_slice(payload).ok()).collect();
    let owed = entry::owed(read.iter().cloned());
    let entries = read.into_iter().flatten().collect();
    Ok((Leftover { call, entries, owed }, next))
}

struct Open {
    file: File,
    /// Number of the next record, and bytes written.
    next: u64,
    length: u64,
    /// The same, of what is surely on disk.
    durable: (u64, u64),
}

impl Open {
    fn new(path: &Path, next: u64) -> io::Result<Open> {
        let file = append_to(path)?;
        let length = file.metadata()?.len();
        Ok(Open { file, next, length, durable: (next, length) })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.next += 1;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.sync_data() {
            (self.next, self.length) = self.durable;
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.durable = (self.next, self.length);
        Ok(())
    }
}

struct Writer {
    directory: PathBuf,
    files: HashMap<String, Open>,
    clock: Clock,
    condition: Arc<Condition>,
}

type Waiting = (String, u64, oneshot::Sender<Result<u64, JournalError>>);

impl Writer {
    fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let first = match inbox.recv_timeout(PROBE_EVERY) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    if self.condition.failing.load(Ordering::Relaxed) {
                        self.condition.failing.store(self.probe().is_err(), Ordering::Relaxed);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut waiting = Vec::new();
            self.obey(first, &mut waiting);
            let until = self.clock.now() + GROUP;
            loop {
                let left = until.since(self.clock.now());
                match inbox.recv_timeout(left) {
                    Ok(order) => self.obey(order, &mut waiting),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            self.commit(waiting);
        }
    }

    fn obey(&mut self, order: Order, waiting: &mut Vec<Waiting>) {
        match order {
            Order::Append { call, entry, done } => match self.write(&call, &entry) {
                Ok(sequence) => waiting.push((call, sequence, done)),
                Err(error) => {
                    self.condition.note(false);
                    let _ = done.send(Err(JournalError::Disk(error.to_string())));
                }
            },
            Order::Close { call } => drop(self.files.remove(&call)),
            Order::Read { call, done } => {
                self.files.remove(&call);
                let read = match mend(&self.path(&call), call.clone()) {
                    Ok((leftover, _)) => Ok(leftover),
                    // Nothing is owed for a journal that somebody has removed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        Ok(Leftover { call, entries: Vec::new(), owed: Owed::default() })
                    }
                    Err(error) => Err(error),
                };
                let _ = done.send(read);
            }
            Order::Remove { call } => {
                self.files.remove(&call);
                let _ = std::fs::remove_file(self.path(&call));
            }
        }
    }

    /// Whether the disk takes something.
    fn probe(&self) -> io::Result<()> {
        let path = self.directory.join("probe");
        let mut file = File::create(&path)?;
        let written = file.write_all(&[0; PROBE_BYTES]).and_then(|()| file.sync_data());
        std::fs::remove_file(&path)?;
        written
    }

    fn write(&mut self, call: &str, entry: &Entry) -> io::Result<u64> {
        if !self.files.contains_key(call) {
            let path = self.path(call);
            let next = if path.exists() { mend(&path, call.to_owned())?.1 } else { 1 };
            self.files.insert(call.to_owned(), Open::new(&path, next)?);
        }
        let open = self.files.get_mut(call).ok_or_else(|| io::Error::other("journal is not open"))?;
        let payload = serde_json::to_vec(entry)?;
        let mut bytes = Vec::new();
        record::write(&mut bytes, open.next, &payload).map_err(io::Error::other)?;
        open.append(&bytes)?;
        Ok(open.next - 1)
    }

    fn commit(&mut self, waiting: Vec<Waiting>) {
        let mut synced: HashMap<String, Result<(), String>> = HashMap::new();
        for (call, sequence, done) in waiting {
            let (files, condition) = (&mut self.files, &self.condition);
            let result = synced.entry(call).or_insert_with_key(|call| {
                let result = files.get_mut(call).map_or(Ok(()), |open| open.sync().map_err(|error| error.to_string()));
                condition.note(result.is_ok());
                result
            });
            let _ = done.send(result.clone().map(|()| sequence).map_err(JournalError::Disk));
        }
    }

    fn path(&self, call: &str) -> PathBuf {
        self.directory.join(format!("{call}.{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::call::EndCause;

    /// A directory of its own, gone with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("ihuza-relay-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A journal on what a former process left behind, which is read.
    async fn open(directory: &Directory) -> (Journal, Vec<Leftover>) {
        let (journal, names) = Journal::open(&directory.0, Clock::start()).unwrap();
        let mut leftovers = Vec::new();
        for name in names {
            leftovers.push(journal.read(&name).await.unwrap());
        }
        (journal, leftovers)
    }

    fn answered(at_ms: i64) -> Entry {
        Entry::Answered { at_ms }
    }

    #[tokio::test]
    async fn entries_are_on_disk_when_append_returns_and_found_at_the_next_start() {
        let directory = Directory::new("found");
        let (journal, leftovers) = open(&directory).await;
        assert!(leftovers.is_empty());
        assert_eq!(journal.append("a", answered(1)).await.unwrap(), 1);
        assert_eq!(journal.append("a", answered(2)).await.unwrap(), 2);
        let ended = Entry::Ended { cause: EndCause::CallerHungUp, media: serde_json::Value::Null, at_ms: 3 };
        assert_eq!(journal.append("b", ended).await.unwrap(), 1);
        let (_, leftovers) = open(&directory).await;
        let found: Vec<_> =
            leftovers.iter().map(|left| (&left.call[..], left.entries.len(), left.owed.open_since)).collect();
        assert_eq!(found, [("a", 2, Some(2)), ("b", 1, None)]);
    }

    #[tokio::test]
    async fn a_torn_end_is_cut_off_and_written_over() {
        let directory = Directory::new("torn");
        let (journal, _) = open(&directory).await;
        for at in 1..=3 {
            journal.append("a", answered(at)).await.unwrap();
        }
        let path = directory.0.join("a.journal");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let (journal, leftovers) = open(&directory).await;
        assert_eq!(leftovers[0].entries.len(), 2);
        assert_eq!(journal.append("a", answered(9)).await.unwrap(), 3);
        let (_, leftovers) = open(&directory).await;
        assert_eq!(leftovers[0].entries.last(), Some(&answered(9)));
    }

    #[tokio::test]
    async fn many_calls_share_their_waiting_for_the_disk() {
        let directory = Directory::new("many");
        let clock = Clock::start();
        let (journal, _) = open(&directory).await;
        let begun = clock.now();
        let appends: Vec<_> = (0..200)
            .map(|n| {
                let journal = journal.clone();
                tokio::spawn(async move { journal.append(&format!("call-{}", n % 10), answered(n)).await })
            })
            .collect();
        for append in appends {
            append.await.unwrap().unwrap();
        }
        // One after another they would take 200 times the group's 20 ms.
        assert!(clock.now().since(begun) < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_told_and_harms_no_other_call() {
        let directory = Directory::new("refuses");
        let (journal, _) = open(&directory).await;
        std::fs::create_dir(directory.0.join("a.journal")).unwrap();
        assert!(matches!(journal.append("a", answered(1)).await, Err(JournalError::Disk(_))));
        assert_eq!(journal.append("b", answered(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_refusal_is_shown_until_something_is_taken_again() {
        let directory = Directory::new("condition");
        let (journal, _) = open(&directory).await;
        std::fs::create_dir(directory.0.join("a.journal")).unwrap();
        assert!(!journal.is_failing());
        let _ = journal.append("a", answered(1)).await;
        assert_eq!((journal.is_failing(), journal.failures()), (true, 1));
        std::fs::remove_dir(directory.0.join("a.journal")).unwrap();
        assert_eq!(journal.append("a", answered(1)).await.unwrap(), 1, "the same entry again has the same place");
        assert_eq!((journal.is_failing(), journal.failures()), (false, 1));
    }

    #[tokio::test]
    async fn a_disk_that_takes_something_again_is_noticed_without_a_call() {
        let directory = Directory::new("probe");
        let (journal, _) = open(&directory).await;
        std::fs::create_dir(directory.0.join("a.journal")).unwrap();
        let _ = journal.append("a", answered(1)).await;
        assert!(journal.is_failing());
        let noticed = async {
            while journal.is_failing() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PROBE_EVERY * 10, noticed).await.expect("it is noticed");
        assert!(!directory.0.join("probe").exists());
    }

    #[tokio::test]
    async fn what_is_removed_is_gone() {
        let directory = Directory::new("removed");
        let (journal, _) = open(&directory).await;
        journal.append("a", answered(1)).await.unwrap();
        journal.remove("a");
        journal.append("b", answered(1)).await.unwrap();
        let (_, leftovers) = open(&directory).await;
        assert_eq!(leftovers.iter().map(|left| &left.call[..]).collect::<Vec<_>>(), ["b"]);
    }
}
