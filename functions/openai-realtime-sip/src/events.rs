//! What the relay tells while a call runs, and how its trunks are.

use ihuza_core::{
    json,
    log::{Event, Level},
    problem::Problem,
    realtime,
};
use ihuza_edge::{
    database,
    endpoint::{self, Call, Outcome},
    reply::Reply,
    voice,
};
use serde_json::Value;

use crate::asker;

/// Each (call, seq) is kept once, in whatever order it comes; the answer names the numbers that are still missing.
pub fn events(call: Call) -> Result<Outcome, Problem> {
    asker(&call)?;
    let body = json::object(call.request.body()?)?;
    let mut p = realtime::events_fields(&body)?;
    p.insert("correlation_id".to_owned(), call.cx.correlation_id.as_str().into());
    Ok(Outcome::later(async move {
        let answer = voice::keep_events(&call.cx, p).await.map_err(|error| voice::refused(&error))?;
        Ok(Reply::json(200, &answer))
    }))
}

pub fn trunks(call: Call) -> Result<Outcome, Problem> {
    endpoint::require_service_key(&call.cx, &call.request)?;
    let p = realtime::trunk_fields(&json::object(call.request.body()?)?)?;
    Ok(Outcome::later(async move {
        let answer = database::rpc(&call.cx, "report_trunks", &Value::Object(p))
            .await
            .map_err(|error| voice::refused(&error))?;
        let stored = [("trunks", answer.get("stored").into())];
        call.cx.log(Level::Info, Event::TrunksReported, "a relay told how its trunks are", &stored);
        Ok(Reply::json(200, &answer))
    }))
}
