//! `sms-inbound-webhook`: somebody wrote an SMS, and the carrier brings it. The answer is the work of `conversation`, which takes it
//! off the queue, as it takes what `whatsapp-webhook` brings: a carrier waits for little code.
//!
//! | request | answer |
//! |---|---|
//! | `POST /` or `/mtn/<token>`: MTN's inbound forms (JSON or form fields), or `{from, to, message}` | 200 once every message is durable |
//! | `GET /health` | each dependency, each missing setting |

mod accept;

use ihuza_core::problem::Problem;
use ihuza_edge::{
    carrier,
    endpoint::{self, Call, Endpoint, Outcome},
    incoming::{BODY_LIMIT_BYTES, CARRIER_HEADERS},
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys};

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
