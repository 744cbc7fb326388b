//! What the database has to do with the choice of channels: an SMS that waits for WhatsApp, prices.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Db, all, at_text, attempt, check_cases, ended_call, phone, rpc, text, token, unique, with};

/// When the SMS goes out, unless WhatsApp has come far enough.
const AFTER_MS: i64 = 600_000;

/// A summary whose SMS waits for WhatsApp.
struct Summary<'a> {
    db: &'a Db,
    whatsapp: String,
    sms: String,
    /// What `finish_call_notification` answered.
    told: Value,
}

impl<'a> Summary<'a> {
    /// Told at time 0; the attempt on WhatsApp came to this. `early`: reports that are there before.
    async fn new(db: &'a Db, until: &str, whatsapp: Value, early: &[&str]) -> Summary<'a> {
        let who = phone();
        let call = ended_call(db, &who, -1_000).await;
        let n = 100_000 + u32::try_from(unique()).unwrap();
        let claim = json!({"correlation_id": format!("c-{n}"), "call_ref": call, "phone_number": who, "lease_token": token(n), "now": at_text(0)});
        let claimed = db.rpc("begin_call_notification", claim).await;
        let id = |channel: &str| text(&claimed, &format!("/delivery_ids/{channel}"));
        let mut summary = Summary { db, whatsapp: id("whatsapp"), sms: id("sms"), told: Value::Null };
        for status in early {
            summary.report(status, 1_000).await;
        }
        let row = |id: &str, channel: &str, provider: &str, attempt: Value| {
            json!({"id": id, "channel": channel, "provider": provider, "recipient": who, "purpose": "call_summary",
                   "content": "summary", "payload": {"text": "summary"}, "deadline_at": at_text(86_400_000), "attempt": attempt})
        };
        let waits = with(attempt("deferred", 0), json!({"next_attempt_at": at_text(AFTER_MS)}));
        let deliveries = json!([
            row(&summary.whatsapp, "whatsapp", "whatsapp", whatsapp),
            with(row(&summary.sms, "sms", "mtn", waits), json!({"waits_until": until})),
        ]);
        let message = json!({"content": "summary", "language": "en",
                             "renditions": {"sms": {"text": "summary", "encoding": "gsm7", "segments": 1}}});
        let done = json!({"notification_id": claimed["notification_id"], "lease_token": token(n), "correlation_id": "c",
                          "outcome": "done", "message": message, "deliveries": deliveries, "now": at_text(500)});
        summary.told = db.rpc("finish_call_notification", done).await;
        summary
    }

    /// What Meta reports of the WhatsApp message.
    async fn report(&self, status: &str, ms: i64) -> Value {
        let event = json!({"provider": "whatsapp", "delivery_ref": self.whatsapp, "status": status, "raw_status": status, "occurred_at": at_text(ms)});
        self.db
            .rpc("record_delivery_events", json!({"correlation_id": "r", "events": [event], "now": at_text(ms)}))
            .await
    }

    /// Claims what is due; how often the SMS was among it.
    async fn due(&self, ms: i64) -> usize {
        let n = 200_000 + u32::try_from(unique()).unwrap();
        let claimed = self
            .db
            .rpc("claim_due_deliveries", json!({"lease_token": token(n), "limit": 500, "now": at_text(ms)}))
            .await;
        let mine = claimed["deliveries"].as_array().unwrap().iter().filter(|d| d["id"] == *self.sms);
        let results: Vec<Value> = claimed["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| json!({"id": d["id"], "attempt": with(attempt("accepted", ms), json!({"attempt": d["attempt"]}))}))
            .collect();
        let p = json!({"lease_token": token(n), "correlation_id": "d", "results": results, "now": at_text(ms)});
        self.db.rpc("record_delivery_results", p).await;
        mine.count()
    }

    /// `status reason` of the SMS.
    async fn sms(&self) -> String {
        let sql = "select concat_ws(' ', status, suppress_reason) from public.message_delivery_log where id = '{id}'";
        self.db.value(&sql.replace("{id}", &self.sms)).await.as_str().unwrap().to_owned()
    }

    /// Messages by SMS that are sent, or will be.
    async fn carried_by_sms(&self) -> i64 {
        let sql = "select count(*) from public.message_delivery_log l join public.message_delivery_log w on w.message_id = l.message_id
                    where w.id = '{id}' and l.channel = 'sms' and l.status <> 'suppressed'";
        self.db.count(&sql.replace("{id}", &self.whatsapp)).await
    }
}

fn accepted() -> Value {
    with(attempt("accepted", 0), json!({"provider_message_id": format!("wamid.{}", unique())}))
}

#[tokio::test]
async fn sms_is_not_sent_once_whatsapp_has_come_as_far_as_was_wanted_and_no_sooner() {
    let db = Db::new().await;
    for (until, reports, expected) in [
        ("sent", vec![], "suppressed whatsapp_reached"),
        ("delivered", vec![], "queued"),
        ("delivered", vec!["sent"], "queued"),
        ("delivered", vec!["delivered", "delivered"], "suppressed whatsapp_reached"),
        ("delivered", vec!["read"], "suppressed whatsapp_reached"),
        ("read", vec!["sent", "delivered"], "queued"),
        ("read", vec!["read", "delivered"], "suppressed whatsapp_reached"),
    ] {
        let summary = Summary::new(&db, until, accepted(), &[]).await;
        for report in &reports {
            summary.report(report, 5_000).await;
        }
        assert_eq!(summary.sms().await, expected, "{until} {reports:?}");
        assert_eq!(summary.due(AFTER_MS - 1).await, 0, "{until} {reports:?}");
        assert_eq!(summary.due(AFTER_MS).await, usize::from(expected == "queued"), "{until} {reports:?}");
        assert_eq!(summary.due(AFTER_MS * 2).await, 0, "once");
    }
}

#[tokio::test]
async fn a_report_that_is_there_before_the_messages_settles_the_sms_too() {
    let db = Db::new().await;
    for _ in 0..4 {
        let summary = Summary::new(&db, "delivered", accepted(), &["delivered"]).await;
        assert_eq!(summary.sms().await, "suppressed whatsapp_reached");
    }
}

#[tokio::test]
async fn an_sms_that_waits_is_a_channel_of_the_conversation_once_it_is_sent() {
    let db = Db::new().await;
    let channels = async |summary: &Summary<'_>| {
        let sql = "select to_jsonb(array_remove(s.active_channels, 'voice')) from public.omnichannel_sessions s
                     join public.message_delivery_log l on l.session_id = s.id where l.id = '{id}'";
        db.value(&sql.replace("{id}", &summary.sms)).await
    };
    let sent = Summary::new(&db, "delivered", accepted(), &[]).await;
    let reached = Summary::new(&db, "delivered", accepted(), &[]).await;
    reached.report("delivered", 5_000).await;
    assert_eq!((channels(&sent).await, channels(&reached).await), (json!(["whatsapp"]), json!(["whatsapp"])));
    assert_eq!((sent.due(AFTER_MS).await, reached.due(AFTER_MS).await), (1, 0));
    assert_eq!((channels(&sent).await, channels(&reached).await), (json!(["whatsapp", "sms"]), json!(["whatsapp"])));
    // In the place of a WhatsApp message that failed, where nobody had planned an SMS.
    let fallback =
        Summary::new(&db, "delivered", with(attempt("permanent", 0), json!({"evidence": "not_on_whatsapp"})), &[])
            .await;
    assert_eq!(channels(&fallback).await, json!(["whatsapp"]));
    fallback.due(10_000).await;
    assert_eq!(channels(&fallback).await, json!(["whatsapp", "sms"]));
}

#[tokio::test]
async fn sms_goes_at_once_and_once_when_whatsapp_fails() {
    let db = Db::new().await;
    let refused = with(attempt("permanent", 0), json!({"evidence": "not_on_whatsapp"}));
    let at_sending = Summary::new(&db, "delivered", refused, &[]).await;
    assert_eq!(at_sending.told["fallbacks"], json!([{"id": at_sending.sms, "channel": "sms", "correlation_id": "c"}]));
    let later = Summary::new(&db, "delivered", accepted(), &[]).await;
    assert_eq!(later.told["fallbacks"], json!([]));
    let told = later.report("failed", 5_000).await;
    assert_eq!(told["fallbacks"], json!([{"id": later.sms, "channel": "sms", "correlation_id": "c"}]));
    later.report("undeliverable", 6_000).await;
    let sent = (at_sending.due(10_000).await, at_sending.sms().await, later.sms().await);
    assert_eq!(sent, (1, "sent".to_owned(), "sent".to_owned()), "both are due");
    for summary in [at_sending, later] {
        summary.report("failed", 20_000).await;
        assert_eq!((summary.due(AFTER_MS).await, summary.carried_by_sms().await), (0, 1));
    }
}

#[tokio::test]
async fn a_failure_after_the_sms_was_settled_starts_it_again() {
    let db = Db::new().await;
    let summary = Summary::new(&db, "sent", accepted(), &[]).await;
    assert_eq!((summary.sms().await.as_str(), summary.carried_by_sms().await), ("suppressed whatsapp_reached", 0));
    let told = summary.report("undeliverable", 5_000).await;
    assert_eq!(told["fallbacks"].as_array().unwrap().len(), 1, "Meta took the message and could not deliver it");
    summary.report("failed", 6_000).await;
    assert_eq!(summary.carried_by_sms().await, 1);
}

#[tokio::test]
async fn an_sms_that_was_refused_and_waits_for_its_next_try_is_settled_as_well() {
    let db = Db::new().await;
    let summary = Summary::new(&db, "delivered", accepted(), &[]).await;
    let p = json!({"lease_token": token(7), "delivery_id": summary.sms, "now": at_text(AFTER_MS)});
    assert_eq!(text(&db.rpc("claim_due_deliveries", p).await, "/deliveries/0/id"), summary.sms);
    summary.report("delivered", AFTER_MS + 1).await;
    assert_eq!(summary.sms().await, "sending", "somebody is sending it");
    let busy = with(attempt("retryable", AFTER_MS + 2), json!({"next_attempt_at": at_text(AFTER_MS + 30_000)}));
    let p = json!({"lease_token": token(7), "correlation_id": "d", "results": [{"id": summary.sms, "attempt": busy}], "now": at_text(AFTER_MS + 2)});
    db.rpc("record_delivery_results", p).await;
    summary.report("read", AFTER_MS + 3).await;
    assert_eq!(summary.sms().await, "suppressed whatsapp_reached");
}

#[derive(Clone, Debug)]
enum Step {
    Report(&'static str),
    Due,
}

#[test]
fn whatever_is_reported_and_when_one_message_is_enough_and_none_is_not() {
    let status = prop::sample::select(vec!["sent", "delivered", "read", "failed", "undeliverable"]);
    let step = prop_oneof![3 => status.prop_map(Step::Report), 1 => Just(Step::Due)];
    let steps = prop::collection::vec((1_i64..400_000, step), 0..6);
    let until = prop::sample::select(vec!["sent", "delivered", "read"]);
    check_cases(60, (until, steps), async |db, (until, steps)| {
        db.run("update public.message_delivery_log set next_attempt_at = null where next_attempt_at is not null").await;
        let summary = Summary::new(db, until, accepted(), &[]).await;
        let rank = |status: &str| match status {
            "read" => 6,
            "delivered" => 5,
            "sent" => 3,
            _ => 4,
        };
        let (mut now, mut sent, mut reached, mut failed) = (500, 0, "sent", false);
        for (pause, step) in steps {
            now += pause;
            match step {
                Step::Report(status) => {
                    summary.report(status, now).await;
                    if rank(status) > rank(reached) {
                        reached = status;
                    }
                    failed = rank(reached) == 4;
                }
                Step::Due => {
                    let enough = !failed && rank(reached) >= rank(until);
                    let found = summary.due(now).await;
                    prop_assert!(found == 0 || !enough, "sent although WhatsApp was {}", reached);
                    prop_assert!(
                        found == 1 || sent == 1 || enough || now < AFTER_MS || until == "sent",
                        "not sent in time"
                    );
                    sent += found;
                }
            }
        }
        summary.due(AFTER_MS * 10).await;
        let carried = summary.carried_by_sms().await;
        prop_assert!(carried <= 1, "{carried} messages by SMS");
        let enough = !failed && rank(reached) >= rank(until);
        prop_assert!(carried == 1 || enough, "nobody was told: WhatsApp is {}", reached);
        Ok(())
    });
}

#[tokio::test]
async fn a_clients_own_price_comes_first_and_of_several_the_newest_in_force() {
    let db = Db::new().await;
    db.run(
        "insert into public.channel_prices (client_id, provider, kind, prefix, price, currency, valid_from) values
           (null, 'mtn', 'segment', '', 12, 'RWF', '2020-01-01'),
           (null, 'mtn', 'segment', '', 13.5, 'RWF', '2021-01-01'),
           (null, 'mtn', 'segment', '', 99, 'RWF', now() + interval '1 day'),
           (null, 'whatsapp', 'utility', '+250', 0.004, 'USD', '2020-01-01'),
           (private.default_client_id(), 'whatsapp', 'utility', '+250', 0.003, 'USD', '2019-01-01')",
    )
    .await;
    let found = db.value("select private.client_json(private.default_client_id()) -> 'prices'").await;
    assert_eq!(
        found,
        json!([
            {"provider": "mtn", "kind": "segment", "prefix": "", "price": 13.5, "currency": "RWF"},
            {"provider": "whatsapp", "kind": "utility", "prefix": "+250", "price": 0.003, "currency": "USD"}
        ])
    );
    let again = "insert into public.channel_prices (provider, kind, price, currency, valid_from) values ('mtn', 'segment', 1, 'RWF', '2020-01-01')";
    assert!(db.admin.batch_execute(again).await.is_err(), "one price at a time");
}

#[tokio::test]
async fn a_report_and_a_claim_at_the_same_moment_leave_one_or_the_other() {
    let db = Db::new().await;
    let (mut sent, mut settled) = (0, 0);
    for _ in 0..40 {
        let summary = Summary::new(&db, "delivered", accepted(), &[]).await;
        let (meta, sweep) = (db.connect().await, db.connect().await);
        let event = json!({"provider": "whatsapp", "delivery_ref": summary.whatsapp, "status": "delivered", "raw_status": "delivered", "occurred_at": at_text(AFTER_MS)});
        let report = json!({"correlation_id": "r", "events": [event], "now": at_text(AFTER_MS)});
        let claim = json!({"lease_token": token(9), "delivery_id": summary.sms, "now": at_text(AFTER_MS)});
        let answers = all([(&meta, "record_delivery_events", report), (&sweep, "claim_due_deliveries", claim)]
            .map(|(on, name, p)| rpc(on, name, p)))
        .await;
        let claimed = answers[1]["deliveries"].as_array().unwrap().len();
        match summary.sms().await.as_str() {
            "sending" => {
                assert_eq!(claimed, 1);
                sent += 1;
            }
            "suppressed whatsapp_reached" => {
                assert_eq!(claimed, 0, "settled, and yet handed out");
                settled += 1;
            }
            other => panic!("the SMS is {other}"),
        }
        db.run("update public.message_delivery_log set lease_token = null, next_attempt_at = null where lease_token is not null").await;
    }
    println!("{sent} sent, {settled} settled");
}
