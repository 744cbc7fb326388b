//! One HTTP request to the outside, with a time limit and a bounded answer. Says *how* it failed, because that decides
//! whether the request may be sent again.

use chrono::TimeDelta;
use ihuza_core::{error_class::TransportFailure, retry};
use js_sys::{Promise, futures::JsFuture};

use crate::{
    host,
    shell::{self, PART, Slots},
};

/// Largest answer that is read; none of the services we call comes near it.
const ANSWER_LIMIT_BYTES: u32 = 2 * 1024 * 1024;

/// A service's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    retry_after: String,
    pub body: String,
}

impl Answer {
    /// How long the service wants us to wait.
    pub fn retry_after(&self) -> Option<TimeDelta> {
        retry::parse_retry_after(&self.retry_after, host::now())
    }
}

/// Headers in the form in which [`send`] takes them.
pub fn headers(headers: &[(&str, &str)]) -> String {
    let parts: Vec<&str> = headers.iter().flat_map(|(name, value)| [*name, *value]).collect();
    parts.join("\n")
}

/// `POST url` with `headers` and `body`; at most `timeout_ms` to the last byte of the answer, from the moment that one of `slots`
/// is free.
pub async fn send(
    slots: Option<&Slots>,
    url: &str,
    headers: &str,
    body: &str,
    timeout_ms: u32,
) -> Result<Answer, TransportFailure> {
    ask(shell::send(slots, url, headers, body, timeout_ms, ANSWER_LIMIT_BYTES, "POST")).await
}

/// `GET url` with `headers`, within the same bounds.
pub async fn get(slots: Option<&Slots>, url: &str, headers: &str, timeout_ms: u32) -> Result<Answer, TransportFailure> {
    ask(shell::send(slots, url, headers, "", timeout_ms, ANSWER_LIMIT_BYTES, "GET")).await
}

async fn ask(promise: Promise) -> Result<Answer, TransportFailure> {
    let said = JsFuture::from(promise).await.ok().and_then(|said| said.as_string()).unwrap_or_default();
    read(&said)
}

/// A file that is fetched from one service for another.
pub struct File<'a> {
    pub url: &'a str,
    /// In the form of [`headers`].
    pub headers: &'a str,
    /// The name by which the other service tells its format.
    pub name: &'a str,
    pub limit_bytes: u32,
}

/// What came of [`forward`].
pub enum Forwarded {
    /// The file was not to be had.
    NotFetched(Result<Answer, TransportFailure>),
    /// What the service says to which it was handed.
    Handed(Result<Answer, TransportFailure>),
}

/// Fetches a file and hands it on as `file` of a form with these `fields` (in the form of [`headers`]); `timeout_ms` for both.
pub async fn forward(
    slots: Option<&Slots>,
    file: &File<'_>,
    to: &str,
    to_headers: &str,
    fields: &str,
    timeout_ms: u32,
) -> Forwarded {
    let promise = shell::forward(
        slots,
        file.url,
        file.headers,
        file.name,
        file.limit_bytes,
        to,
        to_headers,
        fields,
        timeout_ms,
        ANSWER_LIMIT_BYTES,
    );
    let said = JsFuture::from(promise).await.ok().and_then(|said| said.as_string()).unwrap_or_default();
    match said.split_once(PART) {
        Some(("handed", said)) => Forwarded::Handed(read(said)),
        Some((_, said)) => Forwarded::NotFetched(read(said)),
        None => Forwarded::NotFetched(read("")),
    }
}

/// What `send` in `shell.js` says: status, `Retry-After`, body; or how far it came, and the name and message of the error.
fn read(said: &str) -> Result<Answer, TransportFailure> {
    let mut parts = said.splitn(3, PART);
    let mut next = || parts.next().unwrap_or_default();
    let (first, second, rest) = (next(), next(), next());
    match (first, second) {
        ("connect" | "answer", "TimeoutError" | "AbortError") => Err(TransportFailure::Timeout),
        ("connect", "TypeError") if says_not_a_request(rest) => Err(TransportFailure::NotARequest),
        ("long", _) => Err(TransportFailure::BadBody),
        _ => match first.parse() {
            Ok(status) => Ok(Answer { status, retry_after: second.to_owned(), body: rest.to_owned() }),
            Err(_) => Err(TransportFailure::Cut),
        },
    }
}

/// What `fetch` says of a URL or a header that can be none, such as a base URL without `https://` or a key with a typographic
/// dash (workerd, src/workerd/api/http.c++ and util/http-util.c++). Nothing was sent then. A connection that was refused reads
/// like one that was cut, and counts as that.
fn says_not_a_request(message: &str) -> bool {
    ["Invalid URL", "Fetch API cannot load", "Invalid header", "ByteString"].iter().any(|sign| message.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_every_way_of_having_none() {
        let answer = read("429\n7\n{\"a\":\n1}").unwrap();
        assert_eq!((answer.status, answer.retry_after.as_str(), answer.body.as_str()), (429, "7", "{\"a\":\n1}"));
        assert_eq!(read("204\n\n").unwrap().body, "");
        let failure = |said: &str| read(said).unwrap_err();
        assert_eq!(failure("connect\nTimeoutError\nThe operation was aborted"), TransportFailure::Timeout);
        assert_eq!(failure("answer\nTimeoutError\n"), TransportFailure::Timeout);
        assert_eq!(failure("connect\nTypeError\nInvalid URL: graph.facebook.com/v25.0"), TransportFailure::NotARequest);
        assert_eq!(failure("answer\nTypeError\nInvalid URL"), TransportFailure::Cut);
        assert_eq!(failure("connect\nTypeError\nsomething else"), TransportFailure::Cut);
        assert_eq!(failure("connect\nError\nNetwork connection lost."), TransportFailure::Cut);
        assert_eq!(failure("long\n\n"), TransportFailure::BadBody);
        assert_eq!(failure(""), TransportFailure::Cut);
    }
}
