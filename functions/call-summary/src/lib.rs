//! `call-summary`: a call has ended; its summary goes to the person over WhatsApp and SMS, or SMS alone.
//!
//! It works behind the door `post-call-notify`, and holds the keys to send and to ask the model, which the door has no use for.
//!
//! | trigger | does |
//! |---|---|
//! | queue `post-call-notify` | tells the person of a call; `{memories_of: session}`: reads what was written for what is worth remembering |
//! | `GET /health` | each dependency, each missing setting |

mod remember;
mod summarise;
mod work;

use ihuza_edge::{
    consume,
    endpoint::{self, Endpoint},
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys, worker_sys::MessageBatch};

/// What cannot be done at once goes to `delivery-retry`.
const ENDPOINT: Endpoint =
    Endpoint { name: "call-summary", queue: "delivery-retry", headers: &[], body_limit_bytes: 0 };

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, endpoint::behind_a_queue, request, env)
}

#[wasm_bindgen]
pub async fn queue(batch: MessageBatch, env: Env) {
    consume::consume(batch, env, ENDPOINT.name, work::notify).await;
}
