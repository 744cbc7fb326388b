//! WebSocket connections to the model. They are opened by a task of their own and then belong to the call's: a frame of
//! voice goes from the one socket to the other without another task between them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use tokio::net::TcpStream;
use tokio_websockets::{ClientBuilder, Connector, Limits, MaybeTlsStream, Message, WebSocketStream};

use super::clock::Clock;
use super::gates::{Gate, Gates};
use crate::backend::Link;
use crate::moment::Moment;

const CONNECT_WITHIN: Duration = Duration::from_secs(4);
/// A goodbye that is not returned in this time is not waited for.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// The largest message that is read: some ten minutes of G.711.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Messages that wait for the socket; at 50 a second that is five seconds of the caller's voice.
const MOST_WAITING: usize = 256;
const PING_EVERY: Duration = Duration::from_secs(15);
/// Without any word for so long the connection is dead: two pings went unanswered.
const SILENT_FOR: Duration = Duration::from_secs(35);

/// A connection that stands.
pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Where the model is and how it is entered.
#[derive(Debug, Clone)]
pub struct Address {
    /// WebSocket address with its query.
    pub url: String,
    /// The key; never logged.
    pub key: Arc<str>,
}

/// Opens a connection; nothing if it cannot be had in time. Whatever is in the way, the conversation only learns that.
pub async fn open(address: Address, connector: &Connector) -> Option<Box<Socket>> {
    let opened = tokio::time::timeout(CONNECT_WITHIN, connect(address, connector)).await;
    opened.ok()?.ok().map(Box::new)
}

async fn connect(address: Address, connector: &Connector) -> Result<Socket, Box<dyn std::error::Error + Send + Sync>> {
    let uri: Uri = address.url.parse()?;
    let mut authorization = HeaderValue::from_str(&format!("Bearer {}", address.key))?;
    authorization.set_sensitive(true);
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let is_secure = uri.scheme_str() == Some("wss");
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    // Twenty milliseconds of voice must not wait for more.
    stream.set_nodelay(true)?;
    let connector = if is_secure { connector } else { &Connector::Plain };
    let stream = connector.wrap(&host, stream).await?;
    let (socket, _) = ClientBuilder::from_uri(uri)
        .add_header(AUTHORIZATION, authorization)?
        .limits(Limits::default().max_payload_len(Some(MOST_BYTES)))
        .connect_on(stream)
        .await?;
    Ok(socket)
}

/// What a connection brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Brought {
    /// A text message.
    Message(Link, Bytes),
    /// The connection is gone.
    Gone(Link),
}

struct Line {
    link: Link,
    socket: Box<Socket>,
    /// Messages since everything had left.
    waiting: usize,
    silent_at: Moment,
    ping_at: Moment,
}

/// The connections of one call: one, or two while the second takes over.
pub struct Lines {
    open: Vec<Line>,
    clock: Clock,
    /// Something is to be written.
    to_write: Gate,
    /// Something came.
    to_read: Gate,
}

impl Lines {
    /// None yet.
    pub fn new(clock: Clock, gates: &mut Gates) -> Lines {
        Lines { open: Vec::new(), clock, to_write: gates.gate(), to_read: gates.gate() }
    }

    /// One more.
    pub fn add(&mut self, link: Link, socket: Box<Socket>) {
        let now = self.clock.now();
        self.open.push(Line { link, socket, waiting: 0, silent_at: now + SILENT_FOR, ping_at: now + PING_EVERY });
        self.to_read.open();
    }

    /// Queues a message; `false` if that connection is not there, or does not keep up with a voice.
    pub fn send(&mut self, link: Link, text: String) -> bool {
        self.open.iter_mut().find(|line| line.link == link).is_some_and(|line| {
            self.to_write.open();
            line.queue(Message::text(text))
        })
    }

    /// Lets one go, with a goodbye.
    pub fn close(&mut self, link: Link) {
        for mut line in self.open.extract_if(.., |line| line.link == link) {
            tokio::spawn(async move { tokio::time::timeout(CLOSE_WITHIN, line.socket.close()).await });
        }
    }

    /// Lets all of them go.
    pub fn close_all(&mut self) {
        while let Some(link) = self.open.first().map(|line| line.link) {
            self.close(link);
        }
    }

    /// What the connections bring. What was queued leaves meanwhile, so this has to be awaited after every `send`.
    pub async fn next(&mut self) -> Brought {
        let Lines { open, clock, to_write, to_read } = self;
        poll_fn(|_| {
            if let Poll::Ready(link) = to_write.poll(&mut |context| write(open, context)) {
                return Poll::Ready(Brought::Gone(link));
            }
            to_read.poll(&mut |context| read(open, *clock, context))
        })
        .await
    }

    /// When `timeout` is to be called next.
    pub fn next_timeout(&self) -> Option<Moment> {
        self.open.iter().map(|line| line.silent_at.min(line.ping_at)).min()
    }

    /// Asks for a sign of life where it is time to; one that gave none is gone.
    pub fn timeout(&mut self, now: Moment) -> Option<Link> {
        for line in self.open.iter_mut().filter(|line| line.ping_at <= now) {
            line.ping_at = now + PING_EVERY;
            line.queue(Message::ping(""));
            self.to_write.open();
        }
        let silent = self.open.iter().position(|line| line.silent_at <= now)?;
        Some(self.open.swap_remove(silent).link)
    }
}

impl Line {
    fn queue(&mut self, message: Message) -> bool {
        self.waiting += 1;
        self.waiting <= MOST_WAITING && Pin::new(&mut *self.socket).start_send(message).is_ok()
    }
}

/// Writes what is queued; a connection that cannot be written to is gone.
fn write(open: &mut Vec<Line>, context: &mut Context<'_>) -> Poll<Link> {
    for (at, line) in open.iter_mut().enumerate().filter(|(_, line)| line.waiting > 0) {
        match Pin::new(&mut *line.socket).poll_flush(context) {
            Poll::Ready(Ok(())) => line.waiting = 0,
            Poll::Ready(Err(_)) => return Poll::Ready(open.swap_remove(at).link),
            Poll::Pending => {}
        }
    }
    Poll::Pending
}

fn read(open: &mut Vec<Line>, clock: Clock, context: &mut Context<'_>) -> Poll<Brought> {
    for (at, line) in open.iter_mut().enumerate() {
        while let Poll::Ready(received) = Pin::new(&mut *line.socket).poll_next(context) {
            let Some(Ok(message)) = received.filter(|message| !message.as_ref().is_ok_and(Message::is_close)) else {
                return Poll::Ready(Brought::Gone(open.swap_remove(at).link));
            };
            line.silent_at = clock.now() + SILENT_FOR;
            if message.is_text() {
                return Poll::Ready(Brought::Message(line.link, Bytes::from(message.into_payload())));
            }
        }
    }
    Poll::Pending
}
