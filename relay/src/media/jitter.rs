//! The jitter buffer: puts the packets of one stream in order and decides when a missing one is given up.
//!
//! Its listener is a model, not a sound card. A packet whose turn it is goes on at once; only a gap waits, for as long
//! as the network has lately been late. So an even network adds no delay at all, and a bad one adds what it needs.

use std::collections::VecDeque;
use std::time::Duration;

use super::TICKS_PER_MS;
use crate::moment::Moment;

/// Packets held at most; a stream that makes us hold more has lost the one we wait for.
const CAPACITY: usize = 64;
const BIN: Duration = Duration::from_millis(20);
const BINS: usize = 12;
/// What each packet leaves of the weight of those before it: half is forgotten in 7 s.
const MEMORY: f32 = 0.998;
/// The part of packets that are to be in time.
const IN_TIME: f32 = 0.97;
const LEAST_TARGET: Duration = Duration::from_millis(20);
const MOST_TARGET: Duration = Duration::from_millis(200);
/// The target falls by one bin in this time, never faster.
const SHRINKS_EVERY: Duration = Duration::from_secs(2);
/// For so long the quickest packet is the measure of lateness; twice that at most.
const MEASURED_OVER: Duration = Duration::from_secs(5);
/// A stream that was silent for longer, or whose clock jumped further, is measured anew.
const REMEASURED_AFTER: Duration = Duration::from_millis(500);

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is held until its turn.
    Held,
    /// It is here already.
    Duplicate,
    /// Its turn is over.
    Late,
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released<T> {
    /// The next packet.
    Packet {
        /// Its RTP timestamp.
        timestamp: u32,
        /// What was inserted.
        content: T,
    },
    /// Packets that are given up, and how many ticks of sound lay between their neighbours.
    Lost {
        /// Number of packets.
        packets: u64,
        /// Their sound, by the timestamps before and after; at most a second.
        ticks: u32,
    },
}

/// What happened to a stream, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Went on in their turn.
    pub played: u64,
    /// Came after they had been given up.
    pub late: u64,
    /// Came twice.
    pub duplicate: u64,
    /// Came after one that was sent later.
    pub reordered: u64,
    /// Given up.
    pub lost: u64,
    /// The longest run of given-up packets.
    pub longest_gap: u64,
}

#[derive(Debug)]
struct Held<T> {
    timestamp: u32,
    arrived: Moment,
    /// Length of its sound; none if its timestamp says nothing about when it was sent.
    ticks: Option<u32>,
    content: T,
}

/// Orders the packets of one stream.
#[derive(Debug)]
pub struct JitterBuffer<T> {
    /// By their places. Nearly always empty or one: a tree would ask for memory for every packet.
    held: VecDeque<(u64, Held<T>)>,
    /// The place whose turn it is.
    next: Option<u64>,
    /// Where the sound of the last released packet ended.
    last_end: u32,
    highest: u64,
    /// Which of the last 64 places before `next` went on; bit 0 is the last.
    went_on: u64,
    delay: Delay,
    /// What happened so far.
    pub counts: Counts,
}

impl<T> Default for JitterBuffer<T> {
    fn default() -> JitterBuffer<T> {
        JitterBuffer {
            held: VecDeque::new(),
            next: None,
            last_end: 0,
            highest: 0,
            went_on: 0,
            delay: Delay::default(),
            counts: Counts::default(),
        }
    }
}

impl<T> JitterBuffer<T> {
    /// One packet, by its place on the long line of sequence numbers. `ticks` is the length of its sound; none for a
    /// packet of a telephone event, all of which carry the time of the event's beginning.
    pub fn insert(&mut self, now: Moment, place: u64, timestamp: u32, ticks: Option<u32>, content: T) -> Inserted {
        if ticks.is_some() {
            self.delay.packet(now, timestamp);
        }
        let behind = self.next.and_then(|next| next.checked_sub(place + 1));
        let was_here = behind.is_some_and(|behind| behind < 64 && self.went_on >> behind & 1 == 1);
        let turn = self.held.partition_point(|(held, _)| *held < place);
        if was_here || self.held.get(turn).is_some_and(|(held, _)| *held == place) {
            self.counts.duplicate += 1;
            return Inserted::Duplicate;
        }
        if behind.is_some() {
            self.counts.late += 1;
            self.delay.grow(now);
            return Inserted::Late;
        }
        if place < self.highest {
            self.counts.reordered += 1;
        }
        self.highest = self.highest.max(place);
        self.held.insert(turn, (place, Held { timestamp, arrived: now, ticks, content }));
        Inserted::Held
    }

    /// What may go on now. To be asked until it gives nothing.
    pub fn release(&mut self, now: Moment) -> Option<Released<T>> {
        let (place, held) = self.held.front()?;
        let place = *place;
        let (timestamp, gives_up_at) = (held.timestamp, self.gives_up_at(held));
        let next = *self.next.get_or_insert(place);
        if place > next {
            if self.held.len() < CAPACITY && now < gives_up_at {
                return None;
            }
            self.next = Some(place);
            let packets = place - next;
            self.went_on = u32::try_from(packets).ok().and_then(|by| self.went_on.checked_shl(by)).unwrap_or(0);
            self.counts.lost += packets;
            self.counts.longest_gap = self.counts.longest_gap.max(packets);
            let ticks = timestamp.wrapping_sub(self.last_end);
            // Timestamps that go back, or jump: another clock, so nothing can be said about the sound between.
            let ticks = if ticks <= 1000 * TICKS_PER_MS { ticks } else { 0 };
            return Some(Released::Lost { packets, ticks });
        }
        let Held { timestamp, ticks, content, .. } = self.held.pop_front()?.1;
        self.next = Some(place + 1);
        self.went_on = self.went_on << 1 | 1;
        self.counts.played += 1;
        if let Some(ticks) = ticks {
            self.last_end = timestamp.wrapping_add(ticks);
        }
        Some(Released::Packet { timestamp, content })
    }

    /// When `release` will give something up, if a gap is waited for.
    pub fn next_deadline(&self) -> Option<Moment> {
        let (place, held) = self.held.front()?;
        (Some(*place) != self.next).then(|| self.gives_up_at(held))
    }

    /// The part of the packets that never went on, of 100: what came too late is as good as lost.
    pub fn loss_percent(&self) -> f64 {
        let all = self.counts.lost + self.counts.played;
        if all == 0 { 0.0 } else { self.counts.lost as f64 * 100.0 / all as f64 }
    }

    /// How long a gap is waited for.
    pub fn target(&self) -> Duration {
        self.delay.target
    }

    /// Another stream begins. What is held of the old one is dropped; what was counted and learnt stays.
    pub fn restart(&mut self) {
        self.held.clear();
        self.next = None;
        self.highest = 0;
        self.delay.remeasure();
    }

    /// The gap before this packet should have been filled a packet earlier; waiting until the turn of
    /// the packet itself costs nothing more, because it is here.
    fn gives_up_at(&self, held: &Held<T>) -> Moment {
        let due = if held.ticks.is_some() { self.delay.due(held.timestamp) } else { held.arrived };
        due + self.delay.target
    }
}

/// Learns how late packets are, against the quickest of the last seconds.
#[derive(Debug)]
struct Delay {
    target: Duration,
    histogram: [f32; BINS],
    /// The first packet: its arrival, and its timestamp on a line that never wraps.
    anchor: Option<(Moment, u32)>,
    last: (Moment, i64),
    /// Least transit of the running and of the preceding period, in µs against the anchor.
    least: [i64; 2],
    period_since: Moment,
    shrunk_at: Moment,
}

impl Default for Delay {
    fn default() -> Delay {
        Delay {
            target: LEAST_TARGET * 2,
            histogram: [0.0; BINS],
            anchor: None,
            last: (Moment::default(), 0),
            least: [i64::MAX; 2],
            period_since: Moment::default(),
            shrunk_at: Moment::default(),
        }
    }
}

impl Delay {
    fn packet(&mut self, now: Moment, timestamp: u32) {
        let media = self.media_micros(timestamp);
        let gap = now.since(self.last.0);
        let jumped = (media - self.last.1).unsigned_abs().abs_diff(gap.as_micros() as u64) > 1_000_000;
        if self.anchor.is_none() || gap > REMEASURED_AFTER || jumped {
            self.remeasure();
            self.anchor = Some((now, timestamp));
            self.last = (now, 0);
            self.least = [0; 2];
            self.period_since = now;
            return;
        }
        self.last = (now, media.max(self.last.1));
        let arrival = self.anchor.map_or(0, |(at, _)| now.since(at).as_micros() as i64);
        let transit = arrival - media;
        if now.since(self.period_since) > MEASURED_OVER {
            self.least = [transit, self.least.first().copied().unwrap_or(transit)];
            self.period_since = now;
        }
        if let Some(least) = self.least.first_mut() {
            *least = transit.min(*least);
        }
        let late = Duration::from_micros((transit - self.quickest()).max(0) as u64);
        self.learn(now, late);
    }

    fn learn(&mut self, now: Moment, late: Duration) {
        let bin = (late.as_micros() / BIN.as_micros()).min(BINS as u128 - 1) as usize;
        for (n, weight) in self.histogram.iter_mut().enumerate() {
            *weight = *weight * MEMORY + if n == bin { 1.0 - MEMORY } else { 0.0 };
        }
        let all: f32 = self.histogram.iter().sum();
        let mut below = 0.0;
        let within = self.histogram.iter().take_while(|weight| {
            let reached = below >= all * IN_TIME;
            below += **weight;
            !reached
        });
        // The upper edge of the bin, and that is one packet more than its lower one.
        let wanted = (BIN * within.count() as u32).clamp(LEAST_TARGET, MOST_TARGET);
        if wanted > self.target {
            self.target = wanted;
            self.shrunk_at = now;
        } else if wanted < self.target && now.since(self.shrunk_at) >= SHRINKS_EVERY {
            self.target = self.target.saturating_sub(BIN).max(wanted);
            self.shrunk_at = now;
        }
    }

    /// A packet came too late: wait longer at once.
    fn grow(&mut self, now: Moment) {
        self.target = (self.target + BIN).min(MOST_TARGET);
        self.shrunk_at = now;
    }

    /// When the packet with this timestamp comes if it is as quick as any.
    fn due(&self, timestamp: u32) -> Moment {
        let Some((at, _)) = self.anchor else { return Moment::default() };
        let offset = self.media_micros(timestamp) + self.quickest();
        match u64::try_from(offset) {
            Ok(ahead) => at + Duration::from_micros(ahead),
            Err(_) => at - Duration::from_micros(offset.unsigned_abs()),
        }
    }

    fn quickest(&self) -> i64 {
        let [running, before] = self.least;
        running.min(before)
    }

    /// Microseconds of sound since the anchor; near the last packet, however often the timestamp has wrapped.
    fn media_micros(&self, timestamp: u32) -> i64 {
        let Some((_, first)) = self.anchor else { return 0 };
        let micros_a_tick = i64::from(1000 / TICKS_PER_MS);
        let last_ticks = self.last.1 / micros_a_tick;
        let step = timestamp.wrapping_sub(first.wrapping_add(last_ticks as u32)) as i32;
        (last_ticks + i64::from(step)) * micros_a_tick
    }

    fn remeasure(&mut self) {
        self.anchor = None;
        self.last.1 = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packets as `(arrival ms, number)`; what came out, in words: `5@100` is packet 5 at 100 ms, `-2@180` two given up.
    fn replay(packets: &[(u64, u64)]) -> (Vec<String>, JitterBuffer<u64>) {
        let mut buffer = JitterBuffer::default();
        let mut out = Vec::new();
        let mut drain = |buffer: &mut JitterBuffer<u64>, ms: u64| {
            while let Some(released) = buffer.release(Moment::from_millis(ms)) {
                match released {
                    Released::Packet { content, .. } => out.push(format!("{content}@{ms}")),
                    Released::Lost { packets, ticks } => {
                        assert_eq!(u64::from(ticks), packets * 160);
                        out.push(format!("-{packets}@{ms}"));
                    }
                }
            }
        };
        let mut packets = packets.to_vec();
        packets.sort();
        let mut coming = packets.into_iter().peekable();
        let end = coming.clone().last().map_or(0, |last| last.0) + 300;
        for ms in 0..end {
            while let Some((_, n)) = coming.next_if(|(at, _)| *at == ms) {
                buffer.insert(
                    Moment::from_millis(ms),
                    1000 + n,
                    (n as u32).wrapping_mul(160).wrapping_sub(320),
                    Some(160),
                    n,
                );
            }
            drain(&mut buffer, ms);
        }
        (out, buffer)
    }

    #[test]
    fn an_even_stream_passes_without_delay() {
        let (out, buffer) = replay(&[(0, 0), (20, 1), (40, 2), (60, 3)]);
        assert_eq!(out, ["0@0", "1@20", "2@40", "3@60"]);
        assert_eq!(buffer.counts, Counts { played: 4, ..Counts::default() });
    }

    #[test]
    fn a_swapped_pair_is_put_in_order_as_soon_as_it_is_whole() {
        let (out, buffer) = replay(&[(0, 0), (25, 2), (31, 1), (60, 3)]);
        assert_eq!(out, ["0@0", "1@31", "2@31", "3@60"]);
        assert_eq!(buffer.counts.reordered, 1);
    }

    #[test]
    fn a_lost_packet_is_given_up_when_the_network_has_never_been_so_late() {
        let (out, buffer) = replay(&[(0, 0), (20, 1), (60, 3), (80, 4)]);
        assert_eq!(out, ["0@0", "1@20", "-1@100", "3@100", "4@100"]);
        assert_eq!((buffer.counts.lost, buffer.counts.longest_gap), (1, 1));
    }

    #[test]
    fn what_comes_after_it_was_given_up_is_late_and_teaches_to_wait() {
        let (out, buffer) = replay(&[(0, 0), (40, 2), (130, 1), (131, 3)]);
        assert_eq!(out, ["0@0", "-1@80", "2@80", "3@131"]);
        assert_eq!(buffer.counts.late, 1);
        assert!(buffer.target() > LEAST_TARGET * 2);
    }

    #[test]
    fn a_copy_is_dropped() {
        let (out, buffer) = replay(&[(0, 0), (40, 2), (41, 2), (42, 1), (43, 1), (44, 0)]);
        assert_eq!(out, ["0@0", "1@42", "2@42"]);
        assert_eq!((buffer.counts.duplicate, buffer.counts.late), (3, 0), "whether its turn is over or not");
    }

    #[test]
    fn a_shaky_network_is_waited_for_and_a_calm_one_is_not() {
        let shaky: Vec<_> = (0..400).map(|n| (n * 20 + n * 7 % 11 * 10, n)).collect();
        let (_, buffer) = replay(&shaky);
        assert!(buffer.target() >= Duration::from_millis(100), "{:?}", buffer.target());
        let calm: Vec<_> = shaky.into_iter().chain((400..3000).map(|n| (n * 20, n))).collect();
        let (_, buffer) = replay(&calm);
        assert_eq!(buffer.target(), LEAST_TARGET);
    }

    #[test]
    fn one_late_packet_is_enough_to_wait_longer_for_a_while() {
        let calm: Vec<_> = (0..1000).filter(|n| *n != 998).map(|n| (n * 20, n)).collect();
        let (_, mut buffer) = replay(&calm);
        assert_eq!(buffer.target(), LEAST_TARGET);
        let mut packet = |ms: u64, n: u64| {
            let inserted =
                buffer.insert(Moment::from_millis(ms), 1000 + n, (n as u32 * 160).wrapping_sub(320), Some(160), n);
            (inserted, buffer.target())
        };
        assert_eq!(packet(20_020, 998), (Inserted::Late, LEAST_TARGET + BIN));
        let targets: Vec<_> = (1002..1110).map(|n| packet(n * 20, n).1).collect();
        assert_eq!(targets[98], LEAST_TARGET + BIN, "two seconds are not over");
        assert_eq!(targets.last(), Some(&LEAST_TARGET));
    }

    #[test]
    fn a_drifting_clock_does_not_make_packets_late() {
        // 1000 ppm: 20 ms in 20 s.
        let drifting: Vec<_> = (0..6000).map(|n| (n * 20 + n * 20 / 1000, n)).collect();
        let (_, buffer) = replay(&drifting);
        assert_eq!((buffer.counts, buffer.target()), (Counts { played: 6000, ..Counts::default() }, LEAST_TARGET));
    }

    #[test]
    fn packets_of_a_long_key_press_teach_nothing_about_the_network() {
        let (_, mut buffer) = replay(&[(0, 0), (20, 1)]);
        for n in 2..60 {
            buffer.insert(Moment::from_millis(n * 20), 1000 + n, 0, None, n);
            assert!(matches!(buffer.release(Moment::from_millis(n * 20)), Some(Released::Packet { .. })));
        }
        assert_eq!(buffer.target(), LEAST_TARGET * 2, "as it was");
        // One packet of a press is lost: the next one waits for it, and not for ever.
        buffer.insert(Moment::from_millis(1220), 1061, 0, None, 61);
        assert_eq!(buffer.release(Moment::from_millis(1259)), None);
        assert!(matches!(buffer.release(Moment::from_millis(1260)), Some(Released::Lost { packets: 1, .. })));
    }

    #[test]
    fn after_a_restart_nothing_of_the_old_stream_is_left() {
        let (_, mut buffer) = replay(&[(0, 0), (40, 2)]);
        buffer.insert(Moment::from_millis(400), 1005, 500, Some(160), 5);
        buffer.restart();
        buffer.insert(Moment::from_millis(420), 7, 9_000_000, Some(160), 77);
        let released = buffer.release(Moment::from_millis(420));
        assert_eq!(released, Some(Released::Packet { timestamp: 9_000_000, content: 77 }));
        assert_eq!(buffer.next_deadline(), None);
    }

    proptest! {
        #[test]
        fn everything_comes_out_once_and_in_order(
            packets in proptest::collection::vec((0_u64..150, 0_u32..100), 1..120), copies in 0_usize..20,
        ) {
            // Each packet up to 150 ms late; one of ten lost; some twice.
            let sent: Vec<_> = packets.iter().enumerate().filter(|(_, (_, luck))| *luck >= 10)
                .map(|(n, (late, _))| (n as u64 * 20 + late, n as u64)).collect();
            let again = sent.iter().take(copies).map(|(at, n)| (at + 15, *n));
            let all: Vec<_> = sent.iter().copied().chain(again).collect();
            let (out, buffer) = replay(&all);
            let numbers: Vec<u64> =
                out.iter().filter(|word| !word.starts_with('-')).map(|word| word.split('@').next().unwrap().parse().unwrap()).collect();
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!((sent.len() - numbers.len()) as u64 <= buffer.counts.late);
            prop_assert_eq!(all.len() as u64, buffer.counts.played + buffer.counts.late + buffer.counts.duplicate);
            prop_assert!(buffer.held.is_empty(), "nothing is held back for ever");
        }
    }
}
