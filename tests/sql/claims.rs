//! Claims of both flows against a small state machine: whoever asks in whatever order, holders that crash, give back or
//! answer late, and reports that come meanwhile. Who works is always one; what was sent is never sent again in silence.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, check_cases, ended_call, phone, text, token, unique, with};

const LEASE_MS: i64 = 60_000;
const WAIT_MS: i64 = 120_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Status {
    Open,
    Released,
    /// Finished, with this word.
    Over(&'static str),
}

/// One claim, by the design: a lease; after its end the wait for word of a provider; then one more claim; then never again.
#[derive(Clone, Debug)]
struct Claim {
    status: Status,
    holder: u32,
    /// Whoever held it before a crash: its messages may have gone out, so its late result counts.
    before: Option<u32>,
    until: i64,
    /// Released: not before.
    next: i64,
    attempt: i64,
    claims: i64,
    /// The holder's result is stored.
    answered: bool,
    /// A provider has reported on a message that nobody recorded.
    evidence: bool,
}

/// What a claim found in place means for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    Over,
    /// The lease is ours: the answer was lost.
    Mine,
    Live {
        ms: i64,
    },
    Later {
        ms: i64,
    },
    Free,
    Wait {
        ms: i64,
    },
    OnceMore,
    CrashedTwice,
}

impl Claim {
    fn new(holder: u32, now: i64) -> Self {
        Self {
            status: Status::Open,
            holder,
            before: None,
            until: now + LEASE_MS,
            next: 0,
            attempt: 1,
            claims: 1,
            answered: false,
            evidence: false,
        }
    }

    fn find(&self, who: u32, now: i64) -> Found {
        match self.status {
            Status::Over(_) => Found::Over,
            Status::Released if self.next > now => Found::Later { ms: self.next - now },
            Status::Released => Found::Free,
            Status::Open if self.holder == who => Found::Mine,
            Status::Open if self.until > now => Found::Live { ms: self.until - now },
            Status::Open if self.until + WAIT_MS > now => Found::Wait { ms: self.until + WAIT_MS - now },
            Status::Open if self.attempt == 1 => Found::OnceMore,
            Status::Open => Found::CrashedTwice,
        }
    }

    /// A holder who is gone and whose message a provider knows: that was the answer.
    fn settle(&mut self, found: Found, word: &'static str) -> bool {
        let settled = self.evidence && matches!(found, Found::Wait { .. } | Found::OnceMore | Found::CrashedTwice);
        if settled {
            self.status = Status::Over(word);
            self.before = Some(self.holder);
            self.evidence = false;
        }
        settled
    }

    /// Takes it, where that is allowed.
    fn take(&mut self, found: Found, who: u32, now: i64) {
        match found {
            Found::Mine => {}
            Found::Free => {
                self.claims += 1;
                self.answered = false;
            }
            Found::OnceMore => {
                self.before = Some(self.holder);
                self.claims += 1;
                self.attempt = 2;
            }
            other => panic!("nobody may take what is {other:?}"),
        }
        self.status = Status::Open;
        self.holder = who;
        self.until = now + LEASE_MS;
    }

    /// What the database says to a result: an error, or what the status then is.
    fn finish(&mut self, who: u32, end: End, now: i64, word: &'static str) -> Option<&'static str> {
        if who != self.holder && Some(who) != self.before {
            return None;
        }
        if who == self.holder && self.answered {
            return Some(if self.status == Status::Released { "released" } else { word });
        }
        match end {
            End::Released { pause_ms } if who == self.holder && self.status == Status::Open => {
                self.status = Status::Released;
                self.next = now + pause_ms;
                self.until = now;
                self.answered = true;
            }
            End::Released { .. } => {}
            End::Done => {
                self.status = Status::Over(word);
                self.answered = self.answered || who == self.holder;
                self.evidence = false;
            }
        }
        Some(match self.status {
            Status::Open => "open",
            Status::Released => "released",
            Status::Over(word) => word,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Done,
    Released { pause_ms: i64 },
}

fn whole_seconds(ms: i64) -> i64 {
    ((ms + 999) / 1000).max(1)
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![2 => Just(End::Done), 1 => (0_i64..90_000).prop_map(|pause_ms| End::Released { pause_ms })]
}

fn pause() -> impl Strategy<Value = i64> {
    // Short ones, about the end of a lease, about the end of the wait for word of a provider.
    prop_oneof![4 => 1_i64..10_000, 2 => 50_000_i64..70_000, 1 => 100_000_i64..179_000, 3 => 180_000_i64..200_000]
}

// A call's notification ---------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum CallStep {
    Begin,
    Finish(End),
    /// The provider says that the SMS was sent.
    Report,
}

#[test]
fn the_notification_of_a_call_is_claimed_as_the_reference_says() {
    let step =
        prop_oneof![6 => Just(CallStep::Begin), 2 => end().prop_map(CallStep::Finish), 1 => Just(CallStep::Report)];
    let steps = prop::collection::vec((pause(), 1_u32..4, step), 1..16);
    check_cases(70, steps, async |db, steps| check_call(db, &steps).await);
}

async fn check_call(db: &Db, steps: &[(i64, u32, CallStep)]) -> Result<(), TestCaseError> {
    let call = ended_call(db, &phone(), -1000).await;
    let mut claim: Option<Claim> = None;
    let mut answer = Value::Null;
    let mut result = Value::Null;
    let mut now = 0;
    for (pause, who, step) in steps {
        now += pause;
        let context = format!("{step:?} by {who} at {now}");
        match (step, &mut claim) {
            (CallStep::Begin, _) => {
                let p = json!({"correlation_id": format!("{call}-{who}"), "call_ref": call, "lease_token": token(*who), "lease_seconds": 60,
                               "unknown_wait_seconds": 120, "now": at_text(now)});
                let found = db.rpc("begin_call_notification", p).await;
                let expected = expect_call(&mut claim, *who, now);
                let mut said = json!({"decision": found["decision"]});
                if found["decision"] == "go" {
                    for field in ["attempt", "possible_duplicate", "resumed", "already_sent"] {
                        said[field] = found[field].clone();
                    }
                    answer = found;
                } else {
                    said = found;
                    said.as_object_mut().unwrap().remove("correlation_id");
                }
                prop_assert_eq!(said, expected, "{}", context);
            }
            (CallStep::Finish(end), Some(claim)) => {
                let p = finish(&answer, *who, *end, now, "call_summary", claim.attempt);
                let p = with(
                    p,
                    json!({"notification_id": answer["notification_id"], "outcome": if *end == End::Done { "done" } else { "released" }}),
                );
                let told_before = *who == claim.holder && claim.answered;
                let said = db.try_rpc("finish_call_notification", p).await;
                if told_before {
                    prop_assert_eq!(said.as_ref(), Ok(&result), "the same answer again: {}", context);
                }
                if *who == claim.holder {
                    result = said.clone().unwrap_or_default();
                }
                let said = said.map(|found| text(&found, "/status")).map_err(|refusal| refusal.code);
                let expected = claim.finish(*who, *end, now, "done").map(str::to_owned).ok_or("PT409".to_owned());
                // Whoever was answered hears the same again, also when a late one has moved the claim meanwhile.
                if !told_before {
                    prop_assert_eq!(said, expected, "{}", context);
                }
            }
            (CallStep::Report, Some(claim)) => report(db, &answer, claim, "done", now).await,
            _ => {}
        }
    }
    let given_up =
        db.count(&format!("select count(*) from public.dead_letters where message_id = 'call:{call}'")).await;
    let unknown = claim.is_some_and(|claim| claim.status == Status::Over("unknown"));
    prop_assert!(!unknown || given_up == 1, "what crashed twice is a dead letter");
    let notes = db.count(&format!("select count(*) from public.call_notifications where call_id = '{call}'")).await;
    prop_assert!(notes <= 1);
    Ok(())
}

fn expect_call(claim: &mut Option<Claim>, who: u32, now: i64) -> Value {
    let Some(claim) = claim else {
        *claim = Some(Claim::new(who, now));
        return json!({"decision": "go", "attempt": 1, "possible_duplicate": false, "resumed": false, "already_sent": []});
    };
    let found = claim.find(who, now);
    if !claim.settle(found, "done") && found == Found::CrashedTwice {
        claim.status = Status::Over("unknown");
    }
    if let Status::Over(word) = claim.status {
        return json!({"decision": "duplicate", "status": word});
    }
    match found {
        Found::Live { ms } | Found::Later { ms } => json!({"decision": "busy", "retry_after_s": whole_seconds(ms)}),
        Found::Wait { ms } => json!({"decision": "wait_unknown", "retry_after_s": whole_seconds(ms)}),
        _ => {
            claim.take(found, who, now);
            json!({
                "decision": "go", "attempt": claim.attempt, "possible_duplicate": claim.attempt == 2, "resumed": claim.claims > 1,
                "already_sent": if claim.evidence { json!(["sms"]) } else { json!([]) }
            })
        }
    }
}

/// A result with one SMS in it, or none where the work is given back.
fn finish(answer: &Value, who: u32, end: End, now: i64, purpose: &str, number: i64) -> Value {
    let delivery = json!({
        "id": answer["delivery_ids"]["sms"], "channel": "sms", "provider": "mtn", "recipient": answer["profile"]["phone_number"],
        "purpose": purpose, "content": "text", "deadline_at": at_text(now + 3_600_000),
        "attempt": with(attempt("accepted", now), json!({"attempt": number}))
    });
    let p = json!({"lease_token": token(who), "correlation_id": "finish", "now": at_text(now)});
    match end {
        End::Done => with(p, json!({"deliveries": [delivery]})),
        End::Released { pause_ms } => with(p, json!({"deliveries": [], "next_attempt_at": at_text(now + pause_ms)})),
    }
}

/// The provider reports on the SMS of a claim: evidence while nobody has recorded it, and news where it was given up.
async fn report(db: &Db, answer: &Value, claim: &mut Claim, word: &'static str, now: i64) {
    let event = json!({"provider": "mtn", "delivery_ref": answer["delivery_ids"]["sms"], "status": "sent", "occurred_at": at_text(now)});
    db.rpc("record_delivery_events", json!({"correlation_id": "report", "events": [event], "now": at_text(now)})).await;
    match claim.status {
        Status::Over("unknown") => claim.status = Status::Over(word),
        Status::Over(_) => {}
        Status::Open | Status::Released => claim.evidence = true,
    }
}

#[tokio::test]
async fn work_that_was_given_up_counts_as_done_when_a_report_says_that_it_was_sent() {
    let db = Db::new().await;
    let call = ended_call(&db, &phone(), -1000).await;
    let from = phone();
    let claims = async |n: u32| {
        let now = i64::from(n) * (LEASE_MS + WAIT_MS);
        let p = json!({"correlation_id": "c", "lease_token": token(n), "lease_seconds": 60, "unknown_wait_seconds": 120, "now": at_text(now)});
        let message =
            json!({"provider": "mtn", "provider_message_id": "m-1", "from": from, "to": "8080", "text": "hello"});
        let call = db.rpc("begin_call_notification", with(json!({"call_ref": call}), p.clone())).await;
        (call, db.rpc("begin_sms_turn", with(message, p)).await)
    };
    let (call, turn) = claims(1).await;
    claims(2).await;
    let (third_call, third_turn) = claims(3).await;
    assert_eq!(
        (&third_call["status"], &third_turn["decision"]),
        (&json!("unknown"), &json!("duplicate")),
        "crashed twice"
    );
    let state = async || {
        let sql = "select jsonb_build_array((select status from public.call_notifications), (select status from public.conversation_turns),
                     (select handled_as from public.conversation_messages), (select count(*) from public.message_delivery_log where direction = 'outbound'),
                     (select count(*) from public.dead_letters))";
        db.value(sql).await
    };
    assert_eq!(state().await, json!(["unknown", "unknown", "unknown", 0, 2]));
    for answer in [call, turn] {
        let event = json!({"provider": "mtn", "delivery_ref": answer["delivery_ids"]["sms"], "status": "delivered", "occurred_at": at_text(1000)});
        db.rpc(
            "record_delivery_events",
            json!({"correlation_id": "report", "events": [event], "now": at_text(600_000)}),
        )
        .await;
    }
    assert_eq!(state().await, json!(["done", "answered", "answered", 2, 2]));
}

// A turn ------------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum TurnStep {
    NewMessage,
    /// A message that came before is delivered again.
    OldMessage(prop::sample::Index),
    /// Somebody looks after a session.
    LookAfter(prop::sample::Index),
    /// The agent's tool, or an operator, closes the session; the next message opens another.
    Close,
    Finish(End, prop::sample::Index),
    Report,
}

/// What one person wrote, in whichever session, and the turns it was answered in.
#[derive(Default)]
struct Conversation {
    /// Sessions begun so far; the newest is open unless `closed`.
    sessions: usize,
    closed: bool,
    messages: Vec<Message>,
    turns: Vec<Turn>,
}

#[derive(Clone)]
struct Message {
    session: usize,
    turn: Option<usize>,
    handled: bool,
}

struct Turn {
    session: usize,
    claim: Claim,
    /// What its claim was told.
    answer: Value,
    /// What its holder's result was answered with.
    result: Value,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    New,
    Old,
    Session,
}

#[test]
fn the_messages_of_a_session_are_claimed_as_the_reference_says() {
    let any_index = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => Just(TurnStep::NewMessage),
        3 => any_index().prop_map(TurnStep::OldMessage),
        2 => any_index().prop_map(TurnStep::LookAfter),
        1 => Just(TurnStep::Close),
        4 => (end(), any_index()).prop_map(|(end, which)| TurnStep::Finish(end, which)),
        1 => Just(TurnStep::Report),
    ];
    let steps = prop::collection::vec((pause(), 1_u32..5, step), 1..22);
    check_cases(70, steps, async |db, steps| check_turns(db, &steps).await);
}

async fn check_turns(db: &Db, steps: &[(i64, u32, TurnStep)]) -> Result<(), TestCaseError> {
    let (case, phone) = (unique(), phone());
    let mut sessions: Vec<String> = Vec::new();
    let mut model = Conversation::default();
    let mut now = 0;
    for (pause, who, step) in steps {
        now += pause;
        let context = format!("{step:?} by {who} at {now}");
        let claim = json!({"correlation_id": "c", "lease_token": token(*who), "lease_seconds": 60, "unknown_wait_seconds": 120,
                           "history_limit": 20, "now": at_text(now)});
        let message = |n: usize| {
            json!({"provider": "mtn", "provider_message_id": format!("{case}-{n}"), "from": phone, "to": "8080", "text": format!("message {n}"),
                   "received_at": at_text(now)})
        };
        let (p, expected) = match step {
            TurnStep::NewMessage => {
                let session = model.write();
                (message(model.messages.len() - 1), model.claim(Mode::New, session, *who, now))
            }
            TurnStep::OldMessage(which) if !model.messages.is_empty() => {
                let n = which.index(model.messages.len());
                (message(n), model.old_message(n, *who, now))
            }
            TurnStep::LookAfter(which) if !sessions.is_empty() => {
                let session = which.index(sessions.len());
                (json!({"session_id": sessions[session]}), model.claim(Mode::Session, session, *who, now))
            }
            TurnStep::Close => {
                if let Some(session) = sessions.last() {
                    db.run(&format!("select public.update_omnichannel_session_status('{session}', 'closed')")).await;
                    model.closed = true;
                }
                continue;
            }
            TurnStep::Finish(end, which) if !model.turns.is_empty() => {
                // Mostly the newest turn.
                let n = model.turns.len() - 1 - which.index(model.turns.len() * 3) / 3;
                check_finish(db, &mut model, n, *who, *end, now, &context).await?;
                continue;
            }
            TurnStep::Report => {
                if let Some(turn) = model.turns.last_mut() {
                    let before = turn.claim.status;
                    report(db, &turn.answer, &mut turn.claim, "answered", now).await;
                    prop_assert!(before == turn.claim.status || before == Status::Over("unknown"));
                }
                continue;
            }
            _ => continue,
        };
        let found = db.rpc("begin_sms_turn", with(p, claim)).await;
        if model.sessions > sessions.len() {
            let id = format!("{case}-{}", model.messages.len() - 1);
            let sql = format!("select session_id from public.conversation_messages where provider_message_id = '{id}'");
            sessions.push(text(&db.value(&sql).await, ""));
        }
        if found["decision"] != "go" {
            prop_assert_eq!(found, expected, "{}", context);
            continue;
        }
        let texts: Vec<&Value> = found["messages"].as_array().unwrap().iter().map(|message| &message["text"]).collect();
        let said = json!({"decision": "go", "attempt": found["attempt"], "claims": found["claims"], "possible_duplicate": found["possible_duplicate"],
                          "already_sent": found["already_sent"], "messages": texts});
        prop_assert_eq!(said, expected, "{}", context);
        let turn = model.turns.last_mut().unwrap();
        if turn.answer.is_object() {
            prop_assert_eq!(&turn.answer["turn_id"], &found["turn_id"], "{}", context);
        } else {
            turn.answer = found;
        }
    }
    let person = format!("profile_id = (select id from public.profiles where phone_number = '{phone}')");
    let open =
        format!("select count(*) from public.conversation_turns where {person} and status in ('open', 'released')");
    prop_assert!(db.count(&open).await <= 1, "two turns of one person");
    let owed = format!(
        "select count(*) from public.conversation_messages where {person} and direction = 'inbound' and handled_at is null"
    );
    prop_assert_eq!(db.count(&owed).await, model.messages.iter().filter(|message| !message.handled).count() as i64);
    Ok(())
}

async fn check_finish(
    db: &Db,
    model: &mut Conversation,
    n: usize,
    who: u32,
    end: End,
    now: i64,
    context: &str,
) -> Result<(), TestCaseError> {
    let turn = &mut model.turns[n];
    let p = finish(&turn.answer, who, end, now, "reply", turn.claim.attempt);
    let outcome = if end == End::Done { "answered" } else { "released" };
    let reply = json!({"content": "answer", "language": "en", "source": "model"});
    let p = with(
        p,
        json!({"turn_id": turn.answer["turn_id"], "outcome": outcome, "reply": if end == End::Done { reply } else { Value::Null }}),
    );
    let told_before = who == turn.claim.holder && turn.claim.answered;
    let said = db.try_rpc("finish_sms_turn", p).await;
    if told_before {
        prop_assert_eq!(said.as_ref(), Ok(&turn.result), "the same answer again: {}", context);
    }
    if who == turn.claim.holder {
        turn.result = said.clone().unwrap_or_default();
    }
    let expected = turn.claim.finish(who, end, now, "answered").map(str::to_owned).ok_or("PT409".to_owned());
    let more = said.as_ref().ok().map(|found| found["more"].clone());
    let said = said.map(|found| text(&found, "/status")).map_err(|refusal| refusal.code);
    // As with a notification: whoever was answered hears the same again.
    if !told_before {
        prop_assert_eq!(&said, &expected, "{}", context);
    }
    if said.is_ok() && end == End::Done && !told_before {
        model.close(n);
        let waiting = model.messages.iter().any(|message| !message.handled && message.turn.is_none());
        prop_assert_eq!(more, Some(json!(waiting)), "{}", context);
    }
    Ok(())
}

impl Conversation {
    fn close(&mut self, n: usize) {
        for message in self.messages.iter_mut().filter(|message| message.turn == Some(n)) {
            message.handled = true;
        }
    }

    fn old_message(&mut self, n: usize, who: u32, now: i64) -> Value {
        let message = self.messages[n].clone();
        let worked_on = message.turn.is_some_and(|turn| {
            let claim = &self.turns[turn].claim;
            claim.status == Status::Open && claim.holder != who && claim.until > now
        });
        if message.handled || worked_on {
            return json!({"decision": "duplicate"});
        }
        self.claim(Mode::Old, message.session, who, now)
    }

    /// A new message; its session.
    fn write(&mut self) -> usize {
        if self.sessions == 0 || self.closed {
            self.sessions += 1;
            self.closed = false;
        }
        self.messages.push(Message { session: self.sessions - 1, turn: None, handled: false });
        self.sessions - 1
    }

    /// One turn of the person at a time, whichever session it is of; a new one is of `session`.
    fn claim(&mut self, mode: Mode, session: usize, who: u32, now: i64) -> Value {
        if let Some(n) = self.turns.len().checked_sub(1)
            && !matches!(self.turns[n].claim.status, Status::Over(_))
        {
            let claim = &mut self.turns[n].claim;
            let mut found = claim.find(who, now);
            if claim.settle(found, "answered") {
                self.close(n);
            } else if found == Found::CrashedTwice {
                claim.status = Status::Over("unknown");
                self.close(n);
            } else {
                if mode == Mode::New && matches!(found, Found::Later { .. }) {
                    found = Found::Free;
                }
                return match found {
                    Found::Live { ms } => match mode {
                        Mode::New => json!({"decision": "stored"}),
                        Mode::Old => json!({"decision": "duplicate"}),
                        Mode::Session => json!({"decision": "busy", "retry_after_s": whole_seconds(ms)}),
                    },
                    Found::Later { ms } => json!({"decision": "busy", "retry_after_s": whole_seconds(ms)}),
                    Found::Wait { ms } => json!({"decision": "wait_unknown", "retry_after_s": whole_seconds(ms)}),
                    _ => {
                        claim.take(found, who, now);
                        self.gather(n);
                        self.go(n)
                    }
                };
            }
        }
        if self.messages.iter().all(|message| message.handled || message.session != session) {
            return json!({"decision": if mode == Mode::Session { "nothing" } else { "duplicate" }});
        }
        self.turns.push(Turn { session, claim: Claim::new(who, now), answer: Value::Null, result: Value::Null });
        let n = self.turns.len() - 1;
        self.gather(n);
        self.go(n)
    }

    /// All of its session that nobody answers yet becomes part of the turn.
    fn gather(&mut self, n: usize) {
        let session = self.turns[n].session;
        let mine = |message: &&mut Message| !message.handled && message.turn.is_none() && message.session == session;
        for message in self.messages.iter_mut().filter(mine) {
            message.turn = Some(n);
        }
    }

    fn go(&self, n: usize) -> Value {
        let claim = &self.turns[n].claim;
        let texts: Vec<String> = (0..self.messages.len())
            .filter(|m| self.messages[*m].turn == Some(n))
            .map(|m| format!("message {m}"))
            .collect();
        json!({
            "decision": "go", "attempt": claim.attempt, "claims": claim.claims, "possible_duplicate": claim.attempt == 2,
            "already_sent": if claim.evidence { json!(["sms"]) } else { json!([]) }, "messages": texts
        })
    }
}
