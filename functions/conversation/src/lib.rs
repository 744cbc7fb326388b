//! `conversation`: what people write is answered, by SMS or over WhatsApp; one conversation, one place that answers.
//!
//! It works behind the doors `sms-inbound-webhook` and `whatsapp-webhook`, and holds the keys to send and to ask the model, which
//! the doors have no use for.
//!
//! | trigger | does |
//! |---|---|
//! | queue `sms-inbound` | takes up what a person wrote, or said in a voice note, and answers it |
//! | `GET /health` | each dependency, each missing setting |

mod answer;
mod voice_note;
mod work;

use ihuza_edge::{
    consume,
    endpoint::{self, Endpoint},
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys, worker_sys::MessageBatch};

/// What is left of a conversation after some rounds goes onto the same queue again.
const ENDPOINT: Endpoint = Endpoint { name: "conversation", queue: "sms-inbound", headers: &[], body_limit_bytes: 0 };

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, endpoint::behind_a_queue, request, env)
}

#[wasm_bindgen]
pub async fn queue(batch: MessageBatch, env: Env) {
    consume::consume(batch, env, ENDPOINT.name, work::turn).await;
}
