//! RTCP (RFC 3550 §6): what we tell the other side about its media, and what it tells us about ours.

use std::time::Duration;

use super::TICKS_PER_MS;
use super::statistics::Reception;
use crate::moment::Moment;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SOURCE_DESCRIPTION: u8 = 202;
const GOODBYE: u8 = 203;
/// A compound packet of more parts than this is not looked at further.
const MOST_PARTS: usize = 16;
const LEAST_INTERVAL_MS: f64 = 5000.0;

/// What a report of the other side says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// A sender report: the middle 32 bits of its time stamp, to be given back.
    SenderReport {
        /// Who reports.
        ssrc: u32,
        /// The middle of its NTP time stamp.
        last_sr: u32,
    },
    /// How our stream arrived there.
    Block(Block),
    /// The stream is over.
    Goodbye {
        /// Whose.
        ssrc: u32,
    },
}

/// A report block (§6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Block {
    /// The stream reported on.
    pub ssrc: u32,
    /// Part lost since the last report, in 256ths.
    pub fraction_lost: u8,
    /// All that were lost; 24 bits, signed.
    pub lost: i32,
    /// Highest sequence number with its wraps.
    pub highest: u32,
    /// In ticks.
    pub jitter_ticks: u32,
    /// Middle of the time stamp of the last sender report that was heard; zero for none.
    pub last_sr: u32,
    /// How long ago that was, in 65536ths of a second.
    pub delay_since_last_sr: u32,
}

impl Block {
    fn parse(bytes: &[u8; 24]) -> Block {
        let word = |n: usize| bytes.get(n * 4..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_be_bytes);
        // The upper byte is the fraction; the rest is a signed number of 24 bits.
        let lost = (word(1) << 8) as i32 >> 8;
        Block {
            ssrc: word(0),
            fraction_lost: (word(1) >> 24) as u8,
            lost,
            highest: word(2),
            jitter_ticks: word(3),
            last_sr: word(4),
            delay_since_last_sr: word(5),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let lost = self.lost.clamp(-0x80_0000, 0x7f_ffff) as u32 & 0xff_ffff;
        let second = u32::from(self.fraction_lost) << 24 | lost;
        for word in [self.ssrc, second, self.highest, self.jitter_ticks, self.last_sr, self.delay_since_last_sr] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
}

/// Reads a compound packet. It ends at the first part that makes no sense; what was read until then counts.
pub fn parse(datagram: &[u8]) -> Vec<Heard> {
    let mut heard = Vec::new();
    let mut rest = datagram;
    for _ in 0..MOST_PARTS {
        let Some(([flags, kind, words_high, words_low], after)) = rest.split_first_chunk::<4>() else { break };
        let length = usize::from(u16::from_be_bytes([*words_high, *words_low])) * 4;
        let (Some((body, next)), 2) = (after.split_at_checked(length), flags >> 6) else { break };
        rest = next;
        let count = usize::from(flags & 0x1f);
        let Some((ssrc, body)) = body.split_first_chunk::<4>() else { continue };
        let ssrc = u32::from_be_bytes(*ssrc);
        match *kind {
            SENDER_REPORT => {
                let Some((info, blocks)) = body.split_first_chunk::<20>() else { break };
                let [_, _, s2, s3, f0, f1, ..] = *info;
                heard.push(Heard::SenderReport { ssrc, last_sr: u32::from_be_bytes([s2, s3, f0, f1]) });
                heard.extend(parse_blocks(blocks, count));
            }
            RECEIVER_REPORT => heard.extend(parse_blocks(body, count)),
            GOODBYE if count > 0 => heard.push(Heard::Goodbye { ssrc }),
            _ => {}
        }
    }
    heard
}

fn parse_blocks(bytes: &[u8], count: usize) -> impl Iterator<Item = Heard> {
    bytes.chunks_exact(24).take(count).filter_map(|chunk| chunk.first_chunk().map(Block::parse)).map(Heard::Block)
}

/// What became of our media, as the other side reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RemoteView {
    /// Of the last report, in 256ths.
    pub fraction_lost: u8,
    /// Over the whole call.
    pub lost: i32,
    /// In ticks.
    pub jitter_ticks: u32,
    /// There and back; from the second report on.
    pub round_trip: Option<Duration>,
}

/// Our side of the control stream of one call.
#[derive(Debug)]
pub struct Control {
    ssrc: u32,
    cname: String,
    /// NTP time (32.32 fixed point) at the relay's start.
    ntp_at_start: u64,
    next_report: Moment,
    dice: u32,
    last_sr: Option<(u32, Moment)>,
    packets_sent: u32,
    octets_sent: u32,
    sent_since_report: bool,
    /// What the other side says.
    pub remote: RemoteView,
}

impl Control {
    /// `cname` is a name for this end that says nothing about it (RFC 7022); `dice` seeds the spread of the reports.
    pub fn new(now: Moment, ssrc: u32, cname: String, ntp_at_start: u64, dice: u32) -> Control {
        let mut control = Control {
            ssrc,
            cname,
            ntp_at_start,
            next_report: now,
            dice: dice | 1,
            last_sr: None,
            packets_sent: 0,
            octets_sent: 0,
            sent_since_report: false,
            remote: RemoteView::default(),
        };
        control.next_report = now + control.interval() / 2;
        control
    }

    /// When the next report is due.
    pub fn next_report(&self) -> Moment {
        self.next_report
    }

    /// Counts a packet of ours.
    pub fn sent(&mut self, payload_bytes: usize) {
        self.packets_sent = self.packets_sent.wrapping_add(1);
        self.octets_sent = self.octets_sent.wrapping_add(payload_bytes as u32);
        self.sent_since_report = true;
    }

    /// Takes in a datagram. True if the other side says goodbye.
    pub fn receive(&mut self, now: Moment, datagram: &[u8]) -> bool {
        let mut goodbye = false;
        for heard in parse(datagram) {
            match heard {
                Heard::SenderReport { last_sr, .. } => self.last_sr = Some((last_sr, now)),
                Heard::Block(block) if block.ssrc == self.ssrc => self.reported(now, block),
                Heard::Block(_) => {}
                Heard::Goodbye { .. } => goodbye = true,
            }
        }
        goodbye
    }

    fn reported(&mut self, now: Moment, block: Block) {
        self.remote.fraction_lost = block.fraction_lost;
        self.remote.lost = block.lost;
        self.remote.jitter_ticks = block.jitter_ticks;
        if block.last_sr != 0 {
            let here = (self.ntp(now) >> 16) as u32;
            let trip = here.wrapping_sub(block.last_sr).wrapping_sub(block.delay_since_last_sr);
            // Over eight seconds, or less than nothing: clocks that do not fit.
            if trip < 8 << 16 {
                self.remote.round_trip = Some(Duration::from_micros((u64::from(trip) * 1_000_000) >> 16));
            }
        }
    }

    /// A compound packet: sender or receiver report, our name, and a goodbye if the call is over.
    pub fn report(
        &mut self,
        now: Moment,
        rtp_timestamp: u32,
        of: Option<(u32, &mut Reception)>,
        goodbye: bool,
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let block = of.map(|(ssrc, reception)| Block {
            ssrc,
            fraction_lost: reception.fraction_lost(),
            lost: i32::try_from(reception.lost()).unwrap_or(i32::MAX),
            highest: reception.highest(),
            jitter_ticks: reception.jitter_ticks(),
            last_sr: self.last_sr.map_or(0, |(last_sr, _)| last_sr),
            delay_since_last_sr: self
                .last_sr
                .map_or(0, |(_, at)| (now.since(at).as_micros() * 65_536 / 1_000_000) as u32),
        });
        let kind = if self.sent_since_report { SENDER_REPORT } else { RECEIVER_REPORT };
        part(&mut out, kind, usize::from(block.is_some()), |out| {
            out.extend_from_slice(&self.ssrc.to_be_bytes());
            if kind == SENDER_REPORT {
                out.extend_from_slice(&self.ntp(now).to_be_bytes());
                for word in [rtp_timestamp, self.packets_sent, self.octets_sent] {
                    out.extend_from_slice(&word.to_be_bytes());
                }
            }
            if let Some(block) = block {
                block.write(out);
            }
        });
        part(&mut out, SOURCE_DESCRIPTION, 1, |out| {
            out.extend_from_slice(&self.ssrc.to_be_bytes());
            out.push(1);
            out.push(self.cname.len().min(255) as u8);
            out.extend(self.cname.bytes().take(255));
            // The list ends with a zero and is filled up to a whole word.
            out.push(0);
        });
        if goodbye {
            part(&mut out, GOODBYE, 1, |out| out.extend_from_slice(&self.ssrc.to_be_bytes()));
        }
        self.sent_since_report = false;
        self.next_report = now + self.interval();
        out
    }

    /// Five seconds, spread over half to one and a half (§6.3.1); at two members the bandwidth never asks for more.
    fn interval(&mut self) -> Duration {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 17;
        self.dice ^= self.dice << 5;
        let spread = 0.5 + f64::from(self.dice) / f64::from(u32::MAX);
        // The division makes up for timer reconsideration.
        Duration::from_micros((LEAST_INTERVAL_MS * spread / 1.21828 * 1000.0) as u64)
    }

    fn ntp(&self, now: Moment) -> u64 {
        let micros = now.as_micros();
        let fraction = ((micros % 1_000_000) << 32) / 1_000_000;
        self.ntp_at_start.wrapping_add((micros / 1_000_000) << 32).wrapping_add(fraction)
    }
}

/// One part of a compound packet; its length is known when its body is written.
fn part(out: &mut Vec<u8>, kind: u8, count: usize, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0x80 | count as u8 & 0x1f, kind, 0, 0]);
    body(out);
    while !(out.len() - start).is_multiple_of(4) {
        out.push(0);
    }
    let words = ((out.len() - start) / 4 - 1) as u16;
    if let Some(length) = out.get_mut(start + 2..start + 4) {
        length.copy_from_slice(&words.to_be_bytes());
    }
}

/// A one-way delay from what is known of both directions; the jitter buffer's share included.
pub fn one_way_delay_ms(round_trip: Option<Duration>, buffer: Duration, jitter_ticks: u32) -> f64 {
    let network = round_trip.unwrap_or(Duration::from_millis(100)).as_secs_f64() * 500.0;
    network + buffer.as_secs_f64() * 1000.0 + f64::from(jitter_ticks / TICKS_PER_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn control(ssrc: u32) -> Control {
        Control::new(Moment::default(), ssrc, "a7f3".into(), 0xe000_0000_0000_0000, 42)
    }

    #[test]
    fn a_receiver_report_says_what_was_received() {
        let mut reception = Reception::default();
        for n in [0, 1, 2, 4, 5, 6, 7] {
            reception.packet(Moment::from_millis(n * 20), 0x1_0000 + n, n as u32 * 160);
        }
        let report = control(7).report(Moment::from_millis(200), 0, Some((9, &mut reception)), true);
        let expected = Block { ssrc: 9, fraction_lost: 32, lost: 1, highest: 7, ..Block::default() };
        assert_eq!(parse(&report), [Heard::Block(expected), Heard::Goodbye { ssrc: 7 }]);
        assert_eq!(report.len() % 4, 0);
    }

    #[test]
    fn the_round_trip_is_what_both_waits_leave() {
        let (mut near, mut far) = (control(1), control(2));
        near.sent(160);
        let report = near.report(Moment::from_millis(1000), 8000, None, false);
        assert!(matches!(parse(&report)[..], [Heard::SenderReport { ssrc: 1, .. }]));
        // 70 ms there, half a second at the other side, 50 ms back.
        far.receive(Moment::from_millis(1070), &report);
        let mut reception = Reception::default();
        reception.packet(Moment::from_millis(1080), 0x1_0000, 0);
        let back = far.report(Moment::from_millis(1570), 0, Some((1, &mut reception)), false);
        assert!(!near.receive(Moment::from_millis(1620), &back));
        let trip = near.remote.round_trip.unwrap().as_millis();
        assert!((119..=121).contains(&trip), "{trip} ms");
    }

    #[test]
    fn a_report_on_somebody_else_changes_nothing() {
        let mut reception = Reception::default();
        reception.packet(Moment::default(), 0x1_0000, 0);
        let report = control(2).report(Moment::default(), 0, Some((99, &mut reception)), false);
        let mut near = control(1);
        near.receive(Moment::default(), &report);
        assert_eq!(near.remote, RemoteView::default());
    }

    #[test]
    fn reports_are_spread_and_never_rare() {
        let mut control = control(1);
        assert!(control.next_report() < Moment::from_millis(3100));
        let mut waits = Vec::new();
        for n in 0..200 {
            let now = Moment::from_millis(n * 10_000);
            control.report(now, 0, None, false);
            waits.push(control.next_report().since(now).as_millis());
        }
        assert!(waits.iter().all(|wait| (2052..=6157).contains(wait)));
        assert!(waits.iter().min().unwrap() + 2500 < *waits.iter().max().unwrap());
    }

    proptest! {
        #[test]
        fn a_block_survives_the_wire(ssrc: u32, fraction_lost: u8, lost in -0x80_0000..=0x7f_ffff_i32, highest: u32,
                                     jitter_ticks: u32, last_sr: u32, delay_since_last_sr: u32) {
            let block = Block { ssrc, fraction_lost, lost, highest, jitter_ticks, last_sr, delay_since_last_sr };
            let mut bytes = Vec::new();
            block.write(&mut bytes);
            prop_assert_eq!(Block::parse(bytes.first_chunk().unwrap()), block);
        }

        #[test]
        fn any_datagram_is_read_as_far_as_it_goes(mut datagram in proptest::collection::vec(any::<u8>(), 0..200), seed: bool) {
            if let (true, Some(first)) = (seed, datagram.first_mut()) {
                *first = 0x81;
            }
            let mut control = control(1);
            control.receive(Moment::from_millis(5), &datagram);
            prop_assert!(parse(&datagram).len() <= MOST_PARTS * 32);
        }
    }
}
