//! The stack's UDP socket: strangers are dropped, and what is no sound message is settled, before the stack reads it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use rsipstack::Result;
use rsipstack::platform::net::UdpSocket as StackSocket;
use tokio::net::UdpSocket;

use crate::shell::signalling::Reception;
use crate::sip::admission::Refusal;
use crate::sip::precheck::{Verdict, settle, too_large};

/// Class selector 3, which networks keep for signalling (RFC 4594 §4.2), as the byte in the header.
const SIGNALLING: u32 = 24 << 2;
/// Datagrams in a row that are settled here before others have their turn.
const MOST_AT_ONCE: usize = 64;

pub(super) struct Checked {
    socket: UdpSocket,
    reception: Arc<dyn Reception>,
}

impl Checked {
    pub(super) async fn bind(listen: SocketAddr, reception: Arc<dyn Reception>) -> io::Result<Checked> {
        let socket = UdpSocket::bind(listen).await?;
        if listen.is_ipv4() {
            // A wish: a kernel that refuses it still carries the call.
            let _ = socket2::SockRef::from(&socket).set_tos_v4(SIGNALLING);
        }
        Ok(Checked { socket, reception })
    }

    /// The next datagram that the stack should see, in the buffer.
    async fn next(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr)> {
        let mut settled = 0_usize;
        loop {
            let (length, from) = self.socket.recv_from(buffer).await?;
            if let Some(length) = self.settled(buffer, length, from).await {
                return Ok((length, from));
            }
            settled += 1;
            if settled.is_multiple_of(MOST_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The length of what is for the stack.
    async fn settled(&self, buffer: &mut [u8], length: usize, from: SocketAddr) -> Option<usize> {
        if !self.reception.knows(from.ip()) {
            return None;
        }
        let room = buffer.len();
        let datagram = buffer.get(..length)?;
        // A full buffer says that the datagram was cut.
        let verdict = if length == room { too_large(datagram, from) } else { settle(datagram, from, room) };
        match verdict {
            Verdict::Pass(std::borrow::Cow::Borrowed(_)) => Some(length),
            Verdict::Pass(std::borrow::Cow::Owned(plain)) => {
                buffer.get_mut(..plain.len())?.copy_from_slice(&plain);
                Some(plain.len())
            }
            Verdict::Refuse { refusal, fault, answer, .. } => {
                self.reception.unfit(from.ip(), refusal, fault);
                let _ = self.socket.send_to(&answer, from).await;
                None
            }
            Verdict::Ignore(fault) => {
                self.reception.unfit(from.ip(), Refusal::Malformed, fault);
                None
            }
        }
    }
}

/// What the stack's trait makes of an asynchronous function.
type Later<'l, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'l>>;

impl StackSocket for Checked {
    fn recv_from<'s, 'b, 'l>(&'s self, buffer: &'b mut [u8]) -> Later<'l, (usize, SocketAddr)>
    where
        's: 'l,
        'b: 'l,
        Self: 'l,
    {
        Box::pin(self.next(buffer))
    }

    fn send_to<'s, 'b, 'l>(&'s self, bytes: &'b [u8], to: SocketAddr) -> Later<'l, usize>
    where
        's: 'l,
        'b: 'l,
        Self: 'l,
    {
        Box::pin(async move { Ok(self.socket.send_to(bytes, to).await?) })
    }

    fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }
}
