//! MTN SMS V3 at the wire: the token, kept an isolate long, and the outbound request. What it means is in `ihuza_core::mtn`.

use std::cell::RefCell;

use chrono::{DateTime, Utc};
use ihuza_core::{channel::Provider, error_class::ErrorClass, json_text::to_text, mtn, phone::E164, send::Refused};
use serde_json::Value;

use crate::{
    context::Cx,
    delivery::{Handed, Message, Refusal},
    host, outgoing,
};

thread_local! {
    static TOKEN: RefCell<Option<(String, DateTime<Utc>)>> = const { RefCell::new(None) };
}

/// Hands `message` to MTN.
pub async fn send(cx: &Cx, message: &Message) -> Handed {
    // Code 5000 is MTN's own for parameters that cannot be.
    let recipient = E164::parse(&message.recipient)
        .map_err(|_| Refusal::of(Refused::answered(Provider::Mtn, 400, Some("5000".to_owned()))))?;
    let body = to_text(&mtn::outbound_body(&mtn::Outbound {
        sender_id: if message.sender.is_empty() { cx.config.text("MTN_SMS_SENDER_ID") } else { &message.sender },
        // The client's, as the text names it. What SQL has queued knows of none but the client's own.
        service_code: message
            .payload
            .get("service_code")
            .and_then(Value::as_str)
            .or_else(|| cx.config.find("MTN_SMS_SERVICE_CODE")),
        recipient: &recipient,
        text: message.payload.get("text").and_then(Value::as_str).unwrap_or_default(),
        delivery_ref: &message.id,
    }));
    let first = token(cx).await?;
    match post(cx, message, &first, &body).await {
        // A token may be withdrawn before its time: one new one, then it is a matter of configuration.
        Err(refusal) if refusal.refused.http_status == Some(401) => {
            TOKEN.with(|cell| cell.borrow_mut().take());
            let second = token(cx).await?;
            post(cx, message, &second, &body).await
        }
        handed => handed,
    }
}

async fn post(cx: &Cx, message: &Message, token: &str, body: &str) -> Handed {
    let bearer = format!("Bearer {token}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-api-key", cx.config.text("MTN_SMS_API_KEY")),
        ("content-type", "application/json"),
    ];
    let url = format!("{}{}", base(cx), mtn::OUTBOUND_PATH);
    let answer = outgoing::send(
        Some(cx.slots()),
        &url,
        &outgoing::headers(&headers),
        body,
        cx.config.number("PROVIDER_TIMEOUT_MS"),
    )
    .await
    .map_err(|failure| Refusal::of(Refused::transport(Provider::Mtn, failure)))?;
    mtn::parse_outbound_response(answer.status, answer.body.as_bytes(), &message.id)
        .map_err(|refused| Refusal { refused, retry_after: answer.retry_after() })
}

/// The token, fetched when there is none or it is about to expire.
async fn token(cx: &Cx) -> Result<String, Refusal> {
    let now = host::now();
    let held =
        TOKEN.with(|cell| cell.borrow().as_ref().filter(|(_, until)| *until > now).map(|(token, _)| token.clone()));
    if let Some(token) = held {
        return Ok(token);
    }
    let url = format!("{}{}?grant_type=client_credentials", base(cx), cx.config.text("MTN_SMS_TOKEN_PATH"));
    let body = mtn::token_request(cx.config.text("MTN_SMS_API_KEY"), cx.config.text("MTN_SMS_API_SECRET"));
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let answer = outgoing::send(
        Some(cx.slots()),
        &url,
        &outgoing::headers(&headers),
        &body,
        cx.config.number("PROVIDER_TIMEOUT_MS"),
    )
    .await
    .map_err(|failure| {
        let mut refused = Refused::transport(Provider::Mtn, failure);
        // No message has been handed over yet: whatever became of this request, it may be repeated.
        refused.classified.class = ErrorClass::Retryable;
        Refusal::of(refused)
    })?;
    let token = mtn::parse_token(answer.status, answer.body.as_bytes())
        .map_err(|refused| Refusal { refused, retry_after: answer.retry_after() })?;
    TOKEN.with(|cell| *cell.borrow_mut() = Some((token.access_token.clone(), token.usable_until(now))));
    Ok(token.access_token)
}

fn base(cx: &Cx) -> &str {
    cx.config.text("MTN_BASE_URL").trim_end_matches('/')
}
