//! `openai-sip-webhook`: calls over OpenAI's own SIP, without a relay. The vendor carries the sound; this takes the call or
//! does not, observes it, runs the agent's tools, keeps the record, hands over, ends, and asks for the summary.
//!
//! | request | answer |
//! |---|---|
//! | `POST /`, signed by OpenAI (Standard Webhooks) | 200: what was decided about the call, which waits for it |
//! | `GET /health` | each dependency, each missing setting |
//!
//! Each call has an object of its own ([`object::SipCall`]), by the vendor's id of the call: there it is decided once, and from
//! there it is observed.

mod decide;
mod line;
mod object;
mod record;
mod runtime;
mod webhook;

use ihuza_core::problem::Problem;
use ihuza_edge::{
    endpoint::{self, Call, Endpoint, Outcome},
    incoming::BODY_LIMIT_BYTES,
    voice,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys};

const ENDPOINT: Endpoint = Endpoint {
    name: "openai-sip-webhook",
    queue: voice::SUMMARIES,
    headers: &["webhook-id", "webhook-timestamp", "webhook-signature"],
    body_limit_bytes: BODY_LIMIT_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    if !call.rest.is_empty() {
        return Problem::not_found("there is no such path here").into();
    }
    match call.request.method.as_str() {
        "POST" => webhook::told(call).unwrap_or_else(Outcome::from),
        _ => Problem::method_not_allowed("POST").into(),
    }
}
