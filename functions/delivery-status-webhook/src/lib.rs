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
    endpoint::{self, Call, Endpoint},
    host,
    incoming::BODY_LIMIT_BYTES,
    reply::Reply,
    status,
};
use worker::{Context, Env, MessageBatch, Result, event, wasm_bindgen::JsValue, web_sys};

const ENDPOINT: Endpoint = Endpoint { name: "delivery-status-webhook", queue: "delivery-status" };

#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, _: Context) -> Result<web_sys::Response> {
    endpoint::serve(ENDPOINT, request, env, async |call| match call.request.method.as_str() {
        "POST" => reports(call).await,
        _ => Err(Problem::method_not_allowed("POST")),
    })
    .await
}

#[event(queue)]
async fn queue(batch: MessageBatch<JsValue>, env: Env, _: Context) -> Result<()> {
    consume::consume(batch, env, ENDPOINT.name, status::record).await;
    Ok(())
}

async fn reports(call: Call) -> std::result::Result<Reply, Problem> {
    let body = call.request.body(BODY_LIMIT_BYTES).await?;
    carrier::authenticate(&call, &body, false)?;
    let content_type = call.request.header("content-type");
    let reports = mtn::parse_delivery_reports(content_type.as_deref(), &body, host::now())?;
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
    status::place(&call.cx, ENDPOINT.queue, &reports.events).await?;
    call.cx.log(
        Level::Info,
        Event::DeliveryStatusReceived,
        &format!("{} delivery report(s)", reports.events.len()),
        &[("provider", "mtn".into()), ("unreadable", reports.unreadable.into())],
    );
    Ok(Reply::json(
        200,
        &obj(&mut [
            ("status", "accepted".into()),
            ("reports", reports.events.len().into()),
            ("unreadable", reports.unreadable.into()),
        ]),
    ))
}
