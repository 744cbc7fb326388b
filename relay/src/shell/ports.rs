//! Ports for media: an even one for RTP and its neighbour for RTCP, drawn at random, and left alone for a minute after
//! use, so that what is late for one call does not arrive in another.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::moment::Moment;

const REST: Duration = Duration::from_secs(60);
/// Draws before the range counts as full.
const MOST_DRAWS: usize = 64;
/// Some five seconds of G.711: the kernel counts about 1 KiB for a small packet.
const RECEIVE_BUFFER: usize = 256 * 1024;
/// Expedited forwarding (RFC 4594), in the upper six bits.
const EXPEDITED: u32 = 46 << 2;

/// The two sockets of a call.
#[derive(Debug)]
pub struct Pair {
    /// RTP.
    pub media: UdpSocket,
    /// RTCP.
    pub control: UdpSocket,
    /// The even port.
    pub port: u16,
}

/// The range.
#[derive(Debug)]
pub struct Ports {
    bind: IpAddr,
    range: RangeInclusive<u16>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// In use, or resting.
    ports: HashSet<u16>,
    /// Free again at that moment, the first one first.
    resting: VecDeque<(Moment, u16)>,
}

impl Taken {
    fn free_the_rested(&mut self, now: Moment) {
        while let Some((_, port)) = self.resting.pop_front_if(|(until, _)| *until <= now) {
            self.ports.remove(&port);
        }
    }
}

impl Ports {
    /// Ports of `range` on this address.
    pub fn new(bind: IpAddr, range: RangeInclusive<u16>) -> Ports {
        Ports { bind, range, taken: Mutex::default() }
    }

    /// Opens a pair; `dice` gives random numbers.
    pub fn open(&self, now: Moment, mut dice: impl FnMut() -> u32) -> io::Result<Pair> {
        let first = self.range.start().div_ceil(2);
        let pairs = u32::from(self.range.end().div_ceil(2).saturating_sub(first));
        for _ in 0..MOST_DRAWS {
            let port = (first + (dice() % pairs.max(1)) as u16) * 2;
            if !self.take(now, port) {
                continue;
            }
            match (self.socket(port), self.socket(port + 1)) {
                (Ok(media), Ok(control)) => return Ok(Pair { media, control, port }),
                // Somebody else's.
                _ => self.give_back(now, port),
            }
        }
        Err(io::Error::other("no free pair of media ports was found: media.ports is too small, or others use it"))
    }

    /// The call is over.
    pub fn give_back(&self, now: Moment, port: u16) {
        if let Ok(mut taken) = self.taken.lock() {
            taken.resting.push_back((now + REST, port));
        }
    }

    /// Gives back the room that ports took which may be used again; to be called now and then, also while nobody calls.
    pub fn forget(&self, now: Moment) {
        let Ok(mut taken) = self.taken.lock() else { return };
        taken.free_the_rested(now);
        if taken.ports.len() < taken.ports.capacity() / 8 {
            taken.ports.shrink_to_fit();
        }
        if taken.resting.len() < taken.resting.capacity() / 8 {
            taken.resting.shrink_to_fit();
        }
    }

    /// Pairs that calls have.
    #[cfg(test)]
    pub fn in_use(&self) -> usize {
        self.taken.lock().map_or(0, |taken| taken.ports.len() - taken.resting.len())
    }

    fn take(&self, now: Moment, port: u16) -> bool {
        let Ok(mut taken) = self.taken.lock() else { return false };
        taken.free_the_rested(now);
        taken.ports.insert(port)
    }

    fn socket(&self, port: u16) -> io::Result<UdpSocket> {
        let address = SocketAddr::new(self.bind, port);
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        // Wishes: a kernel that refuses them still carries the call.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        if address.is_ipv4() {
            let _ = socket.set_tos_v4(EXPEDITED);
        }
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pairs_are_even_distinct_and_rest_after_use() {
        let ports = Ports::new("127.0.0.1".parse().unwrap(), 42_001..=42_006);
        let mut next = 0;
        let mut open = |ms| {
            ports.open(Moment::from_millis(ms), || {
                next += 1;
                next
            })
        };
        let (a, b) = (open(0).unwrap(), open(0).unwrap());
        let mut both = [a.port, b.port];
        both.sort_unstable();
        assert_eq!(both, [42_002, 42_004]);
        assert_eq!(a.control.local_addr().unwrap().port(), a.port + 1);
        assert!(open(0).is_err(), "both pairs are in use");
        let port = a.port;
        drop(a);
        ports.give_back(Moment::from_millis(0), port);
        assert!(open(59_999).is_err());
        assert_eq!(open(60_000).unwrap().port, port);
    }
    #[tokio::test]
    async fn ports_that_have_rested_take_no_room() {
        let ports = Ports::new("127.0.0.1".parse().unwrap(), 43_000..=45_000);
        let taken = || {
            let taken = ports.taken.lock().unwrap();
            (taken.ports.len(), taken.ports.capacity() + taken.resting.capacity())
        };
        for port in (43_002..=45_000).step_by(2) {
            assert!(ports.take(Moment::from_millis(0), port));
            if port > 43_002 {
                ports.give_back(Moment::from_millis(0), port);
            }
        }
        ports.forget(Moment::from_millis(59_999));
        assert_eq!(taken().0, 1000);
        ports.forget(Moment::from_millis(60_000));
        assert_eq!(taken().0, 1, "the one that is in use");
        assert!(taken().1 < 16, "{}", taken().1);
    }
}
