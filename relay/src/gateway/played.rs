//! What a gateway has really played. It holds sound back, so that what we sent is not what was heard: marks go along,
//! come back when all before them was played, and tell how far it is. Between two of them time tells, as sound is played
//! no faster than it is spoken.

use std::collections::VecDeque;
use std::time::Duration;

use crate::media::FRAME_MS;
use crate::media::playout::Heard;
use crate::moment::Moment;

/// A mark goes out at least after so much sound.
const MARK_EVERY_MS: u64 = 500;
/// A gateway that does not send a mark back within this time after its sound was due knows no marks.
const MARKS_WITHIN: Duration = Duration::from_secs(2);
/// Marks that are waited for; there are two a second.
const MOST_MARKS: usize = 256;

#[derive(Debug)]
struct Mark {
    name: String,
    /// All sound up to here was sent before it.
    at_ms: u64,
    sent: Moment,
    /// The item that it ends.
    ends: Option<Heard>,
}

/// The sound of one stream.
#[derive(Debug, Default)]
pub struct Played {
    /// Sent since the beginning.
    sent_ms: u64,
    /// Of it, known to have been played or thrown away, and since when.
    played_ms: u64,
    known_since: Moment,
    marked_ms: u64,
    marks: VecDeque<Mark>,
    names: u64,
    heard: VecDeque<Heard>,
}

impl Played {
    /// A frame of speech leaves now; the name of a mark that is to follow it.
    pub fn sent(&mut self, now: Moment) -> Option<String> {
        if self.played_ms == self.sent_ms {
            // Nothing was held: it is played from now on.
            self.known_since = now;
        }
        self.sent_ms += FRAME_MS;
        (self.sent_ms - self.marked_ms >= MARK_EVERY_MS).then(|| self.mark(now, None))
    }

    /// The last frame of an item has left; the name of the mark that is to follow it. The item is told of when it was played.
    pub fn ended(&mut self, now: Moment, heard: Heard) -> String {
        self.mark(now, Some(heard))
    }

    /// A mark came back. One that nobody waits for, or that was sent before sound was thrown away, says nothing.
    pub fn echoed(&mut self, now: Moment, name: &str) {
        let Some(at) = self.marks.iter().position(|mark| mark.name == name) else { return };
        for mark in self.marks.drain(..=at) {
            self.played_ms = self.played_ms.max(mark.at_ms);
            self.heard.extend(mark.ends);
        }
        self.known_since = now;
    }

    /// Time has passed: marks that never come are not waited for.
    pub fn timeout(&mut self, now: Moment) {
        while let Some(mark) = self.marks.pop_front_if(|mark| now >= mark.sent + MARKS_WITHIN) {
            self.played_ms = self.played_ms.max(mark.at_ms);
            self.known_since = now;
            self.heard.extend(mark.ends);
        }
    }

    /// When `timeout` is to be called next, if ever.
    pub fn next_timeout(&self) -> Option<Moment> {
        self.marks.front().map(|mark| mark.sent + MARKS_WITHIN)
    }

    /// An item that was played to its end.
    pub fn poll_heard(&mut self) -> Option<Heard> {
        self.heard.pop_front()
    }

    /// Whether the gateway may still hold sound.
    pub fn is_waiting(&self) -> bool {
        !self.marks.is_empty()
    }

    /// The gateway is told to throw away what it holds, because the caller interrupts. `cut` is what had left of each item
    /// that was cut off here; what was heard of all that was cut off comes out, in order.
    pub fn cut(&mut self, now: Moment, cut: Vec<Heard>) -> Vec<Heard> {
        let since_ms = u64::try_from(now.since(self.known_since).as_millis()).unwrap_or(u64::MAX);
        let played = self.played_ms.saturating_add(since_ms).min(self.sent_ms);
        let mut heard = Vec::new();
        for mark in self.marks.drain(..) {
            let Some(ends) = mark.ends else { continue };
            match mark.at_ms.saturating_sub(played) {
                // It was played, and its mark is on the way.
                0 => self.heard.push_back(ends),
                unheard => heard.push(less(ends, unheard)),
            }
        }
        let mut held = self.sent_ms - played;
        for item in cut {
            // Only the first of them can have begun.
            let lost = held.min(u64::from(item.played_ms));
            held -= lost;
            heard.push(less(item, lost));
        }
        self.played_ms = self.sent_ms;
        self.marked_ms = self.sent_ms;
        self.known_since = now;
        heard
    }

    fn mark(&mut self, now: Moment, ends: Option<Heard>) -> String {
        if self.marks.len() == MOST_MARKS
            && let Some(eldest) = self.marks.pop_front()
        {
            self.heard.extend(eldest.ends);
        }
        self.names += 1;
        let name = format!("{}:{}", self.names, self.sent_ms);
        self.marked_ms = self.sent_ms;
        self.marks.push_back(Mark { name: name.clone(), at_ms: self.sent_ms, sent: now, ends });
        name
    }
}

fn less(heard: Heard, ms: u64) -> Heard {
    let played_ms = heard.played_ms.saturating_sub(u32::try_from(ms).unwrap_or(u32::MAX));
    Heard { played_ms, ..heard }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn heard(item: &str, played_ms: u32, received_ms: u32) -> Heard {
        Heard { item: item.into(), played_ms, received_ms }
    }

    /// Frames that leave from `from` ms on, one each 20 ms; the marks that were asked for.
    fn speak(played: &mut Played, from: u64, frames: u64) -> Vec<String> {
        (0..frames).filter_map(|n| played.sent(at(from + n * 20))).collect()
    }

    #[test]
    fn an_item_is_heard_when_its_mark_comes_back() {
        let mut played = Played::default();
        assert_eq!(speak(&mut played, 0, 30), ["1:500"]);
        let name = played.ended(at(600), heard("a", 600, 600));
        assert_eq!((name.as_str(), played.poll_heard()), ("2:600", None));
        played.echoed(at(700), "1:500");
        assert!(played.poll_heard().is_none() && played.is_waiting());
        played.echoed(at(800), "2:600");
        assert_eq!((played.poll_heard(), played.is_waiting()), (Some(heard("a", 600, 600)), false));
    }

    #[test]
    fn an_interruption_counts_from_the_last_mark_that_came_back() {
        let mut played = Played::default();
        speak(&mut played, 0, 50);
        // 1000 ms are sent; at 900 ms the gateway says that 500 were played, so at 1000 it is 600.
        played.echoed(at(900), "1:500");
        assert_eq!(
            played.cut(at(1000), vec![heard("a", 1000, 3000), heard("b", 0, 500)]),
            [heard("a", 600, 3000), heard("b", 0, 500)]
        );
        played.echoed(at(1001), "2:1000");
        assert!(played.poll_heard().is_none(), "marks come back at once when sound is thrown away: they prove nothing");
        // The next item begins anew.
        speak(&mut played, 2000, 10);
        assert_eq!(played.cut(at(2100), vec![heard("c", 200, 400)]), [heard("c", 100, 400)]);
    }

    #[test]
    fn an_item_that_had_left_whole_may_still_be_cut_off_at_the_gateway() {
        let mut played = Played::default();
        speak(&mut played, 0, 20);
        played.ended(at(400), heard("a", 400, 400));
        speak(&mut played, 400, 5);
        // The gateway began 300 ms late.
        played.known_since = at(300);
        assert_eq!(played.cut(at(500), vec![heard("b", 100, 900)]), [heard("a", 200, 400), heard("b", 0, 900)]);
    }

    #[test]
    fn a_gateway_without_marks_is_believed_to_play_what_it_gets() {
        let mut played = Played::default();
        speak(&mut played, 0, 20);
        played.ended(at(400), heard("a", 400, 400));
        assert_eq!(played.next_timeout(), Some(at(2400)));
        played.timeout(at(2399));
        assert_eq!(played.poll_heard(), None);
        played.timeout(at(2400));
        assert_eq!((played.poll_heard(), played.next_timeout()), (Some(heard("a", 400, 400)), None));
    }

    #[test]
    fn marks_of_others_say_nothing() {
        let mut played = Played::default();
        speak(&mut played, 0, 25);
        for name in ["", "7:500", "x"] {
            played.echoed(at(500), name);
        }
        assert!(played.is_waiting());
    }

    proptest! {
        #[test]
        fn nobody_heard_more_than_was_sent_and_every_item_is_told_once(steps in proptest::collection::vec((0_u8..5, 0_u64..300), 0..60)) {
            let mut played = Played::default();
            let (mut now, mut sent, mut items, mut told, mut names) = (0, 0_u32, 0, 0, Vec::new());
            for (step, wait) in steps {
                now += wait;
                match step {
                    0 | 1 => { sent += 20; names.extend(played.sent(at(now))); }
                    2 if sent > 0 => {
                        items += 1;
                        names.push(played.ended(at(now), heard("a", sent, sent)));
                        sent = 0;
                    }
                    3 => {
                        if let Some(name) = names.first() { played.echoed(at(now), &name.clone()); names.remove(0); }
                    }
                    4 => {
                        let cut = if sent > 0 { items += 1; vec![heard("a", sent, sent + 100)] } else { vec![] };
                        let out = played.cut(at(now), cut);
                        prop_assert!(out.iter().all(|heard| heard.played_ms <= heard.received_ms));
                        told += out.len();
                        (sent, names) = (0, Vec::new());
                    }
                    _ => {}
                }
                told += std::iter::from_fn(|| played.poll_heard()).count();
            }
            if sent > 0 { items += 1; played.ended(at(now), heard("a", sent, sent)); }
            played.timeout(at(now + 10_000));
            told += std::iter::from_fn(|| played.poll_heard()).count();
            prop_assert_eq!(told, items);
        }
    }
}
