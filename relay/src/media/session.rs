//! The media of one call: datagrams of the trunk and speech of the agent in; datagrams, frames for the model, keys and
//! the time of the next look out.
//!
//! Towards the model the timeline never stops: what is lost is concealed, what is not sent is silence, because a model
//! that hears nothing at all never learns that the caller has finished. Towards the caller a packet leaves every 20 ms,
//! on deadlines that are counted from the first and never from the last.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::comfort_noise::{Noise, NoiseLevel};
use super::concealment::Concealer;
use super::dtmf::{Digit, Keypad};
use super::echo::{EchoGuard, Gate};
use super::g711::Law;
use super::jitter::{Counts, JitterBuffer, Released};
use super::playout::{Heard, ItemId, Playout};
use super::quality::Conditions;
use super::rtcp::{Control, one_way_delay_ms};
use super::rtp::{self, Packet, Placed, SequenceNumbers};
use super::source::{Network, Source, Verdict};
use super::statistics::Reception;
use super::tape::Tape;
use super::{FRAME_MS, FRAME_SAMPLES, TICKS_PER_MS};
use crate::moment::Moment;

const FRAME: Duration = Duration::from_millis(FRAME_MS);
/// After a late wake-up so many packets may leave at once; what is beyond is left out of the timeline.
const MOST_AT_ONCE: u32 = 3;
/// Five seconds, which is what a gateway's message may carry; longer ones are cut. A datagram never carries so much.
const LONGEST_PAYLOAD: usize = 40_000;
/// Until nothing was heard for so long, the model hears nothing either: packets of 40 ms are no gap.
const FILL_AFTER: Duration = Duration::from_millis(40);
/// A packet of the stream before that comes so soon after another began was overtaken by it: no jitter buffer of ours is deeper.
const OVERTAKEN: Duration = Duration::from_millis(200);

/// What a call's media is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The law of both directions.
    pub law: Law,
    /// The payload type that carries `law`, by the peer's numbers.
    pub payload_type: u8,
    /// The payload type of telephone events, if any.
    pub telephone_event: Option<u8>,
    /// Where the peer wants its media.
    pub remote: SocketAddr,
    /// Where the peer wants its reports.
    pub remote_control: SocketAddr,
    /// From where media may come besides.
    pub allowed: Vec<Network>,
    /// How loud an echo may be against what was said, in decibels; none switches the guard off.
    pub echo_db: Option<f32>,
    /// With no packet for this long the call is given up; `None` while it is on hold.
    pub silence_limit: Option<Duration>,
    /// Random numbers: source, first sequence number, first timestamp, and a seed for what else is random.
    pub dice: [u32; 4],
    /// A name for this end in reports that says nothing about it.
    pub cname: String,
    /// NTP time (32.32 fixed point) at the relay's start.
    pub ntp_at_start: u64,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this from the port of the media.
    Rtp {
        /// Where to.
        to: SocketAddr,
        /// What.
        datagram: Vec<u8>,
    },
    /// Send this from the port of the reports.
    Rtcp {
        /// Where to.
        to: SocketAddr,
        /// What.
        datagram: Vec<u8>,
    },
    /// Sound of the caller, in the law of the call.
    Audio(Vec<u8>),
    /// A key was pressed.
    Digit(Digit),
    /// An item of the agent was spoken to its end.
    Spoken(Heard),
    /// A piece of the recording, both tracks.
    Recorded(Vec<u8>),
    /// Nothing came from the other side for too long.
    Dead,
}

/// Figures of a call, for its record and the metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Packets taken.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets of strangers.
    pub foreign: u64,
    /// What is neither RTP nor of a payload type of this call.
    pub unknown: u64,
    /// What the jitter buffer saw.
    pub counts: Counts,
    /// Sound that was made up.
    pub concealed_ms: u64,
    /// Frames held for an echo.
    pub echo_muted: u64,
    /// Loss on the way to us, of 100; what came too late included.
    pub loss_percent: f64,
    /// Loss on the way to the caller, of 100, by its last report.
    pub remote_loss_percent: f64,
    /// Jitter on the way to us.
    pub jitter_ms: f64,
    /// There and back.
    pub round_trip: Option<Duration>,
    /// Estimate of how the caller sounds, 1 to 4.5.
    pub mean_opinion_score: f64,
}

#[derive(Debug)]
enum Content {
    Audio(Vec<u8>),
    Noise(Option<NoiseLevel>),
    Event,
}

/// What fills the time in which nothing comes.
#[derive(Debug, Clone, Copy)]
enum Filler {
    Concealment,
    Silence,
    Noise(NoiseLevel),
}

/// The media of one call.
#[derive(Debug)]
pub struct Session {
    setup: Setup,
    source: Source,
    // From the caller.
    remote_ssrc: Option<u32>,
    /// The stream that this one replaced, and when.
    before: Option<(u32, Moment)>,
    numbers: SequenceNumbers,
    reception: Reception,
    buffer: JitterBuffer<Content>,
    keypad: Keypad,
    concealer: Concealer,
    noise: Noise,
    filler: Filler,
    fill_at: Moment,
    /// Ticks filled since the last packet, which a gap has not to be filled with again.
    filled: u32,
    guard: Option<EchoGuard<Vec<u8>>>,
    last_heard: Moment,
    dead: bool,
    on_hold: bool,
    // To the caller.
    playout: Playout,
    sequence_number: u16,
    timestamp: u32,
    next_send: Moment,
    /// Between two talk spurts nothing is sent.
    quiet_between: bool,
    /// How much earlier than its turn the stream runs, since the agent began to speak between two turns.
    ahead: Duration,
    control: Control,
    sent: u64,
    unknown: u64,
    concealed_ticks: u64,
    /// Both directions, while they are recorded.
    tape: Option<Tape>,
    out: VecDeque<Output>,
}

impl Session {
    /// Begins at `now`; the first packet leaves one frame later.
    pub fn new(now: Moment, setup: Setup) -> Session {
        let [ssrc, sequence_number, timestamp, seed] = setup.dice;
        Session {
            source: Source::new(setup.remote, setup.allowed.clone()),
            remote_ssrc: None,
            before: None,
            numbers: SequenceNumbers::default(),
            reception: Reception::default(),
            buffer: JitterBuffer::default(),
            keypad: Keypad::default(),
            concealer: Concealer::default(),
            noise: Noise::new(seed),
            filler: Filler::Silence,
            fill_at: now + FRAME,
            filled: 0,
            guard: setup.echo_db.map(EchoGuard::new),
            last_heard: now,
            dead: false,
            on_hold: false,
            playout: Playout::new(setup.law.silence()),
            sequence_number: sequence_number as u16,
            timestamp,
            next_send: now + FRAME,
            quiet_between: false,
            ahead: Duration::ZERO,
            control: Control::new(now, ssrc, setup.cname.clone(), setup.ntp_at_start, seed),
            sent: 0,
            unknown: 0,
            concealed_ticks: 0,
            tape: None,
            out: VecDeque::new(),
            setup,
        }
    }

    /// A datagram on the media port; reports may come there too (RFC 5761).
    pub fn handle_datagram(&mut self, now: Moment, from: SocketAddr, datagram: &[u8]) {
        if rtp::is_rtcp(datagram) {
            return self.handle_control(now, from, datagram);
        }
        let Ok(packet) = Packet::parse(datagram) else {
            self.unknown += 1;
            return;
        };
        let Some(content) = self.content_of(&packet) else {
            self.unknown += 1;
            return;
        };
        match self.source.judge(now, from, packet.ssrc, packet.sequence_number) {
            Verdict::Drop => return,
            Verdict::TakeFromNew => self.restart(),
            Verdict::Take => {}
        }
        // It would begin its stream anew, and be heard behind what came after it.
        if self.before.is_some_and(|(ssrc, ended)| ssrc == packet.ssrc && now.since(ended) < OVERTAKEN) {
            return;
        }
        // Whoever sends with our own number, or with another than before, is another stream (RFC 3550 §8.2).
        if let Some(before) = self.remote_ssrc.replace(packet.ssrc).filter(|before| *before != packet.ssrc) {
            self.before = Some((before, now));
            self.numbers = SequenceNumbers::default();
            self.reception = Reception::default();
            self.restart();
        }
        self.last_heard = now;
        let place = match self.numbers.place(packet.sequence_number) {
            Placed::At(place) => place,
            Placed::Restarted(place) => {
                self.reception = Reception::default();
                self.restart();
                place
            }
            Placed::Suspect => return,
        };
        if matches!(content, Content::Event) {
            for digit in self.keypad.telephone_event(now, packet.timestamp, packet.payload) {
                self.out.push_back(Output::Digit(digit));
            }
        } else {
            // The packets of an event all carry the time of its beginning, which says nothing about the network.
            self.reception.packet(now, place, packet.timestamp);
        }
        let ticks = match &content {
            Content::Audio(payload) => Some(payload.len() as u32),
            Content::Noise(_) => Some(0),
            Content::Event => None,
        };
        self.buffer.insert(now, place, packet.timestamp, ticks, content);
        self.release(now);
    }

    /// A datagram on the port of the reports.
    pub fn handle_control(&mut self, now: Moment, from: SocketAddr, datagram: &[u8]) {
        if self.source.may_control(from) {
            self.control.receive(now, datagram);
            self.last_heard = now;
        } else {
            self.source.foreign += 1;
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.release(now);
        if let Some(digit) = self.keypad.expire(now) {
            self.out.push_back(Output::Digit(digit));
        }
        while self.fill_at <= now {
            self.fill();
        }
        self.send_due(now);
        if self.control.next_report() <= now {
            self.send_report(now, false);
        }
        let limit = self.setup.silence_limit.filter(|_| !self.on_hold);
        if !self.dead && limit.is_some_and(|limit| now.since(self.last_heard) >= limit) {
            self.dead = true;
            self.out.push_back(Output::Dead);
        }
    }

    /// When `handle_timeout` is to be called next.
    pub fn next_timeout(&self) -> Moment {
        let first = self.next_send.min(self.fill_at).min(self.control.next_report());
        self.buffer.next_deadline().map_or(first, |deadline| deadline.min(first))
    }

    /// What the shell is to do; to be asked until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Speech of the agent. If nobody speaks, it leaves with this very call.
    pub fn play(&mut self, now: Moment, item: &ItemId, audio: Bytes) {
        let was_silent = !self.playout.is_speaking();
        self.playout.push(item, audio);
        if was_silent {
            self.start_speaking(now);
        }
    }

    /// Nothing more will come of an item.
    pub fn finish(&mut self, item: &ItemId) {
        self.playout.complete(item);
        self.tell_spoken();
    }

    /// An announcement that an interruption does not cut off.
    pub fn announce(&mut self, now: Moment, item: &ItemId, audio: Bytes) {
        let was_silent = !self.playout.is_speaking();
        self.playout.announce(item, audio);
        if was_silent {
            self.start_speaking(now);
        }
    }

    /// The caller interrupts: silence from the next packet on. What was heard of each item that was cut off.
    pub fn flush(&mut self) -> Vec<Heard> {
        self.playout.flush()
    }

    /// How long what waits will last.
    pub fn queued_ms(&self) -> u32 {
        self.playout.queued_ms()
    }

    /// Where the way to the caller needs no keeping open, silence is not sent.
    pub fn keep_silence(&mut self) {
        self.quiet_between = true;
    }

    /// From now on both directions are recorded, as they are heard on the telephone.
    pub fn record(&mut self) {
        // A gap at the beginning would be filled with a voice from before.
        self.concealer.reset();
        self.tape.get_or_insert_with(|| Tape::new(self.setup.law.silence()));
    }

    /// Nothing more is recorded; what is left on the tape.
    pub fn stop_recording(&mut self) -> Vec<u8> {
        self.tape.take().map(Tape::finish).unwrap_or_default()
    }

    /// A key that came by SIP.
    pub fn info_digit(&mut self, now: Moment, digit: Digit) {
        if let Some(digit) = self.keypad.info(now, digit) {
            self.out.push_back(Output::Digit(digit));
        }
    }

    /// A new description of the peer's media. On hold nothing is given to the model, and silence is no fault.
    pub fn redescribe(&mut self, now: Moment, remote: SocketAddr, remote_control: SocketAddr, on_hold: bool) {
        self.source.announce(remote);
        self.setup.remote = remote;
        self.setup.remote_control = remote_control;
        self.on_hold = on_hold;
        self.last_heard = now;
    }

    /// The call is over: a last report with a goodbye.
    pub fn end(&mut self, now: Moment) {
        self.send_report(now, true);
    }

    /// The figures so far.
    pub fn report(&self) -> Report {
        let remote = self.control.remote;
        let jitter_ticks = self.reception.jitter_ticks();
        let conditions = Conditions {
            one_way_delay_ms: one_way_delay_ms(remote.round_trip, self.buffer.target(), jitter_ticks),
            loss_percent: self.buffer.loss_percent(),
            burst_ratio: self.reception.burst_ratio(),
        };
        Report {
            received: self.reception.received(),
            sent: self.sent,
            foreign: self.source.foreign,
            unknown: self.unknown,
            counts: self.buffer.counts,
            concealed_ms: self.concealed_ticks / u64::from(TICKS_PER_MS),
            echo_muted: self.guard.as_ref().map_or(0, |guard| guard.muted),
            loss_percent: conditions.loss_percent,
            remote_loss_percent: f64::from(remote.fraction_lost) * 100.0 / 256.0,
            jitter_ms: f64::from(jitter_ticks) / f64::from(TICKS_PER_MS),
            round_trip: remote.round_trip,
            mean_opinion_score: conditions.mean_opinion_score(),
        }
    }

    fn content_of(&self, packet: &Packet) -> Option<Content> {
        let payload = packet.payload.get(..packet.payload.len().min(LONGEST_PAYLOAD)).unwrap_or_default();
        match packet.payload_type {
            kind if kind == self.setup.payload_type => Some(Content::Audio(payload.to_vec())),
            kind if Some(kind) == self.setup.telephone_event => Some(Content::Event),
            rtp::COMFORT_NOISE => Some(Content::Noise(NoiseLevel::parse(payload))),
            _ => None,
        }
    }

    fn restart(&mut self) {
        self.buffer.restart();
        self.concealer.reset();
    }

    fn release(&mut self, now: Moment) {
        while let Some(released) = self.buffer.release(now) {
            match released {
                Released::Lost { ticks, .. } => {
                    let missing = ticks.saturating_sub(self.filled) as usize;
                    if missing > 0 {
                        self.make_up(Filler::Concealment, missing);
                    }
                }
                Released::Packet { content: Content::Audio(payload), .. } => self.hear(now, payload),
                Released::Packet { content: Content::Noise(level), .. } => {
                    self.filler = level.map_or(Filler::Silence, Filler::Noise);
                }
                Released::Packet { content: Content::Event, .. } => self.filler = Filler::Silence,
            }
        }
    }

    /// Sound that came, in its order.
    fn hear(&mut self, now: Moment, mut payload: Vec<u8>) {
        let law = self.setup.law;
        if self.keypad.is_down() {
            payload.fill(law.silence());
        }
        let mut samples: Vec<i16> = payload.iter().map(|byte| law.decode(*byte)).collect();
        // Untouched, unless it follows a gap.
        if self.concealer.good(&mut samples) {
            payload = samples.iter().map(|sample| law.encode(*sample)).collect();
        }
        self.filler = Filler::Concealment;
        self.filled = 0;
        let length = Duration::from_micros(payload.len() as u64 * 1000 / u64::from(TICKS_PER_MS));
        self.fill_at = now + length.max(FRAME) + self.buffer.target().max(FILL_AFTER);
        if self.on_hold {
            return;
        }
        if let Some(tape) = &mut self.tape {
            tape.heard(&payload);
        }
        let Some(guard) = &mut self.guard else { return self.out.push_back(Output::Audio(payload)) };
        let length = payload.len();
        match guard.heard(now, samples.into_iter(), payload) {
            Gate::Pass(frames) => self.out.extend(frames.into_iter().map(Output::Audio)),
            Gate::Mute => self.out.push_back(Output::Audio(vec![law.silence(); length])),
        }
    }

    /// Nothing came in time for one frame.
    fn fill(&mut self) {
        self.fill_at += FRAME;
        self.filled = self.filled.saturating_add(FRAME_SAMPLES as u32);
        self.make_up(self.filler, FRAME_SAMPLES);
    }

    fn make_up(&mut self, filler: Filler, count: usize) {
        let samples = match filler {
            Filler::Concealment => {
                self.concealed_ticks += count as u64;
                self.concealer.conceal(count)
            }
            Filler::Silence => vec![0; count],
            Filler::Noise(level) => self.noise.samples(level, count),
        };
        if !self.on_hold {
            let law = self.setup.law;
            let audio: Vec<u8> = samples.into_iter().map(|sample| law.encode(sample)).collect();
            if let Some(tape) = &mut self.tape {
                tape.heard(&audio);
            }
            self.out.push_back(Output::Audio(audio));
        }
    }

    /// The first frame of a talk spurt does not wait for the next turn. How much too early it leaves is given back in
    /// the first silence, so that the stream never runs ahead of its clock by more than a frame.
    fn start_speaking(&mut self, now: Moment) {
        if self.playout.is_speaking() && self.ahead.is_zero() && now < self.next_send {
            self.ahead = self.next_send.since(now);
            self.next_send = now;
        }
        self.send_due(now);
    }

    fn send_due(&mut self, now: Moment) {
        let mut burst = 0;
        while self.next_send <= now {
            if burst == MOST_AT_ONCE {
                // Too late to make up for: the timeline goes on without the sound, and without a gap in the numbers.
                let missed = (now.since(self.next_send).as_micros() / FRAME.as_micros()) as u32 + 1;
                self.timestamp = self.timestamp.wrapping_add(missed.wrapping_mul(FRAME_SAMPLES as u32));
                self.next_send += FRAME * missed;
                if let Some(tape) = &mut self.tape {
                    tape.skipped(missed as usize * FRAME_SAMPLES);
                }
                break;
            }
            burst += 1;
            self.send_frame(now);
        }
    }

    fn send_frame(&mut self, now: Moment) {
        let frame = self.playout.next_frame();
        if frame.is_none() && !self.ahead.is_zero() {
            self.next_send += std::mem::take(&mut self.ahead);
            return;
        }
        let is_silence = frame.is_none();
        let (payload, marker) = match frame {
            Some(frame) => {
                if let Some(guard) = &mut self.guard {
                    guard.said(now, frame.payload.iter().map(|byte| self.setup.law.decode(*byte)));
                }
                (frame.payload, frame.starts)
            }
            // Silence is sent too: carriers cut legs on which nothing comes.
            None => (vec![self.setup.law.silence(); FRAME_SAMPLES], false),
        };
        if let Some(tape) = &mut self.tape {
            tape.said(&payload);
            self.out.extend(tape.piece().map(Output::Recorded));
        }
        if is_silence && self.quiet_between {
            self.timestamp = self.timestamp.wrapping_add(FRAME_SAMPLES as u32);
            self.next_send += FRAME;
            return;
        }
        let [ssrc, ..] = self.setup.dice;
        let packet = Packet {
            marker,
            payload_type: self.setup.payload_type,
            sequence_number: self.sequence_number,
            timestamp: self.timestamp,
            ssrc,
            payload: &payload,
        };
        self.out.push_back(Output::Rtp { to: self.source.destination(), datagram: packet.to_bytes() });
        self.sequence_number = self.sequence_number.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(FRAME_SAMPLES as u32);
        self.next_send += FRAME;
        self.sent += 1;
        self.control.sent(payload.len());
        self.tell_spoken();
    }

    fn tell_spoken(&mut self) {
        while let Some(heard) = self.playout.poll_finished() {
            self.out.push_back(Output::Spoken(heard));
        }
    }

    fn send_report(&mut self, now: Moment, goodbye: bool) {
        let of = self.remote_ssrc.map(|ssrc| (ssrc, &mut self.reception));
        let datagram = self.control.report(now, self.timestamp, of, goodbye);
        // Behind a translator of addresses only the port that media came from is known to be right.
        let to = if self.source.destination() == self.setup.remote {
            self.setup.remote_control
        } else {
            let media = self.source.destination();
            SocketAddr::new(media.ip(), media.port().saturating_add(1))
        };
        self.out.push_back(Output::Rtcp { to, datagram });
    }
}

#[cfg(test)]
mod tests;
