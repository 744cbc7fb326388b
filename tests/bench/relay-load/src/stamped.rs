//! Receiving with the kernel's own time of arrival, which a busy measuring process does not delay.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use crate::clock::{self, Nanos};

/// Has the kernel note when something arrives.
pub fn enable(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::ReceiveTimestampns, &true)?)
}

/// Reads from sockets; one is enough for all of them.
pub struct Receiver {
    control: Vec<u8>,
}

impl Default for Receiver {
    fn default() -> Receiver {
        Receiver { control: nix::cmsg_space!(TimeSpec) }
    }
}

impl Receiver {
    /// What arrived, how much of it, and when; of a stream, when its last byte did.
    pub fn receive(&mut self, socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<(usize, Nanos)> {
        let mut slices = [IoSliceMut::new(buffer)];
        let received =
            recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)?;
        let stamp = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => {
                Some(time.tv_sec() as u64 * clock::SECOND + time.tv_nsec() as u64)
            }
            _ => None,
        });
        Ok((received.bytes, stamp.unwrap_or_else(clock::now)))
    }
}

/// A stream that remembers when what was read last had arrived.
pub struct Stream<'a, S> {
    pub socket: &'a S,
    pub receiver: &'a mut Receiver,
    pub arrived: &'a mut Nanos,
}

impl<S: AsRawFd> Read for Stream<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (length, at) = self.receiver.receive(self.socket, buffer)?;
        *self.arrived = at;
        Ok(length)
    }
}
