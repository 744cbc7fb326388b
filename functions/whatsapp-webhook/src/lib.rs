//! `whatsapp-webhook`, in its first form: Meta's verification, the signature, and the statuses of messages we sent.
//!
//! | request | answer |
//! |---|---|
//! | `GET /?hub.mode=subscribe&hub.verify_token=…&hub.challenge=…` | 200 and the challenge |
//! | `POST /` with `X-Hub-Signature-256`, up to 3 MB | 200 once all statuses are durable |
//! | `GET /health` | each dependency, each missing setting |

use ihuza_core::json::obj;
use ihuza_core::{
    log::{Event, Level},
    problem::Problem,
    signature, whatsapp,
};
use ihuza_edge::{
    consume,
    endpoint::{self, Call, Endpoint, Outcome},
    host,
    reply::Reply,
    status,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys, worker_sys::MessageBatch};

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
    consume::consume(batch, env, ENDPOINT.name, status::record).await;
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
        &format!("{} status(es) from Meta", updates.statuses.len()),
        &[
            ("statuses", updates.statuses.len().into()),
            ("inbound_messages", updates.inbound_messages.into()),
            ("foreign", updates.foreign.into()),
            ("unreadable", updates.unreadable.into()),
        ],
    )];
    if updates.inbound_messages > 0 {
        let text = "people wrote on WhatsApp; this function does not answer them yet";
        let count = [("count", updates.inbound_messages.into())];
        lines.push(call.cx.line(Level::Warn, Event::WhatsappInboundReceived, text, &count));
    }
    let answer = obj(&mut [("status", "accepted".into()), ("statuses", updates.statuses.len().into())]);
    let work = status::work(&call.cx, &updates.statuses);
    Ok(Outcome::accepted(call.cx, ENDPOINT.queue, work, Reply::json(200, &answer), lines))
}
