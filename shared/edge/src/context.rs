//! What every step of a piece of work carries: the bindings, the settings, the correlation id, the log.

use std::rc::Rc;

use ihuza_core::{
    json::Part,
    log::{self, Event, Level},
};
use serde_json::{Map, Value};
use worker::Env;

use crate::{config::Config, host};

/// The context of one request, one queue message or one sweep.
#[derive(Clone)]
pub struct Cx {
    pub env: Env,
    pub config: Rc<Config>,
    /// Name of the function, as in its URL.
    pub function: &'static str,
    /// Follows the work from the trigger to the delivery report.
    pub correlation_id: String,
}

impl Cx {
    pub fn new(env: Env, function: &'static str, correlation_id: String) -> Cx {
        let config = Config::of(&env);
        Cx { env, config, function, correlation_id }
    }

    /// The same context for the work of another correlation id.
    pub fn for_work(&self, correlation_id: &str) -> Cx {
        Cx { correlation_id: correlation_id.to_owned(), ..self.clone() }
    }

    /// One structured event, one line. Phones are masked on the way; texts and keys must not be handed in.
    pub fn log(&self, level: Level, event: Event, message: &str, fields: &[(&str, Part)]) {
        let mut all = Map::new();
        all.insert("function".to_owned(), Value::from(self.function));
        all.insert("correlation_id".to_owned(), Value::from(self.correlation_id.as_str()));
        for (name, part) in fields {
            all.insert((*name).to_owned(), part.clone().into());
        }
        let line = log::line(event, level, message, host::now(), all);
        match level {
            Level::Info => worker::console_log!("{line}"),
            Level::Warn => worker::console_warn!("{line}"),
            Level::Error => worker::console_error!("{line}"),
        }
    }
}
