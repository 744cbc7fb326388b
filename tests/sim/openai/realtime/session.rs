//! One session as a state machine: a client's messages and time go in, events come out. What comes of sound is in
//! `hearing`, what a response is told as in `answering`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

mod answering;
mod hearing;

use super::super::check::Refusal;
use super::Rules;
use super::audio::Format;
use super::event::Event;
use super::items::{Item, Items};
use super::mcp::RemoteCall;
use super::response::Running;
use super::script::Progress;
use super::settings::{merge, refusal};
use super::vad::Vad;
use crate::control::{Fault, Met};

/// The words of a turn come so much later than its end: usually when the answer has begun.
const TRANSCRIBED_AFTER: Duration = Duration::from_millis(200);
/// A turn that a client commits must have this much sound.
const LEAST_COMMIT_MS: u64 = 100;

/// What is to be done with the connection.
#[derive(Debug, PartialEq)]
pub enum Out {
    Event(Value),
    /// Closed as the protocol wants it.
    Close,
    /// Gone without a word.
    Cut,
    /// It stands, and nobody is there any more.
    Hang,
    /// A remote tool is to be called; [`Session::remote_done`] is told what came of it.
    Remote(RemoteCall),
}

type Faults = Box<dyn Fn(&str) -> Met + Send>;

/// A turn whose words are on their way.
#[derive(Debug)]
struct Hearing {
    at: Duration,
    item: String,
    text: String,
    language: Option<String>,
    ms: u64,
}

/// One session.
pub struct Session {
    conversation: String,
    settings: Value,
    rules: Rules,
    progress: Arc<Mutex<Progress>>,
    faults: Faults,
    expires: Duration,
    input: Format,
    vad: Option<Vad>,
    /// Sound that is not a whole frame yet.
    rest: Vec<u8>,
    heard_ms: u64,
    /// Where the sound begins that was not committed yet.
    uncommitted_from_ms: u64,
    /// The turn that is being spoken: its item, and where it began.
    speaking: Option<(String, u64)>,
    items: Items,
    response: Option<Running>,
    hearing: VecDeque<Hearing>,
    /// A voice was heard: it cannot be changed.
    spoke: bool,
    over: bool,
    out: VecDeque<Out>,
}

impl Session {
    pub fn new(
        now: Duration,
        settings: Value,
        rules: Rules,
        progress: Arc<Mutex<Progress>>,
        faults: impl Fn(&str) -> Met + Send + 'static,
    ) -> Self {
        let mut session = Self {
            conversation: id("conv"),
            settings,
            rules,
            progress,
            faults: Box::new(faults),
            expires: now + rules.session_limit,
            input: Format::Pcm,
            vad: None,
            rest: Vec::new(),
            heard_ms: 0,
            uncommitted_from_ms: 0,
            speaking: None,
            items: Items::default(),
            response: None,
            hearing: VecDeque::new(),
            spoke: false,
            over: false,
            out: VecDeque::new(),
        };
        session.listen();
        let created = session.settings.clone();
        session.tell("session.created", json!({ "session": created }));
        session
    }

    /// As they are now.
    pub fn settings(&self) -> &Value {
        &self.settings
    }

    /// The end of a connection that is refused behind its upgrade.
    pub fn refuse(&mut self, refused: &Refusal) {
        self.out.clear();
        self.error(refused, None);
        self.end(Out::Close);
    }

    pub fn poll(&mut self) -> Option<Out> {
        self.out.pop_front()
    }

    /// When something is due without the client's doing.
    pub fn next_at(&self) -> Duration {
        let piece = self.response.as_ref().and_then(|response| response.pieces.front()).map(|(at, _)| *at);
        let heard = self.hearing.front().map(|hearing| hearing.at);
        [piece, heard].into_iter().flatten().fold(self.expires, Duration::min)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.over {
            return;
        }
        while let Some(heard) = self.hearing.pop_front_if(|heard| heard.at <= now) {
            self.transcribed(heard);
        }
        let due = |response: &mut Running| response.pieces.pop_front_if(|(at, _)| *at <= now);
        while let Some((_, piece)) = self.response.as_mut().and_then(due) {
            self.piece(piece);
        }
        if now >= self.expires {
            let minutes = self.rules.session_limit.as_secs() / 60;
            let message = format!("Your session hit the maximum duration of {minutes} minutes.");
            self.error(&refusal("session_expired", "", &message), None);
            self.end(Out::Close);
        }
    }

    /// A message of the client's.
    pub fn hear(&mut self, now: Duration, text: &str) {
        if self.over {
            return;
        }
        let Ok(given) = serde_json::from_str::<Value>(text) else {
            return self.error(&refusal("invalid_json", "", "We could not parse the JSON body of your event."), None);
        };
        let name = given.get("type").and_then(Value::as_str).unwrap_or_default();
        let event_id = given.get("event_id").and_then(Value::as_str);
        // What strikes a response strikes it however it was begun.
        let met = if name == "response.create" { Met::default() } else { (self.faults)(name) };
        match met.fault {
            Some(Fault::CutBefore) => return self.end(Out::Cut),
            Some(Fault::TimeoutBefore) => return self.end(Out::Hang),
            Some(fault) if !fault.accepted() => return self.error(&broken(fault), event_id),
            _ => {}
        }
        if let Err(refused) = Event::read(&given).and_then(|event| self.event(now, event)) {
            self.error(&refused, event_id);
        }
        match met.fault {
            Some(Fault::CutAfter) => self.end(Out::Cut),
            Some(Fault::TimeoutAfter) => self.end(Out::Hang),
            Some(Fault::Status500After) => self.error(&broken(Fault::Status500After), event_id),
            _ => {}
        }
    }

    fn event(&mut self, now: Duration, event: Event) -> Result<(), Refusal> {
        match event {
            Event::Update(wanted) => self.update(&wanted),
            Event::Append(sound) => {
                if self.input == Format::Pcm && sound.len() % 2 != 0 {
                    let message = "Invalid 'audio'. Expected 16-bit samples: an even number of bytes.";
                    return Err(refusal("invalid_value", "audio", message));
                }
                self.append(now, &sound);
                Ok(())
            }
            Event::Commit => {
                let ms = self.heard_ms - self.uncommitted_from_ms;
                if ms < LEAST_COMMIT_MS {
                    let message = format!(
                        "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but buffer only has {ms}.00ms of audio."
                    );
                    return Err(refusal("input_audio_buffer_commit_empty", "", &message));
                }
                let (item, from) = self.speaking.take().unwrap_or_else(|| (id("item"), self.uncommitted_from_ms));
                self.commit(now, item, self.heard_ms - from);
                Ok(())
            }
            Event::Clear => {
                self.speaking = None;
                self.uncommitted_from_ms = self.heard_ms;
                self.tell("input_audio_buffer.cleared", json!({}));
                Ok(())
            }
            Event::Create { item, previous } => self.create(item, previous.as_deref()),
            Event::Truncate { item_id, content_index, audio_end_ms } => {
                self.truncate(&item_id, content_index, audio_end_ms)
            }
            Event::Delete(item_id) => {
                if !self.items.remove(&item_id) {
                    return Err(unknown_item("item_delete_invalid_item_id", "deleting", &item_id));
                }
                self.tell("conversation.item.deleted", json!({ "item_id": item_id }));
                Ok(())
            }
            Event::Retrieve(item_id) => {
                let item = self.items.find(&item_id).map(|item| item.value.clone());
                let item = item.ok_or_else(|| unknown_item("item_retrieve_invalid_item_id", "retrieving", &item_id))?;
                self.tell("conversation.item.retrieved", json!({ "item": item }));
                Ok(())
            }
            Event::Respond(wanted) => {
                if let Some(active) = &self.response {
                    let message = format!(
                        "Conversation already has an active response in progress: {}. Wait until the response is finished before creating a new one.",
                        active.id
                    );
                    return Err(refusal("conversation_already_has_active_response", "", &message));
                }
                self.respond(now, &wanted);
                Ok(())
            }
            Event::Cancel(wanted) => {
                let active = self.response.as_ref().map(|response| response.id.clone());
                if active.is_none() || wanted.is_some_and(|wanted| Some(wanted) != active) {
                    let message = "Cancellation failed: no active response found";
                    return Err(refusal("response_cancel_not_active", "", message));
                }
                self.cancel("client_cancelled");
                Ok(())
            }
        }
    }

    fn update(&mut self, wanted: &Value) -> Result<(), Refusal> {
        if let Some(model) = wanted.get("model")
            && self.settings.get("model") != Some(model)
        {
            return Err(refusal("invalid_value", "session.model", "The model of a session cannot be changed."));
        }
        if let Some(voice) = wanted.pointer("/audio/output/voice")
            && self.spoke
            && self.settings.pointer("/audio/output/voice") != Some(voice)
        {
            let message = "Cannot update a conversation's voice if assistant audio is present.";
            return Err(refusal("cannot_update_voice", "session.audio.output.voice", message));
        }
        merge(&mut self.settings, wanted);
        if wanted.pointer("/audio/input").is_some() {
            self.listen();
        }
        let session = self.settings.clone();
        self.tell("session.updated", json!({ "session": session }));
        Ok(())
    }

    fn create(&mut self, mut value: Value, previous: Option<&str>) -> Result<(), Refusal> {
        let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let call_id = field("call_id");
        if field("type") == "function_call_output" && !self.items.has_call(&call_id) {
            let message = format!("Tool call ID '{call_id}' not found in conversation.");
            return Err(refusal("invalid_tool_call_id", "item.call_id", &message));
        }
        if let Some(behind) = previous.filter(|behind| *behind != "root")
            && self.items.find(behind).is_none()
        {
            return Err(unknown_item("item_create_invalid_previous_item_id", "creating behind", behind));
        }
        if field("role") == "user"
            && let Some(text) = value.pointer("/content/0/text").and_then(Value::as_str)
        {
            self.progress().told(text);
        }
        let item = Some(field("id")).filter(|id| !id.is_empty()).unwrap_or_else(|| id("item"));
        if self.items.find(&item).is_some() {
            let message = format!("Error adding item: an item with id '{item}' already exists.");
            return Err(refusal("item_create_duplicate_item_id", "item.id", &message));
        }
        if let Some(fields) = value.as_object_mut() {
            fields.insert("id".to_owned(), item.clone().into());
            fields.insert("object".to_owned(), "realtime.item".into());
            fields.insert("status".to_owned(), "completed".into());
        }
        self.added(Item { id: item, value, audio_ms: 0, of_model: false }, previous);
        Ok(())
    }

    /// An item that is whole enters the conversation.
    fn added(&mut self, item: Item, behind: Option<&str>) {
        let value = item.value.clone();
        let before = self.items.add(item, behind);
        for name in ["conversation.item.added", "conversation.item.done"] {
            self.tell(name, json!({ "item": value, "previous_item_id": before }));
        }
    }

    fn truncate(&mut self, item_id: &str, content_index: u64, audio_end_ms: u64) -> Result<(), Refusal> {
        let item = self.items.find(item_id);
        let item = item.ok_or_else(|| unknown_item("item_truncate_invalid_item_id", "truncating", item_id))?;
        if !item.of_model || item.audio_ms == 0 || content_index != 0 {
            let message = "Only model output audio messages can be truncated";
            return Err(refusal("unsupported_content_type", "", message));
        }
        if audio_end_ms > item.audio_ms {
            let message = format!("Audio content of {}ms is already shorter than {audio_end_ms}ms", item.audio_ms);
            return Err(refusal("invalid_value", "audio_end_ms", &message));
        }
        item.audio_ms = audio_end_ms;
        // What was not heard was not said.
        if let Some(part) = item.value.pointer_mut("/content/0") {
            *part = json!({"type": "output_audio"});
        }
        let cut = json!({ "item_id": item_id, "content_index": 0, "audio_end_ms": audio_end_ms });
        self.tell("conversation.item.truncated", cut);
        Ok(())
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&mut self, how: Out) {
        self.over = true;
        self.out.push_back(how);
    }

    fn tell(&mut self, name: &str, mut event: Value) {
        if let Some(event) = event.as_object_mut() {
            event.insert("type".to_owned(), name.into());
            event.insert("event_id".to_owned(), id("event").into());
        }
        self.out.push_back(Out::Event(event));
    }

    fn error(&mut self, refused: &Refusal, event_id: Option<&str>) {
        let kind = match refused.code {
            "server_error" => "server_error",
            "rate_limit_exceeded" => "rate_limit_error",
            _ => "invalid_request_error",
        };
        let param = Some(&refused.param).filter(|param| !param.is_empty());
        let error = json!({"type": kind, "code": refused.code, "message": refused.message, "param": param, "event_id": event_id});
        self.tell("error", json!({ "error": error }));
    }
}

/// A fault as an error of the vendor's.
fn broken(fault: Fault) -> Refusal {
    match fault {
        Fault::Status429 | Fault::Status429RetryAfter => {
            refusal("rate_limit_exceeded", "", "Rate limit reached for requests. Please try again in 1.5s.")
        }
        Fault::Status401 => refusal("invalid_api_key", "", "Incorrect API key provided."),
        _ => refusal("server_error", "", "The server had an error while processing your request."),
    }
}

fn unknown_item(code: &'static str, doing: &str, item: &str) -> Refusal {
    refusal(code, "item_id", &format!("Error {doing} item: the item with id '{item}' does not exist."))
}

pub fn id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}
