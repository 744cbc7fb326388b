//! What success was said to be, beside what happened: rates, targets, and the alerts where one is missed; SMS that fail or cost too
//! much, a client each.

use serde_json::{Value, json};

use crate::support::{Db, at_text};

/// One metric of the default client: `[value, target, sample, met]`.
async fn metric(db: &Db, name: &str) -> Value {
    db.value(&format!(
        "select jsonb_build_array(m.value, m.target, m.sample, m.met) from public.v_success_metrics m join public.clients c on c.id = m.client_id
          where c.is_default and m.metric = '{name}'"
    ))
    .await
}

/// So many messages of the default client with this status.
async fn deliveries(db: &Db, channel: &str, status: &str, count: u32, more: &str) {
    db.run(&format!(
        "insert into public.message_delivery_log (channel, direction, status, provider, provider_message_id)
         select '{channel}', 'outbound', '{status}', 'mtn', {more} from generate_series(1, {count}) n"
    ))
    .await;
}

/// The alerts that are open, by kind.
async fn open_alerts(db: &Db) -> Value {
    db.value("select coalesce(jsonb_agg(distinct kind), '[]') from public.alerts where resolved_at is null").await
}

#[tokio::test]
async fn delivery_rates_are_of_what_was_tried_and_of_what_was_taken() {
    let db = Db::new().await;
    assert_eq!(db.count("select count(*) from public.v_delivery_rates").await, 0);
    deliveries(&db, "sms", "delivered", 6, "'d' || n").await;
    deliveries(&db, "sms", "sent", 2, "'s' || n").await;
    deliveries(&db, "sms", "undeliverable", 1, "'u' || n").await;
    deliveries(&db, "sms", "failed", 3, "null").await;
    deliveries(&db, "sms", "suppressed", 9, "null").await;
    deliveries(&db, "sms", "queued", 4, "null").await;
    deliveries(&db, "whatsapp", "suppressed", 1, "null").await;
    db.run("insert into public.message_delivery_log (channel, direction, status) values ('sms', 'inbound', 'delivered');
            insert into public.message_delivery_log (channel, status, created_at) values ('sms', 'failed', now() - interval '25 hours')").await;
    let sms = db.value("select to_jsonb(r) - 'client_id' from public.v_delivery_rates r where channel = 'sms'").await;
    let expected = json!({"channel": "sms", "messages": 25, "waiting": 4, "suppressed": 9, "tried": 12, "accepted": 9, "delivered": 6, "failed": 4,
                          "accepted_rate": 75.00, "delivered_rate": 66.67, "delivered_rate_of_settled": 60.00});
    for (name, value) in expected.as_object().unwrap() {
        let (found, value) = (&sms[name], value);
        assert!(
            found == value || found.as_f64() == value.as_f64() && value.is_number(),
            "{name}: {found}, not {value}"
        );
    }
    let none = db.value("select jsonb_build_array(accepted_rate, delivered_rate) from public.v_delivery_rates where channel = 'whatsapp'").await;
    assert_eq!(none, json!([null, null]), "nothing was tried");
}

#[tokio::test]
async fn a_target_is_met_by_more_than_it_and_missed_by_as_much() {
    let db = Db::new().await;
    assert_eq!(metric(&db, "delivery_rate").await, json!([null, 95, 0, null]));
    deliveries(&db, "sms", "delivered", 19, "null").await;
    deliveries(&db, "sms", "sent", 7, "null").await;
    deliveries(&db, "sms", "suppressed", 7, "null").await;
    assert_eq!(metric(&db, "delivery_rate").await.to_string(), "[100.00,95,19,true]");
    deliveries(&db, "sms", "failed", 1, "null").await;
    assert_eq!(metric(&db, "delivery_rate").await.to_string(), "[95.00,95,20,false]");
}

/// People who were written to in a session; `continued` of them answer in it, the others in a session of their own beside it.
async fn conversations(db: &Db, people: u32, continued: u32) {
    db.run(&format!(
        "do $$
         declare v_profile uuid; v_session uuid; v_other uuid; v_thread uuid;
         begin
           for n in 1 .. {people} loop
             insert into public.profiles (phone_number) values ('+25078' || lpad((floor(random() * 9000000) + n)::text, 7, '0')) returning id into v_profile;
             insert into public.omnichannel_sessions (profile_id, client_id, primary_channel, active_channels, status)
             values (v_profile, private.default_client_id(), 'sms', case when n % 4 = 0 then array['voice', 'sms'] else array['sms'] end, 'closed') returning id into v_session;
             insert into public.omnichannel_sessions (profile_id, client_id, primary_channel) values (v_profile, private.default_client_id(), 'sms') returning id into v_other;
             if n <= {continued} then
               v_other := v_session;
             end if;
             insert into public.conversation_threads (client_id, session_id, profile_id) values (private.default_client_id(), v_session, v_profile) returning id into v_thread;
             insert into public.conversation_messages (client_id, thread_id, session_id, profile_id, direction, role, channel, content, occurred_at)
             values (private.default_client_id(), v_thread, v_session, v_profile, 'outbound', 'assistant', 'sms', 'Hello', now() - interval '2 minutes'),
                    (private.default_client_id(), v_thread, v_other, v_profile, 'inbound', 'user', 'sms', 'Yes', now() - interval '1 minute');
           end loop;
         end
         $$"
    ))
    .await;
}

#[tokio::test]
async fn an_answer_belongs_to_the_session_it_answers() {
    let db = Db::new().await;
    conversations(&db, 20, 18).await;
    assert_eq!(metric(&db, "session_continuity").await.to_string(), "[90.00,90,20,false]");
    conversations(&db, 20, 20).await;
    assert_eq!(metric(&db, "session_continuity").await.to_string(), "[95.00,90,40,true]");
    assert_eq!(metric(&db, "cross_channel_use").await.to_string(), "[25.00,null,40,null]");
    // A session that had ended is not to be gone on with.
    db.run("update public.omnichannel_sessions s set ended_at = now() - interval '90 seconds'
             where status = 'closed' and exists (select from public.conversation_messages m where m.session_id <> s.id and m.profile_id = s.profile_id)").await;
    assert_eq!(metric(&db, "session_continuity").await.to_string(), "[100.00,90,38,true]");
    // Nor is an answer to nothing an answer.
    db.run("delete from public.conversation_messages where direction = 'outbound'").await;
    assert_eq!(metric(&db, "session_continuity").await, json!([null, 90, 0, null]));
}

#[tokio::test]
async fn the_time_to_the_summary_ends_when_its_first_message_arrives() {
    let db = Db::new().await;
    // Calls that ended a while ago; the SMS took n seconds, WhatsApp twice as long, and one is not reported.
    db.run(
        "insert into public.voice_calls (origin, provider_call_id, status, started_at, ended_at)
         select 'mtn_sip', 'call-' || n, 'completed', now() - interval '3 minutes', now() - interval '2 minutes' from generate_series(1, 19) n;
         insert into public.message_delivery_log (call_id, channel, purpose, status, sent_at, delivered_at)
         select c.id, 'sms', 'call_summary', 'delivered', c.ended_at + interval '1 second', c.ended_at + substr(c.provider_call_id, 6)::integer * interval '1 second'
           from public.voice_calls c where c.provider_call_id <> 'call-1';
         insert into public.message_delivery_log (call_id, channel, purpose, status, sent_at, delivered_at)
         select c.id, 'whatsapp', 'call_summary', 'delivered', c.ended_at, c.ended_at + 2 * substr(c.provider_call_id, 6)::integer * interval '1 second'
           from public.voice_calls c where c.provider_call_id <> 'call-1';
         insert into public.message_delivery_log (call_id, channel, purpose, status, sent_at)
         select c.id, 'sms', 'call_summary', 'sent', c.ended_at + interval '1 second' from public.voice_calls c where c.provider_call_id = 'call-1'",
    )
    .await;
    assert_eq!(metric(&db, "call_to_summary_seconds").await.to_string(), "[10.00,10,19,false]");
    assert_eq!(metric(&db, "call_to_summary_seconds_p95").await.to_string(), "[19.00,null,19,null]");
    db.run("update public.message_delivery_log set delivered_at = delivered_at - interval '1 second'").await;
    assert_eq!(metric(&db, "call_to_summary_seconds").await.to_string(), "[9.00,10,19,true]");
}

#[tokio::test]
async fn a_summary_that_never_came_is_a_late_one_once_it_is_missing_for_ten_minutes() {
    let db = Db::new().await;
    db.run(
        "insert into public.voice_calls (origin, provider_call_id, from_number, status, started_at, ended_at)
         select 'mtn_sip', 'call-' || n, case when n <= 35 then '+250788123456' end, case when n <= 33 then 'completed' else 'no_answer' end,
                now() - interval '1 hour', now() - case when n = 31 then interval '5 minutes' else interval '15 minutes' end
           from generate_series(1, 36) n;
         update public.voice_calls set status = 'completed' where provider_call_id = 'call-36';
         insert into public.message_delivery_log (call_id, channel, purpose, status)
         select id, 'sms', 'call_summary', 'suppressed' from public.voice_calls where provider_call_id in ('call-32', 'call-33')",
    )
    .await;
    // Not the one that may still come, those held back, those that nobody answered, nor that of a withheld number.
    let found = metric(&db, "call_to_summary_seconds").await;
    assert!(found[0].as_f64().is_some_and(|seconds| (900.0..1_500.0).contains(&seconds)), "{found}");
    assert_eq!((&found[2], &found[3]), (&json!(30), &json!(false)));
    db.rpc("sweep", json!({"now": "2030-01-01T08:15:30Z"})).await;
    assert_eq!(open_alerts(&db).await, json!(["success_missed"]));
}

#[tokio::test]
async fn a_target_missed_by_enough_cases_raises_an_alert_until_it_is_met() {
    let db = Db::new().await;
    let sweep = async |minute: u32| {
        db.rpc("sweep", json!({"now": format!("2030-01-01T08:{minute:02}:30Z")})).await["sms_figures"]["alerts"].clone()
    };
    deliveries(&db, "sms", "failed", 19, "null").await;
    assert_eq!((sweep(0).await, open_alerts(&db).await), (json!(0), json!([])), "too few to say");
    deliveries(&db, "sms", "failed", 1, "null").await;
    assert_eq!((sweep(1).await, open_alerts(&db).await), (json!(0), json!([])), "not every minute");
    assert_eq!((sweep(15).await, open_alerts(&db).await), (json!(1), json!(["success_missed"])));
    let alert = db.value("select to_jsonb(a) from public.alerts a").await;
    assert_eq!(
        (&alert["details"]["metric"], &alert["details"]["of"], &alert["client_id"].is_string()),
        (&json!("delivery_rate"), &json!(20), &true)
    );
    deliveries(&db, "sms", "delivered", 2000, "null").await;
    assert_eq!((sweep(30).await, open_alerts(&db).await), (json!(0), json!([])), "it is over");
}

/// SMS that somebody else sent for a client, now.
async fn sms(db: &Db, client: &str, status: &str, count: u32, cost: &str) {
    db.run(&format!(
        "insert into public.agent_sms (client_id, message_content, status, sent_at, cost, cost_currency)
         select c.id, 'x', '{status}', '{}', {cost}, 'RWF' from public.clients c, generate_series(1, {count}) where c.slug = '{client}'",
        at_text(0)
    ))
    .await;
}

#[tokio::test]
async fn a_client_whose_sms_fail_is_told_of_and_no_other() {
    let db = Db::new().await;
    db.run("insert into public.clients (slug, brand, settings) values ('one', 'O', '{}'), ('two', 'T', '{\"sms_failure_percent\": 60}')").await;
    let watch = || db.value("select private.watch_sms_of_clients(30, '2030-01-01T08:30:00Z')");
    for client in ["one", "two"] {
        sms(&db, client, "delivered", 10, "1").await;
        sms(&db, client, "failed", 9, "1").await;
    }
    assert_eq!(watch().await, 0, "19 are too few to say");
    for client in ["one", "two"] {
        sms(&db, client, "failed", 1, "1").await;
        db.run("select private.fold_sms_changes(1)").await;
    }
    assert_eq!(watch().await, 1, "half of 20 failed, which the other takes");
    let who = "select c.slug from public.alerts a join public.clients c on c.id = a.client_id where a.kind = 'sms_failure_rate' and a.resolved_at is null";
    assert_eq!(db.value(who).await, "one");
    sms(&db, "one", "sent", 20, "1").await;
    assert_eq!((watch().await, db.value(who).await), (json!(0), Value::Null));
    assert_eq!(
        db.value("select private.watch_sms_of_clients(1, '2030-01-01T11:00:00Z')").await,
        0,
        "hours later it is history"
    );
}

#[tokio::test]
async fn what_sms_cost_is_held_against_the_budget_of_the_month_once_each() {
    let db = Db::new().await;
    db.run(
        "insert into public.clients (slug, brand) values ('one', 'O'), ('two', 'T');
         insert into public.client_budgets (client_id, currency, soft_limit, hard_limit, sms_segment_price, whatsapp_template_price)
         select id, 'RWF', 100, 200, 10, 25 from public.clients where slug in ('one', 'two')",
    )
    .await;
    let watch = || db.value("select private.watch_sms_of_clients(100, '2030-01-01T08:30:00Z')");
    // The month before, in Kigali: there it is still December; and another currency.
    db.run(
        "insert into public.agent_sms (client_id, message_content, status, sent_at, cost, cost_currency)
            select id, 'x', 'sent', '2029-12-31T21:59:59Z', 1000, 'RWF' from public.clients where slug = 'one';
            insert into public.agent_sms (client_id, message_content, status, sent_at, cost, cost_currency)
            select id, 'x', 'sent', '2030-01-01T08:00:00Z', 1000, 'USD' from public.clients where slug = 'one'",
    )
    .await;
    sms(&db, "one", "sent", 10, "10").await;
    assert_eq!(watch().await, 0, "as much as the limit is within it");
    db.run(
        "insert into public.agent_sms (client_id, message_content, status, sent_at, cost, cost_currency)
            select id, 'x', 'sent', '2029-12-31T22:00:00Z', 0.000001, 'RWF' from public.clients where slug = 'one'",
    )
    .await;
    assert_eq!((watch().await, open_alerts(&db).await), (json!(1), json!(["sms_cost_soft"])));
    assert_eq!(watch().await, 0, "once");
    sms(&db, "one", "sent", 10, "10").await;
    assert_eq!((watch().await, watch().await), (json!(1), json!(0)));
    assert_eq!(open_alerts(&db).await, json!(["sms_cost_hard", "sms_cost_soft"]));
    // What the budget itself has told of the soft limit is not told twice; that of the hard one others may have passed.
    db.run("insert into public.budget_months (client_id, month, currency, soft_alerted_at) select id, '2030-01-01', 'RWF', now() from public.clients where slug = 'two'").await;
    sms(&db, "two", "sent", 11, "10").await;
    assert_eq!(watch().await, 0);
    db.run("update public.budget_months set soft_alerted_at = null").await;
    assert_eq!(watch().await, 1);
    db.run("delete from public.alerts where client_id = (select id from public.clients where slug = 'two')").await;
    let whose = db
        .value("select jsonb_agg(distinct c.slug) from public.alerts a join public.clients c on c.id = a.client_id")
        .await;
    assert_eq!(whose, json!(["one"]));
}
