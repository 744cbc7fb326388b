//! Session descriptions: what is read of an offer, and what it is answered with (RFC 3264, RFC 8866, RFC 3551).

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::config::Codec;
use crate::media::rtp;
use crate::media::source::Network;

/// A description with more media than this is not one of a telephone.
const MOST_MEDIA: usize = 16;
const MOST_BYTES: usize = 16 * 1024;

/// Why a description cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// It cannot be read.
    #[error("session description cannot be read: {0}")]
    Unreadable(String),
    /// It has no media that we could take part in.
    #[error("session description has no G.711 over plain RTP that this trunk may use")]
    NothingInCommon,
    /// Media would go where nobody should make us send.
    #[error("session description sends media to an address that this trunk may not name")]
    BadAddress,
}

/// Which way sound flows, from the side that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Both ways.
    SendRecv,
    /// Only from it.
    SendOnly,
    /// Only to it.
    RecvOnly,
    /// No way.
    Inactive,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Direction::SendRecv => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::Inactive => "inactive",
        }
    }

    fn from_name(name: &str) -> Option<Direction> {
        [Direction::SendRecv, Direction::SendOnly, Direction::RecvOnly, Direction::Inactive]
            .into_iter()
            .find(|direction| direction.as_str() == name)
    }

    /// What the other side has to say to it (RFC 3264 §6.1).
    fn answered(self) -> Direction {
        match self {
            Direction::SendRecv => Direction::SendRecv,
            Direction::SendOnly => Direction::RecvOnly,
            Direction::RecvOnly => Direction::SendOnly,
            Direction::Inactive => Direction::Inactive,
        }
    }
}

/// The media that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The codec.
    pub codec: Codec,
    /// Its payload type, by the peer's numbers.
    pub payload_type: u8,
    /// The payload type of telephone events, by the peer's numbers.
    pub telephone_event: Option<u8>,
    /// Where the peer wants its media.
    pub remote: SocketAddr,
    /// Where the peer wants its reports.
    pub remote_control: SocketAddr,
    /// The peer has put us on hold.
    pub on_hold: bool,
    /// Which way sound flows, from the peer's side.
    pub direction: Direction,
    /// How long its packets are to be.
    pub ptime_ms: u32,
}

/// What a trunk allows.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// Codecs, best first.
    pub codecs: &'a [Codec],
    /// Addresses that may be named although they are not global ones.
    pub allowed: &'a [Network],
}

/// Whose order of codecs counts: of an offer ours, of an answer that of whoever answers (RFC 3264 §6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chosen {
    ByUs,
    ByPeer,
}

/// Our end of a session; it keeps what must stay the same from one description to the next.
#[derive(Debug, Clone)]
pub struct Local {
    /// Where we want our media.
    pub address: SocketAddr,
    session: u64,
    version: u64,
    last: Option<String>,
}

impl Local {
    /// `session` is a number that no other session has had.
    pub fn new(address: SocketAddr, session: u64) -> Local {
        // The grammar allows 64 bits; half of the peers keep them signed.
        Local { address, session: session >> 1, version: 0, last: None }
    }

    /// Answers an offer.
    pub fn answer(&mut self, offer: &[u8], policy: Policy) -> Result<(String, Agreed), DescriptionError> {
        let session = parse(offer)?;
        let (at, agreed) = agree(&session, policy, Chosen::ByUs)?;
        let mut media = String::new();
        for (n, line) in session.medias.iter().enumerate() {
            if n == at {
                media.push_str(&self.audio(
                    &[(agreed.codec, agreed.payload_type)],
                    agreed.telephone_event,
                    agreed.direction.answered(),
                    agreed.ptime_ms,
                ));
            } else {
                // Every line of the offer has one in the answer; port 0 refuses it (RFC 3264 §6).
                let _ = write!(media, "m={} 0 {} {}\r\n", line.media, line.proto, line.fmt);
            }
        }
        Ok((self.describe(media), agreed))
    }

    /// An offer of our own, for an INVITE that brought none or a refresh.
    pub fn offer(&mut self, policy: Policy) -> String {
        let codecs: Vec<_> = policy.codecs.iter().map(|codec| (*codec, codec.law().payload_type())).collect();
        let media = self.audio(&codecs, Some(101), Direction::SendRecv, 20);
        self.describe(media)
    }

    /// Takes the answer to an offer of our own.
    pub fn accept(&mut self, answer: &[u8], policy: Policy) -> Result<Agreed, DescriptionError> {
        agree(&parse(answer)?, policy, Chosen::ByPeer).map(|(_, agreed)| agreed)
    }

    fn audio(&self, codecs: &[(Codec, u8)], event: Option<u8>, direction: Direction, ptime_ms: u32) -> String {
        let mut types: Vec<String> = codecs.iter().map(|(_, payload_type)| payload_type.to_string()).collect();
        types.extend(event.map(|event| event.to_string()));
        let mut text = format!("m=audio {} RTP/AVP {}\r\n", self.address.port(), types.join(" "));
        for (codec, payload_type) in codecs {
            let name = match codec {
                Codec::Pcma => "PCMA",
                Codec::Pcmu => "PCMU",
            };
            let _ = write!(text, "a=rtpmap:{payload_type} {name}/8000\r\n");
        }
        if let Some(event) = event {
            let _ = write!(text, "a=rtpmap:{event} telephone-event/8000\r\na=fmtp:{event} 0-15\r\n");
        }
        let _ = write!(text, "a=ptime:{ptime_ms}\r\na={}\r\n", direction.as_str());
        text
    }

    /// The version counts changes, and only those (RFC 3264 §8).
    fn describe(&mut self, media: String) -> String {
        if self.last.as_ref() != Some(&media) {
            self.version += 1;
            self.last = Some(media.clone());
        }
        let ip = self.address.ip();
        let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
        format!(
            "v=0\r\no=ihuza {} {} IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n{media}",
            self.session, self.version
        )
    }
}

fn parse(text: &[u8]) -> Result<sdp_types::Session, DescriptionError> {
    if text.len() > MOST_BYTES {
        return Err(DescriptionError::Unreadable(format!("longer than {MOST_BYTES} bytes")));
    }
    let session = sdp_types::Session::parse(text).map_err(|error| DescriptionError::Unreadable(error.to_string()))?;
    if session.medias.len() > MOST_MEDIA {
        return Err(DescriptionError::Unreadable(format!("more than {MOST_MEDIA} media")));
    }
    Ok(session)
}

/// The first media that can be used, and what is agreed on for it.
fn agree(session: &sdp_types::Session, policy: Policy, chosen: Chosen) -> Result<(usize, Agreed), DescriptionError> {
    let mut problem = DescriptionError::NothingInCommon;
    for (at, media) in session.medias.iter().enumerate() {
        if media.media != "audio" || media.port == 0 || !media.proto.eq_ignore_ascii_case("RTP/AVP") {
            continue;
        }
        match agree_on(session, media, policy, chosen) {
            Ok(agreed) => return Ok((at, agreed)),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

fn agree_on(
    session: &sdp_types::Session,
    media: &sdp_types::Media,
    policy: Policy,
    chosen: Chosen,
) -> Result<Agreed, DescriptionError> {
    let types: Vec<u8> = media.fmt.split_ascii_whitespace().filter_map(|kind| kind.parse().ok()).collect();
    let named = |wanted: &str| {
        types.iter().copied().find(|kind| encoding(media, *kind).is_some_and(|name| name.eq_ignore_ascii_case(wanted)))
    };
    let of_codec = |codec: &Codec| match codec {
        Codec::Pcma => named("PCMA/8000"),
        Codec::Pcmu => named("PCMU/8000"),
    };
    let mut common = policy.codecs.iter().filter_map(|codec| Some((*codec, of_codec(codec)?)));
    let choice = match chosen {
        Chosen::ByUs => common.next(),
        Chosen::ByPeer => common.min_by_key(|(_, payload_type)| types.iter().position(|kind| kind == payload_type)),
    };
    let (codec, payload_type) = choice.ok_or(DescriptionError::NothingInCommon)?;
    let connection = media.connections.first().or(session.connection.as_ref());
    let address = connection
        .and_then(|connection| connection.connection_address.split('/').next()?.parse::<IpAddr>().ok())
        .ok_or_else(|| DescriptionError::Unreadable("no address of media".into()))?;
    // The old way to say hold (RFC 2543).
    let nowhere = address.is_unspecified();
    if !nowhere && !may_send_to(address, policy.allowed) {
        return Err(DescriptionError::BadAddress);
    }
    let directions = media.attributes.iter().chain(&session.attributes);
    let direction = directions
        .filter(|attribute| attribute.value.is_none())
        .find_map(|attribute| Direction::from_name(&attribute.attribute))
        .unwrap_or(Direction::SendRecv);
    let value = |name: &str| {
        media
            .attributes
            .iter()
            .find(|attribute| attribute.attribute == name)
            .and_then(|attribute| attribute.value.as_deref())
    };
    let ptime_ms = value("ptime").and_then(|ms| ms.trim().parse().ok()).filter(|ms| [10, 20, 30, 40, 60].contains(ms));
    Ok(Agreed {
        codec,
        payload_type,
        telephone_event: named("telephone-event/8000"),
        remote: SocketAddr::new(address, media.port),
        remote_control: control_address(address, media.port, value("rtcp"), policy.allowed),
        on_hold: nowhere || matches!(direction, Direction::SendOnly | Direction::Inactive),
        direction,
        // Packets of ours are of 20 ms, whatever is wished for: that is always allowed (RFC 3264 §6.1).
        ptime_ms: ptime_ms.filter(|ms| *ms == 20).unwrap_or(20),
    })
}

/// `a=rtpmap`, or what RFC 3551 says where there is none.
fn encoding(media: &sdp_types::Media, payload_type: u8) -> Option<&str> {
    let mapped = media.attributes.iter().filter(|attribute| attribute.attribute == "rtpmap").find_map(|attribute| {
        let (kind, name) = attribute.value.as_deref()?.trim().split_once(' ')?;
        (kind.parse() == Ok(payload_type)).then(|| name.trim().trim_end_matches("/1"))
    });
    mapped.or(match payload_type {
        rtp::PCMA => Some("PCMA/8000"),
        rtp::PCMU => Some("PCMU/8000"),
        _ => None,
    })
}

/// `a=rtcp` (RFC 3605), or the next port.
fn control_address(address: IpAddr, port: u16, rtcp: Option<&str>, allowed: &[Network]) -> SocketAddr {
    let mut words = rtcp.unwrap_or_default().split_ascii_whitespace();
    let Some(port) = words.next().and_then(|port| port.parse().ok()).filter(|port| *port != 0) else {
        return SocketAddr::new(address, port.saturating_add(1));
    };
    let other = words.nth(2).and_then(|address| address.parse().ok()).filter(|other| may_send_to(*other, allowed));
    SocketAddr::new(other.unwrap_or(address), port)
}

/// Nobody makes us send to ourselves, to everybody, or into a network that is not the trunk's.
fn may_send_to(address: IpAddr, allowed: &[Network]) -> bool {
    if allowed.iter().any(|network| network.contains(address)) {
        return true;
    }
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let shared = first == 100 && (64..128).contains(&second);
            !(address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_unspecified()
                || shared
                || first == 0
                || first >= 240)
        }
        IpAddr::V6(address) => matches!(address.segments(), [0x2000..=0x3fff, ..]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFFER: &str = "v=0\r\no=mtn 1 1 IN IP4 203.0.113.9\r\ns=-\r\nc=IN IP4 203.0.113.9\r\nt=0 0\r\n\
        m=audio 4000 RTP/AVP 18 0 8 97\r\na=rtpmap:97 telephone-event/8000\r\na=ptime:20\r\n";

    fn local() -> Local {
        Local::new("198.51.100.2:20000".parse().unwrap(), 1000)
    }

    fn policy() -> Policy<'static> {
        Policy { codecs: &[Codec::Pcma, Codec::Pcmu], allowed: &[] }
    }

    fn answer(offer: &str) -> Result<(String, Agreed), DescriptionError> {
        local().answer(offer.as_bytes(), policy())
    }

    #[test]
    fn we_offer_all_codecs_in_our_order_and_take_what_the_answer_chose() {
        let mut local = local();
        let offer = local.offer(policy());
        assert!(
            offer.contains("RTP/AVP 8 0 101\r\n") && offer.contains("a=rtpmap:101 telephone-event/8000"),
            "{offer}"
        );
        let mut accept = |types: &str| {
            let answer = OFFER.replace("18 0 8 97", types);
            local.accept(answer.as_bytes(), policy()).map(|agreed| (agreed.codec, agreed.payload_type))
        };
        assert_eq!(accept("0 97"), Ok((Codec::Pcmu, 0)));
        assert_eq!(accept("8 97"), Ok((Codec::Pcma, 8)));
        assert_eq!(accept("0 8 97"), Ok((Codec::Pcmu, 0)), "the answer's order counts");
        assert_eq!(accept("18 97"), Err(DescriptionError::NothingInCommon));
    }

    #[test]
    fn an_offer_is_answered_with_our_first_codec_and_its_own_numbers() {
        let (text, agreed) = answer(OFFER).unwrap();
        assert_eq!(
            text,
            "v=0\r\no=ihuza 500 1 IN IP4 198.51.100.2\r\ns=-\r\nc=IN IP4 198.51.100.2\r\nt=0 0\r\n\
             m=audio 20000 RTP/AVP 8 97\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:97 telephone-event/8000\r\n\
             a=fmtp:97 0-15\r\na=ptime:20\r\na=sendrecv\r\n"
        );
        assert_eq!((agreed.payload_type, agreed.telephone_event, agreed.on_hold), (8, Some(97), false));
        assert_eq!((agreed.remote.to_string(), agreed.remote_control.port()), ("203.0.113.9:4000".into(), 4001));
    }

    #[test]
    fn a_codec_under_another_number_keeps_it() {
        let offer = OFFER.replace("18 0 8 97", "0 96").replace("a=ptime", "a=rtpmap:96 pcma/8000/1\r\na=ptime");
        let (text, agreed) = answer(&offer).unwrap();
        assert_eq!((agreed.codec, agreed.payload_type, agreed.telephone_event), (Codec::Pcma, 96, None));
        assert!(text.contains("m=audio 20000 RTP/AVP 96\r\n"), "{text}");
    }

    #[test]
    fn hold_is_seen_in_all_three_spellings_and_answered() {
        for (from, to, answered) in [
            ("a=ptime:20", "a=sendonly", "a=recvonly"),
            ("a=ptime:20", "a=inactive", "a=inactive"),
            ("c=IN IP4 203.0.113.9", "c=IN IP4 0.0.0.0", "a=sendrecv"),
        ] {
            let (text, agreed) = answer(&OFFER.replace(from, to)).unwrap();
            assert!(agreed.on_hold && text.contains(answered), "{to}: {text}");
        }
        let at_session = OFFER.replace("t=0 0", "t=0 0\r\na=sendonly");
        assert!(answer(&at_session).unwrap().1.on_hold);
        assert!(!answer(&OFFER.replace("a=ptime:20", "a=recvonly")).unwrap().1.on_hold);
    }

    #[test]
    fn other_media_are_refused_in_their_place() {
        let offer = OFFER.replace("m=audio", "m=video 5000 RTP/AVP 31\r\nm=audio 6000 RTP/SAVP 8\r\nm=audio");
        let (text, _) = answer(&offer).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("m=")).collect();
        assert_eq!(lines, ["m=video 0 RTP/AVP 31", "m=audio 0 RTP/SAVP 8", "m=audio 20000 RTP/AVP 8 97"]);
    }

    #[test]
    fn nothing_in_common_is_told_from_what_cannot_be_read() {
        for offer in [
            OFFER.replace("18 0 8 97", "18 97"),
            OFFER.replace("audio 4000", "audio 0"),
            OFFER.replace("RTP/AVP", "RTP/SAVP"),
        ] {
            assert_eq!(answer(&offer).unwrap_err(), DescriptionError::NothingInCommon, "{offer}");
        }
        for offer in ["", "v=1\r\n", "hello", &OFFER.replace("c=IN IP4 203.0.113.9\r\n", "")] {
            assert!(matches!(answer(offer), Err(DescriptionError::Unreadable(_))), "{offer}");
        }
        let long = format!("{OFFER}{}", "m=video 0 RTP/AVP 31\r\n".repeat(17));
        assert!(matches!(answer(&long), Err(DescriptionError::Unreadable(_))));
    }

    #[test]
    fn nobody_makes_us_send_to_ourselves_or_into_a_foreign_network() {
        for address in ["127.0.0.1", "10.0.0.1", "224.0.0.1", "169.254.169.254", "255.255.255.255", "100.64.0.1"] {
            assert_eq!(
                answer(&OFFER.replace("203.0.113.9", address)).unwrap_err(),
                DescriptionError::BadAddress,
                "{address}"
            );
        }
        let allowed = ["10.0.0.0/8".parse().unwrap()];
        let offer = OFFER.replace("203.0.113.9", "10.0.0.1");
        assert!(local().answer(offer.as_bytes(), Policy { allowed: &allowed, ..policy() }).is_ok());
        let elsewhere = OFFER.replace("a=ptime:20", "a=rtcp:9000 IN IP4 127.0.0.1");
        assert_eq!(answer(&elsewhere).unwrap().1.remote_control.to_string(), "203.0.113.9:9000");
    }

    #[test]
    fn the_version_counts_changes_only() {
        let mut local = local();
        let mut version = |offer: &str| {
            let (text, _) = local.answer(offer.as_bytes(), policy()).unwrap();
            text.lines().nth(1).unwrap().to_owned()
        };
        let first = version(OFFER);
        assert_eq!(version(OFFER), first);
        assert_eq!(version(&OFFER.replace("a=ptime:20", "a=sendonly")), first.replace("500 1", "500 2"));
    }

    #[test]
    fn an_offer_of_ours_can_be_answered() {
        let (mut ours, mut theirs) = (local(), Local::new("203.0.113.9:4000".parse().unwrap(), 7));
        let offer = ours.offer(policy());
        let (answer, _) = theirs.answer(offer.as_bytes(), Policy { codecs: &[Codec::Pcmu], ..policy() }).unwrap();
        let agreed = ours.accept(answer.as_bytes(), policy()).unwrap();
        assert_eq!((agreed.codec, agreed.telephone_event, agreed.remote), (Codec::Pcmu, Some(101), theirs.address));
    }

    proptest! {
        #[test]
        fn any_change_of_an_offer_is_answered_or_refused(at in 0_usize..OFFER.len(), byte: u8, cut in 0_usize..OFFER.len()) {
            let mut offer = OFFER.as_bytes().to_vec();
            offer[at] = byte;
            for offer in [&offer[..], &offer[..cut]] {
                if let Ok((text, agreed)) = local().answer(offer, policy()) {
                    let again = sdp_types::Session::parse(text.as_bytes());
                    prop_assert!(again.is_ok(), "{text}");
                    prop_assert!(agreed.payload_type < 128 || offer.contains(&b'1'));
                }
            }
        }
    }
}
