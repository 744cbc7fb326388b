//! The function that keeps the records of calls, over HTTP.

use std::time::Duration;

use ihuza_core::locale::Locale;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::config::SessionFunction;
use crate::journal::entry::{Direction, Entry, Origin};
use crate::journal::told;
use crate::sip::call::EndCause;

/// A tool may take longer than an opening.
const TOOL_WITHIN: Duration = Duration::from_secs(8);
/// So may the records of a whole call.
const RECORDS_WITHIN: Duration = Duration::from_secs(15);
/// Connections that wait for the next request, and for how long: after a rush they, and what they read into, are given up.
const MOST_IDLE: usize = 64;
const IDLE_FOR: Duration = Duration::from_secs(30);
const MOST_ANSWER_BYTES: usize = 256 * 1024;

/// Who calls whom.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Our own id of the call; one runs from the INVITE to the last message.
    pub correlation_id: String,
    /// The trunk's.
    pub call_sid: String,
    /// By which way it came.
    pub origin: Origin,
    /// The trunk.
    pub trunk: String,
    /// Who calls, in E.164.
    pub from: Option<String>,
    /// Who was called, in E.164.
    pub to: String,
    /// Which agent answers.
    pub agent: String,
    /// The language of the greeting.
    pub locale: Locale,
    /// Who called whom.
    pub direction: Direction,
    /// The name that whoever asked for the call gave it.
    pub reference: Option<String>,
}

impl Opening {
    /// As it begins the journal.
    pub fn entry(&self, at_ms: i64) -> Entry {
        let Opening { correlation_id, call_sid, origin, trunk, from, to, locale, direction, reference, .. } =
            self.clone();
        Entry::Opened { correlation_id, call_sid, origin, trunk, from, to, locale, direction, reference, at_ms }
    }
}

/// What the agent of a call is made of. Both spellings are read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Opened {
    /// A key for this call alone.
    #[serde(alias = "ephemeralKey")]
    pub ephemeral_key: Option<String>,
    /// Where the model is, if not where the settings say.
    pub url: Option<String>,
    /// Which model, if not the one of the settings.
    pub model: Option<String>,
    /// The agent.
    pub session: Session,
    /// What it says first.
    pub greeting: Option<String>,
    /// The caller's language, if it is known.
    pub locale: Option<Locale>,
}

/// The part of a model's session that the function decides; sound and turns are this relay's matter.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Session {
    /// What the agent is told.
    pub instructions: Option<String>,
    /// Its tools.
    pub tools: Vec<Value>,
}

/// Why nothing came of a request.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// It was not reached, or did not answer in time.
    #[error("the session function is not reached")]
    Unreached(#[source] reqwest::Error),
    /// It answered that it cannot.
    #[error("the session function answers {0}")]
    Refused(u16),
    /// Its answer makes no sense.
    #[error("the session function's answer cannot be read")]
    Unreadable,
}

/// The door to it.
#[derive(Debug, Clone)]
pub struct Function {
    client: reqwest::Client,
    url: String,
    key: String,
    timeout: Duration,
    relay_name: String,
}

impl Function {
    /// As the settings say; `key` from the environment.
    pub fn new(settings: &SessionFunction, key: String) -> Result<Function, FunctionError> {
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(MOST_IDLE)
            .pool_idle_timeout(IDLE_FOR)
            .build()
            .map_err(FunctionError::Unreached)?;
        let url = settings.url.trim_end_matches('/').to_owned();
        let timeout = Duration::from_millis(settings.timeout_ms);
        Ok(Function { client, url, key, timeout, relay_name: settings.relay_name.clone() })
    }

    /// Opens a call, or, with another `session` than the first, asks for what a further session of the model is opened with.
    pub async fn open(&self, opening: &Opening, session: u32) -> Result<Opened, FunctionError> {
        let body = json!({
            "call_sid": opening.call_sid, "origin": opening.origin, "from": opening.from, "to": opening.to, "locale": opening.locale,
            "agent": opening.agent, "trunk": opening.trunk, "correlation_id": opening.correlation_id,
            "direction": opening.direction,
            "session": session,
        });
        let answer = self.post("", &opening.correlation_id, &body, self.timeout).await?;
        serde_json::from_value(answer).map_err(|_| FunctionError::Unreadable)
    }

    /// Tells of events; the same ones again change nothing there.
    pub async fn events(&self, opening: &Opening, entries: &[(u64, Entry)]) -> Result<(), FunctionError> {
        let events: Vec<Value> = entries.iter().map(|(seq, entry)| told::event(*seq, entry)).collect();
        // A call whose opening was never seen there began when it began, not when it is told of.
        let started_at = entries.iter().find_map(|(_, entry)| match entry {
            Entry::Opened { at_ms, .. } => told::time(*at_ms),
            _ => None,
        });
        let body = json!({
            "call_sid": opening.call_sid, "origin": opening.origin, "correlation_id": opening.correlation_id,
            "from": opening.from, "to": opening.to,
            "trunk": opening.trunk, "direction": opening.direction, "started_at": started_at, "events": events,
        });
        self.post("/events", &opening.correlation_id, &body, RECORDS_WITHIN).await.map(|_| ())
    }

    /// Runs a tool; the result as JSON text for the model.
    pub async fn tool(
        &self,
        opening: &Opening,
        tool_call_id: &str,
        name: &str,
        arguments: &str,
    ) -> Result<String, FunctionError> {
        let body = json!({
            "call_sid": opening.call_sid, "origin": opening.origin, "correlation_id": opening.correlation_id, "tool_call_id": tool_call_id,
            "idempotency_key": format!("{}:{tool_call_id}", opening.correlation_id), "name": name, "arguments": arguments,
            "direction": opening.direction,
        });
        let answer = self.post("/tools", &opening.correlation_id, &body, TOOL_WITHIN).await?;
        // `{ok, result}` or `{ok, error}`: the model reads both.
        Ok(answer.to_string())
    }

    /// Closes a call, also one whose opening was never seen there.
    pub async fn end(
        &self,
        opening: &Opening,
        cause: EndCause,
        [answered_at_ms, ended_at_ms]: [Option<i64>; 2],
        last_seq: u64,
        media: &Value,
    ) -> Result<(), FunctionError> {
        let body = json!({
            "call_sid": opening.call_sid, "origin": opening.origin, "correlation_id": opening.correlation_id,
            "from": opening.from, "to": opening.to,
            "locale": opening.locale, "trunk": opening.trunk, "direction": opening.direction, "cause": told::cause(cause, answered_at_ms.is_some()), "reason": cause.as_str(),
            "answered_at": answered_at_ms.and_then(told::time),
            "ended_at": ended_at_ms.and_then(told::time), "last_seq": last_seq, "media": media,
        });
        self.post("/end", &opening.correlation_id, &body, RECORDS_WITHIN).await.map(|_| ())
    }

    /// Tells how the trunks are: `{name, status, reason, active_calls, last_heard_at, last_call_at}` each.
    pub async fn trunks(&self, trunks: Vec<Value>) -> Result<(), FunctionError> {
        let body = json!({ "relay": self.relay_name, "trunks": trunks });
        self.post("/trunks", &Uuid::new_v4().to_string(), &body, RECORDS_WITHIN).await.map(|_| ())
    }

    async fn post(
        &self,
        path: &str,
        correlation_id: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Value, FunctionError> {
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .bearer_auth(&self.key)
            .header("x-correlation-id", correlation_id)
            .timeout(within)
            .json(body);
        let mut response = request.send().await.map_err(|error| FunctionError::Unreached(error.without_url()))?;
        if !response.status().is_success() {
            return Err(FunctionError::Refused(response.status().as_u16()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| FunctionError::Unreached(error.without_url()))? {
            if bytes.len() + chunk.len() > MOST_ANSWER_BYTES {
                return Err(FunctionError::Unreadable);
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| FunctionError::Unreadable)
    }
}
