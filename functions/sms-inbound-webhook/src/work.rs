//! One turn: claim, answer, record. Two database calls, and one for each tool the agent uses.

use ihuza_core::log::{Event, Level};
use ihuza_edge::{
    claim::{Agent, Client, DeliveryIds, Gates, Profile, Session},
    consume::Verdict,
    context::Cx,
    database, delivery, host, pause,
    queue::{self, Envelope},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{ENDPOINT, answer};

/// What `begin_sms_turn` returns when there is something to answer.
#[derive(Debug, Deserialize)]
pub struct Claim {
    pub keyword: Option<String>,
    pub turn_id: String,
    /// How often this turn was claimed, this time included.
    #[serde(default)]
    pub claims: u32,
    pub attempt: u32,
    #[serde(default)]
    pub already_sent: Vec<String>,
    pub session: Session,
    pub profile: Profile,
    pub client: Client,
    pub agent: Agent,
    pub call_summary: Option<Value>,
    #[serde(default)]
    pub language_hint: Option<String>,
    #[serde(default)]
    pub messages: Vec<Inbound>,
    #[serde(default)]
    pub history: Vec<Value>,
    pub delivery_ids: DeliveryIds,
    #[serde(default)]
    pub providers: Gates,
}

#[derive(Debug, Deserialize)]
pub struct Inbound {
    pub text: String,
}

/// Rounds one consumer makes for one session before it leaves the rest to the queue.
const ROUNDS: u32 = 5;
/// Turns of the conversation that the model is shown.
const HISTORY_LIMIT: u32 = 30;

pub async fn turn(cx: Cx, envelope: Envelope) -> Verdict {
    let burst_ms = cx.config.number("BURST_WAIT_MS");
    if burst_ms > 0 && envelope.body.get("from").is_some() {
        // The message is not in the database yet, but it is in the queue: nothing is lost by waiting.
        pause::for_ms(burst_ms.min(10_000)).await;
    }
    let mut body = envelope.body.clone();
    for _ in 0..ROUNDS {
        match round(&cx, &envelope, &body).await {
            Ok(Some(session_id)) => body = json!({ "session_id": session_id }),
            Ok(None) => return Verdict::Done,
            Err(verdict) => return verdict,
        }
    }
    // Somebody writes faster than we answer: the next consumer goes on.
    match queue::place(&cx, ENDPOINT.queue, &Envelope { body, ..envelope }, 0).await {
        Ok(_) => Verdict::Done,
        Err(_) => Verdict::Again {
            in_s: 5,
            why: "the rest of the conversation could not be queued".to_owned(),
        },
    }
}

/// One claim and its answer. `Some(session)`: more messages came meanwhile, and the lease is free for another round.
async fn round(cx: &Cx, envelope: &Envelope, body: &Value) -> Result<Option<String>, Verdict> {
    let lease_token = host::new_uuid();
    let mut p = body.clone();
    if let Some(p) = p.as_object_mut() {
        p.insert("correlation_id".to_owned(), json!(cx.correlation_id));
        p.insert("lease_token".to_owned(), json!(lease_token));
        p.insert("lease_seconds".to_owned(), json!(cx.config.number("LEASE_SECONDS")));
        p.insert(
            "unknown_wait_seconds".to_owned(),
            json!(cx.config.number("UNKNOWN_WAIT_SECONDS")),
        );
        p.insert("history_limit".to_owned(), json!(HISTORY_LIMIT));
    }
    let claimed = database::rpc(cx, "begin_sms_turn", &p)
        .await
        .map_err(|error| Verdict::after(&error, envelope))?;
    let wait_s = claimed
        .get("retry_after_s")
        .and_then(Value::as_u64)
        .and_then(|s| u32::try_from(s).ok())
        .unwrap_or(5)
        .max(1);
    match claimed.get("decision").and_then(Value::as_str).unwrap_or_default() {
        "go" => {}
        "wait_unknown" | "busy" => {
            return Err(Verdict::Again {
                in_s: wait_s,
                why: "an earlier consumer may have answered; waiting for word".to_owned(),
            });
        }
        decision => {
            cx.log(
                Level::Info,
                Event::SmsInboundSkipped,
                &format!("nothing to answer: {decision}"),
                &[("decision", json!(decision))],
            );
            return Ok(None);
        }
    }
    let claim: Claim = serde_json::from_value(claimed).map_err(|error| {
        cx.log(
            Level::Error,
            Event::InternalError,
            &format!("the claim cannot be read: {error}"),
            &[],
        );
        Verdict::Again {
            in_s: 60,
            why: "the claim cannot be read".to_owned(),
        }
    })?;
    if claim.session.created {
        cx.log(
            Level::Info,
            Event::SessionCreated,
            "a conversation began with this message",
            &[("session_id", json!(claim.session.id))],
        );
    }
    let answered = answer::answer(cx, &claim).await;
    let p = json!({
        "turn_id": claim.turn_id,
        "lease_token": lease_token,
        "correlation_id": cx.correlation_id,
        "outcome": answered.outcome,
        "next_attempt_at": answered.next_attempt_at,
        "reply": answered.reply,
        "deliveries": answered.deliveries,
        "providers": answered.providers,
    });
    let Some(recorded) = delivery::record(cx, "finish_sms_turn", &p).await else {
        return Ok(None);
    };
    delivery::dispatch_fallbacks(cx, &recorded).await;
    if answered.outcome == "released" {
        return Err(Verdict::Again {
            in_s: answered.again_in_s,
            why: "the model does not answer".to_owned(),
        });
    }
    cx.log(
        Level::Info,
        Event::SmsTurnDone,
        "the answer is out and recorded",
        &[
            ("session_id", json!(claim.session.id)),
            ("turn_id", json!(claim.turn_id)),
        ],
    );
    let more = recorded.get("more").and_then(Value::as_bool).unwrap_or(false);
    Ok(more.then_some(claim.session.id))
}
