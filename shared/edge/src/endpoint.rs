//! What every endpoint shares: where it answers, its health page, methods, keys of our own callers, problem details.

use std::future::Future;

use ihuza_core::json::obj;
use ihuza_core::{
    ids,
    log::{Event, Level},
    problem::Problem,
    signature,
};
use worker::{Env, web_sys};

use crate::{config::Config, context::Cx, database, host, incoming::Incoming, queue, reply::Reply};

/// Names the thread through the logs: read from a request, written on every answer.
pub const CORRELATION_HEADER: &str = "x-correlation-id";

/// One call of an endpoint.
pub struct Call {
    pub cx: Cx,
    pub request: Incoming,
    /// What follows the endpoint's own path, without slashes at its ends: empty, `health`, `mtn/<token>` ...
    pub rest: String,
}

/// What an endpoint is: its name and the queue it feeds.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub name: &'static str,
    pub queue: &'static str,
}

/// Answers one request: `handle` for the endpoint's own routes, the health page and every error here.
pub async fn serve<F>(
    endpoint: Endpoint,
    request: web_sys::Request,
    env: Env,
    handle: impl FnOnce(Call) -> F,
) -> worker::Result<web_sys::Response>
where
    F: Future<Output = Result<Reply, Problem>>,
{
    let request = Incoming::new(request);
    let given = request
        .header(CORRELATION_HEADER)
        .and_then(|id| ids::CorrelationId::parse(&id))
        .map(|id| id.as_str().to_owned());
    let correlation_id = given.unwrap_or_else(host::new_uuid);
    let cx = Cx::new(env, endpoint.name, correlation_id.clone());
    let rest = rest_of(&request.path, endpoint.name).to_owned();
    let outcome = match (request.method.as_str(), rest.as_str()) {
        ("GET" | "HEAD", "health") => Ok(health(&cx, endpoint).await),
        (_, "health") => Err(Problem::method_not_allowed("GET")),
        _ => handle(Call { cx: cx.clone(), request, rest }).await,
    };
    let reply = outcome.unwrap_or_else(|problem| {
        // Said once, here, whoever found it. The reason never holds what the caller sent.
        let level = if problem.status >= 500 { Level::Warn } else { Level::Info };
        cx.log(
            level,
            Event::RequestRefused,
            problem.title,
            &[("status", problem.status.into()), ("type", problem.type_slug.into())],
        );
        Reply::problem(&problem.correlation_id(&correlation_id))
    });
    let named = reply.headers.iter().any(|(name, _)| *name == CORRELATION_HEADER);
    let reply = if named { reply } else { reply.with_header(CORRELATION_HEADER, correlation_id) };
    reply.into_response()
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
    let known = signature::bearer(request.header("authorization").as_deref(), &keys)
        || request.header("apikey").is_some_and(|key| signature::equals_any(&key, &keys));
    if known { Ok(()) } else { Err(Problem::unauthorized()) }
}

/// Names each dependency and each missing setting. 503 when the function cannot do its work.
async fn health(cx: &Cx, endpoint: Endpoint) -> Reply {
    let started = host::now_ms();
    let database = database::rpc(cx, "health_check", &obj(&mut [])).await;
    let took = host::now_ms() - started;
    let missing = cx.config.missing(endpoint.name);
    let queue_is_there = queue::is_bound(cx, endpoint.queue);
    let healthy = database.is_ok() && missing.is_empty() && queue_is_there;
    let database = match &database {
        Ok(answer) => {
            obj(&mut [("ok", true.into()), ("ms", took.into()), ("migration", answer.get("migrations").into())])
        }
        Err(error) => obj(&mut [("ok", false.into()), ("ms", took.into()), ("error", error.to_string().into())]),
    };
    let body = obj(&mut [
        ("status", (if healthy { "ok" } else { "degraded" }).into()),
        ("function", endpoint.name.into()),
        (
            "dependencies",
            obj(&mut [
                ("supabase", database.into()),
                ("queue", obj(&mut [("ok", queue_is_there.into()), ("name", endpoint.queue.into())]).into()),
                (
                    "mtn",
                    obj(&mut [(
                        "configured",
                        (configured(&cx.config, &["MTN_SMS_API_KEY", "MTN_SMS_API_SECRET"])).into(),
                    )])
                    .into(),
                ),
                (
                    "whatsapp",
                    obj(&mut [(
                        "configured",
                        (configured(&cx.config, &["WHATSAPP_ACCESS_TOKEN", "WHATSAPP_PHONE_NUMBER_ID"])).into(),
                    )])
                    .into(),
                ),
                ("openai", obj(&mut [("configured", (configured(&cx.config, &["OPENAI_API_KEY"])).into())]).into()),
            ])
            .into(),
        ),
        ("missing_settings", missing.into()),
        ("warnings", (warnings(&cx.config)).into()),
    ]);
    Reply::json(if healthy { 200 } else { 503 }, &body)
}

fn configured(config: &Config, names: &[&str]) -> bool {
    names.iter().all(|name| config.find(name).is_some())
}

/// Settings that work but promise less than an operator may think.
fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let sender = config.text("MTN_SMS_SENDER_ID");
    if ihuza_core::summary::ReplyPath::of(sender, config.find("MTN_SMS_SERVICE_CODE"))
        == ihuza_core::summary::ReplyPath::None
    {
        warnings.push(format!(
            "MTN_SMS_SENDER_ID `{sender}` cannot receive replies and MTN_SMS_SERVICE_CODE is not set: texts promise no reply by SMS"
        ));
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
