//! What the agent says, on its way to the wire: audio comes faster than it can be spoken, waits here, leaves in frames
//! of 20 ms, and is thrown away the moment the caller interrupts. It knows to the millisecond what has left.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{FRAME_SAMPLES, TICKS_PER_MS};

/// Audio held at most: three minutes of G.711.
const CAPACITY_BYTES: usize = 180 * 8000;

/// Name of a piece of speech: the model's item, or one of our own announcements.
pub type ItemId = Arc<str>;

/// What the caller has heard of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Which one.
    pub item: ItemId,
    /// What left for the wire, without padding.
    pub played_ms: u32,
    /// What had been received of it when it was cut off.
    pub received_ms: u32,
}

#[derive(Debug)]
struct Item {
    id: ItemId,
    chunks: VecDeque<Bytes>,
    received: usize,
    played: usize,
    /// Announcements that an interruption does not touch.
    protected: bool,
    /// Nothing more will come, so that a last short frame is filled up and sent.
    complete: bool,
}

impl Item {
    fn queued(&self) -> usize {
        self.received - self.played
    }

    fn take(&mut self, frame: &mut Vec<u8>) {
        while frame.len() < FRAME_SAMPLES {
            let Some(chunk) = self.chunks.front_mut() else { break };
            let piece = chunk.split_to(chunk.len().min(FRAME_SAMPLES - frame.len()));
            self.played += piece.len();
            frame.extend_from_slice(&piece);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}

/// A frame for the wire.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Always 160 bytes.
    pub payload: Vec<u8>,
    /// The first of a talk spurt.
    pub starts: bool,
}

/// The queue of one call.
#[derive(Debug)]
pub struct Playout {
    items: VecDeque<Item>,
    queued: usize,
    speaking: bool,
    silence: u8,
    /// Bytes that did not fit.
    pub overflowed: u64,
    /// Items that were played to their end since the last look.
    finished: VecDeque<Heard>,
}

impl Playout {
    /// `silence` is the byte of the codec that means silence.
    pub fn new(silence: u8) -> Playout {
        Playout {
            items: VecDeque::new(),
            queued: 0,
            speaking: false,
            silence,
            overflowed: 0,
            finished: VecDeque::new(),
        }
    }

    /// More of an item. Items are played in the order in which they first appeared.
    pub fn push(&mut self, id: &ItemId, audio: Bytes) {
        self.add(id, audio, false);
    }

    /// An announcement of our own that is played to its end, whatever the caller does.
    pub fn announce(&mut self, id: &ItemId, audio: Bytes) {
        self.add(id, audio, true);
        self.complete(id);
    }

    fn add(&mut self, id: &ItemId, mut audio: Bytes, protected: bool) {
        let room = CAPACITY_BYTES - self.queued;
        if audio.len() > room {
            self.overflowed += (audio.len() - room) as u64;
            audio.truncate(room);
        }
        let known = self.items.iter().position(|item| item.id == *id);
        if known.is_none() {
            self.items.push_back(Item {
                id: id.clone(),
                chunks: VecDeque::new(),
                received: 0,
                played: 0,
                protected,
                complete: false,
            });
        }
        let at = known.unwrap_or(self.items.len() - 1);
        let Some(item) = self.items.get_mut(at).filter(|_| !audio.is_empty()) else { return };
        item.received += audio.len();
        self.queued += audio.len();
        item.chunks.push_back(audio);
    }

    /// Nothing more will come of this item.
    pub fn complete(&mut self, id: &ItemId) {
        if let Some(item) = self.items.iter_mut().find(|item| item.id == *id) {
            item.complete = true;
        }
        self.drop_finished();
    }

    /// The frame of this tick; nothing if there is nothing to say.
    pub fn next_frame(&mut self) -> Option<Frame> {
        if self.queued < FRAME_SAMPLES && !self.items.front().is_some_and(|item| item.complete && item.queued() > 0) {
            self.speaking = false;
            return None;
        }
        let mut payload = Vec::with_capacity(FRAME_SAMPLES);
        for item in &mut self.items {
            item.take(&mut payload);
            // One item follows another without a gap, but never before it is whole.
            if payload.len() == FRAME_SAMPLES || !item.complete {
                break;
            }
        }
        if payload.is_empty() {
            self.speaking = false;
            return None;
        }
        self.queued -= payload.len();
        payload.resize(FRAME_SAMPLES, self.silence);
        self.drop_finished();
        let starts = !std::mem::replace(&mut self.speaking, true);
        Some(Frame { payload, starts })
    }

    /// The caller interrupts: what is not protected is thrown away at once. What was heard of each item that was cut
    /// off, in order; the first is the one that was being spoken.
    pub fn flush(&mut self) -> Vec<Heard> {
        let mut cut = Vec::new();
        let items = std::mem::take(&mut self.items);
        for item in items {
            if item.protected {
                self.items.push_back(item);
            } else {
                self.queued -= item.queued();
                cut.push(heard(&item));
            }
        }
        if self.items.is_empty() {
            self.speaking = false;
        }
        cut
    }

    /// An item that was spoken to its end.
    pub fn poll_finished(&mut self) -> Option<Heard> {
        self.finished.pop_front()
    }

    /// Whether there is a frame to send.
    pub fn is_speaking(&self) -> bool {
        self.speaking || self.queued >= FRAME_SAMPLES
    }

    /// Whether everything that was to be said has left.
    pub fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// How long what waits will last.
    pub fn queued_ms(&self) -> u32 {
        to_ms(self.queued)
    }

    fn drop_finished(&mut self) {
        while let Some(item) = self.items.pop_front_if(|item| item.complete && item.queued() == 0) {
            self.finished.push_back(heard(&item));
        }
    }
}

fn heard(item: &Item) -> Heard {
    Heard { item: item.id.clone(), played_ms: to_ms(item.played), received_ms: to_ms(item.received) }
}

fn to_ms(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX) / TICKS_PER_MS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> ItemId {
        name.into()
    }

    fn bytes(value: u8, count: usize) -> Bytes {
        vec![value; count].into()
    }

    #[test]
    fn chunks_of_any_size_leave_as_whole_frames_and_the_last_is_filled_up() {
        let mut playout = Playout::new(0xd5);
        playout.push(&id("a"), bytes(1, 159));
        assert_eq!(playout.next_frame(), None, "less than a frame waits for more");
        playout.push(&id("a"), bytes(2, 2));
        let frame = playout.next_frame().unwrap();
        assert_eq!((frame.payload.len(), frame.payload[158], frame.payload[159], frame.starts), (160, 1, 2, true));
        assert_eq!(playout.next_frame(), None);
        playout.complete(&id("a"));
        let last = playout.next_frame().unwrap();
        assert_eq!((last.payload[0], last.payload[1]), (2, 0xd5));
        assert_eq!(playout.poll_finished(), Some(Heard { item: id("a"), played_ms: 20, received_ms: 20 }));
    }

    #[test]
    fn an_interruption_tells_what_left_and_what_never_will() {
        let mut playout = Playout::new(0xd5);
        playout.push(&id("a"), bytes(1, 8000));
        playout.push(&id("b"), bytes(2, 800));
        for _ in 0..7 {
            playout.next_frame().unwrap();
        }
        let cut = playout.flush();
        assert_eq!(
            cut,
            [
                Heard { item: id("a"), played_ms: 140, received_ms: 1000 },
                Heard { item: id("b"), played_ms: 0, received_ms: 100 }
            ]
        );
        assert!(playout.next_frame().is_none() && playout.is_empty());
    }

    #[test]
    fn an_announcement_is_spoken_to_its_end() {
        let mut playout = Playout::new(0xd5);
        playout.announce(&id("consent"), bytes(9, 400));
        playout.push(&id("a"), bytes(1, 800));
        assert_eq!(playout.flush().len(), 1);
        let frames: Vec<_> = std::iter::from_fn(|| playout.next_frame()).collect();
        assert_eq!(frames.len(), 3);
        assert!(frames[0].starts && !frames[1].starts);
        assert_eq!(playout.poll_finished().unwrap().played_ms, 50);
    }

    #[test]
    fn the_next_item_follows_without_a_gap_but_not_before_the_first_is_whole() {
        let mut playout = Playout::new(0xd5);
        playout.push(&id("a"), bytes(1, 200));
        playout.push(&id("b"), bytes(2, 200));
        playout.next_frame().unwrap();
        let mixed = playout.next_frame().unwrap();
        assert_eq!((mixed.payload[39], mixed.payload[40]), (1, 0xd5), "more of the first may still come");
        playout.complete(&id("a"));
        assert_eq!(playout.next_frame().unwrap().payload[0], 2);
    }

    #[test]
    fn no_more_than_three_minutes_are_held() {
        let mut playout = Playout::new(0xd5);
        for _ in 0..400 {
            playout.push(&id("a"), bytes(1, 4000));
        }
        assert_eq!((playout.queued_ms(), playout.overflowed), (180_000, 160_000));
    }

    proptest! {
        #[test]
        fn every_byte_leaves_once_and_in_order(sizes in proptest::collection::vec(0_usize..700, 0..40), cut_at in 0_usize..60) {
            let mut playout = Playout::new(0);
            let mut sent = Vec::new();
            let mut value = 0_u8;
            for size in sizes {
                // Never the byte that fills up.
                let chunk: Vec<u8> = (0..size).map(|_| { value = value % 250 + 1; value }).collect();
                sent.extend_from_slice(&chunk);
                playout.push(&id("a"), chunk.into());
            }
            playout.complete(&id("a"));
            let heard: Vec<u8> = std::iter::from_fn(|| playout.next_frame()).take(cut_at)
                .flat_map(|frame| frame.payload).filter(|byte| *byte != 0).collect();
            prop_assert_eq!(&heard[..], &sent[..heard.len()]);
            if let [cut] = &playout.flush()[..] {
                prop_assert_eq!(cut.played_ms as usize, heard.len() / 8);
                prop_assert_eq!(cut.received_ms as usize, sent.len() / 8);
            } else {
                prop_assert!(heard.len() == sent.len() || sent.is_empty());
            }
        }
    }
}
