//! `delivery-status-webhook`: a carrier says what became of a message.
//!
//! | request | answer |
//! |---|---|
//! | `POST /` or `/mtn/<token>`: MTN's delivery report, or a list of them | 200 once all are durable |
//! | `POST /twilio` with `X-Twilio-Signature`: a status callback | 200 once it is durable |
//! | `POST /africastalking/<token>`: a delivery report | 200 once it is durable |
//! | `GET /health` | each dependency, each missing setting |

mod africas_talking;
mod mtn;
mod twilio;

use ihuza_core::json::obj;
use ihuza_core::{
    channel::Provider,
    log::{Event, Level},
    problem::Problem,
    status::{DeliveryEvent, Report},
};
use ihuza_edge::{
    carrier, consume,
    endpoint::{self, Call, Endpoint, Outcome},
    incoming::BODY_LIMIT_BYTES,
    reply::Reply,
    status,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys, worker_sys::MessageBatch};

const ENDPOINT: Endpoint = Endpoint {
    name: "delivery-status-webhook",
    queue: "delivery-status",
    headers: &["authorization", "content-type", "x-signature", "x-timestamp", twilio::SIGNATURE],
    body_limit_bytes: BODY_LIMIT_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    let reports: fn(Call) -> Result<Outcome, Problem> = match call.rest.as_str() {
        rest if carrier::is_path(rest) => mtn::reports,
        twilio::PATH => twilio::report,
        rest if rest.starts_with(africas_talking::PATH) => africas_talking::report,
        _ => return Problem::not_found("there is no such path here").into(),
    };
    match call.request.method.as_str() {
        "POST" => reports(call).unwrap_or_else(Outcome::from),
        _ => Problem::method_not_allowed("POST").into(),
    }
}

#[wasm_bindgen]
pub async fn queue(batch: MessageBatch, env: Env) {
    consume::consume(batch, env, ENDPOINT.name, status::record).await;
}

/// The one report of a carrier that sends them one by one.
fn accept_one(call: Call, report: Report) -> Outcome {
    if !report.known {
        call.cx.log(
            Level::Warn,
            Event::DeliveryStatusUnreadable,
            "a status that no table has; it is kept as unknown",
            &[
                ("provider", report.event.provider.into()),
                ("raw_status", (&report.event.raw_status).into()),
                ("provider_message_id", (&report.event.provider_message_id).into()),
            ],
        );
    }
    let provider = report.event.provider;
    accept(call, provider, &[report.event], 0)
}

/// 200 once the events are on the queue.
fn accept(call: Call, provider: Provider, events: &[DeliveryEvent], unreadable: usize) -> Outcome {
    let line = call.cx.line(
        Level::Info,
        Event::DeliveryStatusReceived,
        &[&events.len().to_string(), " delivery report(s)"].concat(),
        &[("provider", provider.into()), ("unreadable", unreadable.into())],
    );
    let reply = Reply::json(
        200,
        &obj(&mut [("status", "accepted".into()), ("reports", events.len().into()), ("unreadable", unreadable.into())]),
    );
    let work = status::work(&call.cx, ENDPOINT.queue, events);
    Outcome::accepted(call.cx, work, reply, vec![line])
}
