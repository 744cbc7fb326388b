//! The record of a call on its way from the object's storage to Postgres: batches of events, and the end.

use ihuza_core::{
    json::{obj, str_at},
    json_text::parse,
    log::{Event, Level},
    realtime,
};
use ihuza_edge::{context::Cx, voice};
use serde_json::{Map, Value};

use crate::runtime::Store;

/// Most events of one batch.
const BATCH: u32 = 200;

/// What each request about the call says of it: ours, the vendor's, and who calls whom.
fn named(asked: &Value, call_id: &str) -> Value {
    let called = asked.get("called").and_then(|called| called.get(0));
    obj(&mut [
        ("call_id", Some(call_id).filter(|id| !id.is_empty()).into()),
        ("call_sid", asked.get("call_sid").into()),
        ("origin", "openai_sip".into()),
        ("trunk", "openai_sip".into()),
        ("from", asked.get("from").into()),
        ("to", called.into()),
    ])
}

/// Brings what the object holds to Postgres; whether nothing is left.
pub async fn flush(cx: &Cx, store: &Store, asked: &Value, call_id: &str) -> bool {
    loop {
        let held = store.events(BATCH);
        let events: Vec<Value> = held.lines().filter_map(|line| parse(line).ok()).collect();
        let Some(last) = events.last().and_then(|event| event.get("seq")).and_then(Value::as_i64) else {
            return true;
        };
        let mut body = named(asked, call_id);
        put(&mut body, "events", events.into());
        let p = match realtime::events_fields(&body) {
            Ok(p) => p,
            Err(problem) => {
                // Ours are always such as the rules want; one that is not would hold up all that follow.
                cx.log(Level::Error, Event::InternalError, problem.title, &[("field", problem.field.into())]);
                store.stored(last as f64);
                continue;
            }
        };
        match voice::keep_events(cx, with_thread(cx, p)).await {
            Ok(_) => store.stored(last as f64),
            Err(error) => {
                cx.log(
                    Level::Warn,
                    Event::DatabaseFailed,
                    &format!("events of a call wait in its object: {error}"),
                    &[],
                );
                return false;
            }
        }
    }
}

/// Ends the call in Postgres, and asks for its summary. Whether that is done.
pub async fn end(cx: &Cx, asked: &Value, call_id: &str, end: &Value) -> bool {
    let mut body = named(asked, call_id);
    for name in ["cause", "reason", "answered_at", "ended_at", "last_seq"] {
        if let Some(value) = end.get(name) {
            put(&mut body, name, value.clone());
        }
    }
    let ended = match realtime::end_fields(&body) {
        Ok(p) => voice::end(cx, with_thread(cx, p)).await,
        Err(problem) => Err(problem),
    };
    match ended {
        Ok(_) => true,
        Err(problem) => {
            let cause = str_at(end, "cause").unwrap_or_default();
            cx.log(Level::Warn, Event::DatabaseFailed, problem.title, &[("cause", cause.into())]);
            false
        }
    }
}

fn put(body: &mut Value, name: &str, value: Value) {
    if let Some(fields) = body.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
}

fn with_thread(cx: &Cx, mut p: Map<String, Value>) -> Map<String, Value> {
    p.insert("correlation_id".to_owned(), cx.correlation_id.as_str().into());
    p
}
