//! `delivery-status-webhook`: a carrier says what became of a message. In this first form: MTN's delivery reports.
//!
//! | request | answer |
//! |---|---|
//! | `POST /` or `/mtn/<token>`: a delivery report, or a list of them | 200 once all are durable |
//! | `GET /health` | each dependency, each missing setting |

use ihuza_core::json::obj;
use ihuza_core::{
    log::{Event, Level},
    mtn,
    problem::Problem,
};
use ihuza_edge::{
    carrier, consume,
    endpoint::{self, Call, Endpoint, Outcome},
    host,
    incoming::{BODY_LIMIT_BYTES, CARRIER_HEADERS},
    reply::Reply,
    status,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys, worker_sys::MessageBatch};

const ENDPOINT: Endpoint = Endpoint {
    name: "delivery-status-webhook",
    queue: "delivery-status",
    headers: CARRIER_HEADERS,
    body_limit_bytes: BODY_LIMIT_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    if !carrier::is_path(&call.rest) {
        return Problem::not_found("there is no such path here").into();
    }
    match call.request.method.as_str() {
        "POST" => reports(call).unwrap_or_else(Outcome::from),
        _ => Problem::method_not_allowed("POST").into(),
    }
}

#[wasm_bindgen]
pub async fn queue(batch: MessageBatch, env: Env) {
    consume::consume(batch, env, ENDPOINT.name, status::record).await;
}

fn reports(call: Call) -> Result<Outcome, Problem> {
    let body = call.request.body()?;
    carrier::authenticate(&call, body, false)?;
    let reports = mtn::parse_delivery_reports(call.request.header("content-type"), body, host::now())?;
    if reports.events.is_empty() && reports.unreadable > 0 {
        call.cx.log(
            Level::Warn,
            Event::DeliveryStatusUnreadable,
            "no report could be read",
            &[("unreadable", reports.unreadable.into())],
        );
        return Err(Problem::bad_body(
            "no delivery report in this body: each needs clientCorrelatorId and deliveryStatus",
        ));
    }
    let line = call.cx.line(
        Level::Info,
        Event::DeliveryStatusReceived,
        &format!("{} delivery report(s)", reports.events.len()),
        &[("provider", "mtn".into()), ("unreadable", reports.unreadable.into())],
    );
    let reply = Reply::json(
        200,
        &obj(&mut [
            ("status", "accepted".into()),
            ("reports", reports.events.len().into()),
            ("unreadable", reports.unreadable.into()),
        ]),
    );
    let work = status::work(&call.cx, ENDPOINT.queue, &reports.events);
    Ok(Outcome::accepted(call.cx, work, reply, vec![line]))
}
