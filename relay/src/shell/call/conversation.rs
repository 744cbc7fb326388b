//! The agent: its model while the telephone rings, what it wants said, its tools and its language.

use std::sync::Arc;
use std::time::Duration;

use ihuza_core::locale::Locale;
use ihuza_core::realtime;
use serde_json::json;

use super::super::announcements::Announcement;
use super::super::link;
use super::super::log::Level;
use super::super::session_function::Opened;
use super::{Arrival, Running};
use crate::backend::realtime::{Realtime, Setup};
use crate::backend::{self, Link, VoiceBackend};
use crate::journal::entry::{Direction, Entry};
use crate::media::playout::ItemId;
use crate::sip::call;

/// A key for a further connection is there within this time, or the one at hand is tried: a connection's whole set-up has four
/// seconds.
const RENEWED_WITHIN: Duration = Duration::from_secs(1);

/// A tool of our own: the agent says goodbye.
const END_CALL: &str = "end_call";

impl Running {
    /// The agent is known: its model is called while the telephone rings.
    pub(super) fn prepare(&mut self, opened: Opened) {
        if self.given_up {
            return;
        }
        let locale = opened.locale.unwrap_or(self.opening.locale);
        if locale != self.opening.locale {
            self.speaks(locale);
        }
        let settings = &self.shared.config.model;
        self.model_law = self.law();
        let setup = Setup {
            law: self.model_law,
            format: settings.format,
            turn_detection: settings.turn_detection,
            instructions: opened.session.instructions.clone().unwrap_or_default(),
            locale,
            greeting: opened.greeting.clone().unwrap_or_else(|| greeting(self.opening.direction, locale)),
            voice: settings.voice.clone(),
            tools: opened.session.tools.clone(),
            roll_over_after: Duration::from_secs(settings.roll_over_minutes * 60),
        };
        self.opened = opened;
        let now = self.now();
        let mut model = Realtime::new(now, setup);
        model.handle_input(now, backend::Input::Greet);
        self.model = Some(model);
        // Somebody picked up before the agent was known.
        if self.is_ours() && self.media.is_some() && self.start.trunk.record && self.consent.is_none() {
            self.ask_consent();
        }
    }

    /// From now on the call is in this language: its announcements, its record, its summary.
    pub(super) fn speaks(&mut self, locale: Locale) {
        self.opening.locale = locale;
        self.log("LANGUAGE_CHANGED", Level::Info, locale.english_name(), json!({ "language": locale.as_str() }));
        self.write(Entry::Language { locale, at_ms: self.at_ms() });
    }

    pub(super) fn announce(&mut self, announcement: Announcement) {
        let (now, law) = (self.now(), self.law());
        let sound = self.shared.announcements.sound(announcement, self.opening.locale, law);
        if let Some(media) = &mut self.media {
            media.announce(now, &ItemId::from(announcement.as_str()), sound.into());
        }
    }

    pub(super) fn do_for_model(&mut self, output: backend::Output) {
        let (now, law) = (self.now(), self.law());
        match output {
            backend::Output::Connect(link) => self.connect(link),
            backend::Output::Send(link, text) => {
                // A socket that does not keep up with a voice is as good as gone.
                if !self.lines.send(link, text) {
                    self.tell_model(backend::Input::Disconnected(link));
                }
            }
            backend::Output::Close(link) => self.lines.close(link),
            backend::Output::Ready => self.tell_call(call::Input::ModelReady),
            backend::Output::Play { item, audio } => match &mut self.media {
                Some(media) if law == self.model_law => media.play(now, &item, audio),
                Some(media) => media.play(now, &item, self.model_law.convert(law, &audio).into()),
                None => self.early.push_back(backend::Output::Play { item, audio }),
            },
            backend::Output::Complete(item) => match &mut self.media {
                Some(media) => media.finish(&item),
                None => self.early.push_back(backend::Output::Complete(item)),
            },
            backend::Output::Flush => {
                if self.silence() {
                    self.shared.metrics.interrupted();
                }
            }
            backend::Output::Said { speaker, text, locale, interrupted } => {
                let (locale, source) = locale.unzip();
                self.write(Entry::Said { speaker, text, locale, source, interrupted, at_ms: self.at_ms() });
            }
            backend::Output::Language(locale) => self.speaks(locale),
            backend::Output::ToolCall { call_id, name, arguments } => self.tool(call_id, name, arguments),
            backend::Output::Filler => self.announce(Announcement::Filler),
            backend::Output::Used(usage) => self.write(Entry::Used { usage, at_ms: self.at_ms() }),
            backend::Output::Warning(message) => self.log("MODEL_WARNING", Level::Warn, &message, json!({})),
            backend::Output::Failed(reason) => {
                self.log("MODEL_FAILED", Level::Error, reason, json!({}));
                self.tell_call(call::Input::ModelFailed);
            }
        }
    }

    fn connect(&mut self, link: Link) {
        // A key of the function's is made to be used at once: a later connection needs another one.
        if link.0 == 1 || self.opened.ephemeral_key.is_none() {
            return self.dial(link);
        }
        let (function, opening, arrivals) =
            (self.shared.desk.function.clone(), self.opening.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            // The model's set-up is waited for meanwhile: a slow function must leave time to try the key at hand.
            let renewed = match tokio::time::timeout(RENEWED_WITHIN, function.open(&opening, link.0)).await {
                Ok(renewed) => renewed.map_err(|error| error.to_string()),
                Err(_) => Err("the session function takes too long".to_owned()),
            };
            let _ = arrivals.send(Arrival::Renewed(link, renewed)).await;
        });
    }

    pub(super) fn dial(&mut self, link: Link) {
        let settings = &self.shared.config.model;
        let base = self.opened.url.as_deref().unwrap_or(&settings.url);
        let model = self.opened.model.as_deref().unwrap_or(&settings.name);
        let key = self.opened.ephemeral_key.as_deref().map_or_else(|| self.shared.model_key.clone(), Arc::from);
        let mark = if base.contains('?') { '&' } else { '?' };
        let url = if base.contains("model=") { base.to_owned() } else { format!("{base}{mark}model={model}") };
        let address = link::Address { url, key };
        let (connector, arrivals) = (self.shared.connector.clone(), self.arrivals.clone());
        tokio::spawn(async move {
            let socket = link::open(address, &connector).await;
            let _ = arrivals.send(Arrival::Linked(link, socket)).await;
        });
    }

    fn tool(&mut self, call_id: String, name: String, arguments: String) {
        if name == END_CALL {
            self.tell_model(backend::Input::ToolResult { call_id, output: r#"{"status":"ok"}"#.into() });
            self.tell_call(call::Input::AgentEnds);
            return;
        }
        let (function, opening, arrivals) =
            (self.shared.desk.function.clone(), self.opening.clone(), self.arrivals.clone());
        let (clock, begun) = (self.shared.clock, self.now());
        tokio::spawn(async move {
            let output = function.tool(&opening, &call_id, &name, &arguments).await.map_err(|error| error.to_string());
            let took = clock.now().since(begun);
            let _ = arrivals.send(Arrival::Tool { call_id, name, took, output }).await;
        });
    }
}

fn greeting(direction: Direction, locale: Locale) -> String {
    let language = locale.english_name();
    match direction {
        Direction::Inbound => realtime::greeting(locale),
        Direction::Outbound => {
            format!(
                "You are calling somebody, who has just answered. Greet them briefly in {language} and say why you call."
            )
        }
    }
}
