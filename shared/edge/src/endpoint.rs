//! What every endpoint shares: where it answers, its health page, methods, keys of our own callers, problem details.

use std::{
    cell::{OnceCell, RefCell},
    pin::Pin,
};

use ihuza_core::json::obj;
use ihuza_core::json_text::{parse, to_text};
use ihuza_core::{
    ids::CorrelationId,
    log::{Event, Level},
    problem::Problem,
    realtime, signature,
};
use js_sys::Promise;
use wasm_bindgen::{JsValue, closure::Closure};
use wasm_bindgen_futures::future_to_promise;
use worker::{Env, web_sys};

use crate::{
    config::Config,
    context::Cx,
    database,
    decision::{Decision, Line},
    host,
    incoming::Incoming,
    queue::{self, Envelope},
    reply::Reply,
    shell,
};

/// Names the thread through the logs: read from a request, written on every answer.
pub const CORRELATION_HEADER: &str = "x-correlation-id";

/// One call of an endpoint.
pub struct Call {
    pub cx: Cx,
    pub request: Incoming,
    /// What follows the endpoint's own path, without slashes at its ends: empty, `health`, `mtn/<token>` ...
    pub rest: String,
}

/// What an endpoint is.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub name: &'static str,
    /// The queue it feeds.
    pub queue: &'static str,
    /// The headers it looks at, but for [`CORRELATION_HEADER`]; no other is brought over.
    pub headers: &'static [&'static str],
    /// The longest body it takes.
    pub body_limit_bytes: usize,
}

/// What becomes of a call. Nearly every request is decided at once, without waiting for anything.
pub enum Outcome {
    Now(Result<Decision, Problem>),
    Later(Pin<Box<dyn Future<Output = Result<Decision, Problem>>>>),
}

impl From<Problem> for Outcome {
    fn from(problem: Problem) -> Outcome {
        Outcome::Now(Err(problem))
    }
}

impl From<Result<Reply, Problem>> for Outcome {
    fn from(result: Result<Reply, Problem>) -> Outcome {
        Outcome::Now(result.map(Decision::from))
    }
}

impl Outcome {
    /// An answer that has to be waited for.
    pub fn later(reply: impl Future<Output = Result<Reply, Problem>> + 'static) -> Outcome {
        Outcome::Later(Box::pin(async { reply.await.map(Decision::from) }))
    }

    /// The decision, waited for where it has to be.
    pub async fn decided(self) -> Result<Decision, Problem> {
        match self {
            Outcome::Now(result) => result,
            Outcome::Later(result) => result.await,
        }
    }

    /// The answer to accepted work: given, and the lines written, once all of `work` is durable on the queue named with it.
    pub fn accepted(cx: Cx, work: Vec<(&'static str, Envelope)>, reply: Reply, lines: Vec<Line>) -> Outcome {
        let text = |(queue, envelope): &(&str, Envelope)| (queue::binding(queue), to_text(&envelope.to_value()));
        let decision = Decision { ask: Vec::new(), work: work.iter().map(text).collect(), lines, reply };
        if decision.work.iter().all(|(_, text)| text.len() <= queue::MESSAGE_LIMIT_BYTES) {
            return Outcome::Now(Ok(decision));
        }
        Outcome::Later(Box::pin(async move {
            for (queue, envelope) in &work {
                queue::place(&cx, queue, envelope, 0).await?;
            }
            Ok(Decision { work: Vec::new(), ..decision })
        }))
    }
}

/// The routes of an endpoint but for its health page.
pub type Route = fn(Call) -> Outcome;

/// The routes of a function that works from a queue alone: none but its health page.
pub fn behind_a_queue(_: Call) -> Outcome {
    Problem::not_found("this function works from its queue; GET /health says how it is").into()
}

thread_local! {
    /// One Worker has one endpoint.
    static DOOR: OnceCell<shell::Door> = const { OnceCell::new() };
}

/// Answers one request: `route` for the endpoint's own routes, the health page and every error here.
///
/// Stands in for the `fetch` event of crate `worker`, whose future, `Request` and `Response` cost 60 crossings between wasm
/// and JavaScript where this costs ten.
pub fn serve(endpoint: Endpoint, route: Route, request: web_sys::Request, env: Env) -> Promise {
    DOOR.with(|door| {
        let door = door.get_or_init(|| {
            let decide: shell::Decide =
                Closure::new(move |env, head: String, body| decide(endpoint, route, env, &head, body));
            let refused: shell::Refused = Closure::new(move |env, queue: String, text: String, why: String| {
                refused(endpoint, env, &queue, text, why)
            });
            let headers = [&[CORRELATION_HEADER], endpoint.headers].concat().join("\n");
            let limit = u32::try_from(endpoint.body_limit_bytes).unwrap_or(u32::MAX);
            // The door stays as long as the isolate.
            shell::Door::new(&headers, limit, decide.into_js_value(), refused.into_js_value())
        });
        door.serve(request, env)
    })
}

fn decide(endpoint: Endpoint, route: Route, env: Env, head: &str, body: Vec<u8>) -> JsValue {
    let request = Incoming::read(endpoint, head, body);
    let given = request.header(CORRELATION_HEADER).and_then(CorrelationId::parse);
    let correlation_id = given.map_or_else(host::new_uuid, |id| id.as_str().to_owned());
    let cx = Cx::new(env, endpoint.name, correlation_id);
    let rest = rest_of(&request.path, endpoint.name).to_owned();
    let outcome = match (request.method.as_str(), rest.as_str()) {
        ("GET" | "HEAD", "health") => health_page(cx.clone(), endpoint),
        (_, "health") => Problem::method_not_allowed("GET").into(),
        _ => route(Call { cx: cx.clone(), request, rest }),
    };
    match outcome {
        Outcome::Now(result) => JsValue::from_str(&said(&cx, result).to_text()),
        Outcome::Later(result) => {
            future_to_promise(async move { Ok(JsValue::from_str(&said(&cx, result.await).to_text())) }).into()
        }
    }
}

/// The queue of this binding did not take this work: a job row, else the sender keeps it.
fn refused(endpoint: Endpoint, env: Env, binding: &str, text: String, why: String) -> Promise {
    let queue = queue::of_binding(binding);
    future_to_promise(async move {
        let payload = parse(&text).unwrap_or(serde_json::Value::String(text));
        let correlation_id = payload.get("correlation_id").and_then(serde_json::Value::as_str).unwrap_or("none");
        let cx = Cx::new(env, endpoint.name, correlation_id.to_owned());
        let why = ihuza_core::redact::scrub(&why);
        match queue::store(&cx, &queue, payload, &why).await {
            Ok(()) => Ok(JsValue::from_str("")),
            Err(problem) => Ok(JsValue::from_str(&said(&cx, Err(problem)).to_text())),
        }
    })
}

/// The decision with what every answer has: the correlation id, and the line about a refusal.
fn said(cx: &Cx, result: Result<Decision, Problem>) -> Decision {
    let mut decision = result.unwrap_or_else(|problem| {
        // Said once, here, whoever found it. The reason never holds what the caller sent.
        let level = if problem.status >= 500 { Level::Warn } else { Level::Info };
        let line = cx.line(
            level,
            Event::RequestRefused,
            problem.title,
            &[("status", problem.status.into()), ("type", problem.type_slug.into())],
        );
        Decision { lines: vec![line], ..Reply::problem(&problem.correlation_id(&cx.correlation_id)).into() }
    });
    if !decision.reply.headers.iter().any(|(name, _)| *name == CORRELATION_HEADER) {
        decision.reply.headers.push((CORRELATION_HEADER, cx.correlation_id.clone()));
    }
    decision
}

/// What follows the mount of endpoint `name` in `path`: each answers at `/`, `/<name>` and `/functions/v1/<name>`.
fn rest_of<'a>(path: &'a str, name: &str) -> &'a str {
    let path = path.trim_matches('/');
    let path = path.strip_prefix("functions/v1/").unwrap_or(path);
    match path.strip_prefix(name) {
        Some("") => "",
        Some(rest) if rest.starts_with('/') => rest.trim_matches('/'),
        _ => path,
    }
}

/// Only callers that hold the service key or `INTERNAL_API_KEY`, as bearer token or as `apikey`.
pub fn require_service_key(cx: &Cx, request: &Incoming) -> Result<(), Problem> {
    let keys = cx.config.secrets(&["SUPABASE_SERVICE_ROLE_KEY", "INTERNAL_API_KEY"]);
    let known = signature::bearer(request.header("authorization"), &keys)
        || request.header("apikey").is_some_and(|key| signature::equals_any(key, &keys));
    if known { Ok(()) } else { Err(Problem::unauthorized()) }
}

/// How long a health page is given again as it was: whoever asks a hundred times a second does not reach the database.
const HEALTH_AGE_MS: i64 = 2_000;
/// How long a page is given again while another request is asking for a new one, which takes longer when the database is slow.
const HEALTH_ASKING_MS: i64 = 20_000;

thread_local! {
    /// When somebody last began to ask, and the last page with the time it was made.
    static HEALTH: RefCell<(i64, Option<(i64, Reply)>)> = const { RefCell::new((0, None)) };
}

/// The health page, for an endpoint that shows it at a second place.
pub fn health_page(cx: Cx, endpoint: Endpoint) -> Outcome {
    let now = host::now_ms();
    let kept = HEALTH.with_borrow_mut(|(asked, page)| {
        let fresh = |made: i64| now - made < HEALTH_AGE_MS || (*asked > made && now - *asked < HEALTH_ASKING_MS);
        let kept = page.as_ref().filter(|(made, _)| fresh(*made)).map(|(_, page)| page.clone());
        if kept.is_none() {
            *asked = now;
        }
        kept
    });
    match kept {
        Some(page) => Ok(page).into(),
        None => Outcome::later(async move {
            let page = health(&cx, endpoint).await;
            HEALTH.with_borrow_mut(|(_, last)| *last = Some((host::now_ms(), page.clone())));
            Ok(page)
        }),
    }
}

/// Names each dependency and each missing setting. 503 when the function cannot do its work.
async fn health(cx: &Cx, endpoint: Endpoint) -> Reply {
    let started = host::now_ms();
    let database = database::rpc(cx, "health_check", &obj(&mut [("function", endpoint.name.into())])).await;
    let took = host::now_ms() - started;
    let missing = cx.config.missing(endpoint.name);
    let queue_is_there = queue::is_bound(cx, endpoint.queue);
    let healthy = database.is_ok() && missing.is_empty() && queue_is_there;
    let trunks = database.as_ref().ok().and_then(|answer| answer.get("trunks")).cloned();
    let database = match &database {
        Ok(answer) => {
            obj(&mut [("ok", true.into()), ("ms", took.into()), ("migration", answer.get("migrations").into())])
        }
        Err(error) => obj(&mut [("ok", false.into()), ("ms", took.into()), ("error", error.to_string().into())]),
    };
    let queue = obj(&mut [("ok", queue_is_there.into()), ("name", endpoint.queue.into())]);
    let mut dependencies = vec![("supabase", database.into()), ("queue", queue.into())];
    for (name, prefix) in [("mtn", "MTN_"), ("whatsapp", "WHATSAPP_"), ("openai", "OPENAI_")] {
        if let Some(configured) = cx.config.account(endpoint.name, prefix) {
            dependencies.push((name, obj(&mut [("configured", configured.into())]).into()));
        }
    }
    let mut body = obj(&mut [
        ("status", (if healthy { "ok" } else { "degraded" }).into()),
        ("function", endpoint.name.into()),
        ("dependencies", obj(&mut dependencies).into()),
        ("missing_settings", missing.into()),
        ("warnings", (warnings(&cx.config, endpoint.name)).into()),
    ]);
    if let (Some(page), Some(trunks)) = (body.as_object_mut(), trunks) {
        page.insert("trunks".to_owned(), trunks);
    }
    Reply::json(if healthy { 200 } else { 503 }, &body)
}

/// Settings that work but promise less than an operator may think.
fn warnings(config: &Config, function: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(sender) = config.find("MTN_SMS_SENDER_ID")
        && ihuza_core::summary::ReplyPath::of(sender, config.find("MTN_SMS_SERVICE_CODE"))
            == ihuza_core::summary::ReplyPath::None
    {
        warnings.push(format!(
            "MTN_SMS_SENDER_ID `{sender}` cannot receive replies and MTN_SMS_SERVICE_CODE is not set: texts promise no reply by SMS"
        ));
    }
    if config.whatsapp_is_off(function) {
        warnings.push("WhatsApp is off: SMS alone (no setting of the WhatsApp account is there)".to_owned());
    }
    if !config.lease_outlives_work() {
        warnings.push(format!(
            "LEASE_SECONDS is too short: a piece of work may take {} s by its time limits, and another consumer would begin beside it",
            config.longest_work_ms().div_ceil(1000)
        ));
    }
    if config.find("TWILIO_AUTH_TOKEN").is_some()
        && config.find("TWILIO_STATUS_CALLBACK_URL").is_none()
        && function == "delivery-status-webhook"
    {
        warnings.push(
            "TWILIO_STATUS_CALLBACK_URL is not set: no status callback of Twilio's can be verified, and all are refused"
                .to_owned(),
        );
    }
    if config.find("OPENAI_WEBHOOK_SECRET").is_none() && function == "openai-sip-webhook" {
        warnings.push(
            "OPENAI_WEBHOOK_SECRET is not set: no webhook of OpenAI's can be verified, and all are refused".to_owned(),
        );
    }
    if let Some(model) = config.find("OPENAI_REALTIME_MODEL")
        && let Some(day) = realtime::ends_on(model)
    {
        warnings.push(format!("OPENAI_REALTIME_MODEL `{model}` is switched off on {day}: choose a newer one"));
    }
    if config.flag("IHUZA_COMPAT_INBOUND_AUTH") {
        warnings.push("IHUZA_COMPAT_INBOUND_AUTH is on: anybody can send inbound SMS in anybody's name".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::rest_of;

    #[test]
    fn an_endpoint_answers_at_three_places() {
        for path in ["/", "/post-call-notify", "/functions/v1/post-call-notify", "/functions/v1/post-call-notify/"] {
            assert_eq!(rest_of(path, "post-call-notify"), "", "{path}");
        }
        for path in ["/health", "/post-call-notify/health", "/functions/v1/post-call-notify/health"] {
            assert_eq!(rest_of(path, "post-call-notify"), "health", "{path}");
        }
        assert_eq!(rest_of("/post-call-notify-2", "post-call-notify"), "post-call-notify-2");
        assert_eq!(rest_of("/mtn/s3cret", "sms-inbound-webhook"), "mtn/s3cret");
    }
}
