//! OpenAI tells of a call. It is signed by the scheme of Standard Webhooks, and the call waits until its object has decided.

use ihuza_core::{
    json::obj,
    json_text::{parse, to_text},
    log::{Event, Level},
    openai_sip::{self, Incoming},
    problem::Problem,
    signature,
};
use ihuza_edge::{
    context::Cx,
    endpoint::{Call, Outcome},
    host,
    reply::Reply,
};
use js_sys::futures::JsFuture;

use crate::runtime;

/// Binding of the objects.
const CALLS: &str = "CALLS";

pub fn told(call: Call) -> Result<Outcome, Problem> {
    let Call { cx, request, .. } = call;
    let body = request.body()?;
    let secrets = cx.config.secrets(&["OPENAI_WEBHOOK_SECRET", "OPENAI_WEBHOOK_SECRET_PREVIOUS"]);
    let [id, timestamp, signatures] =
        ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|name| request.header(name));
    if !signature::standard_webhook(id, timestamp, signatures, body, &secrets, host::now()) {
        return Err(Problem::unauthorized());
    }
    match openai_sip::incoming(body)? {
        Incoming::Call(call) => Ok(Outcome::later(async move { decide(&cx, &call).await })),
        Incoming::Other(kind) => {
            // Also the twin of each call in a project with GPT-Live: one handler decides, and it is this one.
            let said = obj(&mut [("decision", "ignored".into()), ("type", kind.into())]);
            Ok(Ok(Reply::json(200, &said)).into())
        }
    }
}

async fn decide(cx: &Cx, call: &openai_sip::Call) -> Result<Reply, Problem> {
    let asked = obj(&mut [
        ("call_sid", (&call.call_id).into()),
        ("from", call.from.as_ref().into()),
        ("called", call.called.clone().into()),
    ]);
    let answer = runtime::ask(&cx.env, CALLS, &call.call_id, &to_text(&asked));
    let answer = JsFuture::from(answer).await.ok().and_then(|answer| answer.as_string()).unwrap_or_default();
    match answer.split_once('\n') {
        Some(("200", decided)) => {
            let decided = parse(decided).unwrap_or_default();
            Ok(Reply::json(200, &decided))
        }
        _ => {
            cx.log(
                Level::Error,
                Event::AcceptFailed,
                "the object of a call did not decide; the sender tells again",
                &[],
            );
            Err(Problem::unavailable(1))
        }
    }
}
