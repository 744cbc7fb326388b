//! What becomes of an SMS of others: the same whoever tells what first, by function or by a plain statement; and what cannot be is refused.

use serde_json::{Value, json};

use crate::support::{Db, refusal};

const PHONE: &str = "+250788123456";

async fn log(db: &Db, sid: &str, more: &str) -> Value {
    let sql = format!(
        "select public.log_agent_sms('{PHONE}', 'Muraho', '{sid}', p_client_id => private.default_client_id(), p_sent_at => '2026-01-01T09:00:00Z'{more})"
    );
    db.value(&sql).await
}

/// What a provider says, on the first of January 2026.
fn report(sid: &str, status: &str, time: &str, more: &str) -> String {
    format!("select public.update_agent_sms_status('{sid}', '{status}', p_occurred_at => '2026-01-01T{time}Z'{more})")
}

async fn known(db: &Db, sid: &str) -> Value {
    let sql = format!(
        "select jsonb_build_array(status, provider_status, to_char(delivered_at at time zone 'utc', 'HH24:MI'), to_char(failed_at at time zone 'utc', 'HH24:MI'),
                failure_reason, to_char(status_at at time zone 'utc', 'HH24:MI'))
           from public.agent_sms where provider_message_sid = '{sid}'"
    );
    db.value(&sql).await
}

#[tokio::test]
async fn of_two_ends_the_earlier_counts_in_either_order() {
    let db = Db::new().await;
    let cases = [
        // A failure and a cancelling, either first; at one time; two failures at one time; two words of one arrival.
        (["failed 10:00", "canceled 11:00"], json!(["failed", "failed", null, "10:00", "c 10:00", "10:00"])),
        (["failed 11:00", "canceled 10:00"], json!(["cancelled", "canceled", null, null, null, "10:00"])),
        (["failed 10:00", "canceled 10:00"], json!(["failed", "failed", null, "10:00", "c 10:00", "10:00"])),
        (["failed 10:00", "undelivered 10:00"], json!(["failed", "failed", null, "10:00", "c 10:00", "10:00"])),
        (["delivered 10:00", "delivrd 11:00"], json!(["delivered", "delivered", "10:00", null, null, "10:00"])),
        (["read 11:00", "delivered 10:00"], json!(["delivered", "read", "10:00", null, null, "10:00"])),
        (["sent 10:00", "enroute 11:00"], json!(["sent", "enroute", null, null, null, "11:00"])),
    ];
    for (n, (words, end)) in cases.iter().enumerate() {
        for order in [[0, 1], [1, 0]] {
            let sid = format!("SM{n}-{}", order[0]);
            log(&db, &sid, "").await;
            for turn in order {
                let (word, time) = words[turn].split_once(' ').unwrap();
                let reason = format!(", p_failure_reason => 'c {time}'");
                db.run(&report(&sid, word, time, &reason)).await;
            }
            assert_eq!(&known(&db, &sid).await, end, "{words:?} {order:?}");
        }
    }
}

#[tokio::test]
async fn a_plain_statement_that_says_it_again_changes_nothing() {
    let db = Db::new().await;
    for (word, again) in [
        (
            "delivered",
            "status = 'delivered', delivered_at = now(), provider_status = 'delivrd', failure_reason = 'late'",
        ),
        ("failed", "status = 'failed', failed_at = now(), provider_status = 'undelivered', failure_reason = 'other'"),
        ("failed", "status = 'cancelled', provider_status = 'canceled'"),
        ("canceled", "status = 'failed', failed_at = now(), failure_reason = 'other'"),
        ("failed", "failure_reason = null"),
    ] {
        let sid = format!("SM {word} {}", again.len());
        log(&db, &sid, "").await;
        db.run(&report(&sid, word, "10:00:00", ", p_failure_reason => '30003'")).await;
        let before = known(&db, &sid).await;
        db.service
            .batch_execute(&format!("update public.agent_sms set {again} where provider_message_sid = '{sid}'"))
            .await
            .unwrap();
        assert_eq!(known(&db, &sid).await, before, "{again}");
    }
    // An earlier time is news; and somebody's arrival beats all of it.
    let (sid, moved) =
        ("SM failed 21", "status = 'failed', failed_at = '2026-01-01T09:30:00Z', failure_reason = '30001'");
    db.service
        .batch_execute(&format!("update public.agent_sms set {moved} where provider_message_sid = '{sid}'"))
        .await
        .unwrap();
    assert_eq!(known(&db, sid).await, json!(["failed", "failed", null, "09:30", "30001", "09:30"]));
    db.run(&report(sid, "delivered", "12:00:00", "")).await;
    assert_eq!(known(&db, sid).await, json!(["delivered", "delivered", "12:00", null, null, "12:00"]));
}

#[tokio::test]
async fn the_cost_of_the_latest_report_counts_in_any_order() {
    let db = Db::new().await;
    let costs = [("09:10", "0.05"), ("09:30", "0.07"), ("09:20", "0.06"), ("09:30", "0.04")];
    for n in 0..4 {
        let sid = format!("SM{n}");
        log(&db, &sid, "").await;
        for turn in 0..4 {
            let (time, cost) = costs[(n + turn) % 4];
            db.run(&report(&sid, "sent", time, &format!(", p_cost => {cost}, p_cost_currency => 'USD'"))).await;
        }
        let sql = format!(
            "select jsonb_build_array(trim_scale(cost), cost_source) from public.agent_sms where provider_message_sid = '{sid}'"
        );
        assert_eq!(db.value(&sql).await, json!([0.07, "provider"]), "{n}");
    }
}

#[tokio::test]
async fn amounts_times_and_names_that_cannot_be_are_refused() {
    let db = Db::new().await;
    let logged = |more: &str| {
        format!(
            "select public.log_agent_sms('{PHONE}', 'Muraho', 'SM1', p_client_id => private.default_client_id(), {more})"
        )
    };
    let said = |more: &str| format!("select public.update_agent_sms_status('SM1', 'sent', {more})");
    for (sql, says) in [
        (logged("p_cost => -0.0075, p_cost_currency => 'USD'"), "field p_cost must be 0 to 100000"),
        (logged("p_cost => 999999, p_cost_currency => 'USD'"), "field p_cost must be 0 to 100000"),
        (logged("p_revenue => -1, p_revenue_currency => 'USD'"), "field p_revenue must be 0 to 100000"),
        (said("p_cost => -0.0075, p_cost_currency => 'USD'"), "field p_cost must be 0 to 100000"),
        (said("p_cost => 100001, p_cost_currency => 'USD'"), "field p_cost must be 0 to 100000"),
        (said("p_cost => 'NaN', p_cost_currency => 'USD'"), "field p_cost must be 0 to 100000"),
        (logged("p_sent_at => 'infinity'"), "field p_sent_at must be between 2000 and a day from now"),
        (logged("p_sent_at => '-infinity'"), "field p_sent_at must be"),
        (logged("p_sent_at => '1999-12-31'"), "field p_sent_at must be"),
        (logged("p_sent_at => now() + interval '25 hours'"), "field p_sent_at must be"),
        (said("p_occurred_at => '-infinity'"), "field p_occurred_at must be"),
        (said("p_occurred_at => now() + interval '25 hours'"), "field p_occurred_at must be"),
        (said("p_provider => 'Twilio'"), "field p_provider is no provider's name"),
        (
            format!("select public.record_agent_sms_reply('{PHONE}', private.default_client_id(), '-infinity')"),
            "field p_received_at must be",
        ),
    ] {
        let refused = refusal(&db.service.batch_execute(&sql).await.unwrap_err());
        assert!(refused.code == "PT400" && refused.message.contains(says), "{sql}: {refused:?}");
    }
    // Blanks around an id are nobody's id.
    log(&db, " SM1 ", "").await;
    assert_eq!(db.value(&report(" SM1", "delivered", "10:00", "")).await["status"], "delivered");
    assert_eq!(db.value("select to_jsonb(provider_message_sid) from public.agent_sms").await, "SM1");
}

#[tokio::test]
async fn a_message_that_contradicts_the_one_under_its_id_is_refused_and_the_same_again_is_not() {
    let db = Db::new().await;
    let id = "11111111-1111-4111-8111-111111111111";
    let with_id = format!(", p_id => '{id}'");
    assert_eq!(log(&db, "SM1", &with_id).await["created"], true);
    assert_eq!(log(&db, "SM1", &with_id).await["created"], false);
    log(&db, "SM2", "").await;
    for (phone, text, sid) in
        [(PHONE, "Muraho", "SM3"), (PHONE, "Muraho", "SM2"), (PHONE, "Bite", "SM1"), ("+250788000000", "Muraho", "SM1")]
    {
        let sql = format!(
            "select public.log_agent_sms('{phone}', '{text}', '{sid}', p_client_id => private.default_client_id(), p_id => '{id}')"
        );
        let refused = refusal(&db.service.batch_execute(&sql).await.unwrap_err());
        assert!(
            refused.code == "PT409" && refused.message.starts_with("message_differs"),
            "{phone} {text} {sid}: {refused:?}"
        );
    }
    assert_eq!(db.count("select count(*) from public.agent_sms").await, 2);
}

#[tokio::test]
async fn a_row_is_of_the_client_of_its_deployment_whoever_writes_it() {
    let db = Db::new().await;
    db.run("insert into public.clients (slug, brand) values ('other', 'B')").await;
    log(&db, "SM1", "").await;
    let other = "(select id from public.clients where slug = 'other')";
    let theirs = format!("(select id from public.agent_deployments where client_id = {other})");
    for sql in [
        format!("update public.agent_sms set client_id = {other}"),
        format!("update public.agent_sms set deployment_id = {theirs}"),
        format!(
            "insert into public.agent_calls (client_id, deployment_id) values (private.default_client_id(), {theirs})"
        ),
    ] {
        assert_eq!(refusal(&db.service.batch_execute(&sql).await.unwrap_err()).code, "PT409", "{sql}");
    }
    db.service
        .batch_execute(&format!("update public.agent_sms set client_id = {other}, deployment_id = {theirs}"))
        .await
        .unwrap();
    db.service
        .batch_execute(&format!("insert into public.agent_calls (client_id) values ({other}); insert into public.agent_calls (deployment_id) values ({theirs})"))
        .await
        .unwrap();
    assert_eq!(
        db.count(&format!(
            "select count(*) from public.agent_calls where client_id = {other} and deployment_id = {theirs}"
        ))
        .await,
        2
    );
    let moved = "update public.agent_calls set client_id = private.default_client_id()";
    assert_eq!(refusal(&db.service.batch_execute(moved).await.unwrap_err()).code, "PT409");
}

#[tokio::test]
async fn a_rate_is_entered_though_one_margin_would_not_fit() {
    let db = Db::new().await;
    for (sid, cost) in [("SM1", "99999"), ("SM2", "0.05")] {
        let more =
            format!(", p_cost => {cost}, p_cost_currency => 'USD', p_revenue => 90, p_revenue_currency => 'RWF'");
        log(&db, sid, &more).await;
    }
    db.run("insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'RWF', '2026-01-01', 1450)")
        .await;
    // And with the rate there, a message with such an amount is written all the same.
    log(&db, "SM3", ", p_cost => 99999, p_cost_currency => 'USD', p_revenue => 90, p_revenue_currency => 'RWF'").await;
    let margins = "select jsonb_agg(trim_scale(margin) order by provider_message_sid) from public.agent_sms";
    assert_eq!(db.value(margins).await, json!([null, 17.5, null]));
}

#[tokio::test]
async fn our_own_sms_costs_what_the_list_of_the_day_it_is_sent_says() {
    let db = Db::new().await;
    db.run("insert into public.channel_prices (side, provider, kind, price, currency, valid_from)
            values ('cost', 'mtn', 'segment', 5, 'RWF', '2020-01-01'), ('cost', 'mtn', 'segment', 7, 'RWF', '2026-01-02')").await;
    db.run("insert into public.message_delivery_log (channel, direction, status, provider, recipient, content, segments, created_at)
            values ('sms', 'outbound', 'queued', 'mtn', '+250788123456', 'Muraho', 1, '2026-01-01T23:59:50Z')").await;
    let cost = "select trim_scale(cost) from public.agent_sms";
    assert_eq!(db.value(&format!("select to_jsonb(({cost}))")).await, json!(5));
    db.run("update public.message_delivery_log set status = 'sent', sent_at = '2026-01-02T00:00:20Z', provider_message_id = 'm1'").await;
    assert_eq!(db.value(&format!("select to_jsonb(({cost}))")).await, json!(7));
}

#[tokio::test]
async fn an_answer_is_to_the_newest_message_that_a_provider_has() {
    let db = Db::new().await;
    log(&db, "SM1", ", p_status => 'delivered'").await;
    db.run(&format!("insert into public.agent_sms (client_id, phone_number, message_content, sent_at) values (private.default_client_id(), '{PHONE}', 'waits', '2026-01-01T09:01:00Z')")).await;
    db.run(&format!(
        "select public.record_agent_sms_reply('{PHONE}', private.default_client_id(), '2026-01-01T09:30:00Z')"
    ))
    .await;
    let sql = "select jsonb_agg(provider_message_sid) from public.agent_sms where replied_at is not null";
    assert_eq!(db.value(sql).await, json!(["SM1"]));
}
