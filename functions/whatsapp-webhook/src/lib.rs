//! `whatsapp-webhook`, in its first form: Meta's verification, the signature, and the statuses of messages we sent.
//!
//! | request | answer |
//! |---|---|
//! | `GET /?hub.mode=subscribe&hub.verify_token=…&hub.challenge=…` | 200 and the challenge |
//! | `POST /` with `X-Hub-Signature-256`, up to 3 MB | 200 once all statuses are durable |
//! | `GET /health` | each dependency, each missing setting |

use ihuza_core::json::obj;
use ihuza_core::{
    log::{Event, Level},
    problem::Problem,
    signature, whatsapp,
};
use ihuza_edge::{
    consume,
    endpoint::{self, Call, Endpoint},
    host,
    reply::Reply,
    status,
};
use worker::{Context, Env, MessageBatch, Result, event, wasm_bindgen::JsValue, web_sys};

const ENDPOINT: Endpoint = Endpoint { name: "whatsapp-webhook", queue: "whatsapp-updates" };

#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, _: Context) -> Result<web_sys::Response> {
    endpoint::serve(ENDPOINT, request, env, async |call| match (call.request.method.as_str(), call.rest.as_str()) {
        ("GET", "") => verify(&call),
        ("POST", "") => updates(call).await,
        (_, "") => Err(Problem::method_not_allowed("GET, POST")),
        _ => Err(Problem::not_found("there is no such path here")),
    })
    .await
}

#[event(queue)]
async fn queue(batch: MessageBatch<JsValue>, env: Env, _: Context) -> Result<()> {
    consume::consume(batch, env, ENDPOINT.name, status::record).await;
    Ok(())
}

/// Meta asks whether this address is ours.
fn verify(call: &Call) -> std::result::Result<Reply, Problem> {
    let challenge =
        whatsapp::verify_subscription(&call.request.query, &call.cx.config.secrets(&["WHATSAPP_VERIFY_TOKEN"]))
            .ok_or_else(Problem::forbidden)?;
    call.cx.log(Level::Info, Event::WebhookVerified, "Meta verified this address", &[]);
    Ok(Reply::text(200, challenge))
}

async fn updates(call: Call) -> std::result::Result<Reply, Problem> {
    let body = call.request.body(whatsapp::WEBHOOK_MAX_BYTES).await?;
    let secrets = call.cx.config.secrets(&["WHATSAPP_APP_SECRET", "WHATSAPP_APP_SECRET_PREVIOUS"]);
    if !signature::meta(call.request.header("x-hub-signature-256").as_deref(), &body, &secrets) {
        return Err(Problem::unauthorized());
    }
    let updates = whatsapp::parse_webhook(&body, call.cx.config.find("WHATSAPP_PHONE_NUMBER_ID"), host::now())?;
    status::place(&call.cx, ENDPOINT.queue, &updates.statuses).await?;
    call.cx.log(
        Level::Info,
        Event::WhatsappUpdatesReceived,
        &format!("{} status(es) from Meta", updates.statuses.len()),
        &[
            ("statuses", updates.statuses.len().into()),
            ("inbound_messages", updates.inbound_messages.into()),
            ("foreign", updates.foreign.into()),
            ("unreadable", updates.unreadable.into()),
        ],
    );
    if updates.inbound_messages > 0 {
        let said = "people wrote on WhatsApp; this function does not answer them yet";
        call.cx.log(Level::Warn, Event::WhatsappInboundReceived, said, &[("count", updates.inbound_messages.into())]);
    }
    Ok(Reply::json(200, &obj(&mut [("status", "accepted".into()), ("statuses", updates.statuses.len().into())])))
}
