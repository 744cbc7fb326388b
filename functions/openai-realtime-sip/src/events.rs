//! What the relay tells while a call runs, and how its trunks are.

use ihuza_core::{
    json::{self, items_at, u32_at},
    log::{Event, Level},
    problem::Problem,
    realtime,
};
use ihuza_edge::{
    database,
    endpoint::{self, Call, Outcome},
    reply::Reply,
};
use serde_json::Value;

use crate::{asker, refused};

/// Each (call, seq) is kept once, in whatever order it comes; the answer names the numbers that are still missing.
pub fn events(call: Call) -> Result<Outcome, Problem> {
    asker(&call)?;
    let body = json::object(call.request.body()?)?;
    let mut p = realtime::events_fields(&body)?;
    p.insert("correlation_id".to_owned(), call.cx.correlation_id.as_str().into());
    Ok(Outcome::later(async move {
        let cx = &call.cx;
        let answer = database::rpc(cx, "record_voice_events", &Value::Object(p)).await.map_err(refused)?;
        let count = |name: &str| u32_at(&answer, name).unwrap_or(0);
        let gaps = items_at(&answer, "gaps").len();
        cx.log(
            if gaps > 0 { Level::Warn } else { Level::Info },
            Event::VoiceEventsStored,
            &format!("{} event(s) of a call are stored, {gaps} gap(s) are left", count("stored")),
            &[
                ("call_id", answer.get("call_id").into()),
                ("stored", count("stored").into()),
                ("duplicates", count("duplicates").into()),
                ("gaps", gaps.into()),
            ],
        );
        Ok(Reply::json(200, &answer))
    }))
}

pub fn trunks(call: Call) -> Result<Outcome, Problem> {
    endpoint::require_service_key(&call.cx, &call.request)?;
    let p = realtime::trunk_fields(&json::object(call.request.body()?)?)?;
    Ok(Outcome::later(async move {
        let answer = database::rpc(&call.cx, "report_trunks", &Value::Object(p)).await.map_err(refused)?;
        let stored = [("trunks", answer.get("stored").into())];
        call.cx.log(Level::Info, Event::TrunksReported, "a relay told how its trunks are", &stored);
        Ok(Reply::json(200, &answer))
    }))
}
