//! A gateway that streams media over a WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

use super::{SOON, World, base64, from_base64};

/// What gateways show.
pub const GATEWAY_SECRET: &str = "gateway-secret";

/// A gateway that streams media over a WebSocket.
pub struct Gateway {
    socket: WebSocketStream<TcpStream>,
    chunk: u64,
}

impl World {
    /// A gateway that shows this in the head of its request, or nothing; a refusal is an error.
    pub async fn gateway_with(&self, secret: Option<&str>) -> Result<Gateway, tokio_websockets::Error> {
        let uri = format!("ws://{}/mtn-media", self.http).parse().unwrap();
        let mut client = ClientBuilder::from_uri(uri);
        if let Some(secret) = secret {
            let header = format!("Bearer {secret}").parse().unwrap();
            client = client.add_header(hyper::header::AUTHORIZATION, header).unwrap();
        }
        let stream = TcpStream::connect(self.http).await.unwrap();
        Ok(Gateway { socket: client.connect_on(stream).await?.0, chunk: 0 })
    }

    /// A gateway that shows its secret.
    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(Some(GATEWAY_SECRET)).await.unwrap()
    }
}

impl Gateway {
    pub async fn say(&mut self, message: Value) {
        self.text(&message.to_string()).await;
    }

    pub async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text.to_owned())).await.unwrap();
    }

    /// Says something that may not be taken any more.
    pub async fn try_say(&mut self, message: Value) -> Result<(), tokio_websockets::Error> {
        self.socket.send(Message::text(message.to_string())).await
    }

    /// Names its call.
    pub async fn start(&mut self, call_sid: &str, more: Value) {
        let mut start = json!({
            "callSid": call_sid, "from": "+250788123456", "to": "+250788000400",
            "mediaFormat": { "encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1 },
        });
        for (name, value) in more.as_object().unwrap() {
            start[name] = value.clone();
        }
        self.say(json!({ "event": "connected", "protocol": "Call", "version": "1.0.0" })).await;
        self.say(json!({ "event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": start })).await;
    }

    /// Frames of voice, each filled with one byte.
    pub async fn speak(&mut self, byte: u8, frames: usize) {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..frames {
            tick.tick().await;
            self.chunk += 1;
            let (chunk, timestamp) = (self.chunk.to_string(), (self.chunk * 20).to_string());
            let media =
                json!({ "track": "inbound", "chunk": chunk, "timestamp": timestamp, "payload": base64(&[byte; 160]) });
            self.say(json!({ "event": "media", "streamSid": "MZ1", "media": media })).await;
        }
    }

    /// Sends a mark back.
    pub async fn echo(&mut self, mark: &Value) {
        self.say(json!({ "event": "mark", "streamSid": "MZ1", "mark": mark["mark"] })).await;
    }

    /// The next message.
    pub async fn next(&mut self) -> Value {
        let waited = tokio::time::timeout(SOON, async {
            loop {
                let message = self.socket.next().await.expect("the socket is open").unwrap();
                if let Some(text) = message.as_text() {
                    return serde_json::from_str(text).unwrap();
                }
                assert!(!message.is_close(), "closed: {:?}", message.as_close());
            }
        });
        waited.await.expect("a message in time")
    }

    /// The next message of this kind, and the sound that came before it.
    pub async fn until(&mut self, event: &str) -> (Value, Vec<u8>) {
        let mut sound = Vec::new();
        loop {
            let message = self.next().await;
            if message["event"] == "media" {
                sound.extend(from_base64(message["media"]["payload"].as_str().unwrap()));
            }
            if message["event"] == event {
                return (message, sound);
            }
        }
    }

    /// The number with which the relay closes the socket.
    pub async fn closed(&mut self) -> u16 {
        let waited = tokio::time::timeout(SOON, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(message)) if message.is_close() => return message.as_close().unwrap().0.into(),
                    Some(Ok(_)) => {}
                    other => panic!("no closing frame, but {other:?}"),
                }
            }
        });
        waited.await.expect("the socket is closed in time")
    }
}
