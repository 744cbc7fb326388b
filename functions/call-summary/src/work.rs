//! The notification itself: claim, summary, both channels at once, record. Two database calls.

use ihuza_core::{
    channel::Channel,
    json::{items_at, obj, str_at, string_at, u32_at},
    locale::Locale,
    log::{Event, Level},
    openai::TranscriptTurn,
    retry::Purpose,
    summary::{self, ReplyPath},
};
use ihuza_edge::{
    claim::{self, Claim},
    consume::{self, Verdict},
    context::Cx,
    database, delivery, host,
    outbox::{self, Content, Outbox},
    queue::Envelope,
};
use serde_json::Value;

use crate::{remember, summarise};

/// What `begin_call_notification` returns when there is something to do.
pub struct Notification {
    pub id: String,
    pub claim: Claim,
    /// The row of the call, as far as the summary needs it.
    pub call: Value,
    pub summary: Value,
    pub transcript: Vec<TranscriptTurn>,
    /// Names of what is remembered of the person.
    pub memory_keys: Vec<String>,
}

impl Notification {
    fn read(claimed: &Value) -> Option<Notification> {
        Some(Notification {
            id: string_at(claimed, "notification_id")?,
            claim: Claim::read(claimed)?,
            call: claimed.get("call")?.clone(),
            summary: claimed.get("summary").cloned().unwrap_or_default(),
            transcript: transcript(claimed),
            memory_keys: memory_keys(claimed),
        })
    }
}

/// What was said, oldest first.
pub fn transcript(claimed: &Value) -> Vec<TranscriptTurn> {
    let turn = |turn: &Value| Some(TranscriptTurn { role: string_at(turn, "role")?, text: string_at(turn, "text")? });
    items_at(claimed, "transcript").iter().filter_map(turn).collect()
}

pub fn memory_keys(claimed: &Value) -> Vec<String> {
    items_at(claimed, "memory_keys").iter().filter_map(|key| Some(key.as_str()?.to_owned())).collect()
}

/// The queue that the work comes from.
const QUEUE: &str = "post-call-notify";
/// How often a call that is not there yet is looked for.
const LATE_CALL_EVERY_S: u32 = 5;

pub async fn notify(cx: Cx, envelope: Envelope) -> Verdict {
    if let Some(session_id) = str_at(&envelope.body, "memories_of") {
        return remember::read(&cx, &envelope, session_id).await;
    }
    let lease_token = claim::lease_token(&cx.correlation_id);
    let p = claim::request(&cx, &envelope.body, &lease_token);
    let claimed = match database::rpc(&cx, "begin_call_notification", &p).await {
        Ok(claimed) => claimed,
        Err(error) => {
            claim::unheard(&cx.correlation_id, lease_token);
            return Verdict::after(&error, &envelope);
        }
    };
    let again =
        |why: &str| Verdict::Again { in_s: u32_at(&claimed, "retry_after_s").unwrap_or(5).max(1), why: why.to_owned() };
    match str_at(&claimed, "decision").unwrap_or_default() {
        "go" => match Notification::read(&claimed) {
            Some(work) => {
                send_and_record(&cx, &work, &lease_token).await;
                Verdict::Done
            }
            None => consume::unreadable_claim(&cx),
        },
        "busy" => again("another consumer holds the claim"),
        "wait_unknown" => again("an earlier consumer ended without saying what it had sent; waiting for word"),
        "call_not_found" => late_call(&cx, &envelope, &claimed).await,
        decision => {
            cx.log(
                Level::Info,
                Event::PostCallNotifySkipped,
                &format!("nothing to do: {decision}"),
                &[("decision", decision.into())],
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
            in_s: LATE_CALL_EVERY_S.min(u32::try_from(limit_s - waited_s).unwrap_or(1)).max(1),
            why,
        };
    }
    // The same request is the same dead letter, however often the queue brings it.
    let row = obj(&mut [
        ("queue", QUEUE.into()),
        ("message_id", (&cx.correlation_id).into()),
        ("payload", envelope.to_value().into()),
        ("attempts", 0.into()),
        ("reason", "call_not_found".into()),
        ("correlation_id", (&cx.correlation_id).into()),
    ]);
    match database::rpc(cx, "record_dead_letter", &row).await {
        Ok(_) => {
            let tried = claimed.get("tried").cloned().unwrap_or_default();
            cx.log(
                Level::Error,
                Event::CallNotFound,
                &format!("no such call after {waited_s} s; kept as a dead letter"),
                &[("tried", tried.into())],
            );
            Verdict::Done
        }
        Err(error) => Verdict::after(&error, envelope),
    }
}

async fn send_and_record(cx: &Cx, work: &Notification, lease_token: &str) {
    let claim = &work.claim;
    if claim.session_created {
        cx.log(
            Level::Info,
            Event::SessionCreated,
            "a conversation began with this call",
            &[("session_id", (&claim.session_id).into())],
        );
    }
    let found = summarise::summarise(cx, work, locale_of(work)).await;
    let brand = claim.client.brand.as_str();
    let by_sms = outbox::reply_path(&claim.client, &cx.config);
    let on_whatsapp = ReplyPath::Direct;
    let content = Content {
        sms: summary::sms_text(&found.summary, brand, &by_sms, claim.client.most_segments(summary::SMS_MAX_SEGMENTS)),
        whatsapp: summary::whatsapp_text(&found.summary, brand, &on_whatsapp),
        template: summary::template_params(&found.summary, &on_whatsapp),
    };
    let language = found.summary.language;
    let outbox = Outbox { cx, claim, purpose: Purpose::CallSummary, inbound: Channel::Voice, locale: language };
    let sent = outbox.send(&content, host::now()).await;
    // The thread holds what the person was shown, in its fullest form.
    let on_whatsapp = sent.routing.sends(Channel::Whatsapp);
    let message = obj(&mut [
        ("content", if on_whatsapp { &content.whatsapp } else { &content.sms.text }.into()),
        ("language", language.into()),
        ("routing", sent.routing.to_value().into()),
        ("renditions", sent.renditions.into()),
    ]);
    let p = obj(&mut [
        ("notification_id", (&work.id).into()),
        ("lease_token", lease_token.into()),
        ("correlation_id", (&cx.correlation_id).into()),
        ("outcome", "done".into()),
        ("summary", found.row().into()),
        ("message", message.into()),
        ("deliveries", sent.deliveries.into()),
        ("providers", found.providers.into()),
    ]);
    let Some(answer) = delivery::record(cx, "finish_call_notification", &p).await else {
        return;
    };
    delivery::dispatch_fallbacks(cx, &answer).await;
    cx.log(
        Level::Info,
        Event::PostCallNotifyDone,
        "the summary is out and recorded",
        &[
            ("session_id", (&claim.session_id).into()),
            ("summary_source", found.source.into()),
            ("channels", sent.routing.channels.into()),
        ],
    );
}

/// The person's stored choice, else the call's language, else the client's, else English.
fn locale_of(work: &Notification) -> Locale {
    [work.claim.profile.locale.as_deref(), str_at(&work.call, "locale"), work.claim.client.default_locale.as_deref()]
        .into_iter()
        .find_map(|tag| Locale::from_tag(tag?))
        .unwrap_or(Locale::En)
}
