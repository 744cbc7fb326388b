//! One HTTP request as a function sees it. Every look at it crosses from wasm to JavaScript, so it is read once.

use ihuza_core::problem::Problem;
use js_sys::{Reflect, Uint8Array, futures::JsFuture};
use wasm_bindgen::{JsCast, JsValue};
use worker::web_sys;

/// Largest body of our own endpoints; only whatsapp-webhook takes more (Meta batches up to 3 MB).
pub const BODY_LIMIT_BYTES: usize = 256 * 1024;

/// A request whose method and URL have been read.
pub struct Incoming {
    request: web_sys::Request,
    headers: web_sys::Headers,
    pub method: String,
    /// Path without query, percent-encoding kept.
    pub path: String,
    /// Query without `?`, percent-encoding kept.
    pub query: String,
}

impl Incoming {
    pub fn new(request: web_sys::Request) -> Incoming {
        let url = request.url();
        let (path, query) = split_url(&url);
        Incoming {
            method: request.method(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: request.headers(),
            request,
        }
    }

    /// A header's value; absent and empty are the same thing.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).ok().flatten().filter(|value| !value.is_empty())
    }

    /// The raw body, or the 413 of a body over `limit_bytes`; never holds more than that much in memory.
    pub async fn body(&self, limit_bytes: usize) -> Result<Vec<u8>, Problem> {
        match self.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            Some(length) if length > limit_bytes => Err(Problem::too_large(limit_bytes)),
            Some(_) => {
                let promise = self.request.array_buffer().map_err(|_| unreadable())?;
                let buffer = JsFuture::from(promise).await.map_err(|_| unreadable())?;
                let bytes = Uint8Array::new(&buffer).to_vec();
                if bytes.len() > limit_bytes { Err(Problem::too_large(limit_bytes)) } else { Ok(bytes) }
            }
            None => self.streamed_body(limit_bytes).await,
        }
    }

    /// A body of unannounced length, taken piece by piece so that an endless one is cut off at the limit.
    async fn streamed_body(&self, limit_bytes: usize) -> Result<Vec<u8>, Problem> {
        let Some(stream) = self.request.body() else {
            return Ok(Vec::new());
        };
        let reader: web_sys::ReadableStreamDefaultReader = stream.get_reader().unchecked_into();
        let mut bytes = Vec::new();
        loop {
            let piece = JsFuture::from(reader.read()).await.map_err(|_| unreadable())?;
            let done = Reflect::get(&piece, &JsValue::from_str("done")).map_err(|_| unreadable())?;
            if done.is_truthy() {
                return Ok(bytes);
            }
            let value = Reflect::get(&piece, &JsValue::from_str("value")).map_err(|_| unreadable())?;
            let piece = Uint8Array::new(&value);
            if bytes.len().saturating_add(piece.length() as usize) > limit_bytes {
                drop(reader.cancel());
                return Err(Problem::too_large(limit_bytes));
            }
            bytes.extend_from_slice(&piece.to_vec());
        }
    }
}

fn unreadable() -> Problem {
    Problem::bad_body("the request body ended before it was complete")
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
    use super::split_url;

    #[test]
    fn a_url_splits_into_path_and_query() {
        assert_eq!(split_url("https://e.rw/a/b?x=1&y=2#z"), ("/a/b", "x=1&y=2"));
        assert_eq!(split_url("http://127.0.0.1:8787/"), ("/", ""));
        assert_eq!(split_url("http://e.rw"), ("/", ""));
    }
}
