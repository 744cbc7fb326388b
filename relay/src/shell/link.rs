//! One WebSocket connection to the model.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Uri};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_websockets::{ClientBuilder, Connector, Limits, Message};

use crate::backend::{Input, Link};

const CONNECT_WITHIN: Duration = Duration::from_secs(4);
/// The largest message that is read: some ten minutes of G.711.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Messages that wait for the socket; at 50 a second that is five seconds of the caller's voice.
const MOST_WAITING: usize = 256;
const PING_EVERY: Duration = Duration::from_secs(15);
/// Without any word for so long the connection is dead: two pings went unanswered.
const SILENT_FOR: Duration = Duration::from_secs(35);

/// Where the model is and how it is entered.
#[derive(Debug, Clone)]
pub struct Address {
    /// WebSocket address with its query.
    pub url: String,
    /// The key; never logged.
    pub key: Arc<str>,
}

/// Opens a connection in a task of its own. It reports to `events` and ends when the sender that is returned is dropped.
pub fn open(
    link: Link,
    address: Address,
    connector: Arc<Connector>,
    events: mpsc::Sender<Input>,
) -> mpsc::Sender<String> {
    let (outgoing, messages) = mpsc::channel(MOST_WAITING);
    tokio::spawn(async move {
        // Whatever ends it, the conversation only learns that it is gone.
        let _ = serve(link, address, &connector, &events, messages).await;
        let _ = events.send(Input::Disconnected(link)).await;
    });
    outgoing
}

async fn serve(
    link: Link,
    address: Address,
    connector: &Connector,
    events: &mpsc::Sender<Input>,
    mut messages: mpsc::Receiver<String>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let uri: Uri = address.url.parse()?;
    let mut authorization = HeaderValue::from_str(&format!("Bearer {}", address.key))?;
    authorization.set_sensitive(true);
    let connect = async {
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
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(socket)
    };
    let mut socket = tokio::time::timeout(CONNECT_WITHIN, connect).await??;
    events.send(Input::Connected(link)).await?;
    let mut ping = tokio::time::interval(PING_EVERY);
    let silent = tokio::time::sleep(SILENT_FOR);
    tokio::pin!(silent);
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Some(text) => socket.send(Message::text(text)).await?,
                None => {
                    socket.close().await?;
                    return Ok(());
                }
            },
            received = socket.next() => {
                let Some(message) = received.transpose()? else { return Ok(()) };
                silent.as_mut().reset(tokio::time::Instant::from_std(deadline()));
                if message.is_text() {
                    events.send(Input::Message(link, Bytes::from(message.into_payload()))).await?;
                } else if message.is_close() {
                    return Ok(());
                }
            }
            _ = ping.tick() => socket.send(Message::ping("")).await?,
            () = &mut silent => return Ok(()),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the shell brings the time")]
fn deadline() -> std::time::Instant {
    std::time::Instant::now() + SILENT_FOR
}
