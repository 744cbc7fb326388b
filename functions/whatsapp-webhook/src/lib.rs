//! `whatsapp-webhook`: Meta's verification, the signature, the statuses of messages we sent, what people write,
//! what becomes of calls and of templates.
//!
//! Messages go to the queue of turns, whose consumer answers SMS as well: one conversation, one place that answers.
//!
//! | request | answer |
//! |---|---|
//! | `GET /?hub.mode=subscribe&hub.verify_token=…&hub.challenge=…` | 200 and the challenge |
//! | `POST /` with `X-Hub-Signature-256`, up to 3 MB | 200 once all statuses, messages, calls and words about templates are durable |
//! | `GET /health` | each dependency, each missing setting |

mod calls;
mod inbound;
mod templates;

use ihuza_core::json::obj;
use ihuza_core::{
    log::{Event, Level},
    phone::E164,
    problem::Problem,
    signature, whatsapp,
};
use ihuza_edge::{
    consume::{self, Verdict},
    context::Cx,
    endpoint::{self, Call, Endpoint, Outcome},
    flood, host,
    queue::Envelope,
    reply::Reply,
    status,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys, worker_sys::MessageBatch};

/// The queue whose consumer answers people, whichever channel they write on.
const TURNS: &str = "sms-inbound";

const ENDPOINT: Endpoint = Endpoint {
    name: "whatsapp-webhook",
    queue: "whatsapp-updates",
    headers: &["x-hub-signature-256"],
    body_limit_bytes: whatsapp::WEBHOOK_MAX_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    match (call.request.method.as_str(), call.rest.as_str()) {
        ("GET", "") => verify(&call).into(),
        ("POST", "") => updates(call).unwrap_or_else(Outcome::from),
        (_, "") => Problem::method_not_allowed("GET, POST").into(),
        _ => Problem::not_found("there is no such path here").into(),
    }
}

#[wasm_bindgen]
pub async fn queue(batch: MessageBatch, env: Env) {
    consume::consume(batch, env, ENDPOINT.name, record).await;
}

/// The queue holds statuses, call events and words about templates, never two of them in one message.
async fn record(cx: Cx, envelope: Envelope) -> Verdict {
    if envelope.body.get("calls").is_some() {
        calls::record(cx, envelope).await
    } else if envelope.body.get("templates").is_some() {
        templates::record(cx, envelope).await
    } else {
        status::record(cx, envelope).await
    }
}

/// Meta asks whether this address is ours.
fn verify(call: &Call) -> Result<Reply, Problem> {
    let challenge =
        whatsapp::verify_subscription(&call.request.query, &call.cx.config.secrets(&["WHATSAPP_VERIFY_TOKEN"]))
            .ok_or_else(Problem::forbidden)?;
    call.cx.log(Level::Info, Event::WebhookVerified, "Meta verified this address", &[]);
    Ok(Reply::text(200, challenge))
}

fn updates(call: Call) -> Result<Outcome, Problem> {
    let body = call.request.body()?;
    let secrets = call.cx.config.secrets(&["WHATSAPP_APP_SECRET", "WHATSAPP_APP_SECRET_PREVIOUS"]);
    if !signature::meta(call.request.header("x-hub-signature-256"), body, &secrets) {
        return Err(Problem::unauthorized());
    }
    let updates = whatsapp::parse_webhook(body, call.cx.config.find("WHATSAPP_PHONE_NUMBER_ID"), host::now())?;
    let mut lines = vec![call.cx.line(
        Level::Info,
        Event::WhatsappUpdatesReceived,
        &format!("{} status(es) and {} message(s) from Meta", updates.statuses.len(), updates.messages.len()),
        &[
            ("statuses", updates.statuses.len().into()),
            ("messages", updates.messages.len().into()),
            ("ignored", updates.ignored.clone().into()),
            ("calls", updates.calls.len().into()),
            ("templates", updates.templates.len().into()),
            ("others", updates.others.into()),
            ("foreign", updates.foreign.into()),
            ("unreadable", updates.unreadable.into()),
        ],
    )];
    let mut work = status::work(&call.cx, ENDPOINT.queue, &updates.statuses);
    let alone =
        updates.messages.len() == 1 && work.is_empty() && updates.calls.is_empty() && updates.templates.is_empty();
    let mut senders = Vec::new();
    for message in &updates.messages {
        // Several messages in one body are several pieces of work, each with its own thread through the logs.
        let cx = if alone { call.cx.clone() } else { call.cx.for_work(&host::new_uuid()) };
        lines.push(cx.line(
            Level::Info,
            Event::WhatsappInboundReceived,
            "a WhatsApp message was accepted",
            &[
                ("sender", message.from.number.as_ref().map(E164::masked).into()),
                ("kind", (&message.kind).into()),
                ("characters", message.text.chars().count().into()),
            ],
        ));
        senders.extend(inbound::keys(message, call.cx.config.text("HOME_PREFIXES")).map(|keys| (work.len(), keys)));
        work.push((TURNS, Envelope::new(&cx.correlation_id, inbound::work_of(message))));
    }
    work.extend(calls::work(&call.cx, ENDPOINT.queue, &updates.calls));
    work.extend(templates::work(&call.cx, ENDPOINT.queue, &updates.templates));
    let answer = obj(&mut [
        ("status", "accepted".into()),
        ("statuses", updates.statuses.len().into()),
        ("messages", updates.messages.len().into()),
        ("calls", updates.calls.len().into()),
        ("templates", updates.templates.len().into()),
    ]);
    Ok(flood::accepted(call.cx, &call.request, work, senders, Reply::json(200, &answer), lines))
}
