//! What every step of a piece of work carries: the bindings, the settings, the correlation id, the log.

use std::{cell::OnceCell, rc::Rc};

use ihuza_core::{
    json::Part,
    log::{self, Event, Level},
};
use serde_json::{Map, Value};
use worker::Env;

use crate::{
    config::Config,
    decision::{self, Line},
    host,
    shell::{self, Slots},
};

/// Requests to carriers and models that one invocation has under way at a time. It has six connections, and the runtime makes
/// the others wait (Cloudflare docs, workers/platform/limits, "Simultaneous open connections"); the sixth is left to the
/// database, so that what was sent can be recorded while a carrier is slow.
const ASKED_AT_A_TIME: u32 = 5;

/// The context of one request, one queue message or one sweep.
#[derive(Clone)]
pub struct Cx {
    pub env: Env,
    pub config: Rc<Config>,
    /// Name of the function, as in its URL.
    pub function: &'static str,
    /// Follows the work from the trigger to the delivery report.
    pub correlation_id: String,
    slots: Rc<OnceCell<Slots>>,
}

impl Cx {
    /// The context of one invocation. What the invocation does for several correlation ids gets [`Cx::for_work`] of it, so
    /// that all of it shares the connections.
    pub fn new(env: Env, function: &'static str, correlation_id: String) -> Cx {
        let config = Config::of(&env, function);
        Cx { env, config, function, correlation_id, slots: Rc::default() }
    }

    /// The same context for the work of another correlation id.
    pub fn for_work(&self, correlation_id: &str) -> Cx {
        Cx { correlation_id: correlation_id.to_owned(), ..self.clone() }
    }

    /// The invocation's turns at carriers and models. Never those of another one: the runtime lets no invocation wait for
    /// another's promise.
    pub fn slots(&self) -> &Slots {
        self.slots.get_or_init(|| Slots::new(ASKED_AT_A_TIME))
    }

    /// One structured event, one line. Phones are masked on the way; texts and keys must not be handed in.
    pub fn line(&self, level: Level, event: Event, message: &str, fields: &[(&str, Part)]) -> Line {
        let mut all = Map::new();
        all.insert("function".to_owned(), Value::from(self.function));
        all.insert("correlation_id".to_owned(), Value::from(self.correlation_id.as_str()));
        for (name, part) in fields {
            all.insert((*name).to_owned(), part.clone().into());
        }
        Line { level, text: log::line(event, level, message, host::now(), all) }
    }

    /// Writes [`Cx::line`] to the log now.
    pub fn log(&self, level: Level, event: Event, message: &str, fields: &[(&str, Part)]) {
        let line = self.line(level, event, message, fields);
        shell::tell(decision::console_method(line.level), &line.text);
    }
}
