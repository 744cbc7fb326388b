//! From where media is taken and to where it goes: symmetric RTP (RFC 4961) that locks, so that whoever sprays our
//! ports can neither listen nor speak.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::moment::Moment;

/// That many packets in a row make a source believed.
const PROBATION: u8 = 4;
/// A locked source that is silent for so long may be replaced.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// One that goes on from another port of the same machine, with its own number, has only been given another by a
/// translator of addresses. Nobody who does not see its packets knows that number.
const MOVED_AFTER: Duration = Duration::from_millis(200);
/// Candidates that are watched at the same time; a sprayer must not make a call grow.
const MOST_CANDIDATES: usize = 4;

/// A range of addresses, as `10.1.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is no network: write it as 192.0.2.0/24 or as a single address")]
pub struct NotANetwork;

impl std::str::FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Network, NotANetwork> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), str::parse).map_err(|_| NotANetwork)?;
        if prefix > longest { Err(NotANetwork) } else { Ok(Network { address, prefix }) }
    }
}

impl Network {
    /// Its address, as it was written.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits of it count.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether the address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(ours) & mask == u32::from(theirs) & mask
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(ours) & mask == u128::from(theirs) & mask
            }
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Candidate {
    from: SocketAddr,
    ssrc: u32,
    next: u16,
    seen: u8,
}

/// Where the media of one call comes from and goes to.
#[derive(Debug)]
pub struct Source {
    /// What the session description said.
    announced: SocketAddr,
    /// From where media may come besides: the carrier's media gateways.
    allowed: Vec<Network>,
    locked: Option<SocketAddr>,
    /// Its source number.
    ssrc: Option<u32>,
    last_heard: Moment,
    candidates: Vec<Candidate>,
    /// Packets of others, dropped.
    pub foreign: u64,
}

/// What is done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// From the source of this call.
    Take,
    /// As `Take`; the source is another one than before, and the stream begins anew.
    TakeFromNew,
    /// Not, or not yet, to be believed.
    Drop,
}

impl Source {
    /// Of a call whose session description names `announced`.
    pub fn new(announced: SocketAddr, allowed: Vec<Network>) -> Source {
        Source {
            announced,
            allowed,
            locked: None,
            ssrc: None,
            last_heard: Moment::default(),
            candidates: Vec::new(),
            foreign: 0,
        }
    }

    /// Where to send.
    pub fn destination(&self) -> SocketAddr {
        self.locked.unwrap_or(self.announced)
    }

    /// A new session description: what was learnt is forgotten if the address is another one.
    pub fn announce(&mut self, announced: SocketAddr) {
        if announced != self.announced {
            self.announced = announced;
            self.locked = None;
            self.candidates.clear();
        }
    }

    /// Judges a packet that carries a payload type of this call.
    pub fn judge(&mut self, now: Moment, from: SocketAddr, ssrc: u32, sequence_number: u16) -> Verdict {
        if self.locked == Some(from) {
            self.last_heard = now;
            self.ssrc = Some(ssrc);
            return Verdict::Take;
        }
        let held = self.locked.is_some_and(|locked| {
            let moved = locked.ip() == from.ip() && self.ssrc == Some(ssrc);
            now.since(self.last_heard) < if moved { MOVED_AFTER } else { SILENT_FOR }
        });
        if held || !self.may_come_from(from.ip()) {
            self.foreign += 1;
            return Verdict::Drop;
        }
        // The very address of the session description needs no probation, as long as nothing else was learnt.
        if from != self.announced && !self.passed(from, ssrc, sequence_number) {
            self.foreign += 1;
            return Verdict::Drop;
        }
        let is_first = self.locked.is_none();
        self.locked = Some(from);
        self.ssrc = Some(ssrc);
        self.last_heard = now;
        self.candidates.clear();
        if is_first { Verdict::Take } else { Verdict::TakeFromNew }
    }

    /// Whether a control packet is from the same machine as the media.
    pub fn may_control(&self, from: SocketAddr) -> bool {
        from.ip() == self.destination().ip()
    }

    fn may_come_from(&self, address: IpAddr) -> bool {
        address == self.announced.ip() || self.allowed.iter().any(|network| network.contains(address))
    }

    fn passed(&mut self, from: SocketAddr, ssrc: u32, sequence_number: u16) -> bool {
        let next = sequence_number.wrapping_add(1);
        if let Some(known) = self.candidates.iter_mut().find(|known| known.from == from && known.ssrc == ssrc) {
            known.seen = if known.next == sequence_number { known.seen + 1 } else { 1 };
            known.next = next;
            return known.seen >= PROBATION;
        }
        if self.candidates.len() == MOST_CANDIDATES {
            self.candidates.remove(0);
        }
        self.candidates.push(Candidate { from, ssrc, next, seen: 1 });
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn source() -> Source {
        Source::new(at("192.0.2.1:4000"), vec!["192.0.2.0/28".parse().unwrap()])
    }

    /// Packets as `(ms, from, sequence number)`; the verdicts as letters.
    fn verdicts(source: &mut Source, packets: &[(u64, &str, u16)]) -> String {
        let judge = |(ms, from, number): &(u64, &str, u16)| match source.judge(
            Moment::from_millis(*ms),
            at(from),
            1,
            *number,
        ) {
            Verdict::Take => 't',
            Verdict::TakeFromNew => 'n',
            Verdict::Drop => '.',
        };
        packets.iter().map(judge).collect()
    }

    #[test]
    fn the_announced_address_is_taken_at_once_and_a_stranger_never() {
        let mut source = source();
        let stranger: Vec<_> = (0..9).map(|n| (n, "198.51.100.7:4000", n as u16)).collect();
        assert_eq!(verdicts(&mut source, &stranger), ".........");
        assert_eq!(verdicts(&mut source, &[(20, "192.0.2.1:4000", 7), (40, "192.0.2.1:4000", 8)]), "tt");
        assert_eq!((source.foreign, source.destination()), (9, at("192.0.2.1:4000")));
    }

    #[test]
    fn a_rewritten_port_is_learnt_after_four_packets_in_a_row() {
        let mut source = source();
        let port = "192.0.2.1:5555";
        assert_eq!(verdicts(&mut source, &[(0, port, 1), (20, port, 2), (40, port, 9), (60, port, 10)]), "....");
        assert_eq!(source.destination(), at("192.0.2.1:4000"));
        assert_eq!(verdicts(&mut source, &[(80, port, 11), (100, port, 12), (120, port, 13)]), ".tt");
        assert_eq!(source.destination(), at(port));
    }

    #[test]
    fn once_locked_nobody_takes_over_while_the_source_speaks() {
        let mut source = source();
        verdicts(&mut source, &[(0, "192.0.2.1:4000", 1)]);
        let other: Vec<_> = (0..9).map(|n| (n * 20, "192.0.2.2:4000", n as u16)).collect();
        assert_eq!(verdicts(&mut source, &other), ".........");
    }

    #[test]
    fn after_five_silent_seconds_a_neighbour_may_take_over() {
        let mut source = source();
        verdicts(&mut source, &[(0, "192.0.2.1:4000", 1)]);
        let other: Vec<_> = (0..5).map(|n| (5000 + n * 20, "192.0.2.2:4000", n as u16)).collect();
        assert_eq!(verdicts(&mut source, &other), "...nt");
    }

    #[test]
    fn the_same_stream_from_another_port_of_the_machine_is_followed_within_a_third_of_a_second() {
        let mut moved = source();
        verdicts(&mut moved, &[(0, "192.0.2.1:4000", 1)]);
        let other: Vec<_> = (1..16).map(|n| (n * 20, "192.0.2.1:5555", n as u16)).collect();
        assert_eq!(verdicts(&mut moved, &other), "............ntt");
        // With another number it is somebody else.
        let mut other = source();
        verdicts(&mut other, &[(0, "192.0.2.1:4000", 1)]);
        for n in 1..100 {
            let verdict = other.judge(Moment::from_millis(n * 20), at("192.0.2.1:5555"), 2, n as u16);
            assert_eq!(verdict, Verdict::Drop);
        }
    }

    #[test]
    fn a_new_description_moves_the_destination_at_once() {
        let mut source = source();
        verdicts(&mut source, &[(0, "192.0.2.1:4000", 1)]);
        source.announce(at("192.0.2.1:4000"));
        assert_eq!(verdicts(&mut source, &[(1, "192.0.2.1:4000", 2)]), "t");
        source.announce(at("192.0.2.9:6000"));
        assert_eq!(source.destination(), at("192.0.2.9:6000"));
        assert_eq!(verdicts(&mut source, &[(2, "192.0.2.9:6000", 3)]), "t");
    }

    #[test]
    fn a_sprayer_cannot_push_the_true_caller_out_for_long_or_make_the_call_grow() {
        let mut source = source();
        let spray: Vec<String> = (0..200).map(|n| format!("192.0.2.3:{}", 1000 + n)).collect();
        for (n, from) in spray.iter().enumerate() {
            assert_eq!(verdicts(&mut source, &[(n as u64, from, n as u16)]), ".");
        }
        assert!(source.candidates.len() <= MOST_CANDIDATES);
    }

    #[test]
    fn networks_are_read_and_contain_what_they_should() {
        let network = |text: &str| text.parse::<Network>();
        assert!(network("192.0.2.0/24").unwrap().contains("192.0.2.77".parse().unwrap()));
        assert!(network("192.0.2.0/24").unwrap().contains("::ffff:192.0.2.77".parse().unwrap()));
        assert!(!network("192.0.2.0/24").unwrap().contains("192.0.3.0".parse().unwrap()));
        assert!(network("0.0.0.0/0").unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!(network("2001:db8::/32").unwrap().contains("2001:db8:1::5".parse().unwrap()));
        assert!(!network("192.0.2.5").unwrap().contains("192.0.2.6".parse().unwrap()));
        for wrong in ["", "192.0.2.0/33", "192.0.2/24", "::/129", "192.0.2.0/x", "192.0.2.0/24/1"] {
            assert_eq!(network(wrong), Err(NotANetwork), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_network_contains_the_addresses_that_share_its_prefix(a: u32, b: u32, prefix in 0_u8..=32) {
            let network: Network = format!("{}/{prefix}", std::net::Ipv4Addr::from(a)).parse().unwrap();
            let shares = prefix == 0 || a >> (32 - u32::from(prefix)) == b >> (32 - u32::from(prefix));
            prop_assert_eq!(network.contains(IpAddr::V4(b.into())), shares);
        }
    }
}
