//! The hosted project's gateway in front of PostgREST: keys, the `/rest/v1` prefix, and faults to order.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;

use crate::control::{self, Control, Fault, Met, Service};
use crate::error::{Context, Result, Trouble};
use crate::http::{Answer, Request, Server};
use crate::keys::ProjectKeys;

const PREFIX: &str = "/rest/v1";
/// The hosted gateway's own ceiling.
const UPSTREAM_PATIENCE: Duration = Duration::from_secs(60);

/// A running gateway.
pub struct Gateway {
    server: Server,
    control: Arc<Control>,
    front: Arc<Front>,
}

impl Gateway {
    /// Answers 503 until [`Gateway::forward_to`] names what is behind it.
    pub async fn start(port: u16, keys: ProjectKeys, latency: Duration) -> Result<Self> {
        let http =
            reqwest::Client::builder().timeout(UPSTREAM_PATIENCE).build().context("cannot make an HTTP client")?;
        let control = Arc::new(Control::default());
        let front = Arc::new(Front { upstream: OnceLock::new(), keys, http });
        let server = control::start(port, front.clone(), control.clone(), latency).await?;
        Ok(Self { server, control, front })
    }

    /// Names the PostgREST behind the gateway; the first name stays.
    pub fn forward_to(&self, upstream: String) {
        let _ = self.front.upstream.set(upstream);
    }

    /// What functions get as `SUPABASE_URL`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The server itself: it can go away and come back.
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn control(&self) -> &Control {
        &self.control
    }
}

struct Front {
    upstream: OnceLock<String>,
    keys: ProjectKeys,
    http: reqwest::Client,
}

/// What our functions call themselves.
const FUNCTIONS: &str = "ihuza/1.0";

/// Whether every version of PostgREST answers it alike. Of what differs between 12 and 14 (filters, limits, media types, paths,
/// preferences; PostgREST's CHANGELOG) nothing concerns a function that is called by POST with a body of JSON.
fn is_alike_everywhere(request: &Request, path: &str) -> bool {
    let chosen = ["accept-profile", "content-profile", "prefer", "range"];
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    request.method == "POST"
        && path.strip_prefix("/rpc/").is_some_and(is_name)
        && request.query.is_empty()
        && request.header("content-type") == Some("application/json")
        && request.header("accept").is_none_or(|accept| accept == "*/*")
        && chosen.iter().all(|name| request.header(name).is_none())
}

impl Service for Front {
    fn subjects(&self, _: &Request) -> Vec<String> {
        Vec::new()
    }

    async fn handle(self: Arc<Self>, request: Request, met: Met) -> Answer {
        let authorization = match self.admit(&request) {
            Ok(authorization) => authorization,
            Err(refusal) => return refusal,
        };
        let Some(path) = request.path.strip_prefix(PREFIX).map(str::to_owned) else {
            return Answer::json(404, &json!({"message": "no Route matched with those values"}));
        };
        if request.header("user-agent") == Some(FUNCTIONS) && !is_alike_everywhere(&request, &path) {
            let message = "the functions may only POST JSON to /rpc/<name>: other requests differ between PostgREST 12, 14 and 16";
            return Answer::json(400, &json!({ "code": "IHUZA", "message": message }));
        }
        if met.is(Fault::Duplicate) {
            let _ = self.forward(&request, &path, &authorization).await;
        }
        match self.forward(&request, &path, &authorization).await {
            Ok(answer) => answer,
            Err(_) => Answer::json(503, &json!({"message": "name resolution failed"})).header("retry-after", "1"),
        }
    }

    fn refuse(&self, status: u16, _: Option<i64>) -> Answer {
        let message = match status {
            401 => return invalid_key(),
            429 => "API rate limit exceeded",
            503 => "name resolution failed",
            504 => "The upstream server is timing out",
            _ => "An unexpected error occurred",
        };
        let status = if status == 0 { 500 } else { status };
        Answer::json(status, &json!({ "message": message }))
    }
}

impl Front {
    /// The `Authorization` that PostgREST shall see, by the rules of the hosted gateway.
    fn admit(&self, request: &Request) -> Result<Option<String>, Answer> {
        let keys = &self.keys;
        let Some(key) = request.header("apikey") else {
            return Err(Answer::json(
                401,
                &json!({"message": "No API key found in request",
                        "hint": "No `apikey` request header or url param was found."}),
            ));
        };
        let known = [&keys.anon, &keys.service_role, &keys.publishable, &keys.secret];
        if !known.iter().any(|known| known.as_str() == key) {
            return Err(invalid_key());
        }
        let browser = request.header("user-agent").is_some_and(|agent| agent.contains("Mozilla/"));
        if key == keys.secret && browser {
            return Err(Answer::json(
                401,
                &json!({"message": "Forbidden use of secret API key in browser",
                        "hint": "Secret API keys can only be used in a protected environment."}),
            ));
        }
        let authorization = request.header("authorization");
        if let Some(token) = authorization.filter(|value| !value.starts_with("Bearer sb_")) {
            return Ok(Some(token.to_owned()));
        }
        if authorization.is_some_and(|value| value != format!("Bearer {key}")) {
            return Err(invalid_key());
        }
        Ok(Some(if key == keys.secret {
            format!("Bearer {}", keys.service_role)
        } else if key == keys.publishable {
            format!("Bearer {}", keys.anon)
        } else {
            // As the hosted gateway does: without `Bearer`, so PostgREST takes the caller for anon.
            key.to_owned()
        }))
    }

    async fn forward(&self, request: &Request, path: &str, authorization: &Option<String>) -> Result<Answer> {
        let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        let upstream = self.upstream.get().ok_or_else(|| Trouble::new("PostgREST is not there yet"))?;
        let url = format!("{upstream}{path}{query}");
        let method = reqwest::Method::from_bytes(request.method.as_bytes()).context("an impossible method")?;
        let mut upstream = self.http.request(method, url).body(request.body.clone());
        for (name, value) in &request.headers {
            if !DROPPED.contains(&name.as_str()) {
                upstream = upstream.header(name, value);
            }
        }
        if let Some(authorization) = authorization {
            upstream = upstream.header("authorization", authorization);
        }
        let answer = upstream.send().await.context("PostgREST does not answer")?;
        let status = answer.status().as_u16();
        let mut headers = Vec::new();
        for (name, value) in answer.headers() {
            if !DROPPED.contains(&name.as_str()) {
                headers.push((name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
            }
        }
        if let Some(correlation) = request.header("x-correlation-id") {
            headers.push(("x-correlation-id".to_owned(), correlation.to_owned()));
        }
        let body = answer.bytes().await.context("PostgREST broke off")?;
        Ok(Answer { status, headers, body })
    }
}

/// Headers that belong to one connection, or that the gateway replaces.
const DROPPED: [&str; 8] =
    ["host", "connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "apikey", "authorization"];

fn invalid_key() -> Answer {
    Answer::json(
        401,
        &json!({"message": "Invalid API key", "hint": "Double check your Supabase `anon` or `service_role` API key."}),
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::HeaderMap;
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn request(method: &str, query: &str, headers: &[(&'static str, &'static str)]) -> Request {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Request {
            method: method.to_owned(),
            path: String::new(),
            query: query.to_owned(),
            headers: map,
            body: Bytes::new(),
        }
    }

    #[test]
    fn functions_may_ask_only_what_all_versions_answer_alike() {
        let json = ("content-type", "application/json");
        assert!(is_alike_everywhere(&request("POST", "", &[json]), "/rpc/begin_sms_turn"));
        assert!(is_alike_everywhere(&request("POST", "", &[json, ("accept", "*/*")]), "/rpc/begin_sms_turn"));
        for (method, query, headers, path) in [
            ("GET", "", &[json][..], "/rpc/begin_sms_turn"),
            ("PATCH", "limit=1", &[json], "/message_delivery_log"),
            ("POST", "select=id", &[json], "/rpc/begin_sms_turn"),
            ("POST", "", &[], "/rpc/begin_sms_turn"),
            ("POST", "", &[json, ("accept", "application/vnd.pgrst.object+json")], "/rpc/begin_sms_turn"),
            ("POST", "", &[json, ("prefer", "max-affected=1")], "/rpc/begin_sms_turn"),
            ("POST", "", &[json], "/rpc/"),
            ("POST", "", &[json], "/rpc/begin_sms_turn/1"),
        ] {
            assert!(
                !is_alike_everywhere(&request(method, query, headers), path),
                "{method} {path}?{query} {headers:?}"
            );
        }
    }
}
