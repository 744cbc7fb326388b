//! Deliveries that are due: claimed, sent at the same time, recorded. Two database calls, however many there are.

use ihuza_core::{
    channel::Channel,
    json::{flag_at, items_at, obj, str_at, string_at, u32_at},
    log::{Event, Level},
    timestamp,
};
use ihuza_edge::{
    at_once,
    claim::{self, Gates},
    consume::Verdict,
    context::Cx,
    database::{self, DatabaseError},
    delivery::{self, Message},
    host,
    queue::{self, Envelope},
};
use serde_json::Value;

/// A claimed row of `message_delivery_log`.
fn message(cx: &Cx, row: &Value) -> Option<Message> {
    Some(Message {
        id: string_at(row, "id")?,
        channel: Channel::parse(str_at(row, "channel")?)?,
        recipient: string_at(row, "recipient")?,
        sender: string_at(row, "sender").unwrap_or_default(),
        purpose: string_at(row, "purpose").unwrap_or_default(),
        payload: row.get("payload")?.clone(),
        deadline_at: str_at(row, "deadline_at").and_then(timestamp::parse_rfc3339).unwrap_or_else(host::now),
        attempt: u32_at(row, "attempt")?,
        correlation_id: string_at(row, "correlation_id").unwrap_or_else(|| cx.correlation_id.clone()),
    })
}

const CLAIM: &str = "claim_due_deliveries";

/// RPCs that may be made later from the queue; anything else in a message is not ours.
const RECORDERS: &[&str] = &["finish_call_notification", "finish_sms_turn", "record_delivery_results"];

/// One message of the queue: a delivery to send, or a result to record.
pub async fn one(cx: Cx, envelope: Envelope) -> Verdict {
    match envelope.body.get("kind").and_then(Value::as_str) {
        Some("send") => {
            let id = envelope.body.get("delivery_id").and_then(Value::as_str);
            match send_due(&cx, id, 1).await {
                Ok(_) => Verdict::Done,
                Err(error) => Verdict::after(&error, &envelope),
            }
        }
        Some("record") => record_late(&cx, &envelope).await,
        _ => {
            cx.log(Level::Error, Event::InternalError, "a message of an unknown kind", &[]);
            Verdict::Again { in_s: 60, why: "a message of an unknown kind".to_owned() }
        }
    }
}

async fn record_late(cx: &Cx, envelope: &Envelope) -> Verdict {
    let name = envelope.body.get("rpc").and_then(Value::as_str).unwrap_or_default();
    let (Some(rpc), Some(p)) = (RECORDERS.iter().copied().find(|known| *known == name), envelope.body.get("p")) else {
        return Verdict::Again { in_s: 60, why: format!("{name} is no call that is made from the queue") };
    };
    match database::rpc(cx, rpc, p).await {
        Ok(answer) => {
            delivery::dispatch_fallbacks(cx, &answer).await;
            if flag_at(&answer, "more") {
                // Whoever recorded this could not go on with the messages that came meanwhile.
                let body = obj(&mut [("session_id", answer.get("session_id").into())]);
                // Not placed is not lost: the sweep finds messages that nobody has claimed.
                let _ = queue::place(cx, "sms-inbound", &Envelope::new(&cx.correlation_id, body), 0).await;
            }
            Verdict::Done
        }
        Err(error) => Verdict::after(&error, envelope),
    }
}

/// What one claim came to.
pub struct Round {
    /// Rows that the claim looked at: sent, put off, or settled without sending. None means that nothing more is due.
    pub looked_at: u32,
    pub sent: usize,
}

/// Claims what is due (or the one delivery named), sends it, records it.
pub async fn send_due(cx: &Cx, delivery_id: Option<&str>, limit: u32) -> Result<Round, DatabaseError> {
    // Whose lost answers are asked for again: the sweep's own, or those about this delivery.
    let work = [CLAIM, ":", delivery_id.unwrap_or_default()].concat();
    let lease_token = claim::lease_token(&work);
    let mut p = claim::request(cx, &obj(&mut [("limit", limit.into())]), &lease_token);
    if let (Some(id), Some(p)) = (delivery_id, p.as_object_mut()) {
        p.insert("delivery_id".to_owned(), id.into());
    }
    let claimed = match database::rpc(cx, CLAIM, &p).await {
        Ok(claimed) => claimed,
        Err(error) => {
            claim::unheard(&work, lease_token);
            return Err(error);
        }
    };
    let rows = items_at(&claimed, "deliveries");
    let looked_at = u32_at(&claimed, "looked_at").unwrap_or(0);
    delivery::dispatch_fallbacks(cx, &claimed).await;
    if rows.is_empty() {
        return Ok(Round { looked_at, sent: 0 });
    }
    let messages: Vec<Message> = rows.iter().filter_map(|row| message(cx, row)).collect();
    if messages.len() < rows.len() {
        // Their lease runs out and they count as unknown; nothing is lost, but a person must look.
        cx.log(Level::Error, Event::InternalError, "a claimed delivery is not of the shape this version knows", &[]);
    }
    cx.log(Level::Info, Event::DeliveryRetryStart, "deliveries are due", &[("count", messages.len().into())]);
    let gates = Gates(claimed.get("providers").cloned().unwrap_or_default());
    let attempts = at_once::all(messages.iter().map(|message| delivery::attempt(cx, &gates, message))).await;
    let results: Vec<Value> = messages
        .iter()
        .zip(attempts)
        .map(|(message, attempt)| obj(&mut [("id", (&message.id).into()), ("attempt", attempt.into())]))
        .collect();
    let p = obj(&mut [
        ("lease_token", (&lease_token).into()),
        ("correlation_id", (&cx.correlation_id).into()),
        ("results", results.into()),
    ]);
    if let Some(answer) = delivery::record(cx, "record_delivery_results", &p).await {
        delivery::dispatch_fallbacks(cx, &answer).await;
        cx.log(Level::Info, Event::DeliveryRetryDone, "deliveries are recorded", &[("count", messages.len().into())]);
    }
    Ok(Round { looked_at, sent: messages.len() })
}
