//! Deliveries that are due: claimed, sent at the same time, recorded. Two database calls, however many there are.

use futures_util::future::join_all;
use ihuza_core::{
    channel::Channel,
    log::{Event, Level},
    timestamp,
};
use ihuza_edge::{
    claim::Gates,
    consume::Verdict,
    context::Cx,
    database::{self, DatabaseError},
    delivery::{self, Message},
    host,
    queue::Envelope,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Deserialize)]
struct Claimed {
    #[serde(default)]
    deliveries: Vec<Due>,
    #[serde(default)]
    providers: Gates,
}

#[derive(Debug, Deserialize)]
struct Due {
    id: String,
    channel: String,
    recipient: String,
    sender: Option<String>,
    purpose: String,
    payload: Value,
    attempt: u32,
    deadline_at: String,
}

impl Due {
    fn message(self) -> Message {
        Message {
            id: self.id,
            channel: Channel::parse(&self.channel).unwrap_or(Channel::Sms),
            recipient: self.recipient,
            sender: self.sender.unwrap_or_default(),
            purpose: self.purpose,
            payload: self.payload,
            deadline_at: timestamp::parse_rfc3339(&self.deadline_at).unwrap_or_else(host::now),
            attempt: self.attempt,
        }
    }
}

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
            Verdict::Again {
                in_s: 60,
                why: "a message of an unknown kind".to_owned(),
            }
        }
    }
}

async fn record_late(cx: &Cx, envelope: &Envelope) -> Verdict {
    let name = envelope.body.get("rpc").and_then(Value::as_str).unwrap_or_default();
    let (Some(rpc), Some(p)) = (
        RECORDERS.iter().copied().find(|known| *known == name),
        envelope.body.get("p"),
    ) else {
        return Verdict::Again {
            in_s: 60,
            why: format!("{name} is no call that is made from the queue"),
        };
    };
    match database::rpc(cx, rpc, p).await {
        Ok(answer) => {
            delivery::dispatch_fallbacks(cx, &answer).await;
            Verdict::Done
        }
        Err(error) => Verdict::after(&error, envelope),
    }
}

/// Claims what is due (or the one delivery named), sends it, records it; says how many there were.
pub async fn send_due(cx: &Cx, delivery_id: Option<&str>, limit: u32) -> Result<usize, DatabaseError> {
    let lease_token = host::new_uuid();
    let mut p = json!({ "lease_token": lease_token, "lease_seconds": cx.config.number("LEASE_SECONDS"),
        "unknown_wait_seconds": cx.config.number("UNKNOWN_WAIT_SECONDS"), "limit": limit });
    if let (Some(id), Some(p)) = (delivery_id, p.as_object_mut()) {
        p.insert("delivery_id".to_owned(), json!(id));
    }
    let claimed: Claimed = serde_json::from_value(database::rpc(cx, "claim_due_deliveries", &p).await?)
        .map_err(|_| DatabaseError::Garbled)?;
    if claimed.deliveries.is_empty() {
        return Ok(0);
    }
    let messages: Vec<Message> = claimed.deliveries.into_iter().map(Due::message).collect();
    cx.log(
        Level::Info,
        Event::DeliveryRetryStart,
        &format!("{} delivery(ies) due", messages.len()),
        &[],
    );
    let attempts = join_all(
        messages
            .iter()
            .map(|message| delivery::attempt(cx, &claimed.providers, message)),
    )
    .await;
    let results: Vec<Value> = messages
        .iter()
        .zip(attempts)
        .map(|(message, attempt)| json!({ "id": message.id, "attempt": attempt }))
        .collect();
    let p = json!({ "lease_token": lease_token, "correlation_id": cx.correlation_id, "results": results });
    if let Some(answer) = delivery::record(cx, "record_delivery_results", &p).await {
        delivery::dispatch_fallbacks(cx, &answer).await;
        cx.log(
            Level::Info,
            Event::DeliveryRetryDone,
            &format!("{} delivery(ies) recorded", messages.len()),
            &[],
        );
    }
    Ok(messages.len())
}
