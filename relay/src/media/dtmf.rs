//! Keys pressed by the caller: telephone events (RFC 4733 §2.5) and SIP INFO, each key told once.

use std::time::Duration;

use crate::moment::Moment;

/// A key of the telephone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digit(char);

impl Digit {
    /// By the event's number (RFC 4733 §3.2); other events are not keys.
    pub fn from_event(event: u8) -> Option<Digit> {
        b"0123456789*#ABCD".get(usize::from(event)).map(|key| Digit(char::from(*key)))
    }

    /// By the character, as SIP INFO and media over WebSocket name it.
    pub fn from_char(key: char) -> Option<Digit> {
        let key = key.to_ascii_uppercase();
        matches!(key, '0'..='9' | '*' | '#' | 'A'..='D').then_some(Digit(key))
    }

    /// The character on the key.
    pub fn as_char(self) -> char {
        self.0
    }
}

/// The `Signal` line of an `application/dtmf-relay` body, or the whole of an `application/dtmf` one.
pub fn from_info_body(body: &str) -> Option<Digit> {
    let named = body.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        name.trim().eq_ignore_ascii_case("signal").then(|| value.trim())
    });
    let key = named.unwrap_or_else(|| body.trim());
    match key {
        "10" => Digit::from_char('*'),
        "11" => Digit::from_char('#'),
        _ => {
            let mut chars = key.chars();
            chars.next().filter(|_| chars.next().is_none()).and_then(Digit::from_char)
        }
    }
}

/// An event is over when nothing came for this long; its last packets may all be lost.
const ENDS_UNHEARD: Duration = Duration::from_millis(120);
/// The same key by another way within this time is the same press.
const SAME_PRESS: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Held {
    /// The RTP timestamp: the same in all packets of one event, and what makes it one.
    timestamp: u32,
    event: u8,
    told: bool,
    last_heard: Moment,
}

/// By which way a key came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// RTP payload `telephone-event`.
    TelephoneEvent,
    /// A SIP INFO request, or a message on a media WebSocket.
    Info,
}

/// Collects the packets of telephone events.
#[derive(Debug, Default)]
pub struct Keypad {
    held: Option<Held>,
    last_told: Option<(Digit, Way, Moment)>,
}

impl Keypad {
    /// One packet of an event; the keys that are now known to have been pressed. A key is told when its end is heard.
    pub fn telephone_event(&mut self, now: Moment, timestamp: u32, payload: &[u8]) -> Vec<Digit> {
        let Some([event, flags, duration_high, duration_low]) = payload.first_chunk::<4>().copied() else {
            return Vec::new();
        };
        let mut told = Vec::from_iter(self.expire(now));
        let (mut known, mut continues, mut late) = (false, false, false);
        if let Some(held) = &self.held {
            let step = timestamp.wrapping_sub(held.timestamp);
            known = step == 0 && held.event == event;
            // An event longer than 16 bits hold goes on under a new timestamp, without an end in between (§2.5.1.3).
            continues = !held.told && held.event == event && (0xf000..=0xffff).contains(&step);
            late = step > u32::MAX / 2;
        }
        if late {
            return told;
        }
        if !known {
            if !continues {
                told.extend(self.release(now));
            }
            self.held = Some(Held { timestamp, event, told: false, last_heard: now });
        }
        if let Some(held) = &mut self.held {
            held.last_heard = now;
        }
        if flags & 0x80 != 0 && u16::from_be_bytes([duration_high, duration_low]) > 0 {
            told.extend(self.release(now));
        }
        told
    }

    /// A key that came otherwise.
    pub fn info(&mut self, now: Moment, digit: Digit) -> Option<Digit> {
        self.tell(now, digit, Way::Info)
    }

    /// The key whose end was never heard, once it is clear that it will not be.
    pub fn expire(&mut self, now: Moment) -> Option<Digit> {
        let over = self.held.as_ref().is_some_and(|held| !held.told && now.since(held.last_heard) >= ENDS_UNHEARD);
        if over { self.release(now) } else { None }
    }

    /// Whether a key is down: what the caller says meanwhile is the tone.
    pub fn is_down(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.told)
    }

    fn release(&mut self, now: Moment) -> Option<Digit> {
        let held = self.held.as_mut().filter(|held| !held.told)?;
        held.told = true;
        let digit = Digit::from_event(held.event)?;
        self.tell(now, digit, Way::TelephoneEvent)
    }

    fn tell(&mut self, now: Moment, digit: Digit, way: Way) -> Option<Digit> {
        let repeated =
            self.last_told.is_some_and(|(told, by, at)| told == digit && by != way && now.since(at) < SAME_PRESS);
        if repeated {
            return None;
        }
        self.last_told = Some((digit, way, now));
        Some(digit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packets as `(ms, timestamp, event, end, duration)`; the keys told, in order.
    fn keys(packets: &[(u64, u32, u8, bool, u16)]) -> String {
        let mut keypad = Keypad::default();
        let mut told = String::new();
        for (ms, timestamp, event, end, duration) in packets {
            let [high, low] = duration.to_be_bytes();
            let payload = [*event, if *end { 0x8a } else { 0x0a }, high, low];
            told.extend(
                keypad.telephone_event(Moment::from_millis(*ms), *timestamp, &payload).into_iter().map(Digit::as_char),
            );
        }
        let end = packets.last().map_or(0, |last| last.0) + 200;
        told.extend(keypad.expire(Moment::from_millis(end)).map(Digit::as_char));
        told
    }

    #[test]
    fn three_ends_are_one_key() {
        let press =
            [(0, 800, 5, false, 160), (20, 800, 5, false, 320), (40, 800, 5, true, 480), (41, 800, 5, true, 480)];
        assert_eq!(keys(&press), "5");
    }

    #[test]
    fn the_same_key_twice_is_two_keys() {
        assert_eq!(keys(&[(0, 800, 1, true, 160), (50, 1600, 1, true, 160), (60, 2400, 11, true, 160)]), "11#");
    }

    #[test]
    fn a_key_whose_end_is_lost_is_told_by_the_next_or_by_time() {
        assert_eq!(keys(&[(0, 800, 1, false, 160), (50, 1600, 2, true, 160)]), "12");
        assert_eq!(keys(&[(0, 800, 10, false, 160)]), "*");
        assert_eq!(keys(&[(0, 800, 1, false, 160), (500, 800, 1, true, 480)]), "1");
    }

    #[test]
    fn a_late_packet_of_the_key_before_is_not_a_key() {
        assert_eq!(keys(&[(0, 800, 1, true, 160), (50, 1600, 2, true, 160), (51, 800, 1, true, 160)]), "12");
    }

    #[test]
    fn a_key_held_for_longer_than_sixteen_bits_is_one() {
        assert_eq!(
            keys(&[(0, 800, 9, false, 0xffff), (20, 800 + 0xffff, 9, false, 160), (40, 800 + 0xffff, 9, true, 320)]),
            "9"
        );
    }

    #[test]
    fn a_flash_is_no_key_and_a_cut_payload_nothing() {
        assert_eq!(keys(&[(0, 800, 16, true, 160)]), "");
        assert!(Keypad::default().telephone_event(Moment::default(), 0, &[5, 0x80, 0]).is_empty());
    }

    #[test]
    fn a_key_that_comes_both_ways_is_told_once_and_again_when_pressed_again() {
        let mut keypad = Keypad::default();
        let five = Digit::from_char('5').unwrap();
        let event =
            |keypad: &mut Keypad, ms, ts| keypad.telephone_event(Moment::from_millis(ms), ts, &[5, 0x80, 0, 160]);
        assert_eq!(event(&mut keypad, 0, 100), [five]);
        assert_eq!(keypad.info(Moment::from_millis(100), five), None);
        assert_eq!(keypad.info(Moment::from_millis(400), five), Some(five));
    }

    #[test]
    fn bodies_of_info_are_read_in_their_three_forms() {
        for (body, key) in [
            ("Signal=5\r\nDuration=160\r\n", Some('5')),
            ("signal = # \n", Some('#')),
            ("Signal=10", Some('*')),
            ("8", Some('8')),
            ("", None),
            ("Signal=55", None),
            ("Duration=160", None),
        ] {
            assert_eq!(from_info_body(body).map(Digit::as_char), key, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn packets_of_one_event_never_make_two_keys(event in 0_u8..16, count in 1_usize..20, ends in 0_usize..4) {
            let packets: Vec<_> = (0..count + ends).map(|n| (n as u64 * 20, 4000, event, n >= count, 160)).collect();
            prop_assert_eq!(keys(&packets).len(), 1);
        }
    }
}
