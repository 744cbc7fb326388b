//! Fuzz targets: every parser that meets the network, fed with mutations of what it expects.
//!
//! Each runs for a second under `cargo test` and for its share of the time under `cargo xtask soak`
//! (`BOLERO_RANDOM_TEST_TIME_MS`). A failure prints the `BOLERO_RANDOM_SEED` that repeats it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::borrow::Cow;
use std::net::SocketAddr;

use bolero::{TypeGenerator, check};
use ihuza_relay::backend::audio::Converter;
use ihuza_relay::config::Codec;
use ihuza_relay::gateway::message::{self, Event, MOST_AUDIO};
use ihuza_relay::gateway::stream::{Action, Stream};
use ihuza_relay::gateway::token::{self, Tokens};
use ihuza_relay::journal::record;
use ihuza_relay::media::comfort_noise::NoiseLevel;
use ihuza_relay::media::dtmf::{self, Keypad};
use ihuza_relay::media::g711::Law;
use ihuza_relay::media::rtp::{self, Packet, SequenceNumbers};
use ihuza_relay::media::{rtcp, source::Network};
use ihuza_relay::moment::Moment;
use ihuza_relay::sip::description::{Local, Policy};
use ihuza_relay::sip::digest::{Authenticator, Credentials, Verdict as Digest};
use ihuza_relay::sip::precheck::{self, Verdict, settle};
use ihuza_relay::sip::session_timer::{Interval, MIN_SE};
use ihuza_relay::sip::transfer::Transfer;
use rsipstack::sip::SipMessage;
use rsipstack::transaction::key::{TransactionKey, TransactionRole};

/// What is done to a sound message before it is read: pieces of it are replaced, doubled or moved.
#[derive(Debug, Clone, TypeGenerator)]
struct Mutation {
    seed: u8,
    /// Few, so that most of the message is still what it was.
    #[generator(bolero::generator::produce::<Vec<Step>>().with().len(0_usize..5))]
    steps: Vec<Step>,
}

#[derive(Debug, Clone, TypeGenerator)]
enum Step {
    /// At, how many bytes go, and what comes.
    Splice(u16, u8, #[generator(bolero::generator::produce::<Vec<u8>>().with().len(0_usize..5))] Vec<u8>),
    /// A piece of the message is put elsewhere once more.
    Copy(u16, u8, u16),
    /// A word of the protocol is put somewhere.
    Word(u16, u8),
    Flip(u16, u8),
    Cut(u16),
}

const WORDS: [&[u8]; 20] = [
    b"\r\n",
    b"\r\n ",
    b"\r\n\r\n",
    b"\"",
    b"\\\"",
    b"<",
    b">",
    b";",
    b",",
    b"=",
    b":",
    b"@",
    b"%00",
    b"\0",
    b"4294967296",
    b"-1",
    b"SIP/2.0",
    b";tag=",
    b"Content-Length: 5\r\n",
    b"\xff\xfe",
];
/// No datagram is longer than what the socket reads.
const MOST: usize = 8192;

impl Mutation {
    fn of(&self, seeds: &[&[u8]]) -> Vec<u8> {
        let mut bytes = seeds[usize::from(self.seed) % seeds.len()].to_vec();
        for step in &self.steps {
            let length = bytes.len();
            let place = |at: u16| usize::from(at) % (length + 1);
            match step {
                Step::Splice(at, take, put) => {
                    let at = place(*at);
                    bytes.splice(at..(at + usize::from(*take)).min(length), put.iter().copied());
                }
                Step::Copy(from, take, to) => {
                    let from = place(*from);
                    let piece = bytes[from..(from + usize::from(*take)).min(length)].to_vec();
                    let to = place(*to);
                    bytes.splice(to..to, piece);
                }
                Step::Word(at, word) => {
                    let (at, word) = (place(*at), WORDS[usize::from(*word) % WORDS.len()]);
                    bytes.splice(at..at, word.iter().copied());
                }
                Step::Flip(at, bit) => {
                    if let Some(byte) = bytes.get_mut(place(*at)) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
                Step::Cut(at) => bytes.truncate(place(*at)),
            }
            bytes.truncate(MOST);
        }
        bytes
    }
}

fn mutated(seeds: &[&[u8]], holds: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    check!().with_type::<Mutation>().for_each(|mutation| holds(&mutation.of(seeds)));
}

fn somewhere() -> SocketAddr {
    "192.0.2.3:5060".parse().unwrap()
}

#[test]
fn sip_message() {
    let files =
        ["wsinv", "intmeth", "esc01", "longreq", "semiuri", "transports", "mpart01", "unreason", "lwsdisp", "esc01"];
    let messages: Vec<Vec<u8>> = files
        .iter()
        .map(|name| std::fs::read(format!("{}/tests/rfc4475/{name}.dat", env!("CARGO_MANIFEST_DIR"))).unwrap())
        .collect();
    let seeds: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    mutated(&seeds, |datagram| {
        let _ = precheck::too_large(datagram, somewhere());
        match settle(datagram, somewhere(), MOST) {
            Verdict::Pass(plain) if plain.starts_with(b"SIP/") || plain.iter().all(u8::is_ascii_whitespace) => {}
            Verdict::Pass(plain) => {
                let again = settle(&plain, somewhere(), MOST);
                let text = String::from_utf8_lossy(&plain);
                assert!(again == Verdict::Pass(Cow::Borrowed(&plain)), "what is plain stays: {text:?}");
                let Ok(SipMessage::Request(request)) = SipMessage::try_from(&plain[..]) else {
                    panic!("passed, but the stack does not read it: {text:?}")
                };
                let key = TransactionKey::from_request(&request, TransactionRole::Server);
                assert!(key.is_ok(), "passed, but the stack drops it: {key:?} {text:?}");
            }
            Verdict::Refuse { answer, .. } => {
                let read = SipMessage::try_from(&answer[..]);
                assert!(matches!(read, Ok(SipMessage::Response(_))), "{:?}", String::from_utf8_lossy(&answer));
            }
            Verdict::Ignore(_) => {}
        }
    });
}

#[test]
fn session_description() {
    const OFFERS: [&[u8]; 3] = [
        b"v=0\r\no=t 1 1 IN IP4 198.51.100.7\r\ns=-\r\nc=IN IP4 198.51.100.7\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0 8 101\r\n\
          a=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=ptime:20\r\na=sendonly\r\n",
        b"v=0\r\no=- 1 1 IN IP6 2001:db8::1\r\ns=-\r\nt=0 0\r\nm=video 9 RTP/AVP 31\r\nm=audio 9 RTP/AVP 96\r\n\
          c=IN IP6 2001:db8::1\r\na=rtpmap:96 PCMU/8000/1\r\na=rtcp:10 IN IP4 198.51.100.8\r\na=inactive\r\n",
        b"v=0\no=x 0 0 IN IP4 0.0.0.0\ns= \nc=IN IP4 0.0.0.0\nt=0 0\nm=audio 1 RTP/AVP 8\na=maxptime:10\n",
    ];
    mutated(&OFFERS, |offer| {
        let allowed: Vec<Network> = vec!["198.51.100.0/24".parse().unwrap()];
        let policy = Policy { codecs: &[Codec::Pcma, Codec::Pcmu], allowed: &allowed };
        let mut local = Local::new(somewhere(), 7);
        if let Ok((answer, agreed)) = local.answer(offer, policy) {
            let lines = |text: &[u8]| text.split(|b| *b == b'\n').filter(|line| line.starts_with(b"m=")).count();
            assert_eq!(lines(answer.as_bytes()), lines(offer), "as many media as were offered: {answer}");
            assert!(agreed.payload_type < 128 && agreed.telephone_event.is_none_or(|kind| kind < 128));
            assert!(agreed.ptime_ms > 0);
        }
        let _ = Local::new(somewhere(), 7).accept(offer, policy);
    });
}

#[test]
fn rtp_packet() {
    const PACKETS: [&[u8]; 3] = [
        &[0x80, 8, 0, 1, 0, 0, 0, 160, 0, 0, 0, 77, 0x55, 0x55, 0x55, 0x55],
        &[0xb1, 0x88, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0xbe, 0xde, 0, 1, 1, 2, 3, 4, 9, 9, 0, 0, 0, 4],
        &[0x80, 13, 0, 2, 0, 0, 1, 64, 0, 0, 0, 77, 60],
    ];
    mutated(&PACKETS, |datagram| {
        let _ = rtp::is_rtcp(datagram);
        if let Ok(packet) = Packet::parse(datagram) {
            assert!(packet.payload.len() + 12 <= datagram.len());
            let again = packet.to_bytes();
            assert_eq!(Packet::parse(&again).map(|again| again.payload.to_vec()), Ok(packet.payload.to_vec()));
            let _ = SequenceNumbers::default().place(packet.sequence_number);
            let _ = NoiseLevel::parse(packet.payload);
        }
    });
}

#[test]
fn rtcp_packet() {
    const PACKETS: [&[u8]; 2] = [
        &[0x81, 201, 0, 7, 0, 0, 0, 1, 0, 0, 0, 2, 5, 0, 0, 9, 0, 1, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4, 0, 0, 1, 0],
        &[
            0x80, 200, 0, 6, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 160, 0, 0, 0, 1, 0, 0, 0, 160, 0x81, 203, 0,
            1, 0, 0, 0, 1,
        ],
    ];
    mutated(&PACKETS, |datagram| {
        assert!(rtcp::parse(datagram).len() <= datagram.len() / 4 + 1);
        let mut control = rtcp::Control::new(Moment::default(), 2, "c".into(), 0, 0);
        let _ = control.receive(Moment::from_millis(5), datagram);
    });
}

#[test]
fn telephone_event() {
    const PAYLOADS: [&[u8]; 2] = [&[5, 0x80, 1, 0x40], &[11, 10, 0, 160, 11, 10, 1, 64]];
    mutated(&PAYLOADS, |payloads| {
        let mut keypad = Keypad::default();
        for (n, payload) in payloads.chunks(4).enumerate() {
            let now = Moment::from_millis(n as u64 * 20);
            assert!(keypad.telephone_event(now, n as u32 / 3, payload).len() <= 2);
            let _ = keypad.expire(now);
        }
        let _ = dtmf::from_info_body(&String::from_utf8_lossy(payloads));
    });
}

#[test]
fn session_expires() {
    mutated(&[b"1800;refresher=uac", b"90 ; REFRESHER = uas;x", b"4294967295"], |value| {
        for supports in [false, true] {
            if let Ok(Some(interval)) = Interval::of_request(Some(&String::from_utf8_lossy(value)), supports) {
                assert!(interval.seconds >= MIN_SE);
                assert!(
                    Interval::of_request(Some(&interval.header()), supports).is_ok(),
                    "our own header is read again"
                );
            }
        }
    });
}

#[test]
fn digest_header() {
    const HEADERS: [&[u8]; 2] = [
        br#"Digest username="trunk", realm="ihuza", nonce="00000000000000010a", uri="sip:1", response="2", algorithm=SHA-256, nc=00000001, cnonce="3", qop=auth"#,
        br#"digest username="a\"b",realm=ihuza,nonce=,uri="sip:1@h",response="""#,
    ];
    mutated(&HEADERS, |header| {
        let mut authenticator = Authenticator::new([7; 64]);
        let credentials = Credentials { username: "trunk", password: "secret" };
        let header = String::from_utf8_lossy(header);
        let verdict = authenticator.check(Moment::from_millis(90), Some(&header), "INVITE", credentials);
        assert!(matches!(verdict, Digest::Challenged(_)), "nobody guesses a password: {header}");
    });
}

#[test]
fn sipfrag() {
    mutated(&[b"SIP/2.0 200 OK\r\n", b"SIP/2.0 100 Trying"], |body| {
        let _ = Transfer::new(Moment::default()).notified(&String::from_utf8_lossy(body));
    });
}

/// Messages of the model are mutated where a whole conversation is at hand: `backend/realtime/tests.rs`.
#[test]
fn sound_of_the_model() {
    mutated(&[b"VVVVVVVV", b"1dXV1Q=="], |delta| {
        let _ = Converter::Untouched.from_model(&String::from_utf8_lossy(delta));
        let _ = Converter::pcm_24k(Law::A).from_model(&String::from_utf8_lossy(delta));
    });
}

/// What a gateway says, in the middle of a call and instead of it.
#[test]
fn gateway_message() {
    const START: &[u8] = br#"{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1","from":"+250788123456","to":"+250788000300","mediaFormat":{"encoding":"audio/x-alaw","sampleRate":8000},"customParameters":{"token":"mtn.1.ab"}}}"#;
    const MESSAGES: [&[u8]; 7] = [
        START,
        br#"{"event":"start","stream_id":"s","start":{"call_control_id":"c","media_format":{"encoding":"PCMU","sample_rate":"8000"}}}"#,
        br#"{"event":"media","sequenceNumber":"2","streamSid":"MZ1","media":{"track":"inbound","chunk":"1","timestamp":"20","payload":"1dXV1dXV1dU="}}"#,
        br#"{"event":"media","media":{"chunk":18446744073709551615,"timestamp":18446744073709551615,"payload":"//8="}}"#,
        br#"{"event":"dtmf","dtmf":{"track":"inbound_track","digit":"5"}}"#,
        br#"{"event":"mark","mark":{"name":"1:500"}}"#,
        br#"{"event":"stop","stop":{"callSid":"CA1"}}"#,
    ];
    mutated(&MESSAGES, |text| {
        let now = Moment::default();
        let _ = Stream::new(now).message(now, text);
        let mut running = Stream::new(now);
        assert!(matches!(running.message(now, START), Ok(Some(Action::Start(_)))));
        if let Ok(Some(Action::Packet(datagram))) = running.message(now, text) {
            let packet = Packet::parse(&datagram).expect("what we write ourselves is read again");
            assert!((1..=MOST_AUDIO).contains(&packet.payload.len()) && !rtp::is_rtcp(&datagram));
        }
        if let Ok(Event::Media { audio, .. }) = Event::parse(text) {
            let again = Event::parse(message::media_to("s", &audio).as_bytes());
            assert!(matches!(again, Ok(Event::Media { audio: same, .. }) if same == audio));
        }
    });
}

/// Nobody makes a token of another: only the one that was signed is taken.
#[test]
fn gateway_token() {
    let sound = token::sign("secret", "mtn", "CA1", 1060);
    mutated(&[sound.as_bytes(), token::sign("secret", "mtn", "CA2", 1060).as_bytes()], |text| {
        let text = String::from_utf8_lossy(text);
        let secret_of = |trunk: &str| (trunk == "mtn").then_some("secret");
        let taken = Tokens::default().take(1000, &text, "CA1", secret_of).is_ok();
        assert_eq!(taken, text == sound, "{text}");
    });
}

#[test]
fn journal_file() {
    let mut file = Vec::new();
    for (n, payload) in [&b"{}"[..], b"{\"a\":1}", b"x"].iter().enumerate() {
        record::write(&mut file, n as u64 + 1, payload).unwrap();
    }
    mutated(&[&file], |file| {
        let scan = record::scan(file);
        assert!(scan.sound_bytes <= file.len());
        let again = record::scan(&file[..scan.sound_bytes]);
        assert_eq!(again, scan, "what is sound is the same without what is not");
    });
}
