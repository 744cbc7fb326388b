//! `/calls`: somebody asks for a call, looks after it, ends it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use ihuza_core::json::{integer, optional_text};
use ihuza_core::locale::Locale;
use ihuza_core::phone::E164;
use ihuza_core::problem::Problem;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::outbound::{self, Answer, Refused, Wish};
use super::relay::Shared;

/// A request for a call is a few words.
const MOST_BYTES: usize = 16 * 1024;
/// It is there within this time, or never.
const BODY_WITHIN: Duration = Duration::from_secs(5);
/// Names that somebody gives: keys, agents, references.
const MOST_NAME_BYTES: usize = 200;
/// When to ask again if the relay is just going away.
const RETRY_AFTER_S: u32 = 5;
const KEY_HEADER: &str = "idempotency-key";

/// Whether a path is one of these.
pub fn is_ours(path: &str) -> bool {
    path == "/calls" || path.starts_with("/calls/")
}

/// Answers a request.
pub async fn answer<B>(shared: &Arc<Shared>, request: Request<B>) -> Response<Full<Bytes>>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    route(shared, request).await.unwrap_or_else(|problem| refuse(&problem))
}

async fn route<B>(shared: &Arc<Shared>, request: Request<B>) -> Result<Response<Full<Bytes>>, Problem>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    authorise(shared, request.headers().get(AUTHORIZATION))?;
    let id = request.uri().path().strip_prefix("/calls/").map(str::to_owned);
    match (request.method().clone(), id) {
        (Method::POST, None) => {
            let key = request.headers().get(KEY_HEADER).and_then(|key| key.to_str().ok()).map(str::to_owned);
            let body = body_of(request).await?;
            let (wish, key) = read(&body, key)?;
            let (key, wanted) = (hash(&key), hash(&format!("{wish:?} {}", wish.to.as_str())));
            // In a task of its own: whoever asks may go away, and what was begun must not stop half-way.
            let ours = shared.clone();
            let placing = tokio::spawn(async move { outbound::place(&ours, wish, key, wanted).await });
            let placed = placing.await.map_err(|_| Problem::unavailable(RETRY_AFTER_S))?;
            let (answer, id) = placed.map_err(problem_of)?;
            let status = if answer == Answer::New { StatusCode::ACCEPTED } else { StatusCode::OK };
            let mut response = show(shared, &id, status)?;
            if let Ok(location) = HeaderValue::from_str(&format!("/calls/{id}")) {
                response.headers_mut().insert(LOCATION, location);
            }
            Ok(response)
        }
        (_, None) => Err(Problem::method_not_allowed("POST")),
        (Method::GET, Some(id)) => show(shared, &id, StatusCode::OK),
        (Method::DELETE, Some(id)) => {
            shared.calls.hang_up(&id);
            show(shared, &id, StatusCode::ACCEPTED)
        }
        (_, Some(_)) => Err(Problem::method_not_allowed("GET, DELETE")),
    }
}

fn authorise(shared: &Shared, header: Option<&HeaderValue>) -> Result<(), Problem> {
    let given = header.and_then(|header| header.to_str().ok()).and_then(|text| text.strip_prefix("Bearer "));
    match (&shared.calls.key, given) {
        (Some(key), Some(given)) if is_same(key, given) => Ok(()),
        _ => Err(Problem::unauthorized()),
    }
}

/// In a time that tells nothing of where they differ, nor of how long ours is.
fn is_same(key: &str, given: &str) -> bool {
    let (key, given) = (Sha256::digest(key.as_bytes()), Sha256::digest(given.as_bytes()));
    key.iter().zip(given.iter()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn body_of<B>(request: Request<B>) -> Result<Value, Problem>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = Limited::new(request.into_body(), MOST_BYTES).collect();
    let bytes = match tokio::time::timeout(BODY_WITHIN, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Problem::too_large(MOST_BYTES)),
        Ok(Err(_)) | Err(_) => return Err(Problem::bad_body("it ended before it was complete")),
    };
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| Problem::bad_json(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(Problem::bad_json("it is no object")) }
}

fn read(body: &Value, key: Option<String>) -> Result<(Wish, String), Problem> {
    let key = match key {
        Some(key) => Some(key),
        None => optional_text(body, "idempotency_key", MOST_NAME_BYTES)?,
    };
    let key = key.filter(|key| (1..=MOST_NAME_BYTES).contains(&key.len())).ok_or_else(|| {
        Problem::missing_field("idempotency_key", "a name of your own for this one call, also as the header Idempotency-Key: sent again, it calls nobody twice")
    })?;
    let to = optional_text(body, "to", 64)?.ok_or_else(|| Problem::missing_field("to", "whom to call, in E.164"))?;
    let to = E164::parse(&to).map_err(|error| Problem::invalid_field("to", error.to_string(), "write it as +250…"))?;
    let locale =
        match optional_text(body, "locale", 64)? {
            None => None,
            Some(tag) => Some(Locale::from_tag(&tag).ok_or_else(|| {
                Problem::invalid_field("locale", "there is no such language here", "rw, sw, fr or en")
            })?),
        };
    let ring_seconds = match integer(body, "max_ring_seconds") {
        None => None,
        Some(seconds) => {
            Some(u64::try_from(seconds).ok().filter(|seconds| (5..=180).contains(seconds)).ok_or_else(|| {
                Problem::invalid_field(
                    "max_ring_seconds",
                    "it lies outside of 5 to 180",
                    "leave it out for the trunk's own limit",
                )
            })?)
        }
    };
    let wish = Wish {
        to,
        locale,
        ring_seconds,
        trunk: optional_text(body, "trunk", MOST_NAME_BYTES)?,
        agent: optional_text(body, "agent", MOST_NAME_BYTES)?,
        reference: optional_text(body, "reference", MOST_NAME_BYTES)?,
    };
    Ok((wish, key))
}

fn problem_of(refused: Refused) -> Problem {
    match refused {
        Refused::Rule(reason) => reason.problem(),
        Refused::KeyReused => Problem::new("idempotency-key-reused", "That key was used for another call", 422)
            .field("idempotency_key")
            .hint("Take a new key for a new call"),
    }
}

fn show(shared: &Shared, id: &str, status: StatusCode) -> Result<Response<Full<Bytes>>, Problem> {
    let call = shared.calls.show(id).ok_or_else(|| Problem::not_found("there is no such call, or it is long over"))?;
    let mut response = Response::new(Full::from(call.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn refuse(problem: &Problem) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(problem.to_json().to_string()));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in problem.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}
