//! The model, at the wire.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_websockets::{Message, ServerBuilder};

use super::base64;

/// What the model heard and was told.
#[derive(Clone, Default)]
pub struct Model {
    /// Messages, sound left out.
    pub messages: Arc<Mutex<Vec<Value>>>,
    /// Sound, as the base64 that came.
    pub heard: Arc<Mutex<Vec<String>>>,
    say: Arc<Mutex<Option<mpsc::UnboundedSender<Option<Value>>>>>,
    gone: Arc<AtomicBool>,
}

impl Model {
    /// Types of the messages that came.
    pub fn types(&self) -> Vec<String> {
        self.messages.lock().unwrap().iter().map(|message| message["type"].as_str().unwrap().to_owned()).collect()
    }

    /// Sends an event.
    pub fn say(&self, event: Value) {
        self.say.lock().unwrap().as_ref().unwrap().send(Some(event)).unwrap();
    }

    /// Cuts the connection.
    pub fn cut(&self) {
        self.say.lock().unwrap().take().unwrap().send(None).unwrap();
    }

    /// Cuts the connection, and takes no other.
    pub fn go(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// Speaks for that many milliseconds, as fast as it can.
    pub fn speak(&self, name: &str, words: &str, ms: usize) {
        let audio = base64(&vec![0x31; ms * 8]);
        self.say(json!({ "type": "response.created", "response": { "id": name } }));
        self.say(
            json!({ "type": "response.output_audio.delta", "response_id": name, "item_id": name, "delta": audio }),
        );
        self.say(json!({ "type": "response.output_audio_transcript.done", "response_id": name, "item_id": name, "transcript": words }));
        self.say(json!({ "type": "response.output_audio.done", "response_id": name, "item_id": name }));
        self.say(json!({ "type": "response.done", "response": { "id": name, "status": "completed" } }));
    }
}

/// A model that is said each word by its test.
pub(super) async fn model(model: Model) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let model = model.clone();
            if model.gone.load(Ordering::Relaxed) {
                continue;
            }
            tokio::spawn(async move {
                let Ok((request, mut socket)) = ServerBuilder::new().accept(stream).await else { return };
                assert_eq!(request.headers()["authorization"], "Bearer model-key");
                assert!(request.headers().get("openai-beta").is_none());
                let (say, mut said) = mpsc::unbounded_channel();
                *model.say.lock().unwrap() = Some(say.clone());
                say.send(Some(json!({ "type": "session.created" }))).unwrap();
                loop {
                    tokio::select! {
                        event = said.recv() => match event.flatten() {
                            Some(event) => socket.send(Message::text(event.to_string())).await.unwrap(),
                            None => return,
                        },
                        message = socket.next() => {
                            let Some(Ok(message)) = message else { return };
                            let Some(text) = message.as_text() else { continue };
                            let value: Value = serde_json::from_str(text).unwrap();
                            match value["type"].as_str().unwrap() {
                                "input_audio_buffer.append" => {
                                    model.heard.lock().unwrap().push(value["audio"].as_str().unwrap().to_owned());
                                    continue;
                                }
                                "session.update" => say.send(Some(json!({ "type": "session.updated", "session": value["session"] }))).unwrap(),
                                _ => {}
                            }
                            model.messages.lock().unwrap().push(value);
                        }
                    }
                }
            });
        }
    });
    address
}
