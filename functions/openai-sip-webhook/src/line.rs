//! What is done about a call at the vendor's: accept, reject, refer, hang up.

use ihuza_core::openai_sip::{self, Action, Answer};
use ihuza_edge::{context::Cx, outgoing};
use serde_json::Value;

/// One request about a call. `person`: a hash that stands for who calls.
pub async fn act(cx: &Cx, call_id: &str, action: Action, body: Option<&Value>, person: Option<&str>) -> Done {
    let url = openai_sip::url(cx.config.text("OPENAI_BASE_URL"), call_id, action);
    let bearer = bearer(cx);
    let mut headers = vec![("authorization", bearer.as_str()), ("x-client-request-id", cx.correlation_id.as_str())];
    if body.is_some() {
        headers.push(("content-type", "application/json"));
    }
    if let Some(person) = person {
        headers.push(("openai-safety-identifier", person));
    }
    let text = body.map(Value::to_string).unwrap_or_default();
    let timeout_ms = cx.config.number("OPENAI_REALTIME_TIMEOUT_MS");
    match outgoing::send(Some(cx.slots()), &url, &outgoing::headers(&headers), &text, timeout_ms).await {
        Ok(answer) => Done { status: answer.status, answer: openai_sip::answer(answer.status, answer.body.as_bytes()) },
        Err(_) => Done { status: 0, answer: Answer::Again("no_answer") },
    }
}

/// What came of a request.
pub struct Done {
    /// HTTP; 0 where there was no answer.
    pub status: u16,
    pub answer: Answer,
}

/// The same, once more where the first answer was lost or was "not now".
pub async fn insist(cx: &Cx, call_id: &str, action: Action, body: Option<&Value>) -> Done {
    let done = act(cx, call_id, action, body, None).await;
    match done.answer {
        Answer::Again(_) => act(cx, call_id, action, body, None).await,
        _ => done,
    }
}

pub fn bearer(cx: &Cx) -> String {
    ["Bearer ", cx.config.text("OPENAI_API_KEY")].concat()
}
