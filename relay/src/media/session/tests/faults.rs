//! What networks do, replayed: the same seed loses, doubles, swaps and delays the same packets every time.

use super::*;

/// Even dice (SplitMix64, public domain).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % sides
    }
}

/// The loudest byte, and nobody's but a stranger's.
const STRANGER: u8 = 0x2a;

/// Bytes by which a frame is known again: loud ones, which no fading voice stays at for long.
fn tags() -> Vec<u8> {
    (0..=255).filter(|byte| Law::A.decode(*byte).unsigned_abs() > 1500 && *byte != STRANGER).collect()
}

fn tag(n: u64) -> u8 {
    let tags = tags();
    tags[n as usize % tags.len()]
}

fn frame(n: u64) -> Vec<u8> {
    packet(8, n as u16, n as u32 * 160, 5, &[tag(n); 160])
}

/// Plays packets `(arrival ms, frame)` to their end, and 100 ms more.
fn replay(arrivals: &[(u64, u64)]) -> Call {
    let mut arrivals = arrivals.to_vec();
    arrivals.sort_unstable();
    let mut call = Call::new(setup());
    for (at, n) in &arrivals {
        call.arrives(*at, CALLER, &frame(*n));
    }
    call
}

/// Whether frames came out only in their order; how many of them were untouched.
fn in_order(call: &Call) -> usize {
    let tags = tags();
    let place = |byte: u8| tags.iter().position(|tag| *tag == byte);
    let audio = call.audio();
    let seen: Vec<usize> = audio
        .chunks_exact(160)
        .filter(|chunk| chunk[60..].iter().all(|byte| *byte == chunk[60]))
        .filter_map(|chunk| place(chunk[60]))
        .collect();
    for pair in seen.windows(2) {
        let step = (pair[1] + tags.len() - pair[0]) % tags.len();
        assert!(step < tags.len() / 2, "a frame came after a later one: {pair:?}");
    }
    let mut distinct = seen;
    distinct.dedup();
    distinct.len()
}

/// Frames that follow each other, byte for byte.
fn frames(range: std::ops::Range<u64>) -> Vec<u8> {
    range.flat_map(|n| [tag(n); 160]).collect()
}

#[track_caller]
fn ends_with(call: &Call, expected: &[u8]) {
    // Not `assert_eq`: nobody reads eighty thousand bytes.
    assert!(call.audio().ends_with(expected), "other bytes, of {} and {}", call.audio().len(), expected.len());
}

const FRAMES: u64 = 500;

/// Frames that arrive when they were sent, but for those that the pattern loses; the first and the last never are.
fn losing(mut lost: impl FnMut(u64) -> bool) -> (Call, Vec<u64>) {
    let kept: Vec<u64> = (0..FRAMES).filter(|n| *n == 0 || *n == FRAMES - 1 || !lost(*n)).collect();
    let arrivals: Vec<_> = kept.iter().map(|n| (n * 20, *n)).collect();
    (replay(&arrivals), kept)
}

#[test]
fn single_losses_of_up_to_thirty_percent_leave_every_other_frame_in_its_place_byte_for_byte() {
    for percent in [0, 1, 5, 10, 20, 30] {
        let mut dice = Dice(percent + 7);
        let mut before = false;
        // No two in a row: that is the next test.
        let (mut call, kept) = losing(|_| {
            before = !before && dice.roll(100) < percent;
            before
        });
        call.until(FRAMES * 20 + 60);
        let audio = call.audio();
        assert!(audio.len() >= FRAMES as usize * 160, "{percent} %");
        for pair in kept.windows(2).filter(|pair| pair[1] == pair[0] + 1) {
            let at = pair[1] as usize * 160;
            assert!(audio[at..at + 160] == [tag(pair[1]); 160], "{percent} %: frame {}", pair[1]);
        }
        let counts = call.session.report().counts;
        assert_eq!((counts.played, counts.lost), (kept.len() as u64, FRAMES - kept.len() as u64), "{percent} %");
        assert!(in_order(&call) as u64 + FRAMES >= 2 * kept.len() as u64, "{percent} %");
    }
}

#[test]
fn bursts_are_filled_as_they_last_and_the_order_stays() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let (mut burst, mut bursts) = (0, 0);
        let (mut call, kept) = losing(|_| {
            if burst == 0 && dice.roll(100) < 3 {
                burst = 2 + dice.roll(14);
                bursts += 1;
            }
            burst = u64::saturating_sub(burst, 1);
            burst > 0
        });
        call.until(FRAMES * 20 + 60);
        let ms = call.audio().len() as u64 / 8;
        // A burst that outlasts the buffer may be filled by as much more as its end was waited for.
        assert!(
            (FRAMES * 20..=FRAMES * 20 + 60 + bursts * 60).contains(&ms),
            "seed {seed}: {ms} ms after {bursts} bursts"
        );
        assert!(in_order(&call) as u64 + 2 * bursts >= kept.len() as u64, "seed {seed}");
        assert_eq!(call.session.report().counts.lost, FRAMES - kept.len() as u64, "seed {seed}");
    }
}

#[test]
fn copies_are_heard_once() {
    let mut dice = Dice(3);
    let arrivals: Vec<_> = (0..FRAMES).flat_map(|n| vec![(n * 20 + 1, n); 1 + dice.roll(3) as usize]).collect();
    let call = replay(&arrivals);
    ends_with(&call, &frames(0..FRAMES));
    assert_eq!(call.audio().len(), FRAMES as usize * 160);
    assert_eq!(call.session.report().counts.duplicate, arrivals.len() as u64 - FRAMES);
}

#[test]
fn packets_that_overtake_each_other_are_put_in_order_byte_for_byte() {
    for seed in 0..10 {
        let mut dice = Dice(seed);
        // Up to 35 ms late: any of three may be first, and none is given up.
        let arrivals: Vec<_> = (0..FRAMES).map(|n| (n * 20 + if n == 0 { 0 } else { dice.roll(36) }, n)).collect();
        let call = replay(&arrivals);
        let counts = call.session.report().counts;
        ends_with(&call, &frames(0..FRAMES));
        assert!(counts.reordered > 20 && counts.lost == 0, "seed {seed}: {counts:?}");
    }
}

#[test]
fn a_shaky_network_costs_little_and_never_the_order() {
    for seed in 0..10 {
        let mut dice = Dice(seed);
        // Mostly 0 to 40 ms, sometimes a spike of 150.
        let arrivals: Vec<_> =
            (0..FRAMES).map(|n| (n * 20 + dice.roll(41) + if dice.roll(100) < 3 { 150 } else { 0 }, n)).collect();
        let call = replay(&arrivals);
        let report = call.session.report();
        assert!(report.loss_percent < 5.0, "seed {seed}: {report:?}");
        assert!(in_order(&call) as u64 >= FRAMES * 9 / 10, "seed {seed}");
        let ms = call.audio().len() as u64 / 8;
        assert!((FRAMES * 20..FRAMES * 20 + 2000).contains(&ms), "seed {seed}: {ms} ms of {}", FRAMES * 20);
    }
}

#[test]
fn a_clock_that_runs_wrong_costs_nothing() {
    // 200 ppm is worse than any telephone: 4 ms of 20 s, both ways.
    for (slow, fast) in [(1, 0), (0, 1)] {
        let arrivals: Vec<_> = (0..1000).map(|n| (1000 + n * 20 + slow * n / 250 - fast * n / 250, n)).collect();
        let call = replay(&arrivals);
        ends_with(&call, &frames(0..1000));
    }
}

#[test]
fn another_source_number_every_second_loses_nothing() {
    let mut call = Call::new(setup());
    for n in 0..FRAMES {
        // Each stream has numbers and a clock of its own.
        let stream = n as u32 / 50;
        let (number, time) = (stream.wrapping_mul(40_503) as u16 + n as u16 % 50, stream.wrapping_mul(2_654_435_761));
        let datagram = packet(8, number, time.wrapping_add(n as u32 % 50 * 160), 100 + stream, &[tag(n); 160]);
        call.arrives(n * 20, CALLER, &datagram);
    }
    ends_with(&call, &frames(0..FRAMES));
    assert_eq!(call.audio().len(), FRAMES as usize * 160);
}

#[test]
fn the_last_packet_of_a_stream_that_the_next_one_overtook_is_left_out() {
    let mut call = Call::new(setup());
    let second = |n: u64| packet(8, 40_000 + n as u16, 9 + n as u32 * 160, 6, &[tag(n); 160]);
    for n in 0..49 {
        call.arrives(n * 20, CALLER, &frame(n));
    }
    call.arrives(50 * 20, CALLER, &second(50)).arrives(50 * 20 + 1, CALLER, &frame(49));
    for n in 51..100 {
        call.arrives(n * 20, CALLER, &second(n));
    }
    // The first of them is blended with what was made up for the one that is missing.
    ends_with(&call, &frames(51..100));
    assert!(!call.audio().windows(160).any(|window| window == [tag(49); 160]), "it is heard behind its successor");
    // Much later the first stream may come back.
    for n in 150..200 {
        call.arrives(n * 20, CALLER, &frame(n));
    }
    ends_with(&call, &frames(152..200));
}

#[test]
fn a_port_that_a_translator_changes_is_followed_and_a_stranger_with_the_same_numbers_is_not() {
    let mut call = Call::new(setup());
    for n in 0..FRAMES {
        // The translator forgets the call after two seconds, and gives it another port.
        let from = if n < 100 { CALLER } else { "192.0.2.1:49152" };
        call.arrives(n * 20, from, &frame(n));
        call.arrives(n * 20 + 1, "198.51.100.7:4000", &packet(8, n as u16, n as u32 * 160, 5, &[STRANGER; 160]));
    }
    assert!(!call.audio().windows(160).any(|window| window == [STRANGER; 160]), "the stranger is heard");
    ends_with(&call, &frames(120..FRAMES));
    let to = call
        .out
        .iter()
        .rev()
        .find_map(|(_, out)| if let Output::Rtp { to, .. } = out { Some(to.port()) } else { None });
    assert_eq!(to, Some(49152), "and is spoken to there");
    let silence_ms = call.audio().len() as u64 / 8;
    assert!((FRAMES * 20 - 100..FRAMES * 20 + 200).contains(&silence_ms), "{silence_ms} ms");
}

#[test]
fn the_same_faults_give_the_same_call() {
    let fingerprint = |seed: u64| {
        let mut dice = Dice(seed);
        let kept: Vec<u64> = (0..FRAMES).filter(|_| dice.roll(100) >= 20).collect();
        let arrivals: Vec<_> = kept.into_iter().map(|n| (n * 20 + dice.roll(80), n)).collect();
        replay(&arrivals).fingerprint()
    };
    assert_eq!(fingerprint(1), fingerprint(1));
    assert_ne!(fingerprint(1), fingerprint(2));
}
