//! The PostgREST client: one RPC is one transaction. Nothing else of PostgREST is used by the functions.

use std::{cell::OnceCell, fmt};

use ihuza_core::{
    constraint,
    error_class::TransportFailure,
    log::{Event, Level},
    problem::Problem,
};
use serde_json::Value;

use crate::{context::Cx, host, outgoing, pause};
use ihuza_core::json::obj;
use ihuza_core::json_text::{self, to_text};

/// Tries of one RPC within one piece of work; each RPC is safe to repeat under the same lease token.
const TRIES: u32 = 3;

/// Why a call of the database did not give a result.
///
/// Never holds what Postgres said in `details` or `message`: they can hold a whole row.
#[derive(Debug, Clone, PartialEq)]
pub enum DatabaseError {
    /// No answer, or one that says "not now" (503, 504, PGRST000-003, statement timeout, deadlock ...).
    Unavailable { what: &'static str, code: Option<String> },
    /// The database refused: a bug of ours or a constraint, by its name where Postgres named one.
    Refused { status: u16, code: String, constraint: Option<String> },
    /// The answer was no JSON.
    Garbled,
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseError::Unavailable { what, code } => {
                write!(
                    f,
                    "the database is not available ({what}{}{})",
                    if code.is_some() { ", " } else { "" },
                    code.as_deref().unwrap_or("")
                )
            }
            DatabaseError::Refused { status, code, constraint } => {
                let (comma, name) = constraint.as_deref().map_or(("", ""), |name| (", ", name));
                write!(f, "the database refused the call (HTTP {status}, {code}{comma}{name})")
            }
            DatabaseError::Garbled => write!(f, "the database's answer was cut or no JSON"),
        }
    }
}

impl DatabaseError {
    /// The same call may succeed a little later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, DatabaseError::Refused { .. })
    }

    /// What a caller hears who waits for the answer: what is wrong with the value that the database refused, else to come
    /// again after `retry_after_s`.
    pub fn problem(&self, retry_after_s: u32) -> Problem {
        match self {
            DatabaseError::Refused { constraint: Some(name), .. } => constraint::problem(name),
            DatabaseError::Refused { .. } | DatabaseError::Unavailable { .. } | DatabaseError::Garbled => None,
        }
        .unwrap_or_else(|| Problem::unavailable(retry_after_s))
    }
}

thread_local! {
    static HEADERS: OnceCell<String> = const { OnceCell::new() };
}

/// Calls `public.<name>(p jsonb)`; repeats it a few times while the database is not available.
pub async fn rpc(cx: &Cx, name: &'static str, p: &Value) -> Result<Value, DatabaseError> {
    rpc_within(cx, name, p, cx.config.number("DATABASE_TIMEOUT_MS")).await
}

/// [`rpc`] with a time limit of its own for each try.
pub async fn rpc_within(cx: &Cx, name: &'static str, p: &Value, timeout_ms: u32) -> Result<Value, DatabaseError> {
    let mut tried = 0;
    loop {
        tried += 1;
        let error = match rpc_once(cx, name, p, timeout_ms).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if tried >= TRIES || !error.is_transient() {
            return Err(error);
        }
        cx.log(
            Level::Warn,
            Event::DatabaseFailed,
            &format!("{name}: {error}, try {tried} of {TRIES}"),
            &[("rpc", name.into()), ("attempt", tried.into())],
        );
        // Half jitter over 0.2 s, then 0.4 s: long enough for a schema cache to load, short beside a lease.
        pause::for_ms((f64::from(200 << (tried - 1)) * (0.5 + host::dice() / 2.0)) as u32).await;
    }
}

/// Calls `public.<name>(p jsonb)` once, for whoever waits no longer than `timeout_ms`.
pub async fn rpc_once(cx: &Cx, name: &str, p: &Value, timeout_ms: u32) -> Result<Value, DatabaseError> {
    let config = &cx.config;
    let url = format!("{}/rest/v1/rpc/{name}", config.text("SUPABASE_URL").trim_end_matches('/'));
    let headers = HEADERS.with(|cell| {
        cell.get_or_init(|| {
            let key = config.text("SUPABASE_SERVICE_ROLE_KEY");
            let bearer = format!("Bearer {key}");
            let mut headers = vec![("apikey", key), ("content-type", "application/json"), ("user-agent", "ihuza/1.0")];
            // An opaque `sb_` key is no JWT: the gateway refuses it as bearer (Supabase docs, guides/api/api-keys).
            if !key.starts_with("sb_") {
                headers.push(("authorization", &bearer));
            }
            outgoing::headers(&headers)
        })
        .clone()
    });
    let body = to_text(&obj(&mut [("p", p.into())]));
    let answer = outgoing::send(None, &url, &headers, &body, timeout_ms).await.map_err(|failure| {
        DatabaseError::Unavailable {
            what: match failure {
                TransportFailure::NotARequest => "SUPABASE_URL or its key can be none",
                TransportFailure::Timeout => "no answer in time",
                TransportFailure::Cut => "connection cut",
                TransportFailure::BadBody => "answer too long",
            },
            code: None,
        }
    })?;
    read(answer.status, answer.body.as_bytes())
}

/// What PostgREST's status and body mean (reference: PostgREST docs, references/errors).
fn read(status: u16, body: &[u8]) -> Result<Value, DatabaseError> {
    let value = json_text::parse_bytes(body).ok();
    if (200..300).contains(&status) {
        return match value {
            Some(value) => Ok(value),
            None if body.is_empty() && status == 204 => Ok(Value::Null),
            None => Err(DatabaseError::Garbled),
        };
    }
    let code = value.as_ref().and_then(|v| v.get("code")).and_then(Value::as_str).unwrap_or("none").to_owned();
    if is_transient(status, &code) {
        Err(DatabaseError::Unavailable { what: "answered not now", code: Some(code) })
    } else {
        let message = value.as_ref().and_then(|v| v.get("message")).and_then(Value::as_str).unwrap_or_default();
        let constraint = constraint::name_in(&code, message).map(str::to_owned);
        Err(DatabaseError::Refused { status, code, constraint })
    }
}

/// Decided on status and code, never on a message. PGRST202 (function unknown) is what a stale schema cache answers for a
/// moment after a migration, so it is worth another try.
fn is_transient(status: u16, code: &str) -> bool {
    let transient_state = ["08", "53"].iter().any(|class| code.len() == 5 && code.starts_with(class))
        || matches!(code, "40001" | "40P01" | "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "25006");
    // A 500 without a code is none of PostgREST's: the gateway broke, and the call may have been made.
    matches!(status, 408 | 425 | 429 | 502 | 503 | 504)
        || (status == 500 && code == "none")
        || (520..=527).contains(&status)
        || transient_state
        || matches!(code, "PGRST000" | "PGRST001" | "PGRST002" | "PGRST003" | "PGRST202")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transient(status: u16, body: &str) -> bool {
        read(status, body.as_bytes()).is_err_and(|e| e.is_transient())
    }

    #[test]
    fn not_now_is_told_from_never() {
        assert!(transient(503, r#"{"code":"PGRST002","message":"schema cache"}"#));
        assert!(transient(504, ""));
        assert!(transient(500, r#"{"code":"57014"}"#), "a statement timeout comes as 500");
        assert!(transient(500, r#"{"message":"An unexpected error occurred"}"#), "the gateway's own");
        assert!(!transient(500, r#"{"code":"XX000"}"#));
        assert!(transient(404, r#"{"code":"PGRST202"}"#), "a stale schema cache");
        assert!(!transient(400, r#"{"code":"23514","details":"Failing row contains (+250788123456)"}"#));
        assert!(!transient(401, "Invalid API key"));
        assert!(transient(200, "{\"half\":"), "a cut answer: the call may have been committed, and is safe to repeat");
    }

    #[test]
    fn an_error_never_repeats_what_postgres_said() {
        let error = read(400, br#"{"code":"23514","message":"row +250788123456","details":"+250788123456"}"#);
        assert_eq!(error.map_err(|e| e.to_string()), Err("the database refused the call (HTTP 400, 23514)".to_owned()));
    }

    #[test]
    fn a_broken_constraint_is_told_by_its_name_in_the_log_and_as_a_problem_outside() {
        let refused = |code: &str, constraint: &str| {
            let said = format!(
                r#"{{"code":"{code}","details":"Failing row contains (+250788123456)","hint":null,
                "message":"new row for relation \"t\" violates check constraint \"{constraint}\""}}"#
            );
            read(400, said.as_bytes()).err()
        };
        let known = refused("23514", "profiles_phone_number_is_e164");
        assert_eq!(
            known.as_ref().map(ToString::to_string).as_deref(),
            Some("the database refused the call (HTTP 400, 23514, profiles_phone_number_is_e164)")
        );
        let problem = known.map(|error| error.problem(5));
        assert_eq!(problem.map(|p| (p.type_slug, p.field)), Some(("invalid-field", Some("phone_number"))));
        let ours = refused("23514", "provider_health_open_has_an_end").map(|error| error.problem(5));
        assert_eq!(ours.map(|p| (p.type_slug, p.retry_after_s)), Some(("unavailable", Some(5))));
        let away = read(503, b"").err().map(|error| error.problem(30));
        assert_eq!(away.map(|p| p.status), Some(503));
    }
}
