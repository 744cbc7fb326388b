//! Every SMS and call of ours is counted where clients look, with the transaction that records it, and never says anything else
//! than our own records do.

use ihuza_core::status::{self, DeliveryStatus};
use ihuza_sim::{migrate, postgres};
use serde_json::{Value, json};

use crate::support::{Db, Dice, at_text, attempt, ended_call, lines, root, seed, text, token, with};

const PHONE: &str = "+250788123456";

/// What in `agent_sms` is not as the delivery log has it: nothing, whatever happened.
pub async fn uncounted(db: &Db) -> Vec<String> {
    let sql = "
        select concat_ws(' ', l.id, l.status, l.error_code, '<>', s.status, s.provider_status, s.failure_reason, s.failed_at, s.delivered_at)
          from public.message_delivery_log l left join public.agent_sms s on s.delivery_id = l.id
         where l.channel = 'sms' and l.direction = 'outbound'
           and (s.client_id, s.phone_number, s.message_content, s.provider_status, s.status, s.session_id,
                s.sent_at, s.delivered_at, s.failed_at, s.failure_reason, coalesce(l.cost, s.cost))
               is distinct from
               (l.client_id, private.e164_of(l.recipient), l.content, l.status, private.simple_sms_status(l.status), l.session_id,
                coalesce(l.sent_at, l.created_at),
                case when l.status in ('delivered', 'read') then coalesce(l.delivered_at, l.read_at) end,
                case when l.status in ('failed', 'undeliverable', 'expired') then coalesce(l.failed_at, l.expired_at) end,
                case when l.status in ('failed', 'undeliverable', 'expired') then l.error_code end, s.cost)";
    lines(&db.admin, sql).await
}

/// The simple status of one of ours.
fn simple(status: DeliveryStatus) -> &'static str {
    match status {
        DeliveryStatus::Queued | DeliveryStatus::Sending | DeliveryStatus::Unknown => "pending",
        DeliveryStatus::Sent => "sent",
        DeliveryStatus::Failed | DeliveryStatus::Undeliverable | DeliveryStatus::Expired => "failed",
        DeliveryStatus::Suppressed => "cancelled",
        DeliveryStatus::Delivered | DeliveryStatus::Read => "delivered",
    }
}

#[tokio::test]
async fn every_word_comes_to_one_simple_status_and_none_goes_back() {
    let db = Db::new().await;
    let simple_of = async |word: &str| -> (String, i16) {
        let sql = "select s, private.simple_sms_rank(s) from private.simple_sms_status($1) s";
        let row = db.admin.query_one(sql, &[&word]).await.unwrap();
        (row.get(0), row.get(1))
    };
    let mut ours = Vec::new();
    for status in status::ALL {
        let (found, rank) = simple_of(status.as_str()).await;
        assert_eq!(found, simple(status), "{status:?}");
        ours.push((status.rank(), rank));
    }
    ours.sort_unstable();
    assert!(ours.is_sorted_by_key(|(_, simple)| *simple), "what is later in our log is not earlier here: {ours:?}");

    // The words of the carriers, as the core reads them.
    let twilio = ["accepted", "scheduled", "queued", "sending", "sent", "delivered", "read", "undelivered", "failed"];
    let africas = ["Sent", "Submitted", "Buffered", "Success", "Rejected", "Failed", "AbsentSubscriber", "Expired"];
    let oneapi =
        ["DeliveredToTerminal", "DeliveredToNetwork", "MessageWaiting", "DeliveryUncertain", "DeliveryImpossible"];
    let smpp = ["ACCEPTD", "ENROUTE", "SUBMITTED", "UNKNOWN", "DELIVRD", "UNDELIV", "REJECTD", "DELETED", "EXPIRED"];
    let words = twilio.map(|word| (word, status::from_twilio(word))).into_iter();
    let words = words.chain(africas.map(|word| (word, status::from_africas_talking(word))));
    let words = words.chain(oneapi.map(|word| (word, status::from_oneapi(word))));
    let words = words.chain(smpp.map(|word| (word, status::from_mtn(word))));
    for (word, status) in words {
        assert_eq!(simple_of(word).await.0, simple(status.unwrap()), "{word}");
        assert_eq!(
            simple_of(&format!(" {word} ")).await.0,
            if word == "unknown" { "sent" } else { simple(status.unwrap()) }
        );
    }
    assert_eq!(simple_of("canceled").await.0, "cancelled", "it never left; to the log it is a failure");
    // Whatever somebody says, it is one of five, and what nobody knows hides nothing.
    let mut dice = Dice(seed());
    for _ in 0..300 {
        let word: String =
            (0..dice.below(12)).map(|_| ['a', 'é', ' ', '\'', '%', '0', '\n', '😀'][dice.below(8)]).collect();
        assert_eq!(simple_of(&word).await, ("pending".to_owned(), 0), "{word:?}");
    }
}

/// A deployment of the default client for everything that comes to or goes out from `address`.
async fn deployment(db: &Db, name: &str, channel: &str, address: &str) {
    db.run(&format!(
        "insert into public.agent_deployments (client_id, agent_type_id, name)
         select private.default_client_id(), t.id, '{name}' from public.agent_types t where t.name = 'louis';
         insert into public.client_numbers (client_id, channel, address, deployment_id)
         select client_id, '{channel}', '{address}', id from public.agent_deployments where name = '{name}'"
    ))
    .await;
}

async fn prices(db: &Db) {
    db.run(
        "insert into public.channel_prices (side, provider, kind, price, currency, valid_from) values
           ('cost', 'mtn', 'segment', 10, 'RWF', '2020-01-01'), ('revenue', 'any', 'segment', 18.5, 'RWF', '2020-01-01'),
           ('cost', 'mtn_sip', 'minute', 25, 'RWF', '2020-01-01'), ('revenue', 'any', 'minute', 100, 'RWF', '2020-01-01')",
    )
    .await;
}

/// The summary of an ended call goes out by SMS; the delivery's id.
async fn summary(db: &Db, call: &str, attempt: Value) -> String {
    let p = json!({"correlation_id": call, "call_ref": call, "lease_token": token(1), "now": at_text(0)});
    let claim = db.rpc("begin_call_notification", p).await;
    let id = text(&claim, "/delivery_ids/sms");
    let delivery = json!({"id": id, "channel": "sms", "provider": "mtn", "recipient": PHONE, "sender": "EasyMO", "content": "Muraho, Keza",
                          "encoding": "gsm7", "segments": 1, "deadline_at": at_text(86_400_000), "attempt": attempt});
    let p = json!({"notification_id": claim["notification_id"], "lease_token": token(1), "outcome": "done", "deliveries": [delivery], "now": at_text(1_000)});
    db.rpc("finish_call_notification", p).await;
    id
}

fn report(status: &str, ms: i64) -> Value {
    let event = json!({"provider": "mtn", "provider_message_id": "m-1", "status": status, "occurred_at": at_text(ms)});
    json!({"correlation_id": "r", "events": [event], "now": at_text(ms)})
}

#[tokio::test]
async fn our_sms_is_counted_with_its_call_its_person_and_its_price() {
    let db = Db::new().await;
    prices(&db).await;
    deployment(&db, "louis-1", "sms", "EasyMO").await;
    deployment(&db, "arthur-1", "voice", "+250788000000").await;
    db.run(&format!(
        "insert into public.prospects (client_id, phone_number) values (private.default_client_id(), '{PHONE}')"
    ))
    .await;
    let call = ended_call(&db, PHONE, -1_000).await;
    let accepted = with(attempt("accepted", 1_000), json!({"provider_message_id": "m-1"}));
    let id = summary(&db, &call, accepted).await;

    let sql = "select jsonb_build_object('status', s.status, 'word', s.provider_status, 'sid', s.provider_message_sid, 'text', s.message_content,
                      'phone', s.phone_number, 'segments', s.segments, 'deployment', d.name, 'calls', k.name, 'call', c.voice_call_id, 'delivery', s.delivery_id,
                      'prospects', (s.prospect_id = c.prospect_id), 'cost', s.cost::text, 'revenue', s.revenue::text, 'margin', s.margin::text,
                      'source', s.cost_source, 'failed', s.failed_at is not null, 'arrived', s.delivered_at is not null)
                 from public.agent_sms s join public.agent_deployments d on d.id = s.deployment_id
                 join public.agent_calls c on c.id = s.call_id join public.agent_deployments k on k.id = c.deployment_id";
    let expected = json!({"status": "sent", "word": "sent", "sid": "m-1", "text": "Muraho, Keza", "phone": PHONE, "segments": 1,
                          "deployment": "louis-1", "calls": "arthur-1", "call": call, "delivery": id, "prospects": true, "cost": "10.000000",
                          "revenue": "18.500000", "margin": "8.500000", "source": "price_list", "failed": false, "arrived": false});
    assert_eq!(db.value(sql).await, expected);
    db.rpc("record_delivery_events", report("failed", 3_000)).await;
    assert_eq!(
        db.value(sql).await,
        with(expected.clone(), json!({"status": "failed", "word": "failed", "failed": true}))
    );
    let mut late = report("delivered", 2_000);
    late["events"][0]["pricing"] = json!({"amount": "7.25", "currency": "RWF"});
    db.rpc("record_delivery_events", late).await;
    let cheaper = json!({"status": "delivered", "word": "delivered", "arrived": true, "cost": "7.250000", "margin": "11.250000", "source": "provider"});
    assert_eq!(db.value(sql).await, with(expected, cheaper));
    assert_eq!(uncounted(&db).await, Vec::<String>::new());
    assert_eq!(db.count("select count(*) from public.agent_sms").await, 1);
}

#[tokio::test]
async fn a_message_that_was_only_said_to_be_read_arrived_when_it_was_first_read() {
    let db = Db::new().await;
    let call = ended_call(&db, PHONE, -1000).await;
    let id = summary(&db, &call, with(attempt("accepted", 900), json!({"provider_message_id": "m-1"}))).await;
    for (ms, first_ms) in [(12_000, 12_000), (9_000, 9_000), (10_000, 9_000)] {
        db.rpc("record_delivery_events", report("read", ms)).await;
        let sql =
            format!("select delivered_at = '{}' from public.agent_sms where delivery_id = '{id}'", at_text(first_ms));
        assert!(db.admin.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0), "read at {ms} ms");
    }
    assert_eq!(uncounted(&db).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_never_left_us_costs_nothing_and_is_cancelled() {
    let db = Db::new().await;
    prices(&db).await;
    let call = ended_call(&db, PHONE, -1_000).await;
    summary(&db, &call, with(attempt("suppressed", 1_000), json!({"error_reason": "quiet_hours"}))).await;
    let sql = "select jsonb_build_array(status, provider_status, cost::text, revenue::text, margin::text) from public.agent_sms";
    assert_eq!(db.value(sql).await, json!(["cancelled", "suppressed", "0.000000", "0.000000", "0.000000"]));
    assert_eq!(uncounted(&db).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_message_that_somebody_wrote_of_ours_before_us_is_counted_once() {
    let db = Db::new().await;
    let log = json!({"p_provider": "twilio", "p_provider_message_sid": "SM1"});
    db.run(&format!(
        "select public.log_agent_sms('{PHONE}', 'Muraho', 'SM1', p_client_id => private.default_client_id())"
    ))
    .await;
    db.run(&format!(
        "select public.log_message_delivery('sms', p_recipient => '{PHONE}', p_content => 'Muraho', p_provider => '{}', p_provider_message_id => '{}', p_status => 'sent')",
        text(&log, "/p_provider"), text(&log, "/p_provider_message_sid")
    ))
    .await;
    assert_eq!(
        db.count("select count(*) from public.agent_sms where delivery_id is not null and status = 'sent'").await,
        1
    );
    assert_eq!(db.count("select count(*) from public.agent_sms").await, 1);
    // Of somebody else's client: ours is counted, and the id stays where it is.
    db.run(&format!(
        "insert into public.clients (slug, brand) values ('other', 'Other');
         select public.log_agent_sms('{PHONE}', 'Muraho', 'SM0', p_client_id => (select id from public.clients where slug = 'other'));
         select public.log_message_delivery('sms', p_recipient => '{PHONE}', p_content => 'Muraho', p_provider => 'twilio', p_provider_message_id => 'SM0')"
    ))
    .await;
    assert_eq!(db.count("select count(*) from public.agent_sms").await, 3);
    assert_eq!(uncounted(&db).await, Vec::<String>::new());
    // The other way round, and with a client that has lost its default deployment.
    db.run("delete from public.agent_sms; delete from public.message_delivery_log; delete from public.agent_deployments where is_default").await;
    db.run(&format!("select public.log_message_delivery('sms', p_recipient => '{PHONE}', p_content => 'Muraho', p_provider => 'twilio', p_provider_message_id => 'SM2')")).await;
    let again = format!(
        "select public.log_agent_sms('{PHONE}', 'Muraho', 'SM2', p_client_id => private.default_client_id(), p_status => 'delivered')"
    );
    assert_eq!(db.value(&again).await["created"], false);
    assert_eq!(db.count("select count(*) from public.agent_sms").await, 1);
    assert_eq!(uncounted(&db).await, Vec::<String>::new(), "of our own messages the log speaks");
}

#[tokio::test]
async fn messages_and_calls_of_before_are_taken_over_once() {
    let db = Db::new().await;
    prices(&db).await;
    let call = ended_call(&db, PHONE, -1_000).await;
    summary(&db, &call, with(attempt("accepted", 1_000), json!({"provider_message_id": "m-1"}))).await;
    let whole = "select jsonb_build_array(
        (select jsonb_agg(to_jsonb(s) - '{id,call_id,created_at,updated_at}'::text[]) from public.agent_sms s),
        (select jsonb_agg(to_jsonb(c) - '{id,created_at,updated_at}'::text[]) from public.agent_calls c),
        (select count(*) from public.agent_sms s join public.agent_calls c on c.id = s.call_id))";
    let before = db.value(whole).await;
    assert_eq!(before[2], 1);
    db.run("delete from public.agent_sms; delete from public.agent_calls").await;
    let mut owner = postgres::connect(db.url()).await.unwrap();
    for _ in 0..2 {
        for file in ["20261121013110_own_calls.sql", "20261121013120_own_sms.sql"] {
            migrate::run_file(&mut owner, &root().join("migrations").join(file)).await.unwrap();
        }
        assert_eq!(db.value(whole).await, before);
    }
}

#[tokio::test]
async fn every_ended_call_is_counted_whatever_carried_it() {
    let db = Db::new().await;
    prices(&db).await;
    db.run(
        "insert into public.channel_prices (side, provider, kind, price, currency, valid_from) values ('cost', 'whatsapp', 'minute', 0, 'USD', '2020-01-01');
         insert into public.voice_calls (origin, provider_call_id, direction, from_number, to_number, status, started_at, answered_at, ended_at, duration_seconds, cost, cost_currency)
         select o, 'c-' || n, case when n = 4 then 'outbound' else 'inbound' end, '+250788123456', '+250788000000', s, '2030-01-01', a, '2030-01-01 00:03Z', d, m, c
           from (values
             ('mtn_sip', 1, 'completed', timestamptz '2030-01-01', 61, 0.25, 'USD'),
             ('mtn_media', 2, 'completed', '2030-01-01', 60, 0.125, 'USD'),
             ('whatsapp', 3, 'completed', '2030-01-01', 121, 0.5, 'USD'),
             ('openai_sip', 4, 'completed', '2030-01-01', 1, 1.000001, 'USD'),
             ('mtn_sip', 5, 'no_answer', null, 0, null, null),
             ('mtn_sip', 6, 'completed', '2030-01-01', 59, 2, 'RWF')) v (o, n, s, a, d, m, c)",
    )
    .await;
    let rows = "select jsonb_agg(jsonb_build_array(right(v.provider_call_id, 1), c.phone_number, c.duration_seconds, c.cost::text, c.cost_currency, c.revenue::text,
                  c.margin::text) order by v.provider_call_id)
                  from public.agent_calls c join public.voice_calls v on v.id = c.voice_call_id";
    let found = db.value(rows).await;
    let waits = json!(["1", PHONE, 61, null, null, "200.000000", null]);
    assert_eq!(
        found,
        json!([
            // Trunk and model in two currencies: nothing is known until there is a rate.
            waits,
            ["2", PHONE, 60, "0.125000", "USD", "100.000000", null],
            ["3", PHONE, 121, "0.500000", "USD", "300.000000", null],
            ["4", "+250788000000", 1, "1.000001", "USD", "100.000000", null],
            ["5", PHONE, 0, "0.000000", "RWF", "0.000000", "0.000000"],
            ["6", PHONE, 59, "27.000000", "RWF", "100.000000", "73.000000"]
        ])
    );
    db.run("insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'RWF', '2029-12-01', 1400)")
        .await;
    assert_eq!(
        db.value(rows).await,
        json!([
            ["1", PHONE, 61, "400.000000", "RWF", "200.000000", "-200.000000"],
            ["2", PHONE, 60, "0.125000", "USD", "100.000000", "-75.000000"],
            ["3", PHONE, 121, "0.500000", "USD", "300.000000", "-400.000000"],
            ["4", "+250788000000", 1, "1.000001", "USD", "100.000000", "-1300.001400"],
            ["5", PHONE, 0, "0.000000", "RWF", "0.000000", "0.000000"],
            ["6", PHONE, 59, "27.000000", "RWF", "100.000000", "73.000000"]
        ])
    );
    // The trunk tells the length of a call a day later.
    db.run("update public.voice_calls set duration_seconds = 181 where provider_call_id = 'c-6'").await;
    assert_eq!(db.value(rows).await[5], json!(["6", PHONE, 181, "102.000000", "RWF", "400.000000", "298.000000"]));
    assert_eq!(db.count("select count(*) from public.agent_calls").await, 6);
    // Nothing but that moves its amounts: not another list, nor that its conversation is gone.
    let due = db.value(rows).await;
    db.run(
        "update public.channel_prices set price = price * 2; update public.fx_rates set rate = 1;
         insert into public.profiles (phone_number) values ('+250788123456'); select public.get_or_create_session(id) from public.profiles;
         update public.voice_calls set session_id = (select id from public.omnichannel_sessions); delete from public.omnichannel_sessions;
         update public.voice_calls set from_number = '0788123456' where direction = 'inbound';
         update public.channel_prices set price = price / 2",
    )
    .await;
    assert_eq!(db.value(rows).await, due);
    // One that still runs is not counted; it is with its end, told by the relay.
    let named = json!({"call_sid": "runs", "from": PHONE, "to": "+250788000000", "correlation_id": "invite", "now": at_text(0)});
    db.rpc("open_voice_call", with(named.clone(), json!({"model": "gpt-realtime-2.1-mini"}))).await;
    assert_eq!(db.count("select count(*) from public.agent_calls").await, 6);
    let end = json!({"cause": "caller_hangup", "started_at": at_text(0), "answered_at": at_text(2_000), "ended_at": at_text(62_000), "now": at_text(62_000)});
    db.rpc("end_voice_call", with(named, end)).await;
    let last = "select jsonb_build_array(status, duration_seconds, revenue::text, session_id is not null) from public.agent_calls where started_at = '2030-01-01T08:00Z'";
    assert_eq!(db.value(last).await, json!(["completed", 60, "100.000000", true]));
}

#[tokio::test]
async fn an_answer_counts_once_and_for_the_newest_message() {
    let db = Db::new().await;
    db.run(&format!(
        "insert into public.agent_sms (client_id, phone_number, message_content, provider_message_sid, sent_at, status)
         select private.default_client_id(), p, 'Muraho', 'SM' || n, timestamptz '{}' + make_interval(hours => h), s
           from (values (1, '{PHONE}', -200, 'sent'), (2, '{PHONE}', -30, 'delivered'), (3, '{PHONE}', -20, 'delivered'),
                        (4, '{PHONE}', -1, 'failed'), (5, '{PHONE}', 5, 'sent'), (6, '+250788999999', -1, 'sent')) v (n, p, h, s)",
        at_text(0)
    ))
    .await;
    let message = |id: &str, ms: i64| {
        json!({"correlation_id": id, "provider": "mtn", "provider_message_id": id, "from": PHONE, "to": "8080", "text": "Yego", "lease_token": token(1),
               "received_at": at_text(ms), "now": at_text(ms.max(0))})
    };
    db.rpc("begin_sms_turn", message("a", 60_000)).await;
    let answered = "select jsonb_object_agg(provider_message_sid, to_char(replied_at at time zone 'utc', 'HH24:MI:SS')) from public.agent_sms where replied_at is not null";
    assert_eq!(db.value(answered).await, json!({"SM3": "08:01:00"}));
    db.rpc("begin_sms_turn", message("b", 120_000)).await;
    db.rpc("begin_sms_turn", message("b", 120_000)).await;
    assert_eq!(db.value(answered).await, json!({"SM3": "08:01:00"}), "the first answer counts");
    // An earlier one, told later by somebody who writes from outside, in any spelling of the number.
    let sql = format!(
        "select public.record_agent_sms_reply('0788 123 456', private.default_client_id(), '{}')",
        at_text(30_000)
    );
    // The rule takes no time that lies ahead of us; these are in the year 2030.
    assert_eq!(db.value(&sql).await, json!({"id": null}));
    db.run("update public.agent_sms set sent_at = sent_at - interval '10 years', replied_at = replied_at - interval '10 years'").await;
    let sql = sql.replace("2030", "2020");
    assert!(db.value(&sql).await["id"].is_string());
    assert_eq!(db.value(answered).await, json!({"SM3": "08:00:30"}));
    // Nine days later nobody takes it for an answer.
    let late = format!(
        "select public.record_agent_sms_reply('{PHONE}', private.default_client_id(), timestamptz '{}' + interval '9 days')",
        at_text(0).replace("2030", "2020")
    );
    assert_eq!(db.value(&late).await, json!({"id": null}));
}
