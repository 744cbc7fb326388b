//! A message after its first attempt, whatever happens to it: holders that crash or answer late, outcomes nobody knows,
//! reports, sweeps. It is never sent by two at once, never again without need, never after its deadline, and never forgotten.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use crate::agent_sms::uncounted;
use crate::support::{Db, at, at_text, attempt, check_cases, phone, text, token, unique, with};

const LEASE_MS: i64 = 60_000;
const WAIT_MS: i64 = 120_000;
const DEADLINE_MS: i64 = 1_800_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Accepted,
    /// And tried again after so many milliseconds.
    Retryable(i64),
    /// Not to be tried again: the next attempt would come too late.
    GaveUp,
    Unknown,
    Permanent,
    /// This template is not approved; the account is well.
    OfTemplate,
    NotOnWhatsApp,
    Deferred(i64),
}

#[derive(Clone, Debug)]
enum Step {
    Claim,
    /// The result of something claimed before, maybe long ago.
    Result(Outcome, prop::sample::Index),
    /// A provider reports on one of the rows.
    Report(&'static str, prop::sample::Index),
    Sweep,
}

#[derive(Clone, Debug)]
struct Case {
    has_whatsapp: bool,
    sms: Outcome,
    /// None: the reply goes out by SMS only.
    whatsapp: Option<Outcome>,
    steps: Vec<(i64, Step)>,
}

/// One time that a row was handed to somebody for sending.
struct Sending {
    id: String,
    who: u32,
    number: i64,
    at: i64,
    outcome: Option<Outcome>,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        2 => Just(Outcome::Accepted),
        3 => (0_i64..400_000).prop_map(Outcome::Retryable),
        1 => Just(Outcome::GaveUp),
        3 => Just(Outcome::Unknown),
        1 => Just(Outcome::Permanent),
        1 => Just(Outcome::OfTemplate),
        1 => Just(Outcome::NotOnWhatsApp),
        1 => (0_i64..60_000).prop_map(Outcome::Deferred),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        6 => Just(Step::Claim),
        4 => (outcome(), index()).prop_map(|(outcome, which)| Step::Result(outcome, which)),
        1 => (prop::sample::select(vec!["sent", "delivered", "failed", "undeliverable"]), index()).prop_map(|(status, which)| Step::Report(status, which)),
        1 => Just(Step::Sweep),
    ];
    let pause =
        prop_oneof![3 => 1_i64..5_000, 2 => 30_000_i64..70_000, 3 => 100_000_i64..200_000, 1 => 400_000_i64..900_000];
    let steps = prop::collection::vec((pause, step), 1..14);
    (any::<bool>(), outcome(), prop::option::of(outcome()), steps)
        .prop_map(|(has_whatsapp, sms, whatsapp, steps)| Case { has_whatsapp, sms, whatsapp, steps })
}

impl Outcome {
    /// As a function reports it; nothing here is held against the provider, so that no case pauses it for the next.
    fn attempt(self, number: &Value, now: i64) -> Value {
        let said = |word: &str| with(attempt(word, now), json!({"attempt": number, "breaker": false}));
        match self {
            Outcome::Accepted => said("accepted"),
            Outcome::Retryable(ms) => with(said("retryable"), json!({"next_attempt_at": at_text(now + ms)})),
            Outcome::GaveUp => said("retryable"),
            Outcome::Unknown => said("unknown"),
            Outcome::OfTemplate => said("config"),
            Outcome::Permanent => said("permanent"),
            Outcome::NotOnWhatsApp => with(said("permanent"), json!({"evidence": "not_on_whatsapp"})),
            Outcome::Deferred(ms) => with(said("deferred"), json!({"next_attempt_at": at_text(now + ms)})),
        }
    }
}

#[test]
fn a_message_is_not_doubled_not_late_and_not_forgotten_whatever_happens() {
    check_cases(60, case(), async |db, case| Course::begin(db, &case).await.run(&case).await);
}

#[tokio::test]
async fn a_refused_resend_is_not_repeated_once_the_other_channel_has_the_message() {
    let db = Db::new().await;
    let case = Case { has_whatsapp: true, sms: Outcome::Unknown, whatsapp: Some(Outcome::Unknown), steps: vec![] };
    let mut course = Course::begin(&db, &case).await;
    course.now = 130_000;
    course.claim(2).await.unwrap();
    assert_eq!(course.sendings.len(), 3, "of two unknown ones one is sent again");
    course.result(2, Outcome::Retryable(1_000)).await;
    let resent = course.sendings[2].id.clone();
    let other = course.sendings.iter().find(|sending| sending.id != resent).unwrap();
    let provider = course.rows().await[&other.id]["provider"].clone();
    let event =
        json!({"provider": provider, "delivery_ref": other.id, "status": "delivered", "occurred_at": at_text(131_000)});
    db.rpc("record_delivery_events", json!({"correlation_id": "r", "events": [event], "now": at_text(131_000)})).await;
    course.now = 135_000;
    course.claim(3).await.unwrap();
    assert_eq!(course.sendings.len(), 3);
    assert_eq!(course.rows().await[&resent]["next_attempt_at"], Value::Null);
}

/// A turn of a new person, answered by SMS at time 0 with this attempt; the id of the delivery. The reply could go out by
/// WhatsApp as well.
async fn answered(db: &Db, n: u64, attempt: Value, preferred: &str) -> String {
    let who = phone();
    let message = json!({"correlation_id": format!("work-{n}"), "provider": "mtn", "provider_message_id": format!("a-{n}-{}", unique()), "from": who,
                         "to": "8080", "text": "hello", "lease_token": token(1), "now": at_text(0)});
    let turn = db.rpc("begin_sms_turn", message).await;
    let id = text(&turn, &format!("/delivery_ids/{preferred}"));
    let provider = if preferred == "sms" { "mtn" } else { "whatsapp" };
    let delivery = json!({"id": id, "channel": preferred, "provider": provider, "recipient": who, "purpose": "reply", "content": "answer",
                          "payload": {"text": "answer"}, "deadline_at": at_text(DEADLINE_MS), "attempt": attempt});
    let renditions = json!({"sms": {"text": "answer"}, "whatsapp": {"kind": "text", "text": "answer"}});
    let p = json!({"turn_id": turn["turn_id"], "lease_token": token(1), "correlation_id": format!("work-{n}"), "outcome": "answered",
                   "deliveries": [delivery], "now": at_text(0), "reply": {"content": "answer", "source": "model", "renditions": renditions}});
    db.rpc("finish_sms_turn", p).await;
    id
}

#[tokio::test]
async fn a_backlog_of_one_channel_keeps_nobody_of_the_other_waiting() {
    let db = Db::new().await;
    let said = |outcome: &str, more: Value| with(with(attempt(outcome, 0), json!({"breaker": false})), more);
    for n in 0..300 {
        answered(&db, n, said("unknown", json!({})), "sms").await;
    }
    for n in 300..400 {
        answered(&db, n, said("retryable", json!({"next_attempt_at": at_text(125_000)})), "sms").await;
    }
    let mut healthy = Vec::new();
    for n in 400..420 {
        healthy
            .push(answered(&db, n, said("retryable", json!({"next_attempt_at": at_text(130_000)})), "whatsapp").await);
    }
    let pause = "update public.provider_health set state = 'open', reason = 'failures', open_until = '{until}' where provider = 'mtn'";
    db.run(&pause.replace("{until}", &at_text(400_000))).await;
    // What one sweep does.
    let now = 140_000;
    let mut sent = Vec::new();
    let mut fallbacks = 0;
    for who in 1000..1100 {
        let p = json!({"lease_token": token(who), "limit": 20, "now": at_text(now)});
        let claimed = db.rpc("claim_due_deliveries", p).await;
        if claimed["looked_at"] == 0 {
            break;
        }
        fallbacks += claimed["fallbacks"].as_array().unwrap().len();
        let deliveries = claimed["deliveries"].as_array().unwrap();
        let results: Vec<Value> = deliveries
            .iter()
            .map(
                |d| json!({"id": d["id"], "attempt": with(attempt("accepted", now), json!({"attempt": d["attempt"]}))}),
            )
            .collect();
        sent.extend(deliveries.iter().map(|delivery| text(delivery, "/id")));
        let p = json!({"lease_token": token(who), "correlation_id": "sweep", "results": results, "now": at_text(now)});
        db.rpc("record_delivery_results", p).await;
    }
    assert!(healthy.iter().all(|id| sent.contains(id)), "the healthy channel goes on");
    assert_eq!(sent.len(), 320, "and carries what nobody knows of");
    assert!(fallbacks > 0, "whoever claims is told of what it could not take itself");
    let unknown =
        "select count(*) from public.message_delivery_log where status = 'unknown' and next_attempt_at is not null";
    assert_eq!(db.count(unknown).await, 0);
    let waiting = format!(
        "select count(*) from public.message_delivery_log where provider = 'mtn' and next_attempt_at between '{}' and '{}'",
        at_text(400_000),
        at_text(415_000)
    );
    assert_eq!(db.count(&waiting).await, 100, "the rest waits until the pause is over, and a little longer");
}

#[tokio::test]
async fn a_token_that_is_known_claims_no_other_delivery_than_the_one_asked_for() {
    let db = Db::new().await;
    let later = json!({"next_attempt_at": at_text(1_000)});
    let first = answered(&db, 1, with(attempt("retryable", 0), later.clone()), "sms").await;
    let second = answered(&db, 2, with(attempt("retryable", 0), later), "sms").await;
    for id in [&first, &second, &first] {
        let p = json!({"lease_token": token(5), "limit": 1, "delivery_id": id, "now": at_text(2_000)});
        let claimed = db.rpc("claim_due_deliveries", p).await;
        let ids: Vec<String> = claimed["deliveries"].as_array().unwrap().iter().map(|d| text(d, "/id")).collect();
        assert_eq!(ids, [id.as_str()]);
    }
}

#[tokio::test]
async fn a_retry_and_a_fallback_keep_the_correlation_id_of_their_work() {
    let db = Db::new().await;
    let retried = with(attempt("retryable", 0), json!({"next_attempt_at": at_text(1_000)}));
    let id = answered(&db, 7, retried, "sms").await;
    let p = json!({"lease_token": token(5), "limit": 1, "now": at_text(2_000)});
    let claimed = db.rpc("claim_due_deliveries", p).await;
    assert_eq!(text(&claimed, "/deliveries/0/correlation_id"), "work-7");
    let permanent = with(attempt("permanent", 2_000), json!({"attempt": 2}));
    let p = json!({"lease_token": token(5), "correlation_id": "sweep", "results": [{"id": id, "attempt": permanent}], "now": at_text(2_000)});
    let recorded = db.rpc("record_delivery_results", p).await;
    assert_eq!(text(&recorded, "/fallbacks/0/correlation_id"), "work-7");
    let under_another = format!(
        "select (select count(*) from public.message_delivery_attempts where delivery_id = '{id}' and correlation_id <> 'work-7')
              + (select count(*) from public.message_status_events where delivery_id = '{id}' and correlation_id <> 'work-7')"
    );
    assert_eq!(db.count(&under_another).await, 0);
}

/// One message on its way.
struct Course<'a> {
    db: &'a Db,
    session: String,
    now: i64,
    sendings: Vec<Sending>,
}

impl<'a> Course<'a> {
    /// A turn is answered; the first attempts have their results.
    async fn begin(db: &'a Db, case: &Case) -> Self {
        // The clock of these stories is years ahead of the one that rows are written by: what is kept must not count as old.
        db.run("update public.clients set settings = settings || '{\"sms_retention_months\": 1200}'").await;
        // Of a case that failed, when a smaller one is looked for.
        db.run("update public.message_delivery_log set next_attempt_at = null, lease_token = null where next_attempt_at is not null").await;
        let phone = phone();
        if case.has_whatsapp {
            let sql = "insert into public.profiles (phone_number, has_whatsapp, has_whatsapp_source, has_whatsapp_at) values ('{phone}', true, 'inbound', '{at}')";
            db.run(&sql.replace("{phone}", &phone).replace("{at}", &at_text(0))).await;
        }
        let message = json!({"correlation_id": "c", "provider": "mtn", "provider_message_id": format!("m-{}", unique()), "from": phone, "to": "8080",
                             "text": "hello", "lease_token": token(1), "now": at_text(0)});
        let turn = db.rpc("begin_sms_turn", message).await;
        let mut sendings = Vec::new();
        let mut deliveries = Vec::new();
        let channels = [("sms", "mtn", Some(case.sms)), ("whatsapp", "whatsapp", case.whatsapp)];
        for (channel, provider, outcome) in channels {
            let Some(outcome) = outcome else { continue };
            let id = text(&turn, &format!("/delivery_ids/{channel}"));
            deliveries.push(json!({
                "id": id, "channel": channel, "provider": provider, "recipient": phone, "purpose": "reply", "content": "answer",
                "payload": {"text": "answer"}, "deadline_at": at_text(DEADLINE_MS), "attempt": outcome.attempt(&json!(1), 0)
            }));
            if !matches!(outcome, Outcome::Deferred(_)) {
                sendings.push(Sending { id, who: 1, number: 1, at: 0, outcome: Some(outcome) });
            }
        }
        let renditions = json!({"sms": {"text": "answer", "encoding": "gsm7", "segments": 1}, "whatsapp": {"kind": "text", "text": "answer"}});
        let p = json!({"turn_id": turn["turn_id"], "lease_token": token(1), "outcome": "answered", "deliveries": deliveries, "now": at_text(0),
                       "reply": {"content": "answer", "source": "model", "renditions": renditions}});
        db.rpc("finish_sms_turn", p).await;
        Self { db, session: text(&turn, "/session/id"), now: 0, sendings }
    }

    async fn run(mut self, case: &Case) -> Result<(), TestCaseError> {
        for (who, (pause, step)) in (10..).zip(&case.steps) {
            self.now += pause;
            match step {
                Step::Claim => self.claim(who).await?,
                Step::Result(outcome, which) if !self.sendings.is_empty() => {
                    let n = which.index(self.sendings.len());
                    self.result(n, *outcome).await;
                }
                Step::Result(..) => {}
                Step::Report(status, which) => {
                    let rows = self.rows().await;
                    let id: &String = rows.keys().nth(which.index(rows.len())).unwrap();
                    let provider = &rows[id]["provider"];
                    let event = json!({"provider": provider, "delivery_ref": id, "status": status, "occurred_at": at_text(self.now)});
                    self.db
                        .rpc(
                            "record_delivery_events",
                            json!({"correlation_id": "r", "events": [event], "now": at_text(self.now)}),
                        )
                        .await;
                }
                Step::Sweep => {
                    self.db.rpc("sweep", json!({"now": at_text(self.now), "session_idle_hours": 72})).await;
                }
            }
        }
        // Everybody is well again: each look finds what is due and sends it.
        for who in 1000..1040 {
            if self.rows().await.values().all(|row| row["next_attempt_at"].is_null()) {
                break;
            }
            self.now += 100_000;
            let before = self.sendings.len();
            self.claim(who).await?;
            for n in before..self.sendings.len() {
                self.result(n, Outcome::Accepted).await;
            }
        }
        for (id, row) in self.rows().await {
            prop_assert!(row["next_attempt_at"].is_null(), "somebody would still look at {}: {}", id, row);
            prop_assert!(
                !["queued", "sending"].contains(&row["status"].as_str().unwrap()),
                "{} was forgotten: {}",
                id,
                row
            );
        }
        // Whatever one channel gave up before the deadline, the other one was asked to carry.
        let rows = self.rows().await;
        if let [row] = rows.values().collect::<Vec<_>>()[..] {
            let ended = chrono::DateTime::parse_from_rfc3339(&text(row, "/status_at")).unwrap().to_utc();
            let gave_up = ["failed", "undeliverable", "expired"].contains(&row["status"].as_str().unwrap());
            prop_assert!(!gave_up || ended >= at(DEADLINE_MS), "nobody carries what was given up: {}", row);
        }
        prop_assert_eq!(uncounted(self.db).await, Vec::<String>::new());
        Ok(())
    }

    async fn claim(&mut self, who: u32) -> Result<(), TestCaseError> {
        let before = self.rows().await;
        let p = json!({"lease_token": token(who), "lease_seconds": 60, "unknown_wait_seconds": 120, "limit": 20, "now": at_text(self.now)});
        let answer = self.db.rpc("claim_due_deliveries", p).await;
        for delivery in answer["deliveries"].as_array().unwrap() {
            let (id, context) = (text(delivery, "/id"), format!("at {}: {delivery}", self.now));
            prop_assert!(self.now < DEADLINE_MS, "after the deadline {}", context);
            if let Some(row) = before.get(&id) {
                let status = row["status"].as_str().unwrap();
                prop_assert!(
                    ["queued", "sending", "unknown"].contains(&status),
                    "{} is sent again {}",
                    status,
                    context
                );
            }
            // What was deferred was never sent, and its number is free again.
            let sent = |sending: &&Sending| sending.id == id && !matches!(sending.outcome, Some(Outcome::Deferred(_)));
            let mine: Vec<&Sending> = self.sendings.iter().filter(sent).collect();
            let live = mine.iter().any(|sending| sending.outcome.is_none() && sending.at + LEASE_MS > self.now);
            prop_assert!(!live, "another sends it {}", context);
            prop_assert!(
                mine.iter().all(|sending| sending.number < delivery["attempt"].as_i64().unwrap()),
                "an attempt has a number of its own {}",
                context
            );
            let unknown: Vec<&&Sending> =
                mine.iter().filter(|sending| matches!(sending.outcome, None | Some(Outcome::Unknown))).collect();
            for sending in &unknown {
                prop_assert_eq!(&delivery["possible_duplicate"], true, "it may have arrived {}", context);
                prop_assert!(self.now >= sending.at + WAIT_MS, "without waiting for word {}", context);
            }
            prop_assert!(unknown.len() <= 1, "a second resend in the dark {}", context);
            let carried = before.iter().any(|(other, row)| {
                *other != id && ["sent", "delivered", "read"].contains(&row["status"].as_str().unwrap())
            });
            prop_assert!(unknown.is_empty() || !carried, "the other channel has it {}", context);
            self.sendings.push(Sending {
                id,
                who,
                number: delivery["attempt"].as_i64().unwrap(),
                at: self.now,
                outcome: None,
            });
        }
        Ok(())
    }

    async fn result(&mut self, n: usize, outcome: Outcome) {
        let sending = &mut self.sendings[n];
        let result = json!({"id": sending.id, "attempt": outcome.attempt(&json!(sending.number), self.now)});
        let p = json!({"lease_token": token(sending.who), "correlation_id": "r", "results": [result], "now": at_text(self.now)});
        self.db.rpc("record_delivery_results", p).await;
        // A second result of the same attempt changes nothing.
        sending.outcome = sending.outcome.or(Some(outcome));
    }

    /// The rows of the message that are on their way out, by id.
    async fn rows(&self) -> BTreeMap<String, Value> {
        let sql = format!(
            "select coalesce(jsonb_agg(l), '[]') from public.message_delivery_log l where session_id = '{}' and direction = 'outbound'",
            self.session
        );
        let rows = self.db.value(&sql).await;
        rows.as_array().unwrap().iter().map(|row| (text(row, "/id"), row.clone())).collect()
    }
}
