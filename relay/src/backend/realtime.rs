//! The protocol of the Realtime API (general availability names) as a state machine.
//!
//! One conversation may outlive its connection: before the API's limit of an hour, and whenever a connection breaks, a
//! new one is opened, told what was said so far, and takes over. What the caller says meanwhile waits, up to three
//! seconds of it.

mod history;
mod items;
mod keys;
mod settings;
mod tools;

use std::collections::VecDeque;
use std::time::Duration;

use ihuza_core::locale::Locale;
use ihuza_core::realtime_event::Event;
use ihuza_core::spoken::Language;
use serde_json::{Value, json};

use super::audio::Converter;
use super::{Input, LanguageSource, Link, Output, Speaker, Usage, VoiceBackend};
use crate::config::{AudioFormat, TurnDetection};
use crate::media::g711::Law;
use crate::moment::Moment;
use history::History;
use items::{Item, detected};
use tools::Tool;

/// A set-up that takes longer has failed.
const SET_UP_WITHIN: Duration = Duration::from_secs(4);
/// Waits before another connection is tried; after the last one the model is given up.
const WAITS_MS: [u64; 4] = [0, 250, 500, 1000];
/// A connection that breaks sooner counts as one that failed: a model that accepts and closes at once is given up too.
const LASTS: Duration = Duration::from_secs(10);
/// Sound that waits for a connection: three seconds.
const MOST_WAITING: usize = 150;
/// A response that was asked for begins within this time, or never.
const BEGINS_WITHIN: Duration = Duration::from_secs(5);
/// Waits before an answer that failed is asked for again; after the last one the model is given up.
const AGAIN_MS: [u64; 3] = [500, 2000, 4000];
/// Errors that another connection would not mend.
const FATAL: [&str; 5] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "invalid_api_key",
    "account_deactivated",
    "billing_hard_limit_reached",
];

/// What a conversation is set up with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The law of the call.
    pub law: Law,
    /// How sound is exchanged.
    pub format: AudioFormat,
    /// How the ends of turns are found.
    pub turn_detection: TurnDetection,
    /// The agent's instructions, in the language to be spoken.
    pub instructions: String,
    /// The language that they begin in.
    pub locale: Locale,
    /// What the agent is to say first.
    pub greeting: String,
    /// The voice.
    pub voice: String,
    /// Tools, as the API wants them described.
    pub tools: Vec<Value>,
    /// Age at which a connection is replaced.
    pub roll_over_after: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Asked for.
    Opening,
    /// It stands; the API has not greeted yet.
    Open,
    /// Our settings are on their way.
    Configuring,
    /// It can be spoken through.
    Ready,
}

#[derive(Debug)]
struct Connection {
    link: Link,
    stage: Stage,
    since: Moment,
    /// Language hints were refused once: the second try is without.
    without_hints: bool,
}

/// One conversation.
#[derive(Debug)]
pub struct Realtime {
    setup: Setup,
    language: Language,
    converter: Converter,
    links: u32,
    active: Option<Connection>,
    /// A connection that is to take over.
    next: Option<Connection>,
    attempts: usize,
    retry_at: Option<Moment>,
    greet: bool,
    waiting: VecDeque<Vec<u8>>,
    /// The response that is being made.
    response: Option<String>,
    /// One was asked for, then, and has not begun.
    asked: Option<Moment>,
    /// One is to be asked for as soon as none is being made.
    wants_response: bool,
    /// Answers that failed, one after another.
    failures: usize,
    /// When the last of them is asked for again.
    again_at: Option<Moment>,
    /// The response that the caller cut off: what still comes of it is not played.
    cut: Option<String>,
    items: VecDeque<Item>,
    tools: Vec<Tool>,
    /// Remote tools that the service is calling.
    remote: u32,
    filler_told: bool,
    /// The number that is being typed.
    keys: String,
    /// Numbers that are whole and were not told yet: there is no connection.
    numbers: VecDeque<String>,
    last_key: Moment,
    history: History,
    failed: bool,
    out: VecDeque<Output>,
}

impl Realtime {
    /// Asks for its first connection at once, so that the model is ready when the call is answered.
    pub fn new(now: Moment, setup: Setup) -> Realtime {
        let converter = match setup.format {
            AudioFormat::G711 => Converter::Untouched,
            AudioFormat::Pcm16 => Converter::pcm_24k(setup.law),
        };
        let mut realtime = Realtime {
            language: Language::new(setup.locale),
            setup,
            converter,
            links: 0,
            active: None,
            next: None,
            attempts: 0,
            retry_at: None,
            greet: false,
            waiting: VecDeque::new(),
            response: None,
            asked: None,
            wants_response: false,
            failures: 0,
            again_at: None,
            cut: None,
            items: VecDeque::new(),
            tools: Vec::new(),
            remote: 0,
            filler_told: false,
            keys: String::new(),
            numbers: VecDeque::new(),
            last_key: Moment::default(),
            history: History::default(),
            failed: false,
            out: VecDeque::new(),
        };
        realtime.open(now);
        realtime
    }

    fn open(&mut self, now: Moment) {
        self.links += 1;
        let link = Link(self.links);
        self.next = Some(Connection { link, stage: Stage::Opening, since: now, without_hints: false });
        self.retry_at = None;
        self.out.push_back(Output::Connect(link));
    }

    fn lost(&mut self, now: Moment, link: Link) {
        if self.next.as_ref().is_some_and(|next| next.link == link) {
            self.next = None;
        } else if let Some(active) = self.active.take_if(|active| active.link == link) {
            if now >= active.since + LASTS {
                self.attempts = 0;
            }
            if self.leave_off() {
                let greets = self.history.is_empty() && self.items.is_empty();
                self.greet |= greets;
                self.wants_response |= !greets;
            }
        } else {
            return;
        }
        if self.next.is_some() {
            return;
        }
        match WAITS_MS.get(self.attempts) {
            Some(wait) => {
                self.attempts += 1;
                self.retry_at = Some(now + Duration::from_millis(*wait));
            }
            // While the old connection still serves, a new one is tried for again later.
            None if self.active.is_some() => {
                self.attempts = 0;
                self.retry_at = Some(now + Duration::from_secs(10));
            }
            None => self.fail("model_unreachable"),
        }
    }

    /// Responses and uses of tools of the old connection mean nothing to a new one. What was being said ends where its sound
    /// ends, and is told as far as it is heard. Whether somebody waits for an answer that will not come.
    fn leave_off(&mut self) -> bool {
        let response = self.response.take();
        let interrupted = response.is_some() && response == self.cut.take();
        let asked = self.asked.take().is_some() | self.again_at.take().is_some();
        let unanswered = self.history.ends_with_caller() && self.items.is_empty();
        let remote = std::mem::take(&mut self.remote) > 0;
        let waits = response.is_some() && !interrupted || asked || unanswered || remote;
        self.items.retain(|item| item.sounds);
        for item in self.items.iter_mut().filter(|item| item.heard.is_none()) {
            item.written = true;
            self.out.push_back(Output::Complete(item.id.clone()));
        }
        self.settle();
        !std::mem::take(&mut self.tools).is_empty() || waits
    }

    fn fail(&mut self, reason: &'static str) {
        if !self.failed {
            self.stop();
            self.out.push_back(Output::Failed(reason));
        }
    }

    /// Somebody else speaks to the caller from now on: the model says nothing more, and no failure of it is told. What was
    /// heard of it before is still told.
    pub fn give_up(&mut self) {
        self.out.retain(|output| !matches!(output, Output::Play { .. } | Output::Filler | Output::Flush));
        if !self.failed {
            self.stop();
        }
    }

    fn stop(&mut self) {
        self.failed = true;
        // Nobody waits for an answer any more.
        self.leave_off();
        for connection in self.active.take().into_iter().chain(self.next.take()) {
            self.out.push_back(Output::Close(connection.link));
        }
        self.retry_at = None;
        self.again_at = None;
        self.keys.clear();
        self.numbers.clear();
    }

    fn message(&mut self, now: Moment, link: Link, text: &[u8]) {
        let is_next = self.next.as_ref().is_some_and(|next| next.link == link);
        if !is_next && self.active.as_ref().is_none_or(|active| active.link != link) {
            return;
        }
        let Some(event) = serde_json::from_slice(text).ok().and_then(Event::of) else {
            self.out.push_back(Output::Warning("a message of the model's could not be read".into()));
            return;
        };
        match event {
            Event::SessionCreated { .. } if is_next => self.configure(link),
            Event::SessionUpdated { formats } if is_next => self.take_over(now, formats),
            Event::Error { code, about } => self.error(now, link, &code, about.as_deref()),
            event if !is_next => self.conversation(now, link, event),
            _ => {}
        }
    }

    fn configure(&mut self, link: Link) {
        let Some(next) = &mut self.next else { return };
        next.stage = Stage::Configuring;
        let hints = !next.without_hints;
        let message = json!({ "type": "session.update", "event_id": SETTINGS, "session": self.session(hints) });
        self.out.push_back(Output::Send(link, message.to_string()));
    }

    fn take_over(&mut self, now: Moment, formats: [Option<String>; 2]) {
        let wanted = self.format();
        if formats.iter().flatten().any(|format| wanted.get("type").and_then(Value::as_str) != Some(format)) {
            return self.fail("model_speaks_another_format");
        }
        let Some(mut connection) = self.next.take() else { return };
        connection.stage = Stage::Ready;
        connection.since = now;
        let link = connection.link;
        let is_first = self.links == 1 || self.history.is_empty() && self.active.is_none();
        if let Some(old) = self.active.replace(connection) {
            self.out.push_back(Output::Close(old.link));
            self.wants_response |= self.leave_off();
        }
        self.out.extend(self.history.replay().map(|item| Output::Send(link, item)));
        // What is still being heard is in no history yet.
        let speaking = self.items.iter().filter(|item| !item.text.trim().is_empty());
        self.out.extend(speaking.map(|item| Output::Send(link, history::message(Speaker::Agent, &item.text))));
        for audio in std::mem::take(&mut self.waiting) {
            self.append(link, &audio);
        }
        self.out.push_back(Output::Ready);
        if is_first && std::mem::take(&mut self.greet) {
            self.greet(now);
        } else if std::mem::take(&mut self.wants_response) {
            self.ask(now, json!({}));
        }
        self.tell_numbers(now);
    }

    fn greet(&mut self, now: Moment) {
        let greeting = json!({ "instructions": self.setup.greeting });
        self.ask(now, greeting);
    }

    fn error(&mut self, now: Moment, link: Link, code: &str, about: Option<&str>) {
        if FATAL.contains(&code) {
            return self.fail("model_refuses_the_account");
        }
        if code == "session_expired" {
            self.out.push_back(Output::Close(link));
            return self.lost(now, link);
        }
        self.out.push_back(Output::Warning(format!("the model reports {code}")));
        // It may have been our request that was refused.
        self.asked = None;
        if code == "conversation_already_has_active_response" {
            // The API began one by itself: ours is asked for when that one is done.
            self.wants_response = true;
        }
        if about != Some(SETTINGS) {
            return;
        }
        match &mut self.next {
            Some(next) if !next.without_hints => {
                next.without_hints = true;
                self.configure(link);
            }
            _ => self.fail("model_refuses_the_settings"),
        }
    }

    fn conversation(&mut self, now: Moment, link: Link, event: Event) {
        match event {
            Event::SpeechStarted => {
                // What they say now will be answered, and not what came before.
                self.again_at = None;
                self.cut.clone_from(&self.response);
                self.out.push_back(Output::Flush);
            }
            Event::CallerSaid { text, language, .. } => {
                let told = language.as_deref().and_then(Locale::from_tag);
                let locale = told.map(|locale| (locale, LanguageSource::Transcription)).or_else(|| detected(&text));
                let changed = locale.and_then(|(locale, _)| self.language.heard(locale, &text));
                self.said(Speaker::Caller, text, locale, false);
                if let Some(locale) = changed {
                    self.speak(locale);
                }
            }
            Event::ResponseCreated { response } => {
                self.response = Some(response);
                self.asked = None;
                self.again_at = None;
            }
            Event::Audio { response, item, delta } => self.audio(response, item, &delta),
            Event::AudioDone { item } => self.out.push_back(Output::Complete(item.into())),
            Event::Text { response, item, delta } => {
                if let Some(item) = self.item(&response, &item) {
                    item.text.push_str(&delta);
                }
            }
            Event::TextDone { response, item, text } => {
                if let Some(item) = self.item(&response, &item) {
                    item.text = text;
                    item.written = true;
                }
                self.settle();
            }
            Event::FunctionCall { response, call_id, name, arguments } => {
                self.wants_tool(response, call_id, name, arguments);
            }
            Event::RemoteTool { ended: false } => self.remote = self.remote.saturating_add(1),
            Event::RemoteTool { ended: true } => {
                self.remote = self.remote.saturating_sub(1);
                if self.remote == 0 {
                    self.ask(now, json!({}));
                }
            }
            Event::ResponseDone { response, completed, failure, usage } => {
                self.response_done(now, link, &response, completed, usage);
                match failure {
                    Some(code) => self.failed_to_answer(now, &code),
                    None if completed => self.failures = 0,
                    None => {}
                }
            }
            // Playing and keys of the telephone are the relay's own.
            Event::Played { .. } | Event::Cleared { .. } | Event::Truncated { .. } | Event::Digit { .. } => {}
            Event::SessionCreated { .. } | Event::SessionUpdated { .. } | Event::Error { .. } | Event::Other => {}
        }
    }

    fn response_done(&mut self, now: Moment, link: Link, response: &str, completed: bool, usage: Option<Usage>) {
        if self.response.as_deref() == Some(response) {
            self.response = None;
        }
        if self.cut.as_deref() == Some(response) {
            self.cut = None;
        }
        self.out.extend(usage.map(Output::Used));
        for item in self.items.iter_mut().filter(|item| item.response == response) {
            item.written = true;
            // The sound of an answer that broke off may lack its end, and what follows would wait for it.
            if !completed && item.heard.is_none() {
                self.out.push_back(Output::Complete(item.id.clone()));
            }
        }
        self.settle();
        if completed {
            self.begin_tools(now, response);
        } else {
            // What a cut-off response wanted done is not done; what runs already is another's.
            self.tools.retain(|tool| tool.begun.is_some() || !tool.is_of(response));
        }
        self.return_tools(now, link);
        if self.wants_response && self.response.is_none() {
            self.wants_response = false;
            self.ask(now, json!({}));
        }
    }

    /// The model had no answer, as when it is asked too often: it is asked again, and the caller hears that it takes longer.
    fn failed_to_answer(&mut self, now: Moment, code: &str) {
        if FATAL.contains(&code) {
            return self.fail("model_refuses_the_account");
        }
        let Some(wait) = AGAIN_MS.get(self.failures) else { return self.fail("model_fails_to_answer") };
        if self.failures == 0 {
            self.out.push_back(Output::Filler);
        }
        self.out.push_back(Output::Warning(format!("the model had no answer: {code}")));
        self.failures += 1;
        self.asked = None;
        self.again_at = Some(now + Duration::from_millis(*wait));
    }

    /// Asks for a response, now or when the present one is done: two at a time are an error.
    fn ask(&mut self, now: Moment, response: Value) {
        let waits = self.asked.is_some_and(|at| now < at + BEGINS_WITHIN);
        match self.ready().filter(|_| self.response.is_none() && !waits) {
            Some(link) => {
                self.asked = Some(now);
                let message = json!({ "type": "response.create", "response": response });
                self.out.push_back(Output::Send(link, message.to_string()));
            }
            None => self.wants_response = true,
        }
    }

    fn ready(&self) -> Option<Link> {
        self.active.as_ref().filter(|active| active.stage == Stage::Ready).map(|active| active.link)
    }

    fn hear(&mut self, audio: Vec<u8>) {
        match self.ready() {
            Some(link) => self.append(link, &audio),
            None => {
                if self.waiting.len() == MOST_WAITING {
                    self.waiting.pop_front();
                }
                self.waiting.push_back(audio);
            }
        }
    }

    /// Fifty times a second and call: written by hand.
    fn append(&mut self, link: Link, audio: &[u8]) {
        // A frame of G.711 in base64 and what is around it; one of PCM is longer, and grows.
        let mut message = String::with_capacity(280);
        message.push_str(r#"{"type":"input_audio_buffer.append","audio":""#);
        self.converter.write_to_model(audio, &mut message);
        message.push_str(r#""}"#);
        self.out.push_back(Output::Send(link, message));
    }

    fn timeout(&mut self, now: Moment) {
        if self.number_ends_at().is_some_and(|at| now >= at) {
            self.end_number(now);
        }
        if self.retry_at.is_some_and(|at| now >= at) {
            self.open(now);
        }
        if self.again_at.is_some_and(|at| now >= at) {
            self.again_at = None;
            self.ask(now, json!({}));
        }
        if let Some(next) = self.next.as_ref().filter(|next| now >= next.since + SET_UP_WITHIN) {
            let link = next.link;
            self.out.push_back(Output::Close(link));
            self.lost(now, link);
        }
        let quiet = self.response.is_none() && self.tools.is_empty() && self.items.is_empty();
        if self.roll_over_at().is_some_and(|at| now >= at && (quiet || now >= at + Duration::from_secs(120))) {
            self.open(now);
        }
        self.tools_take_long(now);
    }

    fn roll_over_at(&self) -> Option<Moment> {
        let active = self.active.as_ref()?;
        (self.next.is_none() && self.retry_at.is_none()).then(|| active.since + self.setup.roll_over_after)
    }
}

/// Names our settings in an error that is about them.
const SETTINGS: &str = "ihuza-settings";

fn created(item: &Value) -> String {
    json!({ "type": "conversation.item.create", "item": item }).to_string()
}

impl VoiceBackend for Realtime {
    fn handle_input(&mut self, now: Moment, input: Input) {
        // What was said before is still to be told, as far as it was heard.
        if self.failed && !matches!(input, Input::Spoken(_) | Input::Cut(_)) {
            if let Input::Connected(link) = input {
                self.out.push_back(Output::Close(link));
            }
            return;
        }
        match input {
            Input::Connected(link) => {
                if let Some(next) = self.next.as_mut().filter(|next| next.link == link) {
                    next.stage = Stage::Open;
                } else {
                    self.out.push_back(Output::Close(link));
                }
            }
            Input::Disconnected(link) => self.lost(now, link),
            Input::Message(link, text) => self.message(now, link, &text),
            Input::Audio(audio) => self.hear(audio),
            Input::Digit(digit) => self.key(now, digit),
            Input::Greet => match self.ready() {
                Some(_) => self.greet(now),
                None => self.greet = true,
            },
            Input::Spoken(heard) => self.spoken(heard),
            Input::Cut(heard) => self.was_cut(heard),
            Input::ToolResult { call_id, output } => self.tool_result(now, &call_id, output),
            Input::Timeout => self.timeout(now),
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn next_timeout(&self) -> Option<Moment> {
        // What a timeout would not change must not ask for one, or it is asked for again and again.
        if self.failed {
            return None;
        }
        let set_up = self.next.as_ref().map(|next| next.since + SET_UP_WITHIN);
        [self.number_ends_at(), set_up, self.next_of_tools(), self.retry_at, self.again_at, self.roll_over_at()]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests;
