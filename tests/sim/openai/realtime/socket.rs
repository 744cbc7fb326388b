//! A session on its WebSocket, and the record of what was said over it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_websockets::{Limits, Message, ServerBuilder};

use super::super::check::Refusal;
use super::Rules;
use super::mcp;
use super::script::Progress;
use super::session::{Out, Session};
use crate::control::Control;
use crate::http::{Answer, Request, Stream};

/// RFC 6455, section 1.3.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// 15 MiB of sound in base64, and what is around it.
const MOST_BYTES: usize = 21 * 1024 * 1024;
/// Events of each side that are kept of a session.
const MOST_EVENTS: usize = 4000;

/// What was said over one connection.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    pub id: String,
    pub with_ephemeral_key: bool,
    /// Events of the client's, in order; of sound only how much it was.
    pub received: Vec<Value>,
    /// Events of ours; of sound only how many bytes.
    pub sent: Vec<Value>,
    /// Bytes of sound that were appended.
    pub heard_bytes: usize,
    /// It is no more.
    pub ended: bool,
}

impl Seen {
    pub fn new(id: &str, with_ephemeral_key: bool) -> Self {
        let (received, sent) = (Vec::new(), Vec::new());
        Self { id: id.to_owned(), with_ephemeral_key, received, sent, heard_bytes: 0, ended: false }
    }

    /// Events of this type from the client.
    pub fn received(&self, name: &str) -> Vec<&Value> {
        self.received.iter().filter(|event| event.get("type").is_some_and(|kind| kind == name)).collect()
    }

    /// Events of this type from us.
    pub fn sent(&self, name: &str) -> Vec<&Value> {
        self.sent.iter().filter(|event| event.get("type").is_some_and(|kind| kind == name)).collect()
    }

    pub fn hears(&mut self, text: &str) {
        let mut event: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        if let Some(audio) = event.get_mut("audio").filter(|audio| audio.is_string()) {
            self.heard_bytes += audio.as_str().map_or(0, |audio| STANDARD.decode(audio).map_or(0, |sound| sound.len()));
            // Fifty a second of them say nothing.
            return;
        }
        if self.received.len() < MOST_EVENTS {
            self.received.push(event);
        }
    }

    pub fn says(&mut self, event: &Value) {
        if self.sent.len() >= MOST_EVENTS {
            return;
        }
        let mut event = event.clone();
        if event.get("type").is_some_and(|kind| kind == "response.output_audio.delta")
            && let Some(delta) = event.get_mut("delta")
        {
            *delta = json!(delta.as_str().map_or(0, |delta| STANDARD.decode(delta).map_or(0, |sound| sound.len())));
        }
        self.sent.push(event);
    }
}

/// A connection that is let in.
pub struct Opened {
    pub settings: Value,
    pub rules: Rules,
    pub progress: Arc<Mutex<Progress>>,
    pub seen: Arc<Mutex<Seen>>,
    /// Why it ends right after the upgrade.
    pub refused: Option<Refusal>,
}

/// The answer to a handshake; nothing if it is none.
pub fn accept(request: &Request) -> Option<Answer> {
    let says = |name: &str, word: &str| {
        request.header(name).is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    let key = request.header("sec-websocket-key").filter(|_| {
        request.method == "GET"
            && says("upgrade", "websocket")
            && says("connection", "upgrade")
            && request.header("sec-websocket-version") == Some("13")
    })?;
    let proof = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{MAGIC}").as_bytes());
    let answer = Answer::text(101, "text/plain", "");
    Some(
        Answer { headers: Vec::new(), ..answer }
            .header("upgrade", "websocket")
            .header("connection", "upgrade")
            .header("sec-websocket-accept", STANDARD.encode(proof)),
    )
}

/// Carries a session to its end.
pub async fn serve(opened: Opened, control: Arc<Control>, stream: Stream, mut cuts: watch::Receiver<u64>) {
    let began = Instant::now();
    let seen = opened.seen;
    let record = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let limits = Limits::default().max_payload_len(Some(MOST_BYTES));
    let mut socket = ServerBuilder::new().limits(limits).serve(stream);
    let faults = move |name: &str| control.meet_event(name);
    let mut session = Session::new(Duration::ZERO, opened.settings, opened.rules, opened.progress, faults);
    if let Some(refused) = &opened.refused {
        session.refuse(refused);
    }
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    'connected: loop {
        while let Some(out) = session.poll() {
            match out {
                Out::Event(event) => {
                    record().says(&event);
                    if socket.feed(Message::text(event.to_string())).await.is_err() {
                        break 'connected;
                    }
                }
                Out::Close => {
                    let _ = socket.flush().await;
                    let _ = socket.close().await;
                    break 'connected;
                }
                Out::Cut => break 'connected,
                Out::Remote(call) => mcp::begin(call, answers.clone()),
                Out::Hang => {
                    let _ = socket.flush().await;
                    // Not even a ping is answered: nobody reads.
                    let _ = cuts.changed().await;
                    break 'connected;
                }
            }
        }
        if socket.flush().await.is_err() {
            break;
        }
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) => {
                    if let Some(text) = message.as_text() {
                        record().hears(text);
                        session.hear(began.elapsed(), text);
                    }
                }
                _ => break,
            },
            Some((call, answer)) = answered.recv() => session.remote_done(&call, answer),
            () = tokio::time::sleep_until(began + session.next_at()) => session.tick(began.elapsed()),
            _ = cuts.changed() => break,
        }
    }
    record().ended = true;
}
