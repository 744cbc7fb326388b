//! `sms-inbound-webhook`: somebody wrote an SMS; the conversation goes on.
//!
//! | request | answer |
//! |---|---|
//! | `POST /` or `/mtn/<token>`: MTN's inbound forms (JSON or form fields), or `{from, to, message}` | 200 once every message is durable |
//! | `GET /health` | each dependency, each missing setting |

mod accept;
mod answer;
mod work;

use ihuza_core::problem::Problem;
use ihuza_edge::{
    consume,
    endpoint::{self, Endpoint},
};
use worker::{Context, Env, MessageBatch, Result, event, wasm_bindgen::JsValue, web_sys};

const ENDPOINT: Endpoint = Endpoint { name: "sms-inbound-webhook", queue: "sms-inbound" };

#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, _: Context) -> Result<web_sys::Response> {
    endpoint::serve(ENDPOINT, request, env, async |call| match (call.request.method.as_str(), call.rest.as_str()) {
        ("POST", _) => accept::inbound(call).await,
        _ => Err(Problem::method_not_allowed("POST")),
    })
    .await
}

#[event(queue)]
async fn queue(batch: MessageBatch<JsValue>, env: Env, _: Context) -> Result<()> {
    consume::consume(batch, env, ENDPOINT.name, work::turn).await;
    Ok(())
}
