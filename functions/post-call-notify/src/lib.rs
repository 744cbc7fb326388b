//! `post-call-notify`: a call has ended, and whoever knows it says so here. The summary is the work of `call-summary`, which takes
//! it off the queue: whoever waits for an answer waits for little code.
//!
//! | request | answer |
//! |---|---|
//! | `POST /` with `{callId, profileId?, phoneNumber?, correlationId?}` and the service key | 202 once the work is durable |
//! | `GET /<correlationId>` with the service key | what became of it |
//! | `GET /health` | each dependency, each missing setting |

mod accept;

use ihuza_core::{ids::CorrelationId, problem::Problem};
use ihuza_edge::{
    endpoint::{self, Call, Endpoint, Outcome},
    incoming::{BODY_LIMIT_BYTES, SERVICE_HEADERS},
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys};

const ENDPOINT: Endpoint = Endpoint {
    name: "post-call-notify",
    queue: "post-call-notify",
    headers: SERVICE_HEADERS,
    body_limit_bytes: BODY_LIMIT_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    match (call.request.method.as_str(), call.rest.as_str()) {
        ("POST", "") => accept::notification(call).unwrap_or_else(Outcome::from),
        (_, "") => Problem::method_not_allowed("POST").into(),
        ("GET" | "HEAD", _) => accept::status(call),
        (_, id) if CorrelationId::parse(id).is_some() => Problem::method_not_allowed("GET").into(),
        _ => Problem::not_found("there is no such path here").into(),
    }
}
