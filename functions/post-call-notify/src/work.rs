//! The notification itself: claim, summary, both channels at once, record. Two database calls.

use ihuza_core::{
    channel::Channel,
    locale::Locale,
    log::{Event, Level},
    retry::Purpose,
    summary,
};
use ihuza_edge::{
    claim::{Client, DeliveryIds, Gates, Profile, Session},
    consume::{self, Verdict},
    context::Cx,
    database, delivery, host,
    outbox::{self, Content, Outbox},
    queue::Envelope,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{ENDPOINT, summarise};

/// What `begin_call_notification` returns when there is something to do.
#[derive(Debug, Deserialize)]
pub struct Claim {
    pub notification_id: String,
    pub attempt: u32,
    #[serde(default)]
    pub already_sent: Vec<String>,
    pub call: Call,
    pub profile: Profile,
    pub client: Client,
    pub session: Session,
    pub summary: Option<Value>,
    #[serde(default)]
    pub transcript: Vec<Value>,
    pub delivery_ids: DeliveryIds,
    #[serde(default)]
    pub providers: Gates,
}

#[derive(Debug, Deserialize)]
pub struct Call {
    pub started_at: Option<String>,
    pub duration_seconds: Option<i64>,
    pub locale: Option<String>,
}

/// How often a call that is not there yet is looked for.
const LATE_CALL_EVERY_S: u32 = 5;

pub async fn notify(cx: Cx, envelope: Envelope) -> Verdict {
    let lease_token = host::new_uuid();
    let mut p = envelope.body.clone();
    if let Some(p) = p.as_object_mut() {
        p.insert("correlation_id".to_owned(), json!(cx.correlation_id));
        p.insert("lease_token".to_owned(), json!(lease_token));
        p.insert("lease_seconds".to_owned(), json!(cx.config.number("LEASE_SECONDS")));
        p.insert(
            "unknown_wait_seconds".to_owned(),
            json!(cx.config.number("UNKNOWN_WAIT_SECONDS")),
        );
    }
    let claimed = match database::rpc(&cx, "begin_call_notification", &p).await {
        Ok(claimed) => claimed,
        Err(error) => return Verdict::after(&error, &envelope),
    };
    let again = |why: &str| Verdict::Again {
        in_s: claimed
            .get("retry_after_s")
            .and_then(Value::as_u64)
            .and_then(|s| u32::try_from(s).ok())
            .unwrap_or(5)
            .max(1),
        why: why.to_owned(),
    };
    match claimed.get("decision").and_then(Value::as_str).unwrap_or_default() {
        "go" => match serde_json::from_value::<Claim>(claimed) {
            Ok(claim) => {
                send_and_record(&cx, &claim, &lease_token).await;
                Verdict::Done
            }
            Err(error) => {
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
            }
        },
        "busy" => again("another consumer holds the claim"),
        "wait_unknown" => again("an earlier consumer ended without saying what it had sent; waiting for word"),
        "call_not_found" => late_call(&cx, &envelope, &claimed).await,
        decision => {
            cx.log(
                Level::Info,
                Event::PostCallNotifySkipped,
                &format!("nothing to do: {decision}"),
                &[("decision", json!(decision))],
            );
            Verdict::Done
        }
    }
}

/// The call's row may be late. It is looked for again for `CALL_WAIT_SECONDS`; then it is a dead letter with an alert.
async fn late_call(cx: &Cx, envelope: &Envelope, claimed: &Value) -> Verdict {
    let waited_s = consume::age_s(envelope);
    let limit_s = i64::from(cx.config.number("CALL_WAIT_SECONDS"));
    if waited_s < limit_s {
        let why = format!("the call is not in the database yet, looked for since {waited_s} s");
        return Verdict::Again {
            in_s: LATE_CALL_EVERY_S
                .min(u32::try_from(limit_s - waited_s).unwrap_or(1))
                .max(1),
            why,
        };
    }
    let row = json!({
        "queue": ENDPOINT.queue,
        // The same request is the same dead letter, however often the queue brings it.
        "message_id": cx.correlation_id,
        "payload": envelope,
        "attempts": 0,
        "reason": "call_not_found",
        "correlation_id": cx.correlation_id,
    });
    match database::rpc(cx, "record_dead_letter", &row).await {
        Ok(_) => {
            let tried = claimed.get("tried").cloned().unwrap_or_default();
            cx.log(
                Level::Error,
                Event::CallNotFound,
                &format!("no such call after {waited_s} s; kept as a dead letter"),
                &[("tried", tried)],
            );
            Verdict::Done
        }
        Err(error) => Verdict::after(&error, envelope),
    }
}

async fn send_and_record(cx: &Cx, claim: &Claim, lease_token: &str) {
    if claim.session.created {
        cx.log(
            Level::Info,
            Event::SessionCreated,
            "a conversation began with this call",
            &[("session_id", json!(claim.session.id))],
        );
    }
    let found = summarise::summarise(cx, claim, locale_of(claim)).await;
    let brand = claim.client.brand.as_str();
    let content = Content {
        sms: summary::sms_text(
            &found.summary,
            brand,
            &outbox::reply_path(&claim.client, &cx.config),
            summary::SMS_MAX_SEGMENTS,
        ),
        whatsapp: summary::whatsapp_text(&found.summary, brand),
        template: summary::template_params(&found.summary),
    };
    let outbox = Outbox {
        cx,
        profile: &claim.profile,
        client: &claim.client,
        gates: &claim.providers,
        delivery_ids: &claim.delivery_ids,
        already_sent: &claim.already_sent,
        attempt: claim.attempt,
        purpose: Purpose::CallSummary,
        inbound: Channel::Voice,
        locale: found.summary.language,
    };
    let sent = outbox.send(&content, host::now()).await;
    let p = json!({
        "notification_id": claim.notification_id,
        "lease_token": lease_token,
        "correlation_id": cx.correlation_id,
        "outcome": "done",
        "summary": found.row(),
        "message": {
            "content": content.whatsapp,
            "language": found.summary.language,
            "routing": sent.routing,
            "renditions": sent.renditions,
        },
        "deliveries": sent.deliveries,
        "providers": found.providers,
    });
    let Some(answer) = delivery::record(cx, "finish_call_notification", &p).await else {
        return;
    };
    delivery::dispatch_fallbacks(cx, &answer).await;
    cx.log(
        Level::Info,
        Event::PostCallNotifyDone,
        "the summary is out and recorded",
        &[
            ("session_id", json!(claim.session.id)),
            ("summary_source", json!(found.source)),
            ("channels", json!(sent.routing.channels)),
        ],
    );
}

/// The person's stored choice, else the call's language, else the client's, else English.
fn locale_of(claim: &Claim) -> Locale {
    [&claim.profile.locale, &claim.call.locale, &claim.client.default_locale]
        .into_iter()
        .find_map(|tag| Locale::from_tag(tag.as_deref()?))
        .unwrap_or(Locale::En)
}
