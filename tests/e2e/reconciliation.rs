//! We and Twilio compare notes: what no callback told is put right a day later, once, whatever breaks off on the way.

use chrono::{DateTime, TimeDelta, Utc};
use ihuza_sim::control::Fault;
use ihuza_sim::twilio::{ACCOUNT_SID, Listed};
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stage::Stage;

fn config() -> WorldConfig {
    WorldConfig::default().var("TWILIO_ACCOUNT_SID", ACCOUNT_SID).var("RECONCILE_SETTLE_HOURS", 0)
}

async fn stage() -> Stage {
    Stage::alone("reconciliation", config).await
}

/// Noon (UTC) so many days ago.
fn noon(days: i64) -> DateTime<Utc> {
    let day = (Utc::now() - TimeDelta::days(days)).date_naive();
    day.and_hms_opt(12, 0, 0).unwrap().and_utc()
}

/// An SMS of ours that the carrier accepted at `at`.
async fn sent(stage: &Stage, provider: &str, provider_message_id: &str, at: DateTime<Utc>) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "insert into message_delivery_log (id, channel, provider, provider_message_id, recipient, status, status_at, sent_at, created_at)
               values ($1, 'sms', $2, $3, $4, 'sent', $5, $5, $5)";
    stage.execute(sql, &[&id, &provider, &provider_message_id, &stage.stranger(), &at]).await.unwrap();
    let sql = "insert into message_status_events (delivery_id, delivery_ref, source, status, occurred_at, dedupe_key)
               select id, id::text, 'own', 'sent', sent_at, 'own:' || id || ':sent' from message_delivery_log where id = $1";
    stage.execute(sql, &[&id]).await.unwrap();
    id
}

async fn row(stage: &Stage, id: Uuid) -> Value {
    let columns = "status, error_code, cost::text as cost, cost_currency, closed_at is not null as closed";
    Value::Object(stage.row(&format!("select {columns} from message_delivery_log where id = '{id}'")).await)
}

/// Sweeps until no day of Twilio's is left, each sweep taking one.
async fn compare_all(stage: &Stage) {
    for _ in 0..9 {
        stage.cron().await.unwrap();
    }
    let open = "select count(*) = 0 from reconciliations where kind = 'list' and status <> 'done'";
    assert_eq!(stage.value(open).await, json!(true));
}

async fn start_over(stage: &Stage) {
    stage.twilio().control().clear();
    for sql in ["delete from reconciliations", "delete from message_delivery_log", "delete from alerts"] {
        stage.execute(sql, &[]).await.unwrap();
    }
}

#[tokio::test]
async fn what_twilio_knows_better_is_put_right_and_what_one_side_lacks_is_told() {
    let stage = stage().await;
    start_over(&stage).await;
    let day = noon(2);
    let fresh = |at| Listed::new("+250788123456", at);
    // A page holds two hundred.
    let many = 405;
    for second in 0..many {
        let known = Listed { price: None, ..fresh(day + TimeDelta::seconds(second)) };
        stage.twilio().know(&known);
        sent(&stage, "twilio", &known.sid, known.date_sent.unwrap()).await;
    }
    let dear = fresh(day);
    let dear_id = sent(&stage, "twilio", &dear.sid.to_uppercase(), day).await;
    let failed = Listed { status: "undelivered", error_code: Some(30005), price: Some("0"), ..fresh(day) };
    let failed_id = sent(&stage, "twilio", &failed.sid, day).await;
    // Accepted before midnight, sent after it.
    let late = fresh(day + TimeDelta::days(1));
    let late_id = sent(&stage, "twilio", &late.sid, day + TimeDelta::hours(11)).await;
    let stranger = fresh(day);
    let inbound = Listed { direction: "inbound", status: "received", ..fresh(day) };
    for message in [&dear, &failed, &late, &stranger, &inbound] {
        stage.twilio().know(message);
    }
    let gone_id = sent(&stage, "twilio", &fresh(day).sid, day).await;
    let mtn_id = sent(&stage, "mtn", "of-another-carrier", day).await;

    compare_all(&stage).await;
    let columns = "compared, repaired, priced, unknown_here, unknown_there, unchecked, closed, failures";
    let day_row = format!("select {columns} from reconciliations where period_start = '{}'", day.date_naive());
    let found = Value::Object(stage.row(&day_row).await);
    assert_eq!(
        found,
        json!({"compared": many + 3, "repaired": many + 3, "priced": 0, "unknown_here": 1, "unknown_there": 1, "unchecked": 0,
               "closed": 0, "failures": 0})
    );
    let row = async |id| row(&stage, id).await;
    assert_eq!(
        row(dear_id).await,
        json!({"status": "delivered", "error_code": null, "cost": "0.047500", "cost_currency": "USD", "closed": false})
    );
    assert_eq!(
        row(failed_id).await,
        json!({"status": "failed", "error_code": "30005", "cost": "0.000000", "cost_currency": "USD", "closed": false})
    );
    assert_eq!(row(late_id).await["status"], "delivered");
    for id in [gone_id, mtn_id] {
        assert_eq!(row(id).await["status"], "sent");
    }
    let alert = stage.row("select details from alerts where kind = 'reconciliation_difference'").await;
    assert_eq!(alert["details"]["unknown_there"], 1, "{alert:?}");
    let pages = stage.twilio().control().requests();
    let of_day = format!("DateSent={}", day.date_naive());
    assert_eq!(pages.iter().filter(|request| request.query.contains(&of_day)).count(), 3);

    // Nothing is asked for a second time.
    let before = stage.twilio().control().requests().len();
    stage.cron().await.unwrap();
    stage.cron().await.unwrap();
    assert_eq!(stage.twilio().control().requests().len(), before);
    let events = "message_status_events where source = 'reconciliation'";
    assert_eq!(stage.count(events).await, u64::try_from(many).unwrap() + 3);
}

#[tokio::test]
async fn a_price_that_comes_later_is_written_by_a_later_comparison() {
    let stage = stage().await;
    start_over(&stage).await;
    let message = Listed { price: None, ..Listed::new("+250788123456", noon(3)) };
    let id = sent(&stage, "twilio", &message.sid, noon(3)).await;
    stage.twilio().know(&message);
    compare_all(&stage).await;
    assert_eq!(row(&stage, id).await["cost"], Value::Null);
    stage.twilio().know(&Listed { price: Some("-0.05100"), ..message });
    // Not at once, and the next day without anybody asking for it.
    compare_all(&stage).await;
    assert_eq!(row(&stage, id).await["cost"], Value::Null);
    stage.execute("update reconciliations set finished_at = finished_at - interval '21 hours'", &[]).await.unwrap();
    compare_all(&stage).await;
    let row = row(&stage, id).await;
    assert_eq!((&row["status"], &row["cost"]), (&json!("delivered"), &json!("0.051000")));
    let priced = "select sum(priced)::int from reconciliations";
    assert_eq!(stage.value(priced).await, json!(1));
    // With its price the day is done for good.
    let before = stage.twilio().control().requests().len();
    stage.execute("update reconciliations set finished_at = finished_at - interval '21 hours'", &[]).await.unwrap();
    compare_all(&stage).await;
    assert_eq!(stage.twilio().control().requests().len(), before);
}

#[tokio::test]
async fn a_day_that_breaks_off_is_taken_up_again_an_hour_later() {
    let stage = stage().await;
    for (fault, code) in
        [(Fault::Status401, "unauthorized"), (Fault::Status503, "unavailable"), (Fault::NonJson, "unreadable_page")]
    {
        start_over(&stage).await;
        let message = Listed::new("+250788123456", noon(7));
        let id = sent(&stage, "twilio", &message.sid, noon(7)).await;
        stage.twilio().know(&message);
        stage.twilio().control().fail_with(fault);
        stage.cron().await.unwrap();
        let broken = "select status, failures, error from reconciliations where kind = 'list'";
        let first = Value::Object(stage.row(broken).await);
        assert_eq!(first, json!({"status": "open", "failures": 1, "error": code}));
        assert_eq!(stage.count("alerts where kind = 'reconciliation_failed'").await, 1);
        assert_eq!(row(&stage, id).await["status"], "sent");
        // The others do not wait for it.
        for _ in 0..7 {
            stage.cron().await.unwrap();
        }
        assert_eq!(stage.count("reconciliations where kind = 'list' and status = 'done'").await, 6);
        stage.execute("update reconciliations set lease_until = now() where status = 'open'", &[]).await.unwrap();
        stage.cron().await.unwrap();
        assert_eq!(row(&stage, id).await["status"], "delivered");
    }
}

#[tokio::test]
async fn a_message_of_whom_nobody_tells_is_closed_by_age() {
    let stage = stage().await;
    start_over(&stage).await;
    let old = noon(5);
    let mtn = sent(&stage, "mtn", "nobody-tells-of-it", old).await;
    let whatsapp = sent(&stage, "whatsapp", "wamid.nobody-tells-of-it", old).await;
    let young = sent(&stage, "mtn", "somebody-may-tell-of-it", noon(2)).await;
    stage.cron().await.unwrap();
    for (id, closed) in [(mtn, true), (whatsapp, true), (young, false)] {
        let row = row(&stage, id).await;
        assert_eq!((&row["status"], &row["closed"]), (&json!("sent"), &json!(closed)));
    }
    let closed = "select jsonb_object_agg(provider, closed) from reconciliations where kind = 'age'";
    assert_eq!(stage.value(closed).await, json!({"mtn": 1, "whatsapp": 1}));
}
