//! The model's Responses API at the wire: one request within its time limit, repeated once when it was refused for now.

use ihuza_core::{
    channel::Provider,
    error_class::{Classified, ErrorClass},
    ids,
    log::{Event, Level},
    openai,
    send::Refused,
};
use serde_json::Value;

use crate::{context::Cx, host, outgoing, pause};
use ihuza_core::json::obj;
use ihuza_core::json_text::to_text;

/// One answer of the model.
///
/// A question has no side effect, so even an unknown outcome may be asked again: once, while at least half of `timeout_ms`
/// is left.
pub async fn respond(cx: &Cx, body: &Value, timeout_ms: u32) -> Result<openai::Reply, Classified> {
    let url = format!("{}{}", cx.config.text("OPENAI_BASE_URL").trim_end_matches('/'), openai::RESPONSES_PATH);
    let bearer = format!("Bearer {}", cx.config.text("OPENAI_API_KEY"));
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("x-client-request-id", cx.correlation_id.as_str()),
    ];
    let text = to_text(body);
    let started = host::now_ms();
    let left_ms = || u32::try_from(i64::from(timeout_ms) - (host::now_ms() - started)).unwrap_or(0);
    let mut attempt = 1;
    loop {
        let (down, wanted_ms) =
            match outgoing::send(Some(cx.slots()), &url, &outgoing::headers(&headers), &text, left_ms().max(1)).await {
                Err(failure) => (Refused::transport(Provider::Openai, failure).classified, 0),
                Ok(answer) => match openai::parse_response(answer.status, answer.body.as_bytes()) {
                    Ok(reply) => return Ok(reply),
                    Err(refused) => (
                        refused.classified,
                        answer
                            .retry_after()
                            .map_or(0, |wait| u32::try_from(wait.num_milliseconds()).unwrap_or(u32::MAX)),
                    ),
                },
            };
        let level = if matches!(down.class, ErrorClass::Config | ErrorClass::Bug) { Level::Error } else { Level::Warn };
        cx.log(
            level,
            Event::ModelFailed,
            &format!("the model did not answer: {}, attempt {attempt}", down.reason),
            &[
                ("class", down.class.as_str().into()),
                ("attempt", attempt.into()),
                ("duration_ms", (host::now_ms() - started).into()),
            ],
        );
        let wait_ms = wanted_ms.max(300 + (host::dice() * 400.0) as u32);
        let again = down.class == ErrorClass::Retryable
            && attempt == 1
            && left_ms() >= timeout_ms / 2
            && left_ms() > wait_ms.saturating_add(1000);
        if !again {
            return Err(down);
        }
        pause::for_ms(wait_ms).await;
        attempt += 1;
    }
}

/// The `providers` entry by which the breaker hears of a model call.
pub fn outcome(result: Result<(), &Classified>) -> Value {
    match result {
        Ok(()) => obj(&mut [("provider", "openai".into()), ("outcome", "accepted".into())]),
        Err(down) => obj(&mut [
            ("provider", "openai".into()),
            ("outcome", down.class.as_str().into()),
            ("class", down.class.as_str().into()),
            ("reason", down.reason.into()),
            ("breaker", down.breaker.into()),
        ]),
    }
}

/// What stands for a person at the vendor: a hash, never a number.
pub fn safety_identifier(profile_id: &str) -> String {
    ids::content_hash(&[b"ihuza-safety-identifier", profile_id.as_bytes()])
}
