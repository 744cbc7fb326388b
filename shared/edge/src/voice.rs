//! The record of a call, for whoever carries it: its events, its tools, its end.

use ihuza_core::{
    ids::CorrelationId,
    json::{flag_at, items_at, obj, str_at, u32_at},
    log::{Event, Level},
    problem::Problem,
    realtime::ToolRun,
};
use serde_json::{Map, Value};

use crate::{
    context::Cx,
    database::{self, DatabaseError},
    host,
    queue::{self, Envelope},
    tool,
};

/// The queue of those that write to people after a call.
pub const SUMMARIES: &str = "post-call-notify";

/// How long the summary waits for events that are not there yet.
const GAP_WAIT_S: u32 = 20;

/// What a caller of ours hears when the database said no.
pub fn refused(error: &DatabaseError) -> Problem {
    match error {
        DatabaseError::Refused { status: 404, .. } => Problem::not_found("there is no call with this call_id"),
        _ => error.problem(1),
    }
}

/// Keeps a batch, each (call, seq) once; `p` is of `record_voice_events`.
pub async fn keep_events(cx: &Cx, p: Map<String, Value>) -> Result<Value, DatabaseError> {
    let answer = database::rpc(cx, "record_voice_events", &Value::Object(p)).await?;
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
    Ok(answer)
}

/// Runs a tool of the agent's. The caller hears silence meanwhile, so there is an answer for the model within the deadline.
pub async fn run_tool(cx: &Cx, run: ToolRun) -> Result<Value, DatabaseError> {
    let started = host::now_ms();
    let name = run.fields.get("name").cloned().unwrap_or_default();
    let p = Value::Object(run.fields);
    let answer = match database::rpc_once(cx, "run_voice_tool", &p, run.deadline_ms).await {
        Ok(answer) => tool::answered(cx, answer).await,
        // The same key may ask again: what was done by then is told, and nothing is done twice.
        Err(DatabaseError::Unavailable { .. } | DatabaseError::Garbled) => {
            let error = "the tool did not answer in time: say so and offer to try again";
            obj(&mut [("ok", false.into()), ("error", error.into()), ("timed_out", true.into())])
        }
        Err(error @ DatabaseError::Refused { .. }) => return Err(error),
    };
    let ok = flag_at(&answer, "ok");
    cx.log(
        if ok { Level::Info } else { Level::Warn },
        Event::ToolCall,
        if ok { "a tool answered in a call" } else { "a tool had no answer in a call" },
        &[("tool", name.into()), ("ok", ok.into()), ("duration_ms", (host::now_ms() - started).into())],
    );
    Ok(answer)
}

/// A call is over, however it ended and whether or not anybody told that it began: its summary is asked for. `p` is of
/// `end_voice_call`, whose answer comes back, but for the caller's number.
pub async fn end(cx: &Cx, p: Map<String, Value>) -> Result<Value, Problem> {
    let mut ended = database::rpc(cx, "end_voice_call", &Value::Object(p)).await.map_err(|error| refused(&error))?;
    let gaps = items_at(&ended, "gaps").len();
    let notify = flag_at(&ended, "notify");
    if notify {
        // One id from the call's first request to the last message about it.
        let thread = str_at(&ended, "correlation_id").and_then(CorrelationId::parse);
        let cx = thread.map_or_else(|| cx.clone(), |id| cx.for_work(id.as_str()));
        let work =
            obj(&mut [("call_ref", ended.get("call_id").into()), ("phone_number", ended.get("phone_number").into())]);
        let wait_s = if gaps > 0 { GAP_WAIT_S } else { 0 };
        queue::place(&cx, SUMMARIES, &Envelope::new(&cx.correlation_id, work), wait_s).await?;
    }
    cx.log(
        Level::Info,
        Event::VoiceCallEnded,
        if notify { "a call ended, its summary is asked for" } else { "a call ended, no summary is owed" },
        &[
            ("call_id", ended.get("call_id").into()),
            ("decision", ended.get("decision").into()),
            ("cause", ended.get("cause").into()),
            ("duration_seconds", ended.get("duration_seconds").into()),
            ("gaps", gaps.into()),
        ],
    );
    if let Some(answer) = ended.as_object_mut() {
        // The caller's number is for the queue.
        answer.remove("phone_number");
    }
    Ok(ended)
}
