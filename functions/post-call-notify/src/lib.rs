//! `post-call-notify`: a call has ended; its summary goes to the person over WhatsApp and SMS, or SMS alone.
//!
//! | request | answer |
//! |---|---|
//! | `POST /` with `{callId, profileId?, phoneNumber?, correlationId?}` and the service key | 202 once the work is durable |
//! | `GET /<correlationId>` with the service key | what became of it |
//! | `GET /health` | each dependency, each missing setting |

mod accept;
mod summarise;
mod work;

use ihuza_core::problem::Problem;
use ihuza_edge::{
    consume,
    endpoint::{self, Endpoint},
};
use worker::{Context, Env, MessageBatch, Result, event, wasm_bindgen::JsValue, web_sys};

const ENDPOINT: Endpoint = Endpoint { name: "post-call-notify", queue: "post-call-notify" };

#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, _: Context) -> Result<web_sys::Response> {
    endpoint::serve(ENDPOINT, request, env, async |call| match (call.request.method.as_str(), call.rest.as_str()) {
        ("POST", "") => accept::notification(call).await,
        (_, "") => Err(Problem::method_not_allowed("POST")),
        ("GET" | "HEAD", _) => accept::status(call).await,
        _ => Err(Problem::method_not_allowed("GET")),
    })
    .await
}

#[event(queue)]
async fn queue(batch: MessageBatch<JsValue>, env: Env, _: Context) -> Result<()> {
    consume::consume(batch, env, ENDPOINT.name, work::notify).await;
    Ok(())
}
