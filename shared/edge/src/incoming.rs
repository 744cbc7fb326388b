//! One HTTP request as a function sees it, whole: `shell.js` brought it over in one crossing.

use ihuza_core::problem::Problem;

use crate::{
    endpoint::{CORRELATION_HEADER, Endpoint},
    shell::PART,
};

/// Largest body of our own endpoints; only whatsapp-webhook takes more (Meta batches up to 3 MB).
pub const BODY_LIMIT_BYTES: usize = 256 * 1024;

/// The headers by which carriers show who they are.
pub const CARRIER_HEADERS: &[&str] = &["authorization", "content-type", "x-signature", "x-timestamp"];

/// The headers by which callers of our own show who they are.
pub const SERVICE_HEADERS: &[&str] = &["authorization", "apikey"];

/// What became of the body on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// Longer than the endpoint takes.
    Large,
    /// The connection ended first.
    Cut,
}

/// A request.
#[derive(Debug)]
pub struct Incoming {
    pub method: String,
    /// Path without query, percent-encoding kept.
    pub path: String,
    /// Query without `?`, percent-encoding kept.
    pub query: String,
    /// What was counted since the first decision about this request, with commas between.
    counts: String,
    endpoint: Endpoint,
    /// Values in the order of the endpoint's list, that of the correlation id first.
    headers: Vec<String>,
    state: State,
    body: Vec<u8>,
}

impl Incoming {
    /// Reads what `Door` in `shell.js` writes: counts, state, method, URL, and the value of each header, empty where absent.
    pub fn read(endpoint: Endpoint, head: &str, body: Vec<u8>) -> Incoming {
        let mut parts = head.split(PART);
        let mut next = || parts.next().unwrap_or_default();
        let counts = next().to_owned();
        let state = match next() {
            "whole" => State::Whole,
            "large" => State::Large,
            _ => State::Cut,
        };
        let method = next().to_owned();
        let (path, query) = split_url(next());
        let (path, query) = (path.to_owned(), query.to_owned());
        let headers = parts.map(str::to_owned).collect();
        Incoming { method, path, query, counts, endpoint, headers, state, body }
    }

    /// What was counted since the first decision about this request, in the order in which it was asked for: a character for each
    /// key, as `counted` in `shell.js` gives them.
    pub fn counts(&self) -> impl Iterator<Item = &str> {
        self.counts.split(',').filter(|count| !count.is_empty())
    }

    /// A header's value; absent and empty are the same thing.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut names = [CORRELATION_HEADER].into_iter().chain(self.endpoint.headers.iter().copied());
        let at = names.position(|known| known == name);
        debug_assert!(at.is_some(), "{name} is not brought over");
        self.headers.get(at?).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The raw body, or why there is none: the 413 of one that is too long, the 400 of one that was cut off.
    pub fn body(&self) -> Result<&[u8], Problem> {
        match self.state {
            State::Whole => Ok(&self.body),
            State::Large => Err(Problem::too_large(self.endpoint.body_limit_bytes)),
            State::Cut => Err(Problem::bad_body("the request body ended before it was complete")),
        }
    }
}

/// Path and query of an absolute URL as the runtime serialises it (WHATWG: the path is never empty).
fn split_url(url: &str) -> (&str, &str) {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let rest = url.get(after_scheme..).unwrap_or_default();
    let path_and_more = rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/");
    let path_and_query = path_and_more.split('#').next().unwrap_or_default();
    path_and_query.split_once('?').unwrap_or((path_and_query, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_splits_into_path_and_query() {
        assert_eq!(split_url("https://e.rw/a/b?x=1&y=2#z"), ("/a/b", "x=1&y=2"));
        assert_eq!(split_url("http://127.0.0.1:8787/"), ("/", ""));
        assert_eq!(split_url("http://e.rw"), ("/", ""));
    }

    const ENDPOINT: Endpoint =
        Endpoint { name: "e", queue: "q", headers: &["authorization", "apikey", "x-signature"], body_limit_bytes: 10 };

    #[test]
    fn a_head_is_read_in_the_order_in_which_the_script_writes_it() {
        let head = "01,0\nwhole\nPOST\nhttps://e.rw/sms?a=1\nid-7\nBearer k\n\nsha256=00";
        let request = Incoming::read(ENDPOINT, head, b"{}".to_vec());
        assert_eq!((request.method.as_str(), request.path.as_str(), request.query.as_str()), ("POST", "/sms", "a=1"));
        assert_eq!(request.counts().collect::<Vec<_>>(), ["01", "0"]);
        assert_eq!(request.header("x-correlation-id"), Some("id-7"));
        assert_eq!(request.header("authorization"), Some("Bearer k"));
        assert_eq!(request.header("apikey"), None);
        assert_eq!(request.header("x-signature"), Some("sha256=00"));
        assert_eq!(request.body(), Ok(b"{}".as_slice()));
        let refused =
            |state: &str| Incoming::read(ENDPOINT, state, Vec::new()).body().err().map(|problem| problem.status);
        assert_eq!((refused("\nlarge\nPOST"), refused("\ncut\nPOST"), refused("")), (Some(413), Some(400), Some(400)));
    }
}
