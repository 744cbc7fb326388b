//! The status of a delivery is the fold of everything that anybody reported, in any order and any number of times:
//! the database's against `ihuza_core::status::fold`.

use ihuza_core::status::{self, DeliveryStatus, StatusEvent};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use crate::agent_sms::uncounted;
use crate::support::{Db, at, at_text, attempt, check_cases, ended_call, phone, text, token, unique, with};

/// How a report names its message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    OurId,
    ProviderId,
    Both,
}

#[derive(Clone, Debug)]
struct Report {
    status: DeliveryStatus,
    second: i64,
    by: By,
}

/// What our own attempt ends in, at second 10.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Accepted,
    Retried,
    TriedTooLong,
    Permanent,
    NotReachable,
    Config,
    Bug,
    Unknown,
    Suppressed,
    Deferred,
}

#[derive(Clone, Debug)]
struct Case {
    channel: &'static str,
    provider: &'static str,
    outcome: Outcome,
    reports: Vec<Report>,
    /// Which report arrives when; some more than once, some in one call.
    arrivals: Vec<usize>,
    batch: usize,
    /// So many arrive before the row is written.
    early: usize,
}

const STARTED: i64 = 9;
const FINISHED: i64 = 10;

impl Outcome {
    fn attempt(self, provider_message_id: &str) -> Value {
        let with_outcome =
            |word: &str| with(attempt(word, FINISHED * 1000), json!({"started_at": at_text(STARTED * 1000)}));
        match self {
            Outcome::Accepted => with(with_outcome("accepted"), json!({"provider_message_id": provider_message_id})),
            Outcome::Retried => with(with_outcome("retryable"), json!({"next_attempt_at": at_text(40_000)})),
            Outcome::TriedTooLong => with_outcome("retryable"),
            Outcome::Permanent => with_outcome("permanent"),
            Outcome::NotReachable => with(with_outcome("permanent"), json!({"evidence": "not_on_whatsapp"})),
            Outcome::Config => with_outcome("config"),
            Outcome::Bug => with_outcome("bug"),
            Outcome::Unknown => with_outcome("unknown"),
            Outcome::Suppressed => with(with_outcome("suppressed"), json!({"error_reason": "quiet_hours"})),
            Outcome::Deferred => with(with_outcome("deferred"), json!({"next_attempt_at": at_text(40_000)})),
        }
    }

    /// The transitions that we know of ourselves.
    fn own_events(self) -> Vec<(DeliveryStatus, i64)> {
        use DeliveryStatus::{Expired, Failed, Queued, Sending, Sent, Suppressed, Undeliverable, Unknown};
        let more: &[_] = match self {
            Outcome::Accepted => &[(Sending, STARTED), (Sent, FINISHED)],
            Outcome::Retried => &[(Sending, STARTED)],
            Outcome::TriedTooLong => &[(Sending, STARTED), (Expired, FINISHED)],
            Outcome::Permanent | Outcome::Bug => &[(Sending, STARTED), (Failed, FINISHED)],
            Outcome::NotReachable => &[(Sending, STARTED), (Undeliverable, FINISHED)],
            Outcome::Unknown => &[(Sending, STARTED), (Unknown, FINISHED)],
            Outcome::Suppressed => &[(Suppressed, FINISHED)],
            Outcome::Config | Outcome::Deferred => &[],
        };
        [&[(Queued, STARTED)], more].concat()
    }
}

impl Case {
    /// What the row must say at the end.
    fn events(&self) -> Vec<(DeliveryStatus, i64)> {
        let id_is_known = self.outcome == Outcome::Accepted || self.reports.iter().any(|report| report.by == By::Both);
        let reports = self.reports.iter().filter(|report| id_is_known || report.by != By::ProviderId);
        let reports = reports.map(|report| (report.status, report.second));
        self.outcome.own_events().into_iter().chain(reports).collect()
    }
}

fn case() -> impl Strategy<Value = Case> {
    use Outcome::{
        Accepted, Bug, Config, Deferred, NotReachable, Permanent, Retried, Suppressed, TriedTooLong, Unknown,
    };
    let by = prop_oneof![Just(By::OurId), Just(By::ProviderId), Just(By::Both)];
    let report =
        (0..status::ALL.len(), 6_i64..14, by).prop_map(|(n, second, by)| Report { status: status::ALL[n], second, by });
    let outcomes = vec![
        Accepted,
        Accepted,
        Unknown,
        Unknown,
        Retried,
        TriedTooLong,
        Permanent,
        NotReachable,
        Config,
        Bug,
        Suppressed,
        Deferred,
    ];
    (
        prop::sample::select(vec![
            ("sms", "mtn"),
            ("sms", "twilio"),
            ("sms", "africas_talking"),
            ("whatsapp", "whatsapp"),
        ]),
        prop::sample::select(outcomes),
        prop::collection::vec(report, 0..6),
        prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        1_usize..4,
        any::<prop::sample::Index>(),
    )
        .prop_map(|((channel, provider), outcome, reports, again, batch, early)| {
            let again = again.iter().filter(|_| !reports.is_empty()).map(|n| n.index(reports.len()));
            let arrivals: Vec<usize> = again.chain((0..reports.len()).rev()).collect();
            let early = early.index(arrivals.len() + 1);
            Case { channel, provider, outcome, reports, arrivals, batch, early }
        })
}

#[test]
fn the_status_is_the_fold_of_all_reports_in_any_order_and_repetition() {
    check_cases(80, case(), async |db, case| check(db, &case).await);
}

async fn check(db: &Db, case: &Case) -> Result<(), TestCaseError> {
    let provider = case.provider;
    let provider_message_id = format!("Message-{}", unique());
    let phone = phone();
    let call = ended_call(db, &phone, -1000).await;
    let claim = db
        .rpc(
            "begin_call_notification",
            json!({"correlation_id": call, "call_ref": call, "lease_token": token(1), "now": at_text(0)}),
        )
        .await;
    let id = text(&claim, &format!("/delivery_ids/{}", case.channel));
    prop_assert_eq!(text(&claim, "/decision"), "go");

    let report = async |arrivals: &[usize]| {
        let events: Vec<Value> = arrivals
            .iter()
            .map(|n| {
                let report = &case.reports[*n];
                let mut event = json!({"provider": provider, "status": report.status.as_str(), "occurred_at": at_text(report.second * 1000)});
                if report.by != By::ProviderId {
                    event["delivery_ref"] = json!(id);
                }
                if report.by != By::OurId {
                    event["provider_message_id"] = json!(provider_message_id);
                }
                event
            })
            .collect();
        db.rpc("record_delivery_events", json!({"correlation_id": "report", "events": events, "now": at_text(20_000)}))
            .await
    };
    let (early, late) = case.arrivals.split_at(case.early);
    for arrivals in early.chunks(case.batch) {
        let answer = report(arrivals).await;
        prop_assert_eq!(&answer["applied"], 0, "there is no row yet: {}", answer);
    }
    let delivery = json!({
        "id": id, "channel": case.channel, "provider": provider, "recipient": phone, "purpose": "call_summary", "content": "text",
        "deadline_at": at_text(3_600_000), "attempt": case.outcome.attempt(&provider_message_id)
    });
    db.rpc(
        "finish_call_notification",
        json!({"notification_id": claim["notification_id"], "lease_token": token(1), "outcome": "done", "deliveries": [delivery], "now": at_text(10_000)}),
    )
    .await;

    let mut rank = 0;
    for arrivals in late.chunks(case.batch) {
        report(arrivals).await;
        let row = row(db, &id).await;
        let now = DeliveryStatus::parse(&text(&row, "/status")).map_or(0, DeliveryStatus::rank);
        prop_assert!(now >= rank, "went back: {}", row);
        rank = now;
    }

    prop_assert_eq!(uncounted(db).await, Vec::<String>::new());
    let row = row(db, &id).await;
    let events = case.events();
    let folded = status::fold(
        events.iter().map(|(status, second)| StatusEvent { status: *status, occurred_at: at(second * 1000) }),
    )
    .unwrap();
    prop_assert_eq!(text(&row, "/status"), folded.status.as_str());
    prop_assert_eq!(seconds(&row, "status_at"), Some(second_of(folded)), "{}", row);
    let first = |wanted: &[DeliveryStatus]| {
        events.iter().filter(|(status, _)| wanted.contains(status)).map(|(_, second)| *second).min()
    };
    use DeliveryStatus::{Delivered, Expired, Failed, Queued, Read, Sending, Sent, Undeliverable, Unknown};
    for (column, statuses) in [
        ("queued_at", &[Queued] as &[_]),
        ("sending_at", &[Sending]),
        ("unknown_at", &[Unknown]),
        ("sent_at", &[Sent]),
        ("delivered_at", &[Delivered]),
        ("read_at", &[Read]),
        ("failed_at", &[Failed, Undeliverable]),
        ("expired_at", &[Expired]),
    ] {
        prop_assert_eq!(seconds(&row, column), first(statuses), "{} of {}", column, row);
    }
    let waits = matches!(case.outcome, Outcome::Retried | Outcome::Config | Outcome::Unknown | Outcome::Deferred);
    prop_assert_eq!(
        row["next_attempt_at"].is_null(),
        !(waits && folded.status.rank() < 3),
        "somebody must look again: {}",
        row
    );
    let orphans = format!(
        "select count(*) from public.message_status_events where delivery_id is null and (delivery_ref = '{id}' or provider_message_id = '{provider_message_id}')"
    );
    let expected = case.reports.len() + case.outcome.own_events().len();
    if events.len() == expected {
        prop_assert_eq!(db.count(&orphans).await, 0, "no report is left alone");
    }
    Ok(())
}

fn second_of(event: StatusEvent) -> i64 {
    (event.occurred_at - at(0)).num_seconds()
}

/// A time of the row, in seconds since the beginning.
fn seconds(row: &Value, column: &str) -> Option<i64> {
    let time = row[column].as_str()?;
    let time = chrono::DateTime::parse_from_rfc3339(time).unwrap();
    Some((time.to_utc() - at(0)).num_seconds())
}

async fn row(db: &Db, id: &str) -> Value {
    db.value(&format!("select to_jsonb(l) from public.message_delivery_log l where id = '{id}'")).await
}

#[tokio::test]
async fn ranks_and_words_are_those_of_the_core() {
    let db = Db::new().await;
    for status in status::ALL {
        let rank = db.value(&format!("select private.delivery_status_rank('{}')", status.as_str())).await;
        assert_eq!(rank, json!(status.rank()), "{}", status.as_str());
        db.run(&format!(
            "begin; insert into public.message_delivery_log (channel, status) values ('sms', '{}'); rollback",
            status.as_str()
        ))
        .await;
    }
    assert_eq!(db.value("select private.delivery_status_rank('played')").await, Value::Null);
    let words = db
        .value("select count(*) from regexp_matches((select pg_get_constraintdef(oid) from pg_constraint where conname = 'message_status_events_status_is_known'), '''[a-z]+''', 'g')")
        .await;
    assert_eq!(words, json!(status::ALL.len()));
}

/// A delivery that this carrier has accepted under this id.
async fn accepted(db: &Db, provider: &str, provider_message_id: &str) -> String {
    let sql = format!(
        "insert into public.message_delivery_log (channel, status, provider, provider_message_id) \
         values ('sms', 'sent', '{provider}', '{provider_message_id}') returning id"
    );
    db.admin.query_one(&sql, &[]).await.unwrap().get::<_, uuid::Uuid>(0).to_string()
}

#[tokio::test]
async fn a_report_without_a_time_is_the_same_however_late_it_comes_again() {
    let db = Db::new().await;
    let id = accepted(&db, "twilio", "SM0123456789abcdef0123456789abcdef").await;
    let report = async |status: &str, by_arrival: bool, second: i64| {
        let event = json!({"provider": "twilio", "provider_message_id": "sm0123456789ABCDEF0123456789abcdef", "status": status,
                           "raw_status": status, "occurred_at": at_text(second * 1000), "by_arrival": by_arrival});
        let p = json!({"correlation_id": "report", "events": [event], "now": at_text(second * 1000)});
        let answer = db.rpc("record_delivery_events", p).await;
        (answer["applied"].clone(), answer["duplicate"].clone())
    };
    assert_eq!(report("delivered", true, 1).await, (json!(1), json!(0)));
    for second in [2, 3, 86_400] {
        assert_eq!(report("delivered", true, second).await, (json!(0), json!(1)), "{second}");
    }
    assert_eq!(report("read", true, 4).await, (json!(1), json!(0)));
    assert_eq!(report("sent", false, 5).await, (json!(1), json!(0)));
    assert_eq!(report("sent", false, 6).await, (json!(1), json!(0)), "one with a time is told by its time");
    let row = row(&db, &id).await;
    assert_eq!((text(&row, "/status").as_str(), seconds(&row, "delivered_at")), ("read", Some(1)));
}

#[tokio::test]
async fn the_newest_price_that_is_one_becomes_the_cost() {
    let db = Db::new().await;
    let prices = [
        (3, json!({"amount": "10.5000", "currency": "RWF"})),
        (1, json!({"amount": "9.0000", "currency": "RWF"})),
        (9, json!({"category": "utility"})),
        (8, json!({"amount": "1e999", "currency": "RWF"})),
        (7, json!({"amount": "1234567", "currency": "RWF"})),
        (6, json!({"amount": "5", "currency": "rwf"})),
        (2, json!({"amount": "999999.9999999", "currency": "USD"})),
    ];
    for backwards in [false, true] {
        let provider_message_id = format!("ATXid_{}", unique());
        let id = accepted(&db, "africas_talking", &provider_message_id).await;
        let mut order: Vec<_> = prices.iter().collect();
        if backwards {
            order.reverse();
        }
        for (second, pricing) in order {
            let event = json!({"provider": "africas_talking", "provider_message_id": provider_message_id, "status": "sent",
                               "occurred_at": at_text(second * 1000), "pricing": pricing});
            db.rpc("record_delivery_events", json!({"correlation_id": "report", "events": [event]})).await;
        }
        let row = row(&db, &id).await;
        assert_eq!((text(&row, "/cost").as_str(), text(&row, "/cost_currency").as_str()), ("10.500000", "RWF"));
    }
    let id = accepted(&db, "africas_talking", "ATXid_dear").await;
    let event = json!({"provider": "africas_talking", "provider_message_id": "ATXid_dear", "status": "sent",
                       "occurred_at": at_text(0), "pricing": prices[6].1});
    db.rpc("record_delivery_events", json!({"correlation_id": "report", "events": [event]})).await;
    assert_eq!(text(&row(&db, &id).await, "/cost"), "999999.999999", "it fits, and the batch is not lost");
}

#[tokio::test]
async fn a_report_that_comes_again_or_says_nothing_new_writes_no_row() {
    let db = Db::new().await;
    let id = accepted(&db, "mtn", "once").await;
    let tell = async |status: &str, raw: &str, ms: i64| {
        let event = json!({"provider": "mtn", "delivery_ref": id, "status": status, "raw_status": raw, "occurred_at": at_text(ms)});
        let p = json!({"correlation_id": "r", "events": [event], "now": at_text(ms)});
        db.rpc("record_delivery_events", p).await
    };
    // Its version, who locked it last, and when it was written.
    let version = async || {
        db.value(&format!(
            "select jsonb_build_array(xmin, xmax, ctid, updated_at) from public.message_delivery_log where id = '{id}'"
        ))
        .await
    };
    let told = tell("delivered", "DELIVERED", 5_000).await;
    assert_eq!((&told["applied"], &told["duplicate"]), (&json!(1), &json!(0)));
    let before = version().await;
    for _ in 0..3 {
        let again = tell("delivered", "DELIVERED", 5_000).await;
        assert_eq!(
            (&again["applied"], &again["duplicate"], &again["deliveries"]),
            (&json!(0), &json!(1), &told["deliveries"])
        );
    }
    assert_eq!(version().await, before, "the same again");
    // Kept, but what is known stays as it was.
    assert_eq!(tell("delivered", "DeliveredToTerminal", 6_000).await["applied"], 1);
    assert_eq!(version().await[3], before[3], "nothing new");
    tell("read", "READ", 7_000).await;
    assert_ne!(version().await[3], before[3]);
}
