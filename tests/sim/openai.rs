//! OpenAI's Responses API, standing in for the model: strict on the request, deterministic in its answers. And its
//! Realtime API, over which the model speaks ([`realtime`]).
//!
//! A summary is made from the facts of the transcript it is given, and an answer from the conversation it is given, so a
//! test or a demo sees whether the context really arrived. Tests that need other words queue them first.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::control::{self, Control, Fault, Met, Order, Recorded, Service};
use crate::error::Result;
use crate::http::{Answer, Request, Server, Stream};

mod answer;
mod check;
mod conversation;
mod facts;
mod input;
pub mod realtime;
pub mod sip;
mod summary;
pub mod transcribe;
mod wishes;
mod words;

use answer::Reply;
use check::Refusal;
use realtime::Realtime;
use sip::Calls;

/// Path below the base URL, which ends in `/v1`.
const PATH: &str = "/v1/responses";

/// What the model shall say instead of what it would.
#[derive(Clone, Debug)]
pub enum Script {
    Text(String),
    /// A structured answer, as it is: it need not fit the schema.
    Json(Value),
    Refusal(String),
    /// Cut off at `max_output_tokens` with this much written.
    Incomplete(String),
    /// Calls of tools: name and arguments.
    Tools(Vec<(String, Value)>),
    /// `status: failed`.
    Failed,
    /// The whole answer.
    Raw(Value),
}

struct Queued {
    /// Model, name of the schema, or `text`; none: whoever comes next.
    subject: Option<String>,
    script: Script,
}

/// The running simulator.
pub struct OpenAi {
    server: Server,
    control: Arc<Control>,
    model: Arc<Model>,
}

struct Model {
    api_key: String,
    realtime: Realtime,
    calls: Arc<Calls>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    scripts: VecDeque<Queued>,
    cache_keys: HashSet<String>,
}

impl OpenAi {
    pub async fn start(port: u16, api_key: String, latency: Duration) -> Result<Self> {
        let control = Arc::new(Control::default());
        let realtime = Realtime::new(control.clone());
        let calls = Arc::new(Calls::new(control.clone())?);
        let model = Arc::new(Model { api_key, realtime, calls, state: Mutex::default() });
        let server = control::start(port, model.clone(), control.clone(), latency).await?;
        Ok(Self { server, control, model })
    }

    /// What functions get as `OPENAI_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("{}/v1", self.server.url())
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The server itself: it can go away and come back.
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    /// See [`Control::fail_with`]; a fault may name the model, the schema (`call_summary`), or `text`; `transcription`, or the
    /// words that are spoken; of the Realtime API the
    /// `handshake`, or an event of a session.
    pub fn fail_with(&self, fault: Fault) -> Order<'_> {
        self.control.fail_with(fault)
    }

    /// What the next request without a script of its own is answered.
    pub fn next(&self, script: Script) {
        self.model.state().scripts.push_back(Queued { subject: None, script });
    }

    /// Forgets what nobody has asked for yet; how many answers that were.
    pub fn unused(&self) -> usize {
        std::mem::take(&mut self.model.state().scripts).len()
    }

    /// What the next request of this model, schema or (`text`) form is answered.
    pub fn next_for(&self, subject: &str, script: Script) {
        let subject = Some(subject.to_owned());
        self.model.state().scripts.push_back(Queued { subject, script });
    }

    /// Every ephemeral key so far, oldest first.
    pub fn minted(&self) -> Vec<String> {
        self.model.realtime.minted()
    }

    /// The half of it that speaks.
    pub fn realtime(&self) -> &Realtime {
        &self.model.realtime
    }

    /// Calls over the vendor's own SIP.
    pub fn calls(&self) -> &Calls {
        &self.model.calls
    }

    /// Every question so far, oldest first.
    pub fn questions(&self) -> Vec<Recorded> {
        let mut requests = self.control.requests();
        requests.retain(|request| request.path == PATH);
        requests
    }
}

impl Model {
    fn mint(&self, request: &Request) -> Answer {
        if request.bearer() != Some(&self.api_key) {
            return error(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided", None);
        }
        self.realtime.mint(request).map_or_else(refused, |answer| Answer::json(200, &answer))
    }

    fn act(&self, request: &Request) -> Answer {
        if request.bearer() != Some(&self.api_key) {
            return error(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided", None);
        }
        self.calls.act(&self.realtime, request).unwrap_or_else(refused)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn respond(&self, request: &Request) -> Answer {
        if request.bearer() != Some(&self.api_key) {
            return error(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided", None);
        }
        let body: Value = match serde_json::from_slice(&request.body) {
            Ok(body) => body,
            Err(_) => {
                return error(400, "invalid_request_error", "invalid_json", "We could not parse the JSON body", None);
            }
        };
        if let Err(fault) = check::request(&body) {
            return refused(fault);
        }
        let reply = match self.script(&subjects(&body)) {
            Some(Script::Raw(answer)) => return Answer::json(200, &answer),
            Some(script) => scripted(script),
            None => answer::reply(&body),
        };
        let response = self.envelope(&body, reply);
        Answer::json(200, &response).header("x-request-id", format!("req_{}", Uuid::new_v4().simple()))
    }

    fn script(&self, subjects: &[String]) -> Option<Script> {
        let mut state = self.state();
        let fits = |queued: &Queued| queued.subject.as_ref().is_none_or(|subject| subjects.contains(subject));
        let position = state.scripts.iter().position(fits)?;
        state.scripts.remove(position).map(|queued| queued.script)
    }

    fn envelope(&self, body: &Value, reply: Reply) -> Value {
        let mut output = Vec::new();
        let thinks = body.pointer("/reasoning/effort").and_then(Value::as_str) != Some("none");
        if thinks {
            output.push(json!({"type": "reasoning", "id": id("rs"), "summary": []}));
        }
        let mut status = "completed";
        let mut incomplete = Value::Null;
        let mut failure = Value::Null;
        let mut written = 0;
        let message = |content: Value, status: &str| json!({"type": "message", "id": id("msg"), "role": "assistant", "status": status, "content": [content]});
        let text = |text: &str| json!({"type": "output_text", "text": text, "annotations": []});
        match reply {
            Reply::Text(words) => {
                written = words.len();
                output.push(message(text(&words), "completed"));
            }
            Reply::Refusal(words) => {
                written = words.len();
                output.push(message(json!({"type": "refusal", "refusal": words}), "completed"));
            }
            Reply::Incomplete(words) => {
                written = words.len();
                status = "incomplete";
                incomplete = json!({"reason": "max_output_tokens"});
                output.push(message(text(&words), "incomplete"));
            }
            Reply::Tools(calls) => {
                for (name, arguments) in calls {
                    let arguments = arguments.to_string();
                    written += arguments.len();
                    output.push(json!({"type": "function_call", "id": id("fc"), "call_id": id("call"), "name": name,
                                       "arguments": arguments, "status": "completed"}));
                }
            }
            Reply::Failed => {
                status = "failed";
                failure = json!({"code": "server_error", "message": "The model had an error."});
                output.clear();
            }
        }
        json!({"id": id("resp"), "object": "response", "created_at": Utc::now().timestamp(), "status": status,
               "error": failure, "incomplete_details": incomplete, "model": body.get("model"), "output": output,
               "service_tier": "default", "store": false, "usage": self.usage(body, written, thinks)})
    }

    /// About four characters a token; a known cache key has three quarters of its input cached.
    fn usage(&self, body: &Value, written: usize, thinks: bool) -> Value {
        let sent = ["instructions", "input", "tools", "text"]
            .map(|part| body.get(part).map_or(0, |part| part.to_string().len()));
        let input = sent.iter().sum::<usize>() / 4 + 8;
        let key = body.get("prompt_cache_key").and_then(Value::as_str);
        let known = key.is_some_and(|key| !self.state().cache_keys.insert(key.to_owned()));
        let cached = if known { input * 3 / 4 } else { 0 };
        let reasoning = if thinks { 16 } else { 0 };
        let output = written / 4 + 1 + reasoning;
        json!({"input_tokens": input, "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
               "output_tokens": output, "output_tokens_details": {"reasoning_tokens": reasoning}, "total_tokens": input + output})
    }
}

impl Service for Model {
    fn subjects(&self, request: &Request) -> Vec<String> {
        if request.path == realtime::SOCKET {
            // Its path is the beginning of that of the keys.
            return vec![realtime::HANDSHAKE.to_owned()];
        }
        if request.path == transcribe::PATH {
            return transcribe::words(request).into_iter().chain(["transcription".to_owned()]).collect();
        }
        subjects(&serde_json::from_slice(&request.body).unwrap_or_default())
    }

    async fn handle(self: Arc<Self>, request: Request, _: Met) -> Answer {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", PATH) => self.respond(&request),
            ("POST", transcribe::PATH) if request.bearer() == Some(&self.api_key) => {
                transcribe::answer(&request).map_or_else(refused, |answer| Answer::json(200, &answer))
            }
            ("POST", transcribe::PATH) => {
                error(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided", None)
            }
            ("POST", realtime::KEYS) => self.mint(&request),
            ("POST", path) if path.starts_with(sip::CALLS) => self.act(&request),
            ("GET", realtime::SOCKET) if sip::observed(&request).is_some() => {
                self.calls.handshake(&request, &self.api_key).unwrap_or_else(refused)
            }
            ("GET", realtime::SOCKET) => self.realtime.handshake(&request, &self.api_key).unwrap_or_else(refused),
            (_, PATH | realtime::KEYS | realtime::SOCKET) => {
                error(405, "invalid_request_error", "method_not_allowed", "Not allowed to use this method", None)
            }
            _ => error(404, "invalid_request_error", "unknown_url", "Unknown request URL", None),
        }
    }

    async fn talk(self: Arc<Self>, request: Request, stream: Stream) {
        match sip::observed(&request) {
            Some(id) => {
                let seen = self.realtime.record(id, false);
                self.calls.talk(&request, stream, seen).await;
            }
            None => self.realtime.talk(request, stream).await,
        }
    }

    fn operate(&self, request: &Request) -> Option<Answer> {
        self.realtime.operate(request)
    }

    fn refuse(&self, status: u16, _: Option<i64>) -> Answer {
        match status {
            401 => error(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided", None),
            429 => error(429, "requests", "rate_limit_exceeded", "Rate limit reached", None),
            503 => error(503, "server_error", "server_is_overloaded", "The server is overloaded", None),
            status => error(
                if status == 0 { 500 } else { status },
                "server_error",
                "server_error",
                "The server had an error",
                None,
            ),
        }
    }
}

fn scripted(script: Script) -> Reply {
    match script {
        Script::Text(text) => Reply::Text(text),
        Script::Json(value) | Script::Raw(value) => Reply::Text(value.to_string()),
        Script::Refusal(text) => Reply::Refusal(text),
        Script::Incomplete(text) => Reply::Incomplete(text),
        Script::Tools(calls) => Reply::Tools(calls),
        Script::Failed => Reply::Failed,
    }
}

/// By what a fault or a script may name a request.
fn subjects(body: &Value) -> Vec<String> {
    let model = body.get("model").and_then(Value::as_str);
    let schema = body.pointer("/text/format/name").and_then(Value::as_str);
    [model, Some(schema.unwrap_or("text"))].into_iter().flatten().map(str::to_owned).collect()
}

fn refused(Refusal { status, code, message, param }: Refusal) -> Answer {
    error(status, "invalid_request_error", code, &message, Some(&param))
}

fn error(status: u16, kind: &str, code: &str, message: &str, param: Option<&str>) -> Answer {
    Answer::json(status, &json!({"error": {"message": message, "type": kind, "code": code, "param": param}}))
        .header("x-request-id", format!("req_{}", Uuid::new_v4().simple()))
}

fn id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests;
