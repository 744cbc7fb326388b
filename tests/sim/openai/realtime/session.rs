//! One session as a state machine: a client's messages and time go in, events come out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::check::Refusal;
use super::Rules;
use super::audio::Format;
use super::event::Event;
use super::items::{Item, Items, audio_tokens, text_tokens};
use super::response::{Open, Piece, Running};
use super::script::{Act, Progress};
use super::settings::{merge, refusal};
use super::vad::{Edge, FRAME_MS, Vad};
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

    /// Hears from now on as the settings say.
    fn listen(&mut self) {
        let format = Format::of(self.settings.pointer("/audio/input/format"));
        if format != self.input {
            self.rest.clear();
            self.input = format;
        }
        let turns = self.settings.pointer("/audio/input/turn_detection").cloned().unwrap_or_default();
        self.vad = Vad::of(&turns, self.heard_ms);
        self.speaking = None;
    }

    fn append(&mut self, now: Duration, sound: &[u8]) {
        self.rest.extend_from_slice(sound);
        let frame = FRAME_MS as usize * self.input.bytes_a_ms();
        let whole = self.rest.len() / frame * frame;
        let sound: Vec<u8> = self.rest.drain(..whole).collect();
        for frame in sound.chunks_exact(frame) {
            self.heard_ms += FRAME_MS;
            match self.vad.as_mut().and_then(|vad| vad.frame(self.input.power(frame))) {
                Some(Edge::Started { audio_start_ms }) => self.started(audio_start_ms),
                Some(Edge::Stopped { audio_end_ms }) => self.stopped(now, audio_end_ms),
                None => {}
            }
        }
    }

    fn started(&mut self, audio_start_ms: u64) {
        let item = id("item");
        let start = json!({ "audio_start_ms": audio_start_ms, "item_id": item });
        self.speaking = Some((item, audio_start_ms));
        self.tell("input_audio_buffer.speech_started", start);
        if self.vad.as_ref().is_some_and(|vad| vad.interrupt_response) && self.response.is_some() {
            self.cancel("turn_detected");
        }
    }

    fn stopped(&mut self, now: Duration, audio_end_ms: u64) {
        let Some((item, from)) = self.speaking.take() else { return };
        self.tell("input_audio_buffer.speech_stopped", json!({ "audio_end_ms": audio_end_ms, "item_id": item }));
        self.commit(now, item, audio_end_ms.saturating_sub(from));
        if self.vad.as_ref().is_some_and(|vad| vad.create_response) && self.response.is_none() {
            self.respond(now, &json!({}));
        }
    }

    /// The caller's turn is an item from here on.
    fn commit(&mut self, now: Duration, item: String, ms: u64) {
        self.uncommitted_from_ms = self.heard_ms;
        let before = self.items.last_id();
        self.tell("input_audio_buffer.committed", json!({ "item_id": item, "previous_item_id": before }));
        let content = json!([{"type": "input_audio", "transcript": null}]);
        let value = json!({"id": item, "object": "realtime.item", "type": "message", "status": "completed", "role": "user", "content": content});
        self.added(Item { id: item.clone(), value, audio_ms: ms, of_model: false }, None);
        let (text, language) = self.progress().hears();
        if self.settings.pointer("/audio/input/transcription").is_some_and(|wanted| !wanted.is_null()) {
            self.hearing.push_back(Hearing { at: now + TRANSCRIBED_AFTER, item, text, language, ms });
        }
    }

    fn transcribed(&mut self, heard: Hearing) {
        let Hearing { item, text, language, ms, .. } = heard;
        let name = |end: &str| format!("conversation.item.input_audio_transcription.{end}");
        self.tell(&name("delta"), json!({ "item_id": item, "content_index": 0, "delta": text }));
        let mut completed = json!({
            "item_id": item, "content_index": 0, "transcript": text,
            "usage": {"type": "duration", "seconds": ms.div_ceil(1000)},
        });
        if let (Some(language), Some(completed)) = (language, completed.as_object_mut()) {
            completed.insert("languages".to_owned(), json!([language]));
        }
        self.tell(&name("completed"), completed);
        if let Some(part) = self.items.find(&item).and_then(|item| item.value.pointer_mut("/content/0")) {
            *part = json!({"type": "input_audio", "transcript": text});
        }
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

    fn respond(&mut self, now: Duration, wanted: &Value) {
        let met = (self.faults)("response.create");
        match met.fault {
            Some(Fault::CutBefore) => return self.end(Out::Cut),
            Some(Fault::TimeoutBefore) => return self.end(Out::Hang),
            _ => {}
        }
        let modalities = self.settings.get("output_modalities").cloned().unwrap_or_default();
        let mut running = Running::new(wanted, &modalities);
        let created = self.show(&running, "in_progress", &Value::Null, &Value::Null);
        self.tell("response.created", json!({ "response": created }));
        if let Some(fault) = met.fault.filter(|fault| !fault.accepted()) {
            let Refusal { code, message, .. } = broken(fault);
            let kind = if code == "rate_limit_exceeded" { "rate_limit_error" } else { "server_error" };
            let details = json!({"type": "failed", "error": {"type": kind, "code": code, "message": message}});
            self.limits(if kind == "rate_limit_error" { 0 } else { 999 });
            self.response = Some(running);
            return self.done("failed", &details);
        }
        self.limits(999);
        let mut first = now + self.rules.think;
        if met.is(Fault::Slow) {
            first += met.delay.unwrap_or(Duration::from_secs(2));
        }
        let (speech, calls) = match self.progress().act() {
            Act::Say(speech) => (Some(speech), Vec::new()),
            Act::Call { name, arguments, saying } => (saying, vec![(name, arguments)]),
            Act::SayIfTold { told, then, otherwise } => {
                let found = self.items.told().is_some_and(|output| output.contains(&told));
                (Some(if found { then } else { otherwise }), Vec::new())
            }
        };
        let format = Format::of(self.settings.pointer("/audio/output/format"));
        running.plan(speech, calls, format, self.rules, first);
        self.response = Some(running);
        match met.fault {
            Some(Fault::CutAfter) => self.end(Out::Cut),
            Some(Fault::TimeoutAfter) => self.end(Out::Hang),
            _ => {}
        }
    }

    fn piece(&mut self, piece: Piece) {
        match piece {
            Piece::Open => self.open(),
            Piece::Words(words) => {
                let Some(response) = &mut self.response else { return };
                let written = response.written;
                response.made.text += text_tokens(words.len());
                if let Some(open) = &mut response.open {
                    open.text.push_str(&words);
                }
                let name =
                    if written { "response.output_text.delta" } else { "response.output_audio_transcript.delta" };
                self.tell_of_part(name, json!({ "delta": words }));
            }
            Piece::Sound(sound) => {
                self.spoke = true;
                let format = Format::of(self.settings.pointer("/audio/output/format"));
                let open = self.response.as_mut().and_then(|response| response.open.as_mut());
                if let Some(open) = open {
                    open.bytes += sound.len();
                    let ms = (open.bytes / format.bytes_a_ms()) as u64;
                    if let Some(item) = self.items.find(&open.id) {
                        item.audio_ms = ms;
                    }
                }
                self.tell_of_part("response.output_audio.delta", json!({ "delta": STANDARD.encode(sound) }));
            }
            Piece::Close => self.close("completed"),
            Piece::Call { name, arguments } => self.call(&name, &arguments),
            Piece::Done => self.done("completed", &Value::Null),
        }
    }

    fn open(&mut self) {
        let Some(response) = &mut self.response else { return };
        let (item, written) = (id("item"), response.written);
        response.open = Some(Open { id: item.clone(), text: String::new(), bytes: 0 });
        let value = json!({"id": item, "object": "realtime.item", "type": "message", "status": "in_progress", "role": "assistant", "content": []});
        self.tell_of_output("response.output_item.added", &value);
        self.enters(Item { id: item, value, audio_ms: 0, of_model: true });
        let part =
            if written { json!({"type": "text", "text": ""}) } else { json!({"type": "audio", "transcript": ""}) };
        self.tell_of_part("response.content_part.added", json!({ "part": part }));
    }

    fn close(&mut self, status: &str) {
        let Some(open) = self.response.as_ref().and_then(|response| response.open.as_ref()) else { return };
        let (item, text) = (open.id.clone(), open.text.clone());
        let written = self.response.as_ref().is_some_and(|response| response.written);
        let part = if written {
            self.tell_of_part("response.output_text.done", json!({ "text": text }));
            json!({"type": "text", "text": text})
        } else {
            self.tell_of_part("response.output_audio.done", json!({}));
            self.tell_of_part("response.output_audio_transcript.done", json!({ "transcript": text }));
            json!({"type": "audio", "transcript": text})
        };
        self.tell_of_part("response.content_part.done", json!({ "part": part }));
        let content = if written {
            json!({"type": "output_text", "text": text})
        } else {
            json!({"type": "output_audio", "transcript": text})
        };
        let value = json!({"id": item, "object": "realtime.item", "type": "message", "status": status, "role": "assistant", "content": [content]});
        let format = Format::of(self.settings.pointer("/audio/output/format"));
        if let Some(response) = &mut self.response
            && let Some(open) = response.open.take()
        {
            response.made.audio += audio_tokens((open.bytes / format.bytes_a_ms()) as u64, true);
        }
        self.whole(&item, value);
    }

    fn call(&mut self, name: &str, arguments: &str) {
        let (item, call_id) = (id("item"), id("call"));
        let value = |status: &str, arguments: &str| {
            json!({"id": item, "object": "realtime.item", "type": "function_call", "status": status, "call_id": call_id,
                   "name": name, "arguments": arguments})
        };
        self.tell_of_output("response.output_item.added", &value("in_progress", ""));
        self.enters(Item { id: item.clone(), value: value("in_progress", ""), audio_ms: 0, of_model: true });
        let at = self.response.as_ref().map(|response| (response.id.clone(), response.output.len()));
        let of = |more: Value| {
            let (response, index) = at.clone().unwrap_or_default();
            let mut all =
                json!({ "response_id": response, "item_id": item, "output_index": index, "call_id": call_id });
            if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
                all.extend(more);
            }
            all
        };
        self.tell("response.function_call_arguments.delta", of(json!({ "delta": arguments })));
        self.tell("response.function_call_arguments.done", of(json!({ "arguments": arguments, "name": name })));
        if let Some(response) = &mut self.response {
            response.made.text += text_tokens(arguments.len() + name.len());
        }
        self.whole(&item, value("completed", arguments));
    }

    /// An item of the model's enters the conversation, unfinished.
    fn enters(&mut self, item: Item) {
        if self.response.as_ref().is_some_and(|response| response.aside) {
            return;
        }
        let value = item.value.clone();
        let before = self.items.add(item, None);
        self.tell("conversation.item.added", json!({ "item": value, "previous_item_id": before }));
    }

    /// An item of the model's is finished.
    fn whole(&mut self, id: &str, value: Value) {
        self.tell_of_output("response.output_item.done", &value);
        if let Some(item) = self.items.find(id) {
            item.value = value.clone();
            self.tell("conversation.item.done", json!({ "item": value }));
        }
        if let Some(response) = &mut self.response {
            response.output.push(value);
        }
    }

    fn cancel(&mut self, reason: &str) {
        if let Some(response) = &mut self.response {
            response.pieces.clear();
        }
        self.close("incomplete");
        self.done("cancelled", &json!({"type": "cancelled", "reason": reason}));
    }

    fn done(&mut self, status: &str, details: &Value) {
        let Some(running) = self.response.take() else { return };
        let told = self.settings.get("instructions").and_then(Value::as_str).map_or(0, str::len);
        let tools = self.settings.get("tools").map_or(0, |tools| tools.to_string().len());
        let usage = if status == "failed" {
            json!({"total_tokens": 0, "input_tokens": 0, "output_tokens": 0})
        } else {
            self.items.usage(told + tools, running.made)
        };
        let shown = self.show(&running, status, details, &usage);
        self.tell("response.done", json!({ "response": shown }));
    }

    fn show(&self, running: &Running, status: &str, details: &Value, usage: &Value) -> Value {
        let output = self.settings.pointer("/audio/output");
        json!({
            "object": "realtime.response", "id": running.id, "status": status, "status_details": details, "output": running.output,
            "conversation_id": if running.aside { Value::Null } else { self.conversation.as_str().into() },
            "output_modalities": if running.written { ["text"] } else { ["audio"] },
            "max_output_tokens": self.settings.get("max_output_tokens"), "audio": { "output": output },
            "usage": usage, "metadata": running.metadata,
        })
    }

    fn limits(&mut self, remaining: u32) {
        let limit = |name: &str, limit: u32, remaining: u32| json!({"name": name, "limit": limit, "remaining": remaining, "reset_seconds": if remaining == 0 { 1.5 } else { 0.06 }});
        let limits = [limit("requests", 1000, remaining), limit("tokens", 800_000, 799_000 * u32::from(remaining > 0))];
        self.tell("rate_limits.updated", json!({ "rate_limits": limits }));
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&mut self, how: Out) {
        self.over = true;
        self.out.push_back(how);
    }

    fn tell_of_output(&mut self, name: &str, item: &Value) {
        let Some(response) = &self.response else { return };
        let event = json!({ "response_id": response.id, "output_index": response.output.len(), "item": item });
        self.tell(name, event);
    }

    fn tell_of_part(&mut self, name: &str, more: Value) {
        let Some(response) = &self.response else { return };
        let item = response.open.as_ref().map(|open| open.id.clone());
        let mut event = json!({ "response_id": response.id, "item_id": item, "output_index": response.output.len(), "content_index": 0 });
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        self.tell(name, event);
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

fn id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}
