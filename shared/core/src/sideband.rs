//! A call over OpenAI's own SIP, as whoever holds its sideband sees it: the vendor carries the sound and plays it, we hear of
//! the words, run the tools, keep the record, hand the caller over and end the call.
//!
//! A state machine like the relay's: what comes over the socket and time go in, [`Act`]s come out. It can be written down
//! and read again at any moment ([`Sideband::to_text`]), because the object that holds it may be gone at any moment. The
//! record is in the relay's words (docs/api.md, "openai-realtime-sip") and numbered like its: from 1, without gaps.

use std::collections::VecDeque;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::json::{clip, str_at};
use crate::json_text::{self, to_text};
use crate::locale::{self, ALL, Locale};
use crate::phone::E164;
use crate::realtime::{greeting, in_language, pressed};
use crate::realtime_event::Event;
use crate::spoken::Language;
use crate::timestamp;

/// A response that was asked for begins within this time, or never.
const BEGINS_WITHIN_MS: i64 = 5_000;
/// Waits before an answer that failed is asked for again; after the last one the model is given up.
const AGAIN_MS: [i64; 3] = [500, 2_000, 4_000];
/// Keys further apart are not one number.
const KEYS_APART_MS: i64 = 2_000;
const MOST_KEYS: usize = 32;
/// Uses of tools that wait for their answer.
const MOST_TOOLS: usize = 16;
/// Turns of the agent's of which it is not known yet how they were heard.
const MOST_TURNS: usize = 64;
const MOST_CUT: usize = 8;
/// Longest turn that is held, in bytes; what is stored is cut once more.
const TURN_LIMIT_BYTES: usize = 16_000;
/// How long a goodbye, or what is said before the caller is handed over, may take.
const FAREWELL_MS: i64 = 15_000;
/// Errors that asking again would not mend.
const FATAL: [&str; 5] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "invalid_api_key",
    "account_deactivated",
    "billing_hard_limit_reached",
];

/// The tool with which the agent ends a call. The others are the database's.
pub const END_CALL: &str = "end_call";

/// What a call is observed with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The agent's instructions, as the session was accepted with them.
    pub instructions: String,
    /// The language that they begin in.
    pub locale: Locale,
    /// Writes down what the caller says; empty: nobody does.
    pub transcription_model: String,
    /// Beginnings of numbers to which a caller may be handed over: all that stands between a talkative model and somebody
    /// else's telephone bill.
    pub transfer_prefixes: Vec<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Send this over the socket.
    Send(String),
    /// An event of the record, numbered.
    Keep(Value),
    /// Run a tool, and say what it answered ([`Sideband::answered`]). The same `call_id` twice is the same use of it.
    Run {
        /// Names this use.
        call_id: String,
        /// Which tool.
        name: String,
        /// As the model wrote them.
        arguments: String,
    },
    /// Hand the caller over, and say whether the line took it ([`Sideband::referred`]).
    Refer(E164),
    /// End the call for this cause, one of [`crate::realtime::CAUSES`].
    HangUp(&'static str),
    /// Something is not as it should be, and the call goes on; words of ours, never of the caller.
    Warn(String),
}

/// A turn of the agent's: written, and not known yet how much of it was heard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Turn {
    item: String,
    response: String,
    text: String,
    /// When its words were whole.
    at_ms: i64,
    /// The caller cut it off.
    cut: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Tool {
    call_id: String,
    response: String,
    name: String,
    arguments: String,
    /// Runs, or did. Not before its response is complete.
    begun_ms: Option<i64>,
    output: Option<String>,
}

/// How the call is to end, once the agent has said what it had to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Farewell {
    /// The agent says goodbye, and no longer than until then.
    Goodbye { by_ms: i64, spoken: bool },
    /// The caller is handed over; the tool that asked for it hears how it went.
    HandOver { call_id: String, number: String, by_ms: i64, asked: bool },
}

/// One call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sideband {
    setup: Setup,
    language: Language,
    /// The number of the last event of the record.
    seq: i64,
    greeted: bool,
    /// The socket stood at least once.
    observed: bool,
    /// The session told its name.
    met: bool,
    /// The socket stands. Whoever reads a call again has none.
    #[serde(skip)]
    ready: bool,
    /// The response that is being made.
    #[serde(skip)]
    response: Option<String>,
    /// One was asked for, then, and has not begun.
    #[serde(skip)]
    asked_ms: Option<i64>,
    /// One is to be asked for as soon as none is being made.
    wants_response: bool,
    /// Answers that failed, one after another.
    failures: usize,
    again_ms: Option<i64>,
    turns: VecDeque<Turn>,
    /// Responses and items that were cut off before their words were whole; the newest last.
    cut: VecDeque<String>,
    tools: Vec<Tool>,
    /// Remote tools that the service is calling.
    #[serde(default)]
    remote: u32,
    /// The number that is being typed.
    keys: String,
    last_key_ms: i64,
    farewell: Option<Farewell>,
    #[serde(skip)]
    over: bool,
    #[serde(skip)]
    acts: Vec<Act>,
}

impl Sideband {
    /// A call that was accepted at `now_ms` (milliseconds since 1970). `opened` is what the record says of its beginning.
    pub fn new(setup: Setup, opened: Value, now_ms: i64) -> Sideband {
        let mut call = Sideband {
            language: Language::new(setup.locale),
            setup,
            seq: 0,
            greeted: false,
            observed: false,
            met: false,
            ready: false,
            response: None,
            asked_ms: None,
            wants_response: false,
            failures: 0,
            again_ms: None,
            turns: VecDeque::new(),
            cut: VecDeque::new(),
            tools: Vec::new(),
            remote: 0,
            keys: String::new(),
            last_key_ms: 0,
            farewell: None,
            over: false,
            acts: Vec::new(),
        };
        call.keep(now_ms, "opened", opened);
        call.keep(now_ms, "answered", json!({}));
        call
    }

    /// The call as it is, to be read again by [`Sideband::from_text`].
    pub fn to_text(&self) -> String {
        // Only a map with other keys than texts could fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A call that was written down. No connection stands then.
    pub fn from_text(text: &str) -> Option<Sideband> {
        serde_json::from_str(text).ok()
    }

    /// What is to be done, in order; each is told once.
    pub fn acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    /// The number of the last event of the record.
    pub fn last_seq(&self) -> i64 {
        self.seq
    }

    /// Whether the socket ever stood.
    pub fn was_observed(&self) -> bool {
        self.observed
    }

    /// The language that is spoken.
    pub fn locale(&self) -> Locale {
        self.language.current()
    }

    /// The connection is gone. The call may go on all the same: the vendor carries it.
    pub fn lost(&mut self) {
        self.ready = false;
        self.response = None;
        self.asked_ms = None;
    }

    /// A text message came over the socket.
    pub fn message(&mut self, now_ms: i64, text: &str) {
        if self.over {
            return;
        }
        match json_text::parse(text).ok().and_then(Event::of) {
            Some(event) => self.event(now_ms, event),
            None => self.acts.push(Act::Warn("a message of the model's could not be read".to_owned())),
        }
    }

    fn event(&mut self, now_ms: i64, event: Event) {
        match event {
            Event::SessionCreated { session } => {
                if !std::mem::replace(&mut self.met, true) {
                    self.keep(now_ms, "session.created", json!({ "session_id": clip(&session, 200), "ordinal": 1 }));
                }
            }
            Event::SpeechStarted => {
                // What they say now will be answered, and not what came before.
                self.again_ms = None;
            }
            Event::CallerSaid { item, text, language } => self.caller_said(now_ms, &item, &text, language.as_deref()),
            Event::ResponseCreated { response } => {
                // Whatever was said before is over: the vendor plays one answer at a time.
                while let Some(turn) = self.turns.pop_front_if(|turn| turn.response != response) {
                    self.agent_said(turn);
                }
                self.response = Some(response);
                self.asked_ms = None;
                self.again_ms = None;
            }
            Event::TextDone { response, item, text } => {
                if self.turns.len() == MOST_TURNS
                    && let Some(turn) = self.turns.pop_front()
                {
                    self.agent_said(turn);
                }
                let text = clip(&text, TURN_LIMIT_BYTES).to_owned();
                let cut = self.cut.iter().any(|id| *id == item || *id == response);
                self.turns.push_back(Turn { item, response, text, at_ms: now_ms, cut });
                if cut && let Some(last) = self.turns.len().checked_sub(1) {
                    self.told_to(last);
                }
            }
            Event::Played { response } => {
                if let Some(last) = self.turns.iter().rposition(|turn| turn.response == response) {
                    self.told_to(last);
                }
            }
            Event::Cleared { response: id } | Event::Truncated { item: id } => self.cut_off(id),
            Event::FunctionCall { response, call_id, name, arguments } => {
                let known = self.tools.iter().any(|tool| tool.call_id == call_id);
                if !known && self.tools.len() < MOST_TOOLS {
                    let response =
                        if response.is_empty() { self.response.clone().unwrap_or_default() } else { response };
                    self.tools.push(Tool { call_id, response, name, arguments, begun_ms: None, output: None });
                }
            }
            Event::RemoteTool { ended: false } => self.remote = self.remote.saturating_add(1),
            Event::RemoteTool { ended: true } => {
                self.remote = self.remote.saturating_sub(1);
                if self.remote == 0 {
                    self.ask(now_ms, &json!({}));
                }
            }
            Event::ResponseDone { response, completed, failure, usage } => {
                if self.response.as_deref() == Some(response.as_str()) {
                    self.response = None;
                }
                if let Some(usage) = usage {
                    self.keep(now_ms, "response.done", json!({ "usage": usage.to_value() }));
                }
                if completed {
                    self.failures = 0;
                    self.begin_tools(now_ms, &response);
                } else {
                    for turn in self.turns.iter_mut().filter(|turn| turn.response == response) {
                        turn.cut |= failure.is_none();
                    }
                    // What a cut-off response wanted done is not done; what runs already is another's.
                    self.tools.retain(|tool| tool.begun_ms.is_some() || tool.response != response);
                }
                if let Some(code) = failure {
                    self.failed_to_answer(now_ms, &code);
                }
                if std::mem::take(&mut self.wants_response) {
                    self.ask(now_ms, &json!({}));
                }
            }
            Event::Digit { key } => self.key(now_ms, &key),
            Event::Error { code, .. } => self.error(&code),
            Event::SessionUpdated { .. }
            | Event::Audio { .. }
            | Event::AudioDone { .. }
            | Event::Text { .. }
            | Event::Other => {}
        }
        self.leave(now_ms);
    }

    /// The socket stands. The session was set up when the call was accepted: it can be spoken through at once.
    pub fn connected(&mut self, now_ms: i64) {
        if self.over || std::mem::replace(&mut self.ready, true) {
            return;
        }
        self.observed = true;
        if !std::mem::replace(&mut self.greeted, true) {
            let words = greeting(self.language.current());
            return self.ask(now_ms, &json!({ "instructions": words }));
        }
        // Whether the line heard of a hand-over is not known when nobody is left who asked for it: it is asked again.
        let mut over_to = None;
        if let Some(Farewell::HandOver { call_id, asked, .. }) = &mut self.farewell {
            *asked = false;
            over_to = Some(call_id.clone());
        }
        // What a tool answered may have been on its way when the connection broke, or nobody was left to answer.
        let waits =
            |tool: &&Tool| tool.begun_ms.is_some() && tool.output.is_none() && Some(&tool.call_id) != over_to.as_ref();
        let again: Vec<Act> = self.tools.iter().filter(waits).map(run).collect();
        self.acts.extend(again);
        self.return_tools(now_ms);
        // What became of a remote tool meanwhile was told to nobody.
        let unheard = std::mem::take(&mut self.remote) > 0;
        if std::mem::take(&mut self.wants_response) || unheard {
            self.ask(now_ms, &json!({}));
        }
    }

    fn caller_said(&mut self, now_ms: i64, item: &str, text: &str, told: Option<&str>) {
        if text.trim().is_empty() {
            return;
        }
        let told = told.and_then(Locale::from_tag);
        let known = told.or_else(|| locale::detect(text));
        let changed = known.and_then(|locale| self.language.heard(locale, text));
        let mut said = json!({ "role": "user", "text": text, "item_id": item });
        if let (Some(locale), Some(fields)) = (known, said.as_object_mut()) {
            fields.insert("language".to_owned(), locale.as_str().into());
            let source = if told.is_some() { "transcription" } else { "detected" };
            fields.insert("language_source".to_owned(), source.into());
        }
        self.keep(now_ms, "transcript", said);
        if let Some(locale) = changed {
            self.speak(now_ms, locale);
        }
    }

    /// The caller has changed the language: the agent is told to speak it too.
    fn speak(&mut self, now_ms: i64, locale: Locale) {
        self.keep(now_ms, "language", json!({ "language": locale.as_str() }));
        self.setup.instructions = in_language(&self.setup.instructions, locale);
        let mut session = json!({ "type": "realtime", "instructions": self.setup.instructions });
        if let (false, Some(fields)) = (self.setup.transcription_model.is_empty(), session.as_object_mut()) {
            let others = ALL.into_iter().filter(|other| *other != locale);
            let languages: Vec<&str> = [locale].into_iter().chain(others).map(Locale::as_str).collect();
            let transcription = json!({ "model": self.setup.transcription_model, "languages": languages });
            fields.insert("audio".to_owned(), json!({ "input": { "transcription": transcription } }));
        }
        self.send(&json!({ "type": "session.update", "session": session }));
    }

    /// What is left of a response, or of an item, will not be heard. Its words may be whole only after that.
    fn cut_off(&mut self, id: String) {
        let Some(last) = self.turns.iter().rposition(|turn| turn.response == id || turn.item == id) else {
            if self.cut.len() == MOST_CUT {
                self.cut.pop_front();
            }
            self.cut.push_back(id);
            return;
        };
        if let Some(turn) = self.turns.get_mut(last) {
            turn.cut = true;
        }
        self.told_to(last);
    }

    /// It is known how this turn was heard, and with it all that came before.
    fn told_to(&mut self, last: usize) {
        for _ in 0..=last {
            if let Some(turn) = self.turns.pop_front() {
                self.agent_said(turn);
            }
        }
    }

    fn agent_said(&mut self, turn: Turn) {
        if turn.text.trim().is_empty() {
            return;
        }
        let mut said = json!({ "role": "assistant", "text": turn.text, "item_id": turn.item, "interrupted": turn.cut });
        if let (Some(locale), Some(fields)) = (locale::detect(&turn.text), said.as_object_mut()) {
            fields.insert("language".to_owned(), locale.as_str().into());
            fields.insert("language_source".to_owned(), "detected".into());
        }
        self.keep(turn.at_ms, "transcript", said);
    }

    fn begin_tools(&mut self, now_ms: i64, response: &str) {
        let mut ends = Vec::new();
        let mut runs = Vec::new();
        for tool in self.tools.iter_mut().filter(|tool| tool.begun_ms.is_none() && tool.response == response) {
            tool.begun_ms = Some(now_ms);
            if tool.name == END_CALL { ends.push(tool.call_id.clone()) } else { runs.push(run(tool)) }
        }
        self.acts.append(&mut runs);
        for call_id in ends {
            self.farewell.get_or_insert(Farewell::Goodbye { by_ms: now_ms + FAREWELL_MS, spoken: false });
            self.put_output(now_ms, &call_id, r#"{"status":"ok"}"#.to_owned());
        }
    }

    /// A tool answered `{ok, result}` or `{ok, error}` after so many milliseconds; with `result.transfer_to` the caller is to
    /// be handed over to that number.
    pub fn answered(&mut self, now_ms: i64, call_id: &str, answer: &Value) {
        let Some(tool) = self.tools.iter().find(|tool| tool.call_id == call_id && tool.output.is_none()) else {
            return;
        };
        let took_ms = tool.begun_ms.map_or(0, |begun| (now_ms - begun).max(0));
        let ok = crate::json::flag_at(answer, "ok");
        let told = json!({ "tool_call_id": call_id, "name": clip(&tool.name, 100), "took_ms": took_ms, "ok": ok });
        self.keep(now_ms, "tool", told);
        let wanted = answer.get("result").and_then(|result| str_at(result, "transfer_to"));
        match wanted.map(|text| self.target(text)) {
            Some(Some(number)) if self.farewell.is_none() => {
                let (call_id, number) = (call_id.to_owned(), number.as_str().to_owned());
                let by_ms = now_ms + FAREWELL_MS;
                self.farewell = Some(Farewell::HandOver { call_id, number, by_ms, asked: false });
            }
            Some(None) => {
                self.acts
                    .push(Act::Warn("a tool wants the caller handed over to where that is not allowed".to_owned()));
                self.put_output(now_ms, call_id, r#"{"status":"failed"}"#.to_owned());
            }
            Some(Some(_)) | None => self.put_output(now_ms, call_id, to_text(answer)),
        }
        self.leave(now_ms);
    }

    /// The number to hand over to, if calls may be handed over to it.
    fn target(&self, text: &str) -> Option<E164> {
        let number = E164::parse(text).ok()?;
        let allowed = |prefix: &String| !prefix.is_empty() && number.as_str().starts_with(prefix.as_str());
        self.setup.transfer_prefixes.iter().any(allowed).then_some(number)
    }

    /// The line has taken the wish to hand the caller over, or has not (`status`: HTTP, 0 without an answer).
    pub fn referred(&mut self, now_ms: i64, taken: bool, status: u16) {
        let Some(Farewell::HandOver { call_id, asked: true, .. }) = &self.farewell else { return };
        let call_id = call_id.clone();
        // Whether somebody picked up there is not told.
        let word = if taken { "relayed" } else { "failed" };
        self.keep(now_ms, "transferred", json!({ "outcome": word, "status": status }));
        if !taken {
            self.farewell = None;
            self.put_output(now_ms, &call_id, r#"{"status":"failed"}"#.to_owned());
        }
    }

    /// Whether the caller was handed over: what ends then ends for that cause.
    pub fn is_handed_over(&self) -> bool {
        matches!(self.farewell, Some(Farewell::HandOver { asked: true, .. }))
    }

    fn put_output(&mut self, now_ms: i64, call_id: &str, output: String) {
        if let Some(tool) = self.tools.iter_mut().find(|tool| tool.call_id == call_id && tool.output.is_none()) {
            tool.output = Some(output);
        }
        self.return_tools(now_ms);
    }

    /// All results of what runs go back together, and are followed by one request for a response.
    fn return_tools(&mut self, now_ms: i64) {
        let begun = |tool: &Tool| tool.begun_ms.is_some();
        let waits = self.tools.iter().any(|tool| begun(tool) && tool.output.is_none());
        if !self.ready || waits || !self.tools.iter().any(begun) {
            return;
        }
        let (done, others): (Vec<Tool>, Vec<Tool>) = std::mem::take(&mut self.tools).into_iter().partition(begun);
        self.tools = others;
        for tool in done {
            let item = json!({ "type": "function_call_output", "call_id": tool.call_id, "output": tool.output });
            self.send(&json!({ "type": "conversation.item.create", "item": item }));
        }
        self.ask(now_ms, &json!({}));
    }

    /// Asks for a response, now or when the present one is done: two at a time are an error.
    fn ask(&mut self, now_ms: i64, response: &Value) {
        let waits = self.asked_ms.is_some_and(|at| now_ms < at + BEGINS_WITHIN_MS);
        if !self.ready || self.response.is_some() || waits {
            self.wants_response = true;
            return;
        }
        self.asked_ms = Some(now_ms);
        self.send(&json!({ "type": "response.create", "response": response }));
    }

    /// The model had no answer, as when it is asked too often: it is asked again.
    fn failed_to_answer(&mut self, now_ms: i64, code: &str) {
        if FATAL.contains(&code) {
            return self.hang_up("model_unavailable");
        }
        let Some(wait) = AGAIN_MS.get(self.failures) else { return self.hang_up("model_unavailable") };
        self.acts.push(Act::Warn(["the model had no answer: ", clip(code, 60)].concat()));
        self.failures += 1;
        self.asked_ms = None;
        self.again_ms = Some(now_ms + wait);
    }

    fn error(&mut self, code: &str) {
        if FATAL.contains(&code) {
            return self.hang_up("model_unavailable");
        }
        if code == "session_expired" {
            return self.hang_up("max_duration");
        }
        self.acts.push(Act::Warn(["the model reports ", clip(code, 60)].concat()));
        // It may have been our request that was refused.
        self.asked_ms = None;
        if code == "conversation_already_has_active_response" {
            // The API began one by itself: ours is asked for when that one is done.
            self.wants_response = true;
        }
    }

    fn key(&mut self, now_ms: i64, key: &str) {
        // That one was pressed is kept, not which: it may be a secret.
        self.keep(now_ms, "digit", json!({}));
        self.last_key_ms = now_ms;
        match key {
            "*" => self.keys.clear(),
            "#" => self.end_number(now_ms),
            _ if self.keys.len() < MOST_KEYS && key.len() == 1 => self.keys.push_str(key),
            _ => {}
        }
    }

    /// The number that was typed is whole.
    fn end_number(&mut self, now_ms: i64) {
        if !self.ready || self.keys.is_empty() {
            return;
        }
        let text = pressed(&std::mem::take(&mut self.keys));
        let item = json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }] });
        self.send(&json!({ "type": "conversation.item.create", "item": item }));
        self.ask(now_ms, &json!({}));
    }

    /// When [`Sideband::timeout`] is to be called next, if ever.
    pub fn next_ms(&self) -> Option<i64> {
        let keys = (!self.keys.is_empty() && self.ready).then_some(self.last_key_ms + KEYS_APART_MS);
        let farewell = match self.farewell {
            Some(Farewell::Goodbye { by_ms, .. }) => Some(by_ms),
            Some(Farewell::HandOver { by_ms, asked: false, .. }) => Some(by_ms),
            Some(Farewell::HandOver { .. }) | None => None,
        };
        let again = self.again_ms.filter(|_| self.ready);
        if self.over { None } else { [keys, farewell, again].into_iter().flatten().min() }
    }

    /// Time has passed.
    pub fn timeout(&mut self, now_ms: i64) {
        if self.over {
            return;
        }
        if !self.keys.is_empty() && now_ms >= self.last_key_ms + KEYS_APART_MS {
            self.end_number(now_ms);
        }
        if self.ready && self.again_ms.is_some_and(|at| now_ms >= at) {
            self.again_ms = None;
            self.ask(now_ms, &json!({}));
        }
        self.leave(now_ms);
    }

    /// Ends the call, or hands it over, once the agent has said what it had to say or has had its time.
    fn leave(&mut self, now_ms: i64) {
        let silent =
            self.response.is_none() && self.asked_ms.is_none() && self.turns.is_empty() && !self.wants_response;
        let waits = self.tools.iter().any(|tool| tool.begun_ms.is_some() && tool.output.is_none());
        match &mut self.farewell {
            Some(Farewell::Goodbye { by_ms, spoken }) => {
                // The answer to the tool is the goodbye: it must have begun.
                *spoken |= self.response.is_some();
                if now_ms >= *by_ms || *spoken && silent && !waits {
                    self.hang_up("agent_hangup");
                }
            }
            Some(Farewell::HandOver { number, by_ms, asked, .. }) if !*asked && (silent || now_ms >= *by_ms) => {
                *asked = true;
                if let Ok(number) = E164::parse(number) {
                    self.acts.push(Act::Refer(number));
                }
            }
            Some(Farewell::HandOver { .. }) | None => {}
        }
    }

    fn hang_up(&mut self, cause: &'static str) {
        if !std::mem::replace(&mut self.over, true) {
            self.acts.push(Act::HangUp(cause));
        }
    }

    /// The call is over: what was said and is not told yet is told, and that it ended is the last event of the record.
    pub fn end(&mut self, now_ms: i64, cause: &str) {
        self.over = true;
        // What was still being said was cut by the end.
        while let Some(turn) = self.turns.pop_front() {
            self.agent_said(Turn { cut: true, ..turn });
        }
        self.keep(now_ms, "ended", json!({ "cause": cause }));
    }

    fn send(&mut self, event: &Value) {
        self.acts.push(Act::Send(to_text(event)));
    }

    fn keep(&mut self, at_ms: i64, kind: &str, mut event: Value) {
        self.seq += 1;
        if let Some(fields) = event.as_object_mut() {
            fields.insert("seq".to_owned(), self.seq.into());
            fields.insert("type".to_owned(), kind.into());
            if let Some(at) = DateTime::from_timestamp_millis(at_ms) {
                fields.insert("at".to_owned(), timestamp::to_rfc3339(at).into());
            }
        }
        self.acts.push(Act::Keep(event));
    }
}

fn run(tool: &Tool) -> Act {
    let Tool { call_id, name, arguments, .. } = tool.clone();
    Act::Run { call_id, name, arguments }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::realtime::{CAUSES, events_fields};

    const T0: i64 = 1_795_000_000_000;

    fn setup() -> Setup {
        Setup {
            instructions: "You answer the phone.\nBegin in English.".to_owned(),
            locale: Locale::En,
            transcription_model: "gpt-transcribe".to_owned(),
            transfer_prefixes: vec!["+25078".to_owned()],
        }
    }

    /// A call whose session is there and which has greeted.
    struct Play {
        call: Sideband,
        now_ms: i64,
        sent: Vec<Value>,
        kept: Vec<Value>,
        other: Vec<Act>,
    }

    impl Play {
        fn new() -> Play {
            let call = Sideband::new(setup(), json!({"trunk": "openai_sip", "direction": "inbound"}), T0);
            let mut play = Play { call, now_ms: T0, sent: vec![], kept: vec![], other: vec![] };
            play.connects();
            play
        }

        fn connects(&mut self) -> &mut Play {
            self.call.connected(self.now_ms);
            self.take();
            self.gets(json!({"type": "session.created", "session": {"id": "sess_1"}}))
        }

        fn gets(&mut self, event: Value) -> &mut Play {
            self.now_ms += 100;
            self.call.message(self.now_ms, &event.to_string());
            self.take()
        }

        fn take(&mut self) -> &mut Play {
            for act in self.call.acts() {
                match act {
                    Act::Send(text) => self.sent.push(serde_json::from_str(&text).unwrap()),
                    Act::Keep(event) => self.kept.push(event),
                    act => self.other.push(act),
                }
            }
            self
        }

        fn wait(&mut self, ms: i64) -> &mut Play {
            self.now_ms += ms;
            self.call.timeout(self.now_ms);
            self.take()
        }

        /// The object is gone, and another one reads what it wrote; then it is connected again.
        fn evicted(&mut self) -> &mut Play {
            self.call = Sideband::from_text(&self.call.to_text()).unwrap();
            self.connects()
        }

        fn says(&mut self, response: &str, text: &str) -> &mut Play {
            self.gets(json!({"type": "response.created", "response": {"id": response}}));
            self.gets(json!({"type": "response.output_audio_transcript.done", "response_id": response, "item_id": format!("item_{response}"), "transcript": text}));
            self.gets(json!({"type": "response.done", "response": {"id": response, "status": "completed", "usage": {"input_token_details": {"text_tokens": 5}}}}))
        }

        fn played(&mut self, response: &str) -> &mut Play {
            self.gets(json!({"type": "output_audio_buffer.stopped", "response_id": response}))
        }

        fn calls(&mut self, name: &str) -> &mut Play {
            self.gets(json!({"type": "response.created", "response": {"id": "r_t"}}));
            self.gets(json!({"type": "response.output_item.done", "response_id": "r_t", "item": {"type": "function_call", "call_id": "fc_1", "name": name, "arguments": "{}"}}));
            self.gets(json!({"type": "response.done", "response": {"id": "r_t", "status": "completed"}}))
        }

        fn answers(&mut self, answer: Value) -> &mut Play {
            self.now_ms += 100;
            self.call.answered(self.now_ms, "fc_1", &answer);
            self.take()
        }

        fn types(&self) -> Vec<&str> {
            self.kept.iter().map(|event| event["type"].as_str().unwrap()).collect()
        }

        fn transcripts(&self) -> Vec<(&str, &str, bool)> {
            let said = self.kept.iter().filter(|event| event["type"] == "transcript");
            said.map(|event| {
                (event["role"].as_str().unwrap(), event["text"].as_str().unwrap(), event["interrupted"] == true)
            })
            .collect()
        }

        fn last_sent(&self) -> &Value {
            self.sent.last().unwrap()
        }
    }

    #[test]
    fn what_the_vendor_asked_a_remote_tool_is_answered_once_all_are_done() {
        let mut play = Play::new();
        play.says("r_1", "Hello").played("r_1");
        let asked = |play: &Play| play.sent.iter().filter(|sent| sent["type"] == "response.create").count();
        let before = asked(&play);
        let tool = |word: &str| json!({"type": format!("response.mcp_call.{word}"), "item_id": "mcp_1"});
        play.gets(json!({"type": "response.created", "response": {"id": "r_m"}}));
        play.gets(tool("in_progress")).gets(tool("in_progress")).gets(tool("completed"));
        play.gets(json!({"type": "response.done", "response": {"id": "r_m", "status": "completed"}}));
        assert_eq!(asked(&play), before, "one still runs");
        play.gets(tool("failed"));
        assert_eq!(asked(&play), before + 1);
        // Done while nobody listened: whoever is there again asks.
        play.gets(json!({"type": "response.created", "response": {"id": "r_n"}})).gets(tool("in_progress"));
        play.gets(json!({"type": "response.done", "response": {"id": "r_n", "status": "completed"}}));
        let before = asked(&play);
        play.evicted();
        assert_eq!(asked(&play), before + 1);
    }

    #[test]
    fn a_call_is_greeted_once_and_its_record_is_numbered_from_one() {
        let mut play = Play::new();
        assert_eq!(play.types(), ["opened", "answered", "session.created"]);
        let greeting = json!({"type": "response.create", "response": {"instructions": "Greet the caller briefly in English and ask how you can help."}});
        assert_eq!(play.sent, [greeting]);
        play.says("r1", "Hello, this is EasyMO.").played("r1");
        play.gets(json!({"type": "conversation.item.input_audio_transcription.completed", "item_id": "i", "transcript": "I look for a house", "languages": ["en"]}));
        play.evicted();
        assert_eq!(play.sent.len(), 1, "nobody is greeted twice");
        play.call.end(play.now_ms, "caller_hangup");
        play.take();
        assert_eq!(
            play.types(),
            ["opened", "answered", "session.created", "response.done", "transcript", "transcript", "ended"]
        );
        let seqs: Vec<i64> = play.kept.iter().map(|event| event["seq"].as_i64().unwrap()).collect();
        assert_eq!((seqs, play.call.last_seq()), ((1..=7).collect(), 7));
        assert_eq!(play.kept[5]["language_source"], "transcription");
        assert!(CAUSES.contains(&"caller_hangup") && CAUSES.contains(&"agent_hangup"));
    }

    #[test]
    fn what_the_agent_said_is_told_when_it_is_known_how_it_was_heard() {
        let mut play = Play::new();
        play.says("r1", "First.");
        assert!(play.transcripts().is_empty(), "it is being played");
        play.played("r1");
        play.says("r2", "Second, which is long.")
            .gets(json!({"type": "conversation.item.truncated", "item_id": "item_r2", "audio_end_ms": 300}));
        play.gets(json!({"type": "output_audio_buffer.cleared", "response_id": "r2"}));
        play.says("r3", "Third.").says("r4", "Fourth.");
        assert_eq!(play.transcripts().len(), 3);
        let heard = [
            ("assistant", "First.", false),
            ("assistant", "Second, which is long.", true),
            ("assistant", "Third.", false),
        ];
        assert_eq!(play.transcripts(), heard);
        play.evicted();
        play.call.end(play.now_ms, "caller_hangup");
        play.take();
        assert_eq!(play.transcripts()[3..], [("assistant", "Fourth.", true)], "the end cut it");
    }

    #[test]
    fn an_answer_that_is_cut_off_before_its_words_are_whole_was_interrupted() {
        for early in [
            json!({"type": "conversation.item.truncated", "item_id": "item_r1", "audio_end_ms": 300}),
            json!({"type": "output_audio_buffer.cleared", "response_id": "r1"}),
        ] {
            let mut play = Play::new();
            play.gets(early).says("r1", "The offer");
            assert_eq!(play.transcripts(), [("assistant", "The offer", true)]);
        }
        let mut play = Play::new();
        play.gets(json!({"type": "response.output_audio_transcript.done", "response_id": "r1", "item_id": "i", "transcript": "The offer"}));
        play.gets(json!({"type": "response.done", "response": {"id": "r1", "status": "cancelled"}}));
        play.says("r2", "And so on.").played("r2");
        assert_eq!(play.transcripts(), [("assistant", "The offer", true), ("assistant", "And so on.", false)]);
    }

    #[test]
    fn a_tool_runs_when_its_response_is_whole_and_its_answer_is_asked_about() {
        let mut play = Play::new();
        play.calls("search_services");
        assert_eq!(
            play.other,
            [Act::Run { call_id: "fc_1".into(), name: "search_services".into(), arguments: "{}".into() }]
        );
        play.answers(json!({"ok": true, "result": {"services": []}})).answers(json!({"ok": false}));
        let sent: Vec<&str> = play.sent.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(sent, ["response.create", "conversation.item.create", "response.create"]);
        assert_eq!(play.sent[1]["item"]["call_id"], "fc_1");
        let tool = play.kept.iter().find(|event| event["type"] == "tool").unwrap();
        assert_eq!(
            (&tool["took_ms"], &tool["ok"], &tool["name"]),
            (&json!(100), &json!(true), &json!("search_services"))
        );
    }

    #[test]
    fn a_tool_of_a_response_that_was_cut_off_does_not_run() {
        let mut play = Play::new();
        play.gets(json!({"type": "response.output_item.done", "response_id": "r", "item": {"type": "function_call", "call_id": "fc", "name": "remember", "arguments": "{}"}}));
        play.gets(json!({"type": "response.done", "response": {"id": "r", "status": "cancelled"}}));
        assert_eq!(play.other, []);
    }

    #[test]
    fn a_tool_that_ran_when_the_object_was_lost_runs_again_under_the_same_id() {
        let mut play = Play::new();
        play.calls("remember").evicted();
        let run = Act::Run { call_id: "fc_1".into(), name: "remember".into(), arguments: "{}".into() };
        assert_eq!(play.other, [run.clone(), run]);
        play.answers(json!({"ok": true}));
        assert_eq!(play.last_sent()["type"], "response.create");
    }

    #[test]
    fn an_answer_that_came_while_there_was_no_socket_is_sent_over_the_next() {
        let mut play = Play::new();
        play.calls("remember");
        play.call.lost();
        play.answers(json!({"ok": true}));
        assert_eq!(play.sent.len(), 1, "the greeting");
        play.evicted();
        assert_eq!(play.sent.len(), 3);
    }

    #[test]
    fn the_agent_says_goodbye_before_the_call_ends() {
        let mut play = Play::new();
        play.calls(END_CALL);
        assert_eq!(play.other, []);
        play.says("bye", "Goodbye.");
        assert_eq!(play.other, [], "it is being played");
        play.played("bye");
        assert_eq!(play.other, [Act::HangUp("agent_hangup")]);
        play.wait(60_000);
        assert_eq!(play.other.len(), 1, "once");
        let mut mute = Play::new();
        mute.calls(END_CALL).wait(FAREWELL_MS);
        assert_eq!(mute.other, [Act::HangUp("agent_hangup")], "also where nothing is said");
    }

    #[test]
    fn a_caller_is_handed_over_where_that_is_allowed_and_once_the_agent_is_silent() {
        let mut play = Play::new();
        play.says("r1", "I connect you.").calls("transfer");
        let wish = json!({"ok": true, "result": {"transfer_to": "+250788111222"}});
        play.gets(json!({"type": "response.created", "response": {"id": "r2"}})).answers(wish.clone());
        assert_eq!(play.other.len(), 1, "it speaks");
        play.gets(json!({"type": "response.done", "response": {"id": "r2", "status": "completed"}}));
        assert_eq!(play.other[1], Act::Refer(E164::parse("+250788111222").unwrap()));
        play.evicted();
        assert_eq!(play.other[2], play.other[1], "nobody knows whether the line heard of it");
        assert!(play.call.is_handed_over());
        play.call.referred(play.now_ms, true, 200);
        play.take();
        let told = play.kept.last().unwrap();
        assert_eq!((&told["type"], &told["outcome"]), (&json!("transferred"), &json!("relayed")));

        let mut refused = Play::new();
        refused.calls("transfer").answers(wish);
        refused.call.referred(refused.now_ms, false, 400);
        refused.take();
        assert!(!refused.call.is_handed_over());
        assert_eq!(refused.sent[1]["item"]["output"], r#"{"status":"failed"}"#);

        let mut abroad = Play::new();
        abroad.calls("transfer").answers(json!({"ok": true, "result": {"transfer_to": "+88216123456789"}}));
        assert!(!abroad.other.iter().any(|act| matches!(act, Act::Refer(_))), "{:?}", abroad.other);
        assert_eq!(abroad.sent[1]["item"]["output"], r#"{"status":"failed"}"#);
    }

    #[test]
    fn a_number_is_told_when_it_is_whole_and_its_keys_are_not_kept() {
        let mut play = Play::new();
        for key in ["4", "2", "#"] {
            play.gets(json!({"type": "input_audio_buffer.dtmf_event_received", "event": key, "received_at": 1}));
        }
        let told = |play: &Play| play.sent.iter().filter(|event| event.to_string().contains("on the keypad")).count();
        assert_eq!(told(&play), 1);
        assert!(play.sent.iter().any(|event| event.to_string().contains("pressed 4 2 on")));
        play.gets(json!({"type": "input_audio_buffer.dtmf_event_received", "event": "7"}));
        assert_eq!(play.call.next_ms(), Some(play.now_ms + KEYS_APART_MS));
        play.wait(KEYS_APART_MS);
        assert_eq!((told(&play), play.call.next_ms()), (2, None));
        assert_eq!(play.types().iter().filter(|kind| **kind == "digit").count(), 4);
        assert!(!json!(play.kept).to_string().contains("\"4\""));
    }

    #[test]
    fn the_agent_follows_the_caller_into_another_language() {
        let mut play = Play::new();
        play.gets(json!({"type": "conversation.item.input_audio_transcription.completed", "item_id": "i", "transcript": "Muraho, nshaka inzu i Kigali", "languages": ["rw"]}));
        assert_eq!(play.types()[3..], ["transcript", "language"]);
        let update = play.last_sent();
        assert!(update["session"]["instructions"].as_str().unwrap().contains("Speak Kinyarwanda"), "{update}");
        assert_eq!(update["session"]["audio"]["input"]["transcription"]["languages"][0], "rw");
        assert_eq!(play.call.locale(), Locale::Rw);
    }

    #[test]
    fn an_answer_that_fails_is_asked_for_again_and_after_that_the_call_ends() {
        let failed = json!({"type": "response.done", "response": {"id": "r", "status": "failed", "status_details": {"error": {"code": "rate_limit_exceeded"}}}});
        let mut play = Play::new();
        play.gets(json!({"type": "response.created", "response": {"id": "r"}}));
        for wait in AGAIN_MS {
            play.gets(failed.clone());
            assert_eq!(play.call.next_ms(), Some(play.now_ms + wait));
            play.wait(wait);
            assert_eq!(play.last_sent()["type"], "response.create");
        }
        play.gets(failed);
        assert_eq!(play.other.last(), Some(&Act::HangUp("model_unavailable")));
        let mut broke = Play::new();
        broke.gets(json!({"type": "error", "error": {"type": "insufficient_quota", "code": "insufficient_quota"}}));
        assert_eq!(broke.other, [Act::HangUp("model_unavailable")]);
        let mut old = Play::new();
        old.gets(json!({"type": "error", "error": {"code": "session_expired"}}));
        assert_eq!(old.other, [Act::HangUp("max_duration")]);
    }

    #[test]
    fn a_response_is_asked_for_when_the_present_one_is_done() {
        let mut play = Play::new();
        play.gets(json!({"type": "response.created", "response": {"id": "r1"}}));
        play.gets(json!({"type": "error", "error": {"code": "conversation_already_has_active_response"}}));
        assert_eq!(play.sent.len(), 1);
        play.gets(json!({"type": "response.done", "response": {"id": "r1", "status": "completed"}}));
        assert_eq!(play.sent.len(), 2);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Gets(Value),
        Answers(Value),
        Referred(bool),
        Wait(i64),
        Lost,
        Connects,
        Evicted,
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = || prop::sample::select(vec!["a", "b", ""]);
        let event = prop_oneof![
            Just(json!({"type": "session.created", "session": {"id": "s"}})),
            Just(json!({"type": "input_audio_buffer.speech_started"})),
            id().prop_map(|r| json!({"type": "response.created", "response": {"id": r}})),
            (id(), prop::sample::select(vec!["completed", "failed", "cancelled"])).prop_map(|(r, status)| json!({"type": "response.done", "response": {"id": r, "status": status, "usage": {}}})),
            (id(), "\\PC{0,20}").prop_map(|(r, text)| json!({"type": "response.output_audio_transcript.done", "response_id": r, "item_id": r, "transcript": text})),
            (id(), "\\PC{0,20}").prop_map(|(i, text)| json!({"type": "conversation.item.input_audio_transcription.completed", "item_id": i, "transcript": text})),
            (id(), id(), prop::sample::select(vec!["remember", END_CALL])).prop_map(|(r, call, name)| json!({"type": "response.output_item.done", "response_id": r, "item": {"type": "function_call", "call_id": call, "name": name, "arguments": "{}"}})),
            id().prop_map(|r| json!({"type": "output_audio_buffer.stopped", "response_id": r})),
            id().prop_map(|r| json!({"type": "output_audio_buffer.cleared", "response_id": r})),
            "[0-9#*]".prop_map(|key| json!({"type": "input_audio_buffer.dtmf_event_received", "event": key})),
            prop::sample::select(vec!["insufficient_quota", "session_expired", "x"]).prop_map(|code| json!({"type": "error", "error": {"code": code}})),
        ];
        let answer = prop_oneof![
            Just(json!({"ok": true, "result": {"transfer_to": "+250788111222"}})),
            Just(json!({"ok": false})),
            Just(Value::Null)
        ];
        prop_oneof![
            12 => event.prop_map(Step::Gets),
            2 => answer.prop_map(Step::Answers),
            1 => any::<bool>().prop_map(Step::Referred),
            2 => (0_i64..20_000).prop_map(Step::Wait),
            1 => Just(Step::Lost),
            1 => Just(Step::Connects),
            1 => Just(Step::Evicted),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_the_record_has_no_gap_and_can_be_stored(steps in prop::collection::vec(step(), 0..60)) {
            let mut play = Play::new();
            for step in steps {
                match step {
                    Step::Gets(event) => { play.gets(event); }
                    Step::Answers(answer) => {
                        for id in ["a", "b", ""] {
                            play.call.answered(play.now_ms, id, &answer);
                        }
                        play.take();
                    }
                    Step::Referred(taken) => { play.call.referred(play.now_ms, taken, 200); play.take(); }
                    Step::Wait(ms) => { play.wait(ms); }
                    Step::Lost => play.call.lost(),
                    Step::Connects => {
                        play.connects();
                    }
                    Step::Evicted => {
                        let written = play.call.to_text();
                        play.call = Sideband::from_text(&written).unwrap();
                        prop_assert_eq!(play.call.to_text(), written);
                    }
                }
                // What is due and was done is not due any more: else an alarm would ring for ever.
                if let Some(due) = play.call.next_ms() {
                    play.now_ms = play.now_ms.max(due);
                    play.wait(0);
                    prop_assert!(play.call.next_ms().is_none_or(|next| next > play.now_ms), "{:?}", play.call);
                }
            }
            play.call.end(play.now_ms, "caller_hangup");
            play.take();
            let seqs: Vec<i64> = play.kept.iter().map(|event| event["seq"].as_i64().unwrap()).collect();
            prop_assert_eq!(&seqs, &(1..=play.call.last_seq()).collect::<Vec<_>>());
            let stored = events_fields(&json!({"call_sid": "c", "events": play.kept})).unwrap();
            prop_assert_eq!(stored["events"].as_array().unwrap().len(), seqs.len());
        }

        #[test]
        fn any_message_is_taken(text in "\\PC{0,200}") {
            let mut play = Play::new();
            play.call.message(play.now_ms, &text);
            play.take();
            let _ = Sideband::from_text(&text);
        }
    }
}
