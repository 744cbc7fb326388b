//! What Meta tells of templates: the newest word of each thing counts, whatever comes when and how often.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Db, at_text, attempt, check_cases, ended_call, phone, text, token, unique, with};

fn update(name: &str, ms: i64, more: Value) -> Value {
    with(json!({"account": "1022", "name": name, "language": "rw_RW", "occurred_at": at_text(ms)}), more)
}

/// Told at 1,000 s, all in one webhook.
async fn told(db: &Db, updates: Vec<Value>) -> Value {
    db.rpc("record_template_updates", json!({"updates": updates, "now": at_text(1_000_000)})).await
}

async fn state(db: &Db, name: &str) -> Value {
    let sql = "select jsonb_build_array(status, category, previous_category, quality) from public.message_templates where name = '{name}'";
    db.value(&sql.replace("{name}", name)).await
}

async fn alerts(db: &Db, kind: &str) -> i64 {
    db.count(&format!("select count(*) from public.alerts where kind = '{kind}' and resolved_at is null")).await
}

#[tokio::test]
async fn a_changed_category_raises_one_alert_however_often_it_is_told() {
    let db = Db::new().await;
    told(&db, vec![update("a", 0, json!({"status": "approved", "category": "utility"}))]).await;
    assert_eq!(alerts(&db, "template_category").await, 0, "a template that begins has no other price");
    let changed = update("a", 1_000, json!({"category": "marketing", "previous_category": "utility"}));
    for _ in 0..3 {
        let answer = told(&db, vec![changed.clone()]).await;
        assert_eq!(answer["templates"][0]["category"], "marketing");
    }
    let once = "select count(*) from public.alerts where kind = 'template_category' and occurrences = 1 and details ->> 'previous_category' = 'utility'";
    assert_eq!((alerts(&db, "template_category").await, db.count(once).await), (1, 1));
    // Of one that nobody has seen before, Meta itself says that it changed.
    told(&db, vec![update("b", 0, json!({"category": "marketing", "previous_category": "utility"}))]).await;
    assert_eq!(alerts(&db, "template_category").await, 2);
    let coming = update("c", 0, json!({"category": "utility", "coming_category": "marketing"}));
    told(&db, vec![coming.clone(), coming]).await;
    assert_eq!(alerts(&db, "template_category").await, 3, "a day before");
    assert_eq!(state(&db, "c").await, json!([null, "utility", null, null]));
}

#[tokio::test]
async fn a_template_that_is_paused_raises_an_alert_until_it_is_approved_again() {
    let db = Db::new().await;
    told(&db, vec![update("a", 0, json!({"status": "approved"})), update("a", 1_000, json!({"status": "paused"}))])
        .await;
    assert_eq!((alerts(&db, "template_status").await, state(&db, "a").await[0].clone()), (1, json!("paused")));
    told(&db, vec![update("a", 500, json!({"status": "approved"}))]).await;
    assert_eq!(
        (alerts(&db, "template_status").await, state(&db, "a").await[0].clone()),
        (1, json!("paused")),
        "an old word"
    );
    told(&db, vec![update("a", 2_000, json!({"status": "approved"}))]).await;
    assert_eq!((alerts(&db, "template_status").await, state(&db, "a").await[0].clone()), (0, json!("approved")));
    told(&db, vec![update("a", 3_000, json!({"quality": "red"}))]).await;
    assert_eq!((alerts(&db, "template_quality").await, state(&db, "a").await[0].clone()), (1, json!("approved")));
}

#[tokio::test]
async fn a_clients_own_row_comes_before_that_of_the_account() {
    let db = Db::new().await;
    db.run(
        "insert into public.clients (slug, brand) values ('other', 'Other');
         insert into public.client_numbers (client_id, channel, address) select id, 'whatsapp', '2044' from public.clients where slug = 'other'",
    )
    .await;
    let all = [("1022", "rw_RW", "approved"), ("1022", "en", "approved"), ("2044", "en", "paused")];
    let all = all.map(|(account, language, status)| {
        update("a", 0, json!({"account": account, "language": language, "status": status}))
    });
    told(&db, all.to_vec()).await;
    let of = |who: &str| {
        format!(
            "select jsonb_path_query_array(private.client_json(id), '$.templates[*].status') from public.clients where {who}"
        )
    };
    assert_eq!(db.value(&of("is_default")).await, json!(["approved", "approved"]));
    assert_eq!(db.value(&of("slug = 'other'")).await, json!(["paused", "approved"]));
}

#[test]
fn any_order_and_any_repetition_come_to_the_same() {
    let word = |name: &'static str, words: &'static [&'static str]| {
        (0_i64..4, prop::sample::select(words)).prop_map(move |(s, word)| (s, json!({ name: word })))
    };
    let one = prop_oneof![
        word("status", &["approved", "paused", "rejected", "pending"]),
        word("category", &["utility", "marketing"]),
        word("quality", &["green", "red"]),
    ];
    let case = prop::collection::vec(one, 1..7)
        .prop_flat_map(|said| (Just(said.clone()), Just(said).prop_shuffle(), 1_usize..4));
    check_cases(80, case, async |db, (said, shuffled, slice)| {
        let (first, second) = (format!("f{}", unique()), format!("s{}", unique()));
        let of = |name: &str, said: &[(i64, Value)]| {
            said.iter().map(|(s, more)| update(name, s * 1_000, more.clone())).collect::<Vec<_>>()
        };
        told(db, of(&first, &said)).await;
        for part in shuffled.chunks(slice) {
            told(db, of(&second, part)).await;
            told(db, of(&second, part)).await;
        }
        let same = async |name: &str| {
            let mut state = state(db, name).await;
            // What it was before depends on what was heard before.
            state.as_array_mut().map(|all| all.remove(2));
            state
        };
        prop_assert_eq!(same(&first).await, same(&second).await);
        Ok(())
    });
}

/// A summary by template of which Meta said this when it was asked to send it, at `ms`.
async fn refused(db: &Db, name: &str, ms: i64, result: Value) -> String {
    let who = phone();
    let call = ended_call(db, &who, ms - 1_000).await;
    let lease = token(100_000 + u32::try_from(unique()).unwrap());
    let claim =
        json!({"correlation_id": "c", "call_ref": call, "phone_number": who, "lease_token": lease, "now": at_text(ms)});
    let claimed = db.rpc("begin_call_notification", claim).await;
    let id = text(&claimed, "/delivery_ids/whatsapp");
    let delivery = json!({"id": id, "channel": "whatsapp", "provider": "whatsapp", "recipient": who, "sender": "1022", "purpose": "call_summary",
                          "content": "summary", "payload": {"kind": "template", "name": name, "language": "rw_RW", "params": []},
                          "deadline_at": at_text(ms + 86_400_000), "attempt": result});
    let done = json!({"notification_id": claimed["notification_id"], "lease_token": lease, "correlation_id": "c", "outcome": "done",
                      "message": {"content": "summary", "language": "rw", "renditions": {}}, "deliveries": [delivery], "now": at_text(ms)});
    db.rpc("finish_call_notification", done).await;
    id
}

fn code(code: &str, ms: i64) -> Value {
    with(attempt("config", ms), json!({"error_code": code, "breaker": false}))
}

/// What the next claim says of the template.
async fn of_claim(db: &Db, name: &str) -> Value {
    let sql = "select jsonb_path_query_first(private.client_json(private.default_client_id()), '$.templates[*] ? (@.name == \"{name}\").status')";
    db.value(&sql.replace("{name}", name)).await
}

#[tokio::test]
async fn a_template_refused_while_sending_is_marked_as_if_meta_had_told() {
    let db = Db::new().await;
    told(&db, ["a", "b"].map(|name| update(name, 0, json!({"status": "approved", "category": "utility"}))).to_vec())
        .await;
    refused(&db, "a", 10_000, code("132015", 10_000)).await;
    refused(&db, "a", 11_000, code("132015", 11_000)).await;
    assert_eq!(state(&db, "a").await, json!(["paused", "utility", null, null]));
    assert_eq!((alerts(&db, "template_status").await, state(&db, "b").await[0].clone()), (1, json!("approved")));
    // Nobody knew it, and it was refused by a status that came later.
    let id = refused(&db, "c", 12_000, attempt("accepted", 12_000)).await;
    let event = json!({"provider": "whatsapp", "delivery_ref": id, "status": "failed", "raw_status": "failed", "error_code": "132016",
                       "error_class": "config", "occurred_at": at_text(13_000)});
    for _ in 0..2 {
        db.rpc("record_delivery_events", json!({"correlation_id": "r", "events": [event], "now": at_text(14_000)}))
            .await;
    }
    assert_eq!((state(&db, "c").await[0].clone(), alerts(&db, "template_status").await), (json!("disabled"), 2));
    // Another refusal is about something else.
    refused(&db, "b", 15_000, code("132001", 15_000)).await;
    assert_eq!(state(&db, "b").await[0], "approved");
    // What Meta says later counts over it, what it said before does not.
    told(&db, vec![update("a", 5_000, json!({"status": "approved"}))]).await;
    assert_eq!(state(&db, "a").await[0], "paused");
    told(&db, vec![update("a", 20_000, json!({"status": "approved"}))]).await;
    assert_eq!((state(&db, "a").await[0].clone(), alerts(&db, "template_status").await), (json!("approved"), 1));
    refused(&db, "a", 19_000, code("132015", 19_000)).await;
    assert_eq!(state(&db, "a").await[0], "approved", "an old refusal");
}

#[tokio::test]
async fn a_pause_that_was_learnt_ends_by_itself_and_one_that_meta_told_does_not() {
    let db = Db::new().await;
    refused(&db, "learnt", 0, code("132015", 0)).await;
    refused(&db, "gone", 0, code("132016", 0)).await;
    told(&db, vec![update("told", 0, json!({"status": "paused"}))]).await;
    refused(&db, "told", 1_000, code("132015", 1_000)).await;
    for (hours, learnt) in [(5, json!("paused")), (7, Value::Null)] {
        db.run(&format!("update public.message_templates set status_at = now() - interval '{hours} hours'")).await;
        assert_eq!(of_claim(&db, "learnt").await, learnt, "after {hours} h");
        assert_eq!((of_claim(&db, "told").await, of_claim(&db, "gone").await), (json!("paused"), json!("disabled")));
    }
}

#[tokio::test]
async fn a_clients_own_template_is_marked_as_its_own() {
    let db = Db::new().await;
    db.run(
        "insert into public.clients (slug, brand) values ('other', 'Other');
         insert into public.client_numbers (client_id, channel, address) select id, 'whatsapp', '2044' from public.clients where slug = 'other'",
    )
    .await;
    told(
        &db,
        vec![
            update("a", 0, json!({"account": "2044", "status": "approved"})),
            update("a", 0, json!({"status": "approved"})),
        ],
    )
    .await;
    refused(&db, "a", 1_000, code("132015", 1_000)).await;
    let all = "select jsonb_object_agg(c.slug = 'other', t.status) from public.message_templates t join public.clients c on c.id = t.client_id";
    assert_eq!(db.value(all).await, json!({"false": "paused", "true": "approved"}), "the message was the account's");
}
