//! Recordings on disk: one thread writes for all calls. A file has the name of its call and the ending `.part` until it
//! is whole; what a killed process left unfinished gets its lengths at the next start.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::media::g711::Law;
use crate::media::wav;

const WHOLE: &str = "wav";
const UNFINISHED: &str = "part";
/// Pieces that wait for the disk, one a second and call. Beyond it the disk is too slow, and a recording ends.
const MOST_WAITING: usize = 1024;

/// Why a recording ended before its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// The disk refuses.
    #[error("recording cannot be written: the disk refuses; the call goes on")]
    Disk,
    /// The disk does not keep up.
    #[error("recording does not keep up with the call: the disk is too slow; the call goes on")]
    Busy,
}

enum Order {
    Begin { name: String, law: Law, failed: Arc<AtomicBool> },
    Append { name: String, sound: Vec<u8> },
    End { name: String },
}

/// The door to the writer.
#[derive(Debug, Clone)]
pub struct Recorder {
    orders: SyncSender<Order>,
}

/// The recording of one call. It ends when this is dropped.
#[derive(Debug)]
pub struct Recording {
    orders: SyncSender<Order>,
    name: String,
    failed: Arc<AtomicBool>,
    bytes: u64,
}

impl Recorder {
    /// Opens the directory, finishes what was left behind, and starts the writer. The names of what was finished.
    pub fn open(directory: &Path) -> io::Result<(Recorder, Vec<String>)> {
        std::fs::create_dir_all(directory)?;
        let mut mended = Vec::new();
        for found in std::fs::read_dir(directory)? {
            let path = found?.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED) && mend(&path)? {
                mended.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
            }
        }
        mended.sort();
        let (orders, inbox) = sync_channel(MOST_WAITING);
        let writer = Writer { directory: directory.to_owned(), files: HashMap::new() };
        std::thread::Builder::new().name("recorder".into()).spawn(move || writer.run(&inbox))?;
        Ok((Recorder { orders }, mended))
    }

    /// Begins a file `<name>.wav`; the name is ours, never the trunk's.
    pub fn begin(&self, name: &str, law: Law) -> Result<Recording, RecordingError> {
        let failed = Arc::new(AtomicBool::new(false));
        let order = Order::Begin { name: name.to_owned(), law, failed: failed.clone() };
        self.orders.try_send(order).map_err(|_| RecordingError::Busy)?;
        Ok(Recording { orders: self.orders.clone(), name: name.to_owned(), failed, bytes: 0 })
    }
}

impl Recording {
    /// More sound, both tracks. After an error nothing more of this call is recorded.
    pub fn append(&mut self, sound: Vec<u8>) -> Result<(), RecordingError> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(RecordingError::Disk);
        }
        self.bytes += sound.len() as u64;
        let order = Order::Append { name: self.name.clone(), sound };
        self.orders.try_send(order).map_err(|_| RecordingError::Busy)
    }

    /// The name of its file.
    pub fn file(&self) -> String {
        format!("{}.{WHOLE}", self.name)
    }

    /// How much was given to it.
    pub fn duration_ms(&self) -> u64 {
        self.bytes * 1000 / u64::from(wav::BYTES_PER_SECOND)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // If the writer is busy the file stays unfinished, and the next start finishes it.
        let _ = self.orders.try_send(Order::End { name: std::mem::take(&mut self.name) });
    }
}

/// Gives a file that was left behind its lengths and its name; whether there was any sound in it.
fn mend(path: &Path) -> io::Result<bool> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(wav::HEAD_BYTES as u64).read_to_end(&mut head)?;
    let Some(law) = wav::law_of(&head) else {
        // Torn before its head was whole: there is no sound behind it.
        std::fs::remove_file(path)?;
        return Ok(false);
    };
    finish(file, path, law)?;
    Ok(true)
}

fn finish(mut file: File, path: &Path, law: Law) -> io::Result<()> {
    let sound = file.metadata()?.len().saturating_sub(wav::HEAD_BYTES as u64);
    // A torn end is half a sample.
    let sound = sound - sound % 2;
    file.set_len(sound + wav::HEAD_BYTES as u64)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&wav::head(law, u32::try_from(sound).unwrap_or(u32::MAX)))?;
    file.sync_all()?;
    std::fs::rename(path, path.with_extension(WHOLE))
}

struct Open {
    file: File,
    law: Law,
    failed: Arc<AtomicBool>,
}

struct Writer {
    directory: PathBuf,
    files: HashMap<String, Open>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Order>) {
        while let Ok(order) = inbox.recv() {
            match order {
                Order::Begin { name, law, failed } => match self.begin(&name, law) {
                    Ok(file) => {
                        self.files.insert(name, Open { file, law, failed });
                    }
                    Err(_) => failed.store(true, Ordering::Relaxed),
                },
                Order::Append { name, sound } => {
                    let Some(open) = self.files.get_mut(&name) else { continue };
                    if open.file.write_all(&sound).is_err() {
                        open.failed.store(true, Ordering::Relaxed);
                    }
                }
                Order::End { name } => {
                    let Some(open) = self.files.remove(&name) else { continue };
                    // What a full disk does not take stays unfinished, and the next start tries again.
                    let _ = finish(open.file, &self.path(&name), open.law);
                }
            }
        }
    }

    fn begin(&self, name: &str, law: Law) -> io::Result<File> {
        let mut file = OpenOptions::new().create_new(true).write(true).open(self.path(name))?;
        file.write_all(&wav::head(law, 0))?;
        Ok(file)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.{UNFINISHED}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("ihuza-relay-recorder-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Directory(path)
        }

        /// Waits for the file to have this length.
        fn holds(&self, name: &str, length: usize) -> Vec<u8> {
            for _ in 0..1000 {
                match std::fs::read(self.0.join(name)) {
                    Ok(bytes) if bytes.len() == length => return bytes,
                    _ => std::thread::sleep(Duration::from_millis(10)),
                }
            }
            panic!("{name} never had {length} bytes");
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_finished_recording_is_a_wav_file_of_its_length() {
        let directory = Directory::new("whole");
        let (recorder, mended) = Recorder::open(&directory.0).unwrap();
        assert!(mended.is_empty());
        let mut recording = recorder.begin("a", Law::A).unwrap();
        recording.append(vec![7; 16_000]).unwrap();
        recording.append(vec![8; 8000]).unwrap();
        assert_eq!((recording.duration_ms(), recording.file()), (1500, "a.wav".to_owned()));
        drop(recording);
        let bytes = directory.holds("a.wav", 24_000 + wav::HEAD_BYTES);
        assert_eq!(bytes[..wav::HEAD_BYTES], wav::head(Law::A, 24_000));
        assert_eq!((bytes[wav::HEAD_BYTES], bytes.last()), (7, Some(&8)));
        assert!(!directory.0.join("a.part").exists());
    }

    #[test]
    fn what_a_killed_process_left_is_finished_at_the_next_start() {
        let directory = Directory::new("killed");
        let (recorder, _) = Recorder::open(&directory.0).unwrap();
        let mut recording = recorder.begin("a", Law::Mu).unwrap();
        recording.append(vec![7; 16_000]).unwrap();
        let mut left = directory.holds("a.part", 16_000 + wav::HEAD_BYTES);
        std::mem::forget(recording);
        // Half a sample at the end, as a kill may leave it; and one that was torn in its head.
        left.push(9);
        std::fs::write(directory.0.join("a.part"), left).unwrap();
        std::fs::write(directory.0.join("b.part"), b"RIFF").unwrap();
        let (_, mended) = Recorder::open(&directory.0).unwrap();
        assert_eq!(mended, ["a"]);
        let bytes = directory.holds("a.wav", 16_000 + wav::HEAD_BYTES);
        assert_eq!(bytes[..wav::HEAD_BYTES], wav::head(Law::Mu, 16_000));
        assert!(!directory.0.join("b.part").exists() && !directory.0.join("b.wav").exists());
    }

    #[test]
    fn a_disk_that_refuses_ends_the_recording_and_nothing_else() {
        let directory = Directory::new("refuses");
        let (recorder, _) = Recorder::open(&directory.0).unwrap();
        std::fs::create_dir(directory.0.join("a.part")).unwrap();
        let mut refused = recorder.begin("a", Law::A).unwrap();
        let mut good = recorder.begin("b", Law::A).unwrap();
        good.append(vec![1; 2]).unwrap();
        directory.holds("b.part", 2 + wav::HEAD_BYTES);
        assert_eq!(refused.append(vec![1; 2]), Err(RecordingError::Disk));
        drop((refused, good));
        directory.holds("b.wav", 2 + wav::HEAD_BYTES);
    }
}
