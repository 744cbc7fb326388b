//! Calls replayed: packets with their times in, everything that left out.

use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;

use super::*;

mod faults;

const CALLER: &str = "192.0.2.1:4000";

fn setup() -> Setup {
    Setup {
        law: Law::A,
        payload_type: 8,
        telephone_event: Some(101),
        remote: CALLER.parse().unwrap(),
        remote_control: "192.0.2.1:4001".parse().unwrap(),
        allowed: vec!["192.0.2.0/28".parse().unwrap()],
        echo_db: None,
        silence_limit: Some(Duration::from_secs(30)),
        dice: [0x1111_2222, 65_530, 0xffff_fe00, 7],
        cname: "b3".into(),
        ntp_at_start: 0,
    }
}

/// A packet of the caller's voice: frame `n`, sent at `n * 20` ms.
fn voice(n: u64) -> Vec<u8> {
    let payload: Vec<u8> =
        (0..160).map(|tick| Law::A.encode((6000.0 * ((n * 160 + tick) as f64 * 0.09).sin()) as i16)).collect();
    packet(8, n as u16, n as u32 * 160, 5, &payload)
}

fn packet(payload_type: u8, sequence_number: u16, timestamp: u32, ssrc: u32, payload: &[u8]) -> Vec<u8> {
    Packet { marker: false, payload_type, sequence_number, timestamp, ssrc, payload }.to_bytes()
}

/// What left, with its time.
struct Call {
    session: Session,
    now: u64,
    out: Vec<(u64, Output)>,
}

impl Call {
    fn new(setup: Setup) -> Call {
        Call { session: Session::new(Moment::default(), setup), now: 0, out: Vec::new() }
    }

    /// Lets time pass, in the steps that the session asks for.
    fn until(&mut self, ms: u64) -> &mut Call {
        let end = Moment::from_millis(ms);
        while self.session.next_timeout() <= end {
            let at = self.session.next_timeout();
            self.now = at.as_micros() / 1000;
            self.session.handle_timeout(at);
            assert!(self.session.next_timeout() > at, "a look at the time must move it on");
            self.collect();
        }
        self.now = ms;
        self
    }

    fn arrives(&mut self, ms: u64, from: &str, datagram: &[u8]) -> &mut Call {
        self.until(ms);
        self.session.handle_datagram(Moment::from_millis(ms), from.parse().unwrap(), datagram);
        self.collect();
        self
    }

    fn says(&mut self, ms: u64, item: &str, bytes: Vec<u8>) -> &mut Call {
        self.until(ms);
        self.session.play(Moment::from_millis(ms), &item.into(), bytes.into());
        self.collect();
        self
    }

    fn collect(&mut self) {
        self.out.extend(std::iter::from_fn(|| self.session.poll_output()).map(|output| (self.now, output)));
    }

    fn audio(&self) -> Vec<u8> {
        self.out
            .iter()
            .filter_map(|(_, out)| if let Output::Audio(audio) = out { Some(&audio[..]) } else { None })
            .flatten()
            .copied()
            .collect()
    }

    fn digits(&self) -> String {
        self.out
            .iter()
            .filter_map(|(_, out)| if let Output::Digit(digit) = out { Some(digit.as_char()) } else { None })
            .collect()
    }

    /// `(ms, datagram)` of what was sent.
    fn rtp(&self) -> Vec<(u64, &[u8])> {
        self.out
            .iter()
            .filter_map(
                |(at, out)| if let Output::Rtp { datagram, .. } = out { Some((*at, &datagram[..])) } else { None },
            )
            .collect()
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        format!("{:?}", self.out).hash(&mut hasher);
        hasher.finish()
    }
}

#[test]
fn an_even_call_reaches_the_model_untouched() {
    let mut call = Call::new(setup());
    let mut sent = Vec::new();
    for n in 0..50 {
        let datagram = voice(n);
        sent.extend_from_slice(&datagram[12..]);
        call.arrives(n * 20 + 3, CALLER, &datagram);
    }
    assert_eq!(call.audio(), sent);
    let report = call.session.report();
    assert_eq!(
        (report.received, report.concealed_ms, report.counts),
        (50, 0, Counts { played: 50, ..Counts::default() })
    );
    assert!(report.mean_opinion_score > 4.3);
}

#[test]
fn a_packet_leaves_every_twenty_ms_whether_anybody_speaks_or_not() {
    let mut call = Call::new(setup());
    call.says(207, "a", vec![1; 1600]).until(1000);
    let rtp = call.rtp();
    let packets: Vec<_> = rtp.iter().map(|(at, datagram)| (*at, Packet::parse(datagram).unwrap())).collect();
    for (before, after) in packets.iter().zip(&packets[1..]) {
        assert_eq!(after.1.sequence_number, before.1.sequence_number.wrapping_add(1));
        assert_eq!(after.1.timestamp, before.1.timestamp.wrapping_add(160));
    }
    assert_eq!(packets.len(), 50, "and none too many");
    let first = packets.iter().position(|(_, packet)| packet.payload[0] == 1).unwrap();
    assert_eq!(
        (packets[first].0, packets[first].1.marker),
        (207, true),
        "speech leaves at once, and says that it begins"
    );
    assert_eq!(packets[first + 9].0, 387);
    assert_eq!(
        (packets[first + 10].0, packets[first + 10].1.payload[0]),
        (420, 0xd5),
        "silence is back on the old turn"
    );
}

#[test]
fn after_a_late_wake_up_three_packets_leave_and_the_rest_of_the_time_is_left_out() {
    let mut call = Call::new(setup());
    call.until(100);
    call.session.handle_timeout(Moment::from_millis(310));
    call.collect();
    call.until(340);
    let rtp = call.rtp();
    let tail: Vec<_> = rtp[5..].iter().map(|(_, datagram)| Packet::parse(datagram).unwrap()).collect();
    let number = |n: usize| tail[n].sequence_number.wrapping_sub(tail[0].sequence_number);
    let time = |n: usize| tail[n].timestamp.wrapping_sub(tail[0].timestamp) / 160;
    assert_eq!((tail.len(), number(3), time(2), time(3)), (5, 3, 2, 10));
}

#[test]
fn a_lost_packet_is_concealed_and_the_timeline_keeps_its_length() {
    let mut call = Call::new(setup());
    for n in (0..100).filter(|n| *n != 50) {
        call.arrives(n * 20, CALLER, &voice(n));
    }
    let audio = call.audio();
    assert_eq!(audio.len(), 100 * 160);
    assert_eq!(call.session.report().concealed_ms, 20);
    let original = voice(50);
    let wrong: f64 = audio[8000..8080]
        .iter()
        .zip(&original[12..])
        .map(|(made, lost)| f64::from(Law::A.decode(*made) - Law::A.decode(*lost)).abs())
        .sum::<f64>()
        / 80.0;
    assert!(wrong < 1500.0, "mean error {wrong:.0} against a voice of 6000");
}

#[test]
fn a_caller_who_stops_sending_is_heard_as_silent() {
    let mut call = Call::new(setup());
    for n in 0..10 {
        call.arrives(n * 20, CALLER, &voice(n));
    }
    call.until(1200);
    let audio = call.audio();
    assert!(audio.len() > 160 * 55, "time goes on for the model: {} frames", audio.len() / 160);
    assert!(audio[160 * 15..].iter().all(|byte| *byte == 0xd5));
}

#[test]
fn comfort_noise_is_as_loud_as_asked_and_is_no_loss() {
    let mut call = Call::new(setup());
    for n in 0..10 {
        call.arrives(n * 20, CALLER, &voice(n));
    }
    call.arrives(200, CALLER, &packet(13, 10, 1600, 5, &[40]));
    call.until(1000);
    call.arrives(1000, CALLER, &packet(8, 11, 8000, 5, &[0xd5; 160]));
    let audio = call.audio();
    let noise: Vec<f64> =
        audio[160 * 14..160 * 40].iter().map(|byte| f64::from(Law::A.decode(*byte)).powi(2)).collect();
    let level = 20.0 * ((noise.iter().sum::<f64>() / noise.len() as f64).sqrt() / 32768.0).log10();
    assert!((-42.0..-38.0).contains(&level), "{level:.1} dBov");
    assert_eq!((call.session.report().concealed_ms, call.session.report().counts.lost), (0, 0));
}

#[test]
fn keys_are_told_and_their_tone_is_not_given_to_the_model() {
    let mut call = Call::new(setup());
    call.arrives(0, CALLER, &voice(0));
    for n in 1..6_u16 {
        let end = if n == 5 { 0x80 } else { 0 };
        call.arrives(u64::from(n) * 20, CALLER, &packet(101, n, 160, 5, &[7, end, 0, 160]));
        if n == 3 {
            call.session.handle_datagram(
                Moment::from_millis(61),
                CALLER.parse().unwrap(),
                &packet(8, 4, 640, 5, &[1; 160]),
            );
            call.collect();
        }
    }
    assert_eq!(call.digits(), "7");
    assert!(!call.audio().windows(3).any(|bytes| bytes == [1; 3]), "the tone itself");
}

#[test]
fn a_stranger_is_neither_heard_nor_spoken_to() {
    let mut call = Call::new(setup());
    for n in 0..50 {
        call.arrives(n * 20, CALLER, &voice(n));
        call.arrives(n * 20 + 1, "198.51.100.1:4000", &packet(8, n as u16, n as u32 * 160, 5, &[1; 160]));
        call.arrives(n * 20 + 2, "198.51.100.1:4000", &[0x80, 200, 0, 1, 0, 0, 0, 1]);
    }
    let own: Vec<u8> = (0..50).flat_map(|n| voice(n)[12..].to_vec()).collect();
    assert_eq!(call.audio(), own);
    assert_eq!(call.session.report().foreign, 100);
    let caller: SocketAddr = CALLER.parse().unwrap();
    assert!(call.out.iter().all(|(_, out)| !matches!(out, Output::Rtp { to, .. } if *to != caller)));
}

#[test]
fn a_new_source_number_and_a_moved_port_go_on_without_a_gap() {
    let mut call = Call::new(setup());
    for n in 0..20 {
        call.arrives(n * 20, CALLER, &voice(n));
    }
    for n in 20..40 {
        call.arrives(n * 20, CALLER, &packet(8, 9000 + n as u16, 77_000 + n as u32 * 160, 6, &[3; 160]));
    }
    assert_eq!(call.audio()[160 * 20..], [3; 160 * 20]);
    call.session.redescribe(
        Moment::from_millis(800),
        "192.0.2.1:5000".parse().unwrap(),
        "192.0.2.1:5001".parse().unwrap(),
        false,
    );
    call.arrives(800, "192.0.2.1:5000", &packet(8, 9040, 77_000 + 40 * 160, 6, &[4; 160]));
    assert_eq!(call.audio()[160 * 40..160 * 41], [4; 160]);
    call.until(830);
    assert!(matches!(call.out.last(), Some((_, Output::Rtp { to, .. })) if to.port() == 5000));
}

#[test]
fn an_interruption_is_exact_to_the_packet() {
    for cut in 1..40_u64 {
        let mut call = Call::new(setup());
        call.says(100, "a", vec![9; 8000]).until(100 + cut * 20 - 1);
        let heard = call.session.flush();
        call.until(3000);
        let spoken = call.rtp().iter().filter(|(_, datagram)| datagram[12] == 9).count();
        assert_eq!(heard, [Heard { item: "a".into(), played_ms: spoken as u32 * 20, received_ms: 1000 }]);
        assert_eq!(spoken as u64, cut);
    }
}

#[test]
fn what_was_said_to_its_end_is_told_when_its_last_packet_leaves() {
    let mut call = Call::new(setup());
    call.says(100, "a", vec![9; 500]);
    call.session.finish(&"a".into());
    call.until(400);
    let told: Vec<_> = call.out.iter().filter(|(_, out)| matches!(out, Output::Spoken(_))).collect();
    assert_eq!(told, [&(160, Output::Spoken(Heard { item: "a".into(), played_ms: 62, received_ms: 62 }))]);
}

#[test]
fn nothing_at_all_for_thirty_seconds_is_a_dead_call_but_not_on_hold() {
    let dead_at = |held: bool| {
        let mut call = Call::new(setup());
        call.arrives(0, CALLER, &voice(0));
        let remote = CALLER.parse().unwrap();
        call.session.redescribe(Moment::default(), remote, remote, held);
        call.until(40_000);
        call.out.iter().filter(|(_, out)| *out == Output::Dead).map(|(at, _)| *at).collect::<Vec<_>>()
    };
    assert!(matches!(dead_at(false)[..], [30_000..=30_040]));
    assert!(dead_at(true).is_empty());
}

#[test]
fn on_hold_the_model_hears_nothing() {
    let mut call = Call::new(setup());
    let remote = CALLER.parse().unwrap();
    call.session.redescribe(Moment::default(), remote, remote, true);
    for n in 0..50 {
        call.arrives(n * 20, CALLER, &voice(n));
    }
    assert!(call.audio().is_empty());
}

#[test]
fn the_agents_echo_is_silence_for_the_model() {
    let mut call = Call::new(Setup { echo_db: Some(-6.0), ..setup() });
    let loud: Vec<u8> = (0..16_000).map(|n| Law::A.encode((12_000.0 * (f64::from(n) * 0.3).sin()) as i16)).collect();
    call.says(100, "a", loud);
    for n in 10..100_u64 {
        let echo: Vec<u8> =
            (0..160).map(|t| Law::A.encode((3000.0 * ((n * 160 + t) as f64 * 0.3).sin()) as i16)).collect();
        call.arrives(n * 20, CALLER, &packet(8, n as u16, n as u32 * 160, 5, &echo));
    }
    assert!(call.audio().iter().all(|byte| *byte == 0xd5));
    assert_eq!(call.session.report().echo_muted, 90);
}

/// A network of its own for each seed: every packet up to `jitter` ms late, one of `loss` in a hundred lost, some twice.
fn network(seed: u64, loss: u64, jitter: u64, packets: u64) -> Vec<(u64, u64)> {
    let mut state = seed | 1;
    let mut dice = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below.max(1)
    };
    let mut arrivals = Vec::new();
    for n in 0..packets {
        if dice(100) >= loss {
            arrivals.push((n * 20 + dice(jitter + 1), n));
        }
        if dice(20) == 0 {
            arrivals.push((n * 20 + dice(jitter + 1), n));
        }
    }
    arrivals.sort_unstable();
    arrivals
}

fn replay(arrivals: &[(u64, u64)]) -> Call {
    let mut call = Call::new(Setup { echo_db: Some(-6.0), ..setup() });
    for (at, n) in arrivals {
        call.arrives(*at, CALLER, &voice(*n));
        if n % 40 == 0 {
            call.says(*at, &format!("item-{n}"), vec![*n as u8 | 1; 900]);
        }
    }
    call
}

#[test]
fn the_same_packets_leave_the_same_bytes_behind() {
    for loss in [0, 5, 30] {
        let arrivals = network(11 + loss, loss, 60, 500);
        assert_eq!(replay(&arrivals).fingerprint(), replay(&arrivals).fingerprint());
    }
}

#[test]
fn a_bad_network_is_heard_as_a_worse_one() {
    let score = |loss, jitter| replay(&network(5, loss, jitter, 1500)).session.report().mean_opinion_score;
    let (good, fair, bad) = (score(0, 5), score(5, 40), score(30, 80));
    assert!(good > 4.2 && fair < good - 0.2 && bad < fair - 0.8 && bad >= 1.0, "{good:.2} {fair:.2} {bad:.2}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_network_stops_the_timeline_or_the_pacing(seed: u64, loss in 0_u64..40, jitter in 0_u64..200) {
        let mut call = replay(&network(seed, loss, jitter, 200));
        call.until(6000);
        let frames = call.audio().len() / 160;
        // Late packets may make the model's time longer than the caller's, never shorter by more than the last wait.
        prop_assert!((280..=440).contains(&frames), "{frames} frames in 6 s");
        let rtp = call.rtp();
        prop_assert!((299..=300).contains(&rtp.len()), "{} packets in 6 s", rtp.len());
        for pair in rtp.windows(2) {
            prop_assert!(pair[1].0 - pair[0].0 <= 40);
        }
    }

    #[test]
    fn junk_from_the_callers_own_address_harms_nothing(junk in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..60)) {
        let mut call = Call::new(setup());
        for (n, datagram) in junk.iter().enumerate() {
            call.arrives(n as u64 * 3, CALLER, datagram);
        }
        call.until(2000);
        prop_assert_eq!(call.rtp().len(), 100);
    }
}

#[test]
fn the_recording_is_what_was_heard_and_sent_since_it_began_and_not_a_byte_before() {
    let mut call = Call::new(setup());
    call.says(5, "a", vec![0x31; 8000]);
    for n in 0..20 {
        call.arrives(n * 20 + 3, CALLER, &packet(8, n as u16, n as u32 * 160, 5, &[0x51; 160]));
    }
    call.session.record();
    let sent_before = call.rtp().len();
    for n in 20..120 {
        call.arrives(n * 20 + 3, CALLER, &packet(8, n as u16, n as u32 * 160, 5, &[n as u8; 160]));
    }
    let sent: Vec<u8> = call.rtp()[sent_before..].iter().flat_map(|(_, datagram)| datagram[12..].to_vec()).collect();
    let rest = call.session.stop_recording();
    let pieces = call
        .out
        .iter()
        .filter_map(|(_, out)| if let Output::Recorded(piece) = out { Some(piece.clone()) } else { None });
    let tape: Vec<u8> = pieces.chain([rest]).flatten().collect();
    let (left, right): (Vec<u8>, Vec<u8>) = tape.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    assert_eq!(right[..sent.len()], sent);
    assert!(right[sent.len()..].iter().all(|byte| *byte == 0xd5));
    let first = left.iter().position(|byte| *byte != 0xd5).unwrap();
    assert!(first <= 2 * 160, "at most two frames wait");
    let said: Vec<u8> = (20..120_u8).flat_map(|n| [n; 160]).collect();
    assert_eq!(left[first..], said);
    call.until(5000);
    assert!(call.session.stop_recording().is_empty(), "what is over stays over");
}

#[test]
fn a_gap_at_the_beginning_of_a_recording_is_not_filled_with_a_voice_from_before() {
    let mut call = Call::new(setup());
    for n in 0..10 {
        call.arrives(n * 20, CALLER, &packet(8, n as u16, n as u32 * 160, 5, &[0x2b; 160]));
    }
    call.until(185);
    call.session.record();
    for n in 13..40 {
        call.arrives(n * 20, CALLER, &packet(8, n as u16, n as u32 * 160, 5, &[0x31; 160]));
    }
    let tape = call.session.stop_recording();
    assert!(tape.chunks(2).any(|pair| pair[0] == 0x31) && !tape.chunks(2).any(|pair| pair[0] == 0x2b));
}
