//! Calls over WhatsApp: recorded, and when one is over, its notification asked for.

use ihuza_core::{
    json::{items_at, obj, str_at},
    log::{Event, Level},
    whatsapp_call::CallEvent,
};
use ihuza_edge::{
    consume::Verdict,
    context::Cx,
    database, host,
    queue::{self, Envelope},
};
use serde_json::Value;

/// The queue that summaries are asked for on.
const NOTIFY: &str = "post-call-notify";
/// Events a queue message carries: one transaction stays short.
const SLICE: usize = 50;

pub fn work(cx: &Cx, queue: &'static str, calls: &[CallEvent]) -> Vec<(&'static str, Envelope)> {
    // Each call has its own thread through the logs.
    let one = |call: &CallEvent| {
        let mut value = call.to_value();
        if let (Some(fields), true) = (value.as_object_mut(), calls.len() > 1) {
            fields.insert("correlation_id".to_owned(), host::new_uuid().into());
        }
        value
    };
    let slices = calls.chunks(SLICE).map(|slice| slice.iter().map(one).collect::<Vec<Value>>());
    slices.map(|slice| (queue, Envelope::new(&cx.correlation_id, obj(&mut [("calls", slice.into())])))).collect()
}

/// Safe to repeat: what nobody has begun to tell is asked for again, and post-call-notify tells of a call once.
pub async fn record(cx: Cx, envelope: Envelope) -> Verdict {
    let p = obj(&mut [
        ("correlation_id", (&cx.correlation_id).into()),
        ("calls", envelope.body.get("calls").into()),
        ("session_idle_hours", cx.config.number("SESSION_IDLE_HOURS").into()),
    ]);
    let recorded = match database::rpc(&cx, "record_whatsapp_calls", &p).await {
        Ok(recorded) => recorded,
        Err(error) => return Verdict::after(&error, &envelope),
    };
    for call in items_at(&recorded, "calls") {
        let text = |name| str_at(call, name).unwrap_or_default();
        cx.log(
            Level::Info,
            Event::WhatsappCallRecorded,
            &format!("a WhatsApp call is {}", text("status")),
            &[("call_id", text("call_id").into()), ("status", text("status").into())],
        );
    }
    for call in items_at(&recorded, "notify") {
        let body = obj(&mut [
            ("call_ref", call.get("call_id").into()),
            ("profile_ref", call.get("profile_id").into()),
            ("phone_number", call.get("phone_number").into()),
        ]);
        let id = str_at(call, "correlation_id").unwrap_or(&cx.correlation_id);
        if queue::place(&cx, NOTIFY, &Envelope::new(id, body), 0).await.is_err() {
            return Verdict::Again { in_s: 5, why: "the summary of a WhatsApp call could not be asked for".to_owned() };
        }
    }
    Verdict::Done
}
