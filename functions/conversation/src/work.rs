//! One turn: claim, answer, record. Two database calls, and one for each tool the agent uses.

use ihuza_core::{
    agent::{HistoryTurn, Pending, Role},
    channel::Channel,
    intent::{self, Intent},
    json::{flag_at, items_at, obj, str_at, string_at, u32_at},
    keyword::Keyword,
    log::{Event, Level},
};
use ihuza_edge::{
    claim::{self, Claim},
    consume::{self, Verdict},
    context::Cx,
    database, delivery, pause,
    queue::{self, Envelope},
};
use serde_json::Value;

use crate::{ENDPOINT, answer, voice_note};

/// What `begin_sms_turn` returns when there is something to answer.
pub struct Turn {
    pub id: String,
    pub claim: Claim,
    pub keyword: Option<Keyword>,
    /// Where the newest of the messages came in: there it is answered.
    pub channel: Channel,
    /// How often this turn was claimed, this time included.
    pub claims: u32,
    /// The apology is out already: this is the answer that was promised by it, and there is no second apology.
    pub is_owed: bool,
    pub agent: Value,
    pub call_summary: Value,
    /// Open requests and bookings, and memories.
    pub known: Value,
    /// How much there is of the person, where they ask.
    pub held: Value,
    /// All unanswered messages, oldest first.
    pub messages: Vec<Pending>,
    /// Earlier turns on all channels, oldest first.
    pub history: Vec<HistoryTurn>,
    pub language_hint: Option<String>,
    /// Of the call that the conversation goes on from.
    pub call_correlation_id: Option<String>,
}

impl Turn {
    fn read(claimed: &Value) -> Option<Turn> {
        Some(Turn {
            id: string_at(claimed, "turn_id")?,
            claim: Claim::read(claimed)?,
            keyword: str_at(claimed, "keyword").and_then(Keyword::parse),
            channel: channel_of(claimed),
            claims: u32_at(claimed, "claims").unwrap_or(1),
            is_owed: flag_at(claimed, "owed"),
            agent: claimed.get("agent")?.clone(),
            call_summary: claimed.get("call_summary").cloned().unwrap_or_default(),
            known: claimed.get("known").cloned().unwrap_or_default(),
            held: claimed.get("held").cloned().unwrap_or_default(),
            messages: items_at(claimed, "messages").iter().filter_map(pending).collect(),
            history: items_at(claimed, "history").iter().filter_map(earlier).collect(),
            language_hint: string_at(claimed, "language_hint"),
            call_correlation_id: string_at(claimed, "call_correlation_id"),
        })
    }
}

fn pending(message: &Value) -> Option<Pending> {
    Some(Pending { channel: channel_of(message), text: string_at(message, "text")? })
}

fn earlier(turn: &Value) -> Option<HistoryTurn> {
    let role = match str_at(turn, "role")? {
        "assistant" => Role::Assistant,
        "colleague" => Role::Colleague,
        _ => Role::User,
    };
    Some(HistoryTurn {
        role,
        channel: channel_of(turn),
        text: string_at(turn, "text")?,
        language: string_at(turn, "language"),
    })
}

fn channel_of(message: &Value) -> Channel {
    str_at(message, "channel").and_then(Channel::parse).unwrap_or(Channel::Sms)
}

/// Rounds one consumer makes for one session before it leaves the rest to the queue.
const ROUNDS: u32 = 5;
/// Turns of the conversation that the model is shown.
const HISTORY_LIMIT: u32 = 30;

pub async fn turn(cx: Cx, envelope: Envelope) -> Verdict {
    let envelope = match voice_note::heard(&cx, envelope).await {
        Ok(envelope) => envelope,
        Err(verdict) => return verdict,
    };
    let mut body = envelope.body.clone();
    let mut in_s = 0;
    for made in 0..ROUNDS {
        match round(&cx, &envelope, &body).await {
            Ok(Some(session_id)) => body = obj(&mut [("session_id", session_id.into())]),
            Ok(None) => return Verdict::Done,
            // The queue would bring the message that is answered by now; what failed is the rest of the conversation.
            Err(Verdict::Again { in_s: wait_s, why }) if made > 0 => {
                let said = format!("{why}; the rest of the conversation again in {wait_s} s");
                cx.log(Level::Warn, Event::WorkRetried, &said, &[("retry_in_s", wait_s.into())]);
                in_s = wait_s;
                break;
            }
            Err(verdict) => return verdict,
        }
    }
    // Or somebody writes faster than we answer: the next consumer goes on.
    match queue::place(&cx, ENDPOINT.queue, &Envelope { body, ..envelope }, in_s).await {
        Ok(_) => Verdict::Done,
        Err(_) => Verdict::Again { in_s: 5, why: "the rest of the conversation could not be queued".to_owned() },
    }
}

/// One claim and its answer. `Some(session)`: more messages of this person wait there, and the lease is free for another round.
async fn round(cx: &Cx, envelope: &Envelope, body: &Value) -> Result<Option<String>, Verdict> {
    let lease_token = claim::lease_token(&cx.correlation_id);
    let mut p = claim::request(cx, body, &lease_token);
    if let Some(p) = p.as_object_mut() {
        p.insert("history_limit".to_owned(), HISTORY_LIMIT.into());
        // Here and not at the door: a voice note has its words only by now.
        let intent = str_at(body, "text").and_then(intent::detect).map(Intent::as_str);
        p.insert("intent_hint".to_owned(), intent.into());
    }
    let mut claimed = match database::rpc(cx, "begin_sms_turn", &p).await {
        Ok(claimed) => claimed,
        Err(error) => {
            claim::unheard(&cx.correlation_id, lease_token);
            return Err(Verdict::after(&error, envelope));
        }
    };
    let burst_ms = cx.config.number("BURST_WAIT_MS").min(10_000);
    let is_turn =
        |claimed: &Value| str_at(claimed, "decision") == Some("go") && str_at(claimed, "kind") == Some("conversation");
    if burst_ms > 0 && body.get("provider_message_id").is_some() && is_turn(&claimed) {
        // We hold the session, so what else comes now is only stored; asked again, the same claim takes it up.
        pause::for_ms(burst_ms).await;
        if let Some(whole) = database::rpc(cx, "begin_sms_turn", &p).await.ok().filter(is_turn) {
            claimed = whole;
        }
    }
    let wait_s = u32_at(&claimed, "retry_after_s").unwrap_or(5).max(1);
    match str_at(&claimed, "decision").unwrap_or_default() {
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
                &[("decision", decision.into())],
            );
            return Ok(None);
        }
    }
    let turn = Turn::read(&claimed).ok_or_else(|| consume::unreadable_claim(cx))?;
    let session_id = turn.claim.session_id.clone();
    if turn.claim.session_created {
        cx.log(
            Level::Info,
            Event::SessionCreated,
            "a conversation began with this message",
            &[("session_id", (&session_id).into())],
        );
    }
    let answered = answer::answer(cx, &turn).await;
    let released = answered.outcome == "released";
    let done = if answered.outcome == "suppressed" {
        "no channel would carry an answer; nobody was asked for one"
    } else {
        "the answer is out and recorded"
    };
    let p = obj(&mut [
        ("turn_id", (&turn.id).into()),
        ("lease_token", lease_token.into()),
        ("correlation_id", (&cx.correlation_id).into()),
        ("outcome", answered.outcome.into()),
        ("next_attempt_at", answered.next_attempt_at.into()),
        ("reply", answered.reply.into()),
        ("deliveries", answered.deliveries.into()),
        ("providers", answered.providers.into()),
        ("owed", answered.owed_minutes.map(|minutes| obj(&mut [("minutes", minutes.into())])).into()),
    ]);
    let Some(recorded) = delivery::record(cx, "finish_sms_turn", &p).await else {
        return Ok(None);
    };
    delivery::dispatch_fallbacks(cx, &recorded).await;
    if released && turn.is_owed {
        // The sweep comes back for it, or its time is over; whoever wrote on is answered now.
        return Ok(rest_of(&recorded, session_id));
    }
    if released {
        return Err(Verdict::Again { in_s: answered.again_in_s, why: "the model does not answer".to_owned() });
    }
    cx.log(
        Level::Info,
        Event::SmsTurnDone,
        done,
        &[
            ("session_id", (&session_id).into()),
            ("turn_id", (&turn.id).into()),
            ("call_correlation_id", (&turn.call_correlation_id).into()),
        ],
    );
    Ok(rest_of(&recorded, session_id))
}

/// Where more messages of the person wait. What came meanwhile may be in a new session, when this one was closed by a tool.
fn rest_of(recorded: &Value, session_id: String) -> Option<String> {
    flag_at(recorded, "more").then(|| string_at(recorded, "session_id").unwrap_or(session_id))
}
