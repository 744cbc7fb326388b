//! What every simulator and the gateway share: the record of what they were sent, and faults to order.
//!
//! Over HTTP: `GET /control/requests`, `POST /control/faults {match, kind, times, delay_ms}`, `DELETE /control`. In Rust:
//! `world.mtn().fail_with(Fault::Status429).on("+250788123456").times(2);`

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::http::{Answer, Reply, Request, Server, Stream, Talk};
use crate::runtime;

mod fault;

pub use fault::Fault;

/// The record keeps this many requests; the oldest go first.
const RECORD_LIMIT: usize = 20_000;
/// How long a time-out fault keeps the caller waiting when nothing else is asked for.
const HANG: Duration = Duration::from_secs(60);
const SLOW: Duration = Duration::from_secs(2);

/// A fault that waits for its request.
#[derive(Clone, Debug)]
struct Rule {
    matching: String,
    fault: Fault,
    /// None: until cleared.
    left: Option<u32>,
    delay: Option<Duration>,
}

/// One request as it was received.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    pub id: u64,
    pub at: DateTime<Utc>,
    pub method: String,
    pub path: String,
    pub query: String,
    /// Secrets are masked.
    pub headers: Map<String, Value>,
    /// Verbatim.
    pub body: String,
    pub fault: Option<String>,
    /// What we answered; none while in progress, and when nothing was answered.
    pub status: Option<u16>,
}

impl Recorded {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// The fault that a request met, as its handler sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    pub fault: Option<Fault>,
    pub delay: Option<Duration>,
}

impl Met {
    pub fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

/// Record and faults of one server.
#[derive(Default)]
pub struct Control {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    record: VecDeque<Recorded>,
    next_id: u64,
}

impl Control {
    /// Orders a fault: for the next request of any kind, unless the returned order says more.
    pub fn fail_with(&self, fault: Fault) -> Order<'_> {
        Order { control: self, rule: Rule { matching: String::new(), fault, left: Some(1), delay: None } }
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state().record.iter().cloned().collect()
    }

    /// How many requests had this in their path.
    pub fn calls(&self, path_part: &str) -> usize {
        let state = self.state();
        state.record.iter().filter(|entry| entry.path.contains(path_part)).count()
    }

    /// Takes back every fault that has not struck yet.
    pub fn clear_faults(&self) {
        self.state().rules.clear();
    }

    /// Faults and record: as new.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.record.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the request and takes the first fault that fits it.
    fn meet(&self, request: &Request, subjects: &[String], only_by_name: bool) -> (u64, Met) {
        let mut state = self.state();
        let met = state.take(&request.path, subjects, only_by_name);
        let id = state.next_id;
        state.next_id += 1;
        if state.record.len() >= RECORD_LIMIT {
            state.record.pop_front();
        }
        state.record.push_back(Recorded {
            id,
            at: Utc::now(),
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            headers: masked(&request.headers),
            body: request.text(),
            fault: met.fault.map(|fault| fault.to_string()),
            status: None,
        });
        (id, met)
    }

    /// The fault that something after a 101 meets; only one that names it strikes it.
    pub fn meet_event(&self, name: &str) -> Met {
        self.state().take("", &[name.to_owned()], true)
    }

    fn answered(&self, id: u64, status: Option<u16>) {
        let mut state = self.state();
        if let Some(entry) = state.record.iter_mut().rev().find(|entry| entry.id == id) {
            entry.status = status;
        }
    }
}

impl State {
    fn take(&mut self, path: &str, subjects: &[String], only_by_name: bool) -> Met {
        let fits = |rule: &Rule| {
            if rule.matching.is_empty() {
                return !only_by_name;
            }
            path.contains(&rule.matching) || subjects.iter().any(|subject| same(subject, &rule.matching))
        };
        let Some(position) = self.rules.iter().position(fits) else {
            return Met::default();
        };
        let Some(rule) = self.rules.get_mut(position) else {
            return Met::default();
        };
        let met = Met { fault: Some(rule.fault), delay: rule.delay };
        if let Some(left) = &mut rule.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.rules.remove(position);
            }
        }
        met
    }
}

/// Numbers are the same with and without their `+`.
fn same(one: &str, other: &str) -> bool {
    one.trim_start_matches('+') == other.trim_start_matches('+')
}

/// A fault being ordered. It counts from the end of the statement (when this is dropped).
pub struct Order<'a> {
    control: &'a Control,
    rule: Rule,
}

impl Order<'_> {
    /// For this many requests.
    pub fn times(mut self, times: u32) -> Self {
        self.rule.left = Some(times);
        self
    }

    /// For every request, until cleared.
    pub fn always(mut self) -> Self {
        self.rule.left = None;
        self
    }

    /// Only for requests whose path contains this, or whose recipient (or other subject of the simulator) it is.
    pub fn on(mut self, matching: &str) -> Self {
        self.rule.matching = matching.to_owned();
        self
    }

    /// How slow, how long silent, or what `Retry-After` says.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.rule.delay = Some(delay);
        self
    }
}

impl Drop for Order<'_> {
    fn drop(&mut self) {
        if self.rule.left != Some(0) {
            let rule = self.rule.clone();
            self.control.state().rules.push(rule);
        }
    }
}

/// A simulated service behind its control.
pub trait Service: Send + Sync + 'static {
    /// What besides the path a fault may name: recipients, a model, a schema.
    fn subjects(&self, request: &Request) -> Vec<String>;

    /// Groundwork such as fetching a token: only a fault that names it strikes it.
    fn only_by_name(&self, _: &Request) -> bool {
        false
    }

    /// The service as it should be; `met` tells what to spoil afterwards (reports twice, late, never).
    fn handle(self: Arc<Self>, request: Request, met: Met) -> impl Future<Output = Answer> + Send;

    /// What is spoken over the connection of a request that was answered with 101.
    fn talk(self: Arc<Self>, _: Request, _: Stream) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Orders of this service's own, below `/control/`.
    fn operate(&self, _: &Request) -> Option<Answer> {
        None
    }

    /// A failure in the vendor's own form.
    fn refuse(&self, status: u16, code: Option<i64>) -> Answer;
}

/// Starts the server of a service; `latency` is what the real one's network would cost.
pub async fn start<S: Service>(port: u16, service: Arc<S>, control: Arc<Control>, latency: Duration) -> Result<Server> {
    Server::start(port, move |request| {
        let (service, control) = (service.clone(), control.clone());
        async move {
            if request.path == "/control" || request.path.starts_with("/control/") {
                let own = service.operate(&request);
                return Reply::Whole(own.unwrap_or_else(|| operate(&control, &request)));
            }
            // Work that was begun is finished even when the caller hangs up, as it is at the real service.
            let work = runtime::spawn(attend(service, control, latency, request));
            work.await.unwrap_or(Reply::Cut)
        }
    })
    .await
}

async fn attend<S: Service>(service: Arc<S>, control: Arc<Control>, latency: Duration, request: Request) -> Reply {
    let subjects = service.subjects(&request);
    let (id, met) = control.meet(&request, &subjects, service.only_by_name(&request));
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let reply = spoiled(service, request, met).await;
    let status = match &reply {
        Reply::Whole(answer) | Reply::Upgrade(answer, _) | Reply::Truncated(answer) => Some(answer.status),
        Reply::Hang(_) | Reply::Cut => None,
    };
    control.answered(id, status);
    reply
}

async fn spoiled<S: Service>(service: Arc<S>, request: Request, met: Met) -> Reply {
    let Some(fault) = met.fault else {
        return whole(service, request, met).await;
    };
    let hang = met.delay.unwrap_or(HANG);
    if !fault.accepted() {
        return match fault {
            Fault::Status401 => Reply::Whole(service.refuse(401, None)),
            Fault::Status429 => Reply::Whole(service.refuse(429, None)),
            Fault::Status429RetryAfter => Reply::Whole(service.refuse(429, None).header("retry-after", seconds(met))),
            Fault::Status503 => Reply::Whole(service.refuse(503, None).header("retry-after", seconds(met))),
            Fault::Status504 => Reply::Whole(service.refuse(504, None)),
            Fault::TimeoutBefore => Reply::Hang(hang),
            Fault::CutBefore => Reply::Cut,
            Fault::Code(code) => Reply::Whole(service.refuse(0, Some(code))),
            Fault::Pgrst002 => Reply::Whole(Answer::json(
                503,
                &json!({"code": "PGRST002", "details": null, "hint": null,
                        "message": "Could not query the database for the schema cache. Retrying."}),
            )),
            _ => Reply::Whole(service.refuse(500, None)),
        };
    }
    if fault == Fault::Slow {
        tokio::time::sleep(met.delay.unwrap_or(SLOW)).await;
    }
    if fault == Fault::Slow {
        return whole(service, request, met).await;
    }
    let answer = service.clone().handle(request, met).await;
    match fault {
        Fault::Status500After => Reply::Whole(service.refuse(500, None)),
        Fault::TimeoutAfter => Reply::Hang(hang),
        Fault::CutAfter => Reply::Cut,
        Fault::Truncated => Reply::Truncated(answer),
        Fault::NonJson => Reply::Whole(Answer::text(
            answer.status,
            "text/html",
            "<!doctype html><title>Please wait</title><p>One moment, please.</p>",
        )),
        _ => Reply::Whole(answer),
    }
}

async fn whole<S: Service>(service: Arc<S>, request: Request, met: Met) -> Reply {
    let answer = service.clone().handle(request.clone(), met).await;
    match answer.status {
        101 => Reply::Upgrade(answer, Talk::new(move |stream| service.talk(request, stream))),
        _ => Reply::Whole(answer),
    }
}

fn seconds(met: Met) -> String {
    let delay = met.delay.unwrap_or(Duration::from_secs(1));
    delay.as_millis().div_ceil(1000).to_string()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ordered {
    #[serde(default, rename = "match")]
    matching: Option<String>,
    kind: String,
    #[serde(default)]
    times: Option<u32>,
    #[serde(default)]
    delay_ms: Option<u64>,
}

/// The control interface. `times` 0 means until cleared; without it, once.
fn operate(control: &Control, request: &Request) -> Answer {
    // The ready file's `control_url` ends in `/control`; who appends that once more means the same.
    let path = request.path.strip_prefix("/control").filter(|rest| rest.starts_with("/control"));
    match (request.method.as_str(), path.unwrap_or(&request.path)) {
        ("GET", "/control/requests") => {
            let entries: Vec<Value> = control.requests().iter().map(show).collect();
            Answer::json(200, &Value::Array(entries))
        }
        ("GET", "/control/faults") => {
            let state = control.state();
            let rules: Vec<Value> = state
                .rules
                .iter()
                .map(|rule| {
                    json!({"match": rule.matching, "kind": rule.fault.to_string(), "times": rule.left.unwrap_or(0),
                           "delay_ms": rule.delay.map(|delay| delay.as_millis() as u64)})
                })
                .collect();
            Answer::json(200, &Value::Array(rules))
        }
        ("POST", "/control/faults") => match order(control, request) {
            Ok(()) => Answer::json(201, &json!({"ok": true})),
            Err(why) => Answer::json(400, &json!({ "error": why })),
        },
        ("DELETE", "/control") => {
            control.clear();
            Answer::json(200, &json!({"ok": true}))
        }
        _ => {
            Answer::json(404, &json!({"error": "GET /control/requests, GET or POST /control/faults, DELETE /control"}))
        }
    }
}

fn order(control: &Control, request: &Request) -> std::result::Result<(), String> {
    let ordered: Ordered = serde_json::from_slice(&request.body).map_err(|error| error.to_string())?;
    let fault: Fault = ordered.kind.parse()?;
    let mut order = control.fail_with(fault).on(ordered.matching.as_deref().unwrap_or_default());
    order = match ordered.times {
        None => order,
        Some(0) => order.always(),
        Some(times) => order.times(times),
    };
    if let Some(delay) = ordered.delay_ms {
        order = order.delay(Duration::from_millis(delay));
    }
    drop(order);
    Ok(())
}

fn show(entry: &Recorded) -> Value {
    json!({"id": entry.id, "at": entry.at.to_rfc3339_opts(SecondsFormat::Millis, true), "method": entry.method,
           "path": entry.path, "query": entry.query, "headers": entry.headers, "body": entry.body,
           "fault": entry.fault, "status": entry.status})
}

/// Headers that prove who the caller is: their presence is recorded, not their value.
const SECRET_HEADERS: [&str; 7] =
    ["authorization", "apikey", "x-api-key", "x-signature", "x-hub-signature-256", "cookie", "set-cookie"];

fn masked(headers: &HeaderMap) -> Map<String, Value> {
    let mut shown = Map::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let value = if SECRET_HEADERS.contains(&name.as_str()) { mask(&value) } else { value.into_owned() };
        shown.insert(name.as_str().to_owned(), Value::String(value));
    }
    shown
}

fn mask(value: &str) -> String {
    match value.split_once(' ') {
        Some((scheme, secret)) if !secret.is_empty() => format!("{scheme} ***"),
        _ => "***".to_owned(),
    }
}

#[cfg(test)]
mod tests;
