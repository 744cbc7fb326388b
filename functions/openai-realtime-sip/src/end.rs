//! A call is over, however it ended and whether or not anybody told that it began. Its summary is asked for here.

use ihuza_core::{
    ids::CorrelationId,
    json::{self, flag_at, items_at, obj, str_at},
    log::{Event, Level},
    problem::Problem,
    realtime,
};
use ihuza_edge::{
    context::Cx,
    database,
    endpoint::{Call, Outcome},
    queue::{self, Envelope},
    reply::Reply,
};
use serde_json::{Map, Value};

use crate::{ENDPOINT, asker, refused};

/// How long the summary waits for events that the relay has not posted yet.
const GAP_WAIT_S: u32 = 20;

pub fn end(call: Call) -> Result<Outcome, Problem> {
    asker(&call)?;
    let mut p = realtime::end_fields(&json::object(call.request.body()?)?)?;
    p.insert("correlation_id".to_owned(), call.cx.correlation_id.as_str().into());
    Ok(Outcome::later(async move { finish(&call.cx, p).await }))
}

async fn finish(cx: &Cx, p: Map<String, Value>) -> Result<Reply, Problem> {
    let mut ended = database::rpc(cx, "end_voice_call", &Value::Object(p)).await.map_err(refused)?;
    let gaps = items_at(&ended, "gaps").len();
    let notify = flag_at(&ended, "notify");
    if notify {
        // One id from the call's first request to the last message about it.
        let thread = str_at(&ended, "correlation_id").and_then(CorrelationId::parse);
        let cx = thread.map_or_else(|| cx.clone(), |id| cx.for_work(id.as_str()));
        let work =
            obj(&mut [("call_ref", ended.get("call_id").into()), ("phone_number", ended.get("phone_number").into())]);
        let wait_s = if gaps > 0 { GAP_WAIT_S } else { 0 };
        queue::place(&cx, ENDPOINT.queue, &Envelope::new(&cx.correlation_id, work), wait_s).await?;
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
    Ok(Reply::json(200, &ended))
}
