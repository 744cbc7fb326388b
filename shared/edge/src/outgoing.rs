//! One HTTP request to the outside, with a time limit and a bounded answer. Says *how* it failed, because that decides
//! whether the request may be sent again.

use chrono::TimeDelta;
use ihuza_core::{error_class::TransportFailure, retry};
use js_sys::{Object, Reflect, Uint8Array, futures::JsFuture};
use wasm_bindgen::{JsCast, JsValue};
use worker::web_sys;

use crate::host;

/// Largest answer that is read; none of the services we call comes near it.
const ANSWER_LIMIT_BYTES: u32 = 2 * 1024 * 1024;

/// A service's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    retry_after: Option<String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// How long the service wants us to wait.
    pub fn retry_after(&self) -> Option<TimeDelta> {
        retry::parse_retry_after(self.retry_after.as_deref()?, host::now())
    }
}

/// `method url` with `headers` and `body`; at most `timeout_ms` from start to the last byte of the answer.
pub async fn send(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
    timeout_ms: u32,
) -> Result<Answer, TransportFailure> {
    send_with(method, url, &header_object(headers), body, timeout_ms).await
}

/// Headers as a JavaScript object, so that constant ones can be made once an isolate.
pub fn header_object(headers: &[(&str, &str)]) -> Object {
    let object = Object::new();
    for (name, value) in headers {
        // Setting a property of a plain object cannot fail.
        let _ = Reflect::set(&object, &JsValue::from_str(name), &JsValue::from_str(value));
    }
    object
}

/// As [`send`], with headers made before.
pub async fn send_with(
    method: &str,
    url: &str,
    headers: &Object,
    body: Option<&str>,
    timeout_ms: u32,
) -> Result<Answer, TransportFailure> {
    let init = web_sys::RequestInit::new();
    init.set_method(method);
    init.set_headers(headers);
    init.set_signal(Some(&web_sys::AbortSignal::timeout_with_u32(timeout_ms)));
    if let Some(body) = body {
        init.set_body(&JsValue::from_str(body));
    }
    // A redirect would carry our keys to another host.
    init.set_redirect(web_sys::RequestRedirect::Manual);
    let scope: web_sys::WorkerGlobalScope = js_sys::global().unchecked_into();
    let response = JsFuture::from(scope.fetch_with_str_and_init(url, &init)).await.map_err(|e| failure(&e, false))?;
    let response: web_sys::Response = response.unchecked_into();
    let status = response.status();
    let retry_after = response.headers().get("retry-after").ok().flatten();
    let buffer = JsFuture::from(response.array_buffer().map_err(|_| TransportFailure::Cut)?)
        .await
        .map_err(|e| failure(&e, true))?;
    let bytes = Uint8Array::new(&buffer);
    if bytes.length() > ANSWER_LIMIT_BYTES {
        return Err(TransportFailure::BadBody);
    }
    Ok(Answer { status, retry_after, body: bytes.to_vec() })
}

/// What a rejected promise of `fetch` means. Once an answer has begun, nothing can be "never connected".
fn failure(error: &JsValue, answering: bool) -> TransportFailure {
    let text =
        |name: &str| Reflect::get(error, &JsValue::from_str(name)).ok().and_then(|v| v.as_string()).unwrap_or_default();
    if matches!(text("name").as_str(), "TimeoutError" | "AbortError") {
        return TransportFailure::Timeout;
    }
    if !answering && says_never_connected(&text("message")) {
        TransportFailure::NeverConnected
    } else {
        TransportFailure::Cut
    }
}

/// workerd tells a refused or unresolved connection only by its message (`kj` exceptions of src/kj/async-io-unix.c++:
/// "connect(): Connection refused", "DNS lookup failed."). Any other message counts as cut: the cautious reading.
fn says_never_connected(message: &str) -> bool {
    ["onnection refused", "DNS lookup failed", "connect()", "No route to host"]
        .iter()
        .any(|sign| message.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::says_never_connected;

    #[test]
    fn only_a_refused_connection_counts_as_never_made() {
        assert!(says_never_connected("kj::Exception: connect(): Connection refused"));
        assert!(!says_never_connected("Network connection lost."));
        assert!(!says_never_connected("internal error; reference = abc"));
    }
}
