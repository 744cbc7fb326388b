//! `sms-inbound-webhook`: somebody wrote an SMS; the conversation goes on.
//!
//! Its queue holds what is to be answered, also what `whatsapp-webhook` took in: one conversation, one place that answers.
//!
//! | request | answer |
//! |---|---|
//! | `POST /` or `/mtn/<token>`: MTN's inbound forms (JSON or form fields), or `{from, to, message}` | 200 once every message is durable |
//! | `GET /health` | each dependency, each missing setting |

mod accept;
mod answer;
mod voice_note;
mod work;

use ihuza_core::problem::Problem;
use ihuza_edge::{
    carrier, consume,
    endpoint::{self, Call, Endpoint, Outcome},
    incoming::{BODY_LIMIT_BYTES, CARRIER_HEADERS},
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys, worker_sys::MessageBatch};

const ENDPOINT: Endpoint = Endpoint {
    name: "sms-inbound-webhook",
    queue: "sms-inbound",
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
        "POST" => accept::inbound(call).unwrap_or_else(Outcome::from),
        _ => Problem::method_not_allowed("POST").into(),
    }
}

#[wasm_bindgen]
pub async fn queue(batch: MessageBatch, env: Env) {
    consume::consume(batch, env, ENDPOINT.name, work::turn).await;
}
