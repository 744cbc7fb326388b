//! What operators do with dead letters: listed, put back, dropped; twice is as good as once, and it is kept who did it and why.

use serde_json::{Value, json};

use crate::support::{Db, all, at_text, text};

fn envelope(n: u32) -> Value {
    json!({"v": 1, "correlation_id": format!("c-{n}"), "first_seen_at": at_text(0), "body": {"from": "+250788123456", "text": "hello"}})
}

/// A letter; its id.
async fn letter(db: &Db, n: u32, payload: Value, reason: &str) -> String {
    let p = json!({"queue": "sms-inbound-staging", "message_id": format!("m-{n}"), "payload": payload, "attempts": 100, "reason": reason,
                   "correlation_id": format!("c-{n}")});
    text(&db.rpc("record_dead_letter", p).await, "/id")
}

async fn jobs(db: &Db) -> Value {
    db.value("select coalesce(jsonb_agg(jsonb_build_array(queue, payload ->> 'correlation_id', reason) order by created_at), '[]') from public.jobs").await
}

async fn open_alerts(db: &Db) -> i64 {
    db.count("select count(*) from public.alerts where kind = 'dead_letter' and resolved_at is null").await
}

#[tokio::test]
async fn a_letter_is_put_back_once_and_the_alert_goes_with_the_last() {
    let db = Db::new().await;
    let first = letter(&db, 1, envelope(1), "retries_exhausted").await;
    let second = letter(&db, 2, envelope(2), "retries_exhausted").await;
    let p = |id: &str| json!({"id": id, "reason": "the database is back", "by": "keza", "now": at_text(1000)});
    assert_eq!(db.rpc("replay_dead_letter", p(&first)).await["status"], "replayed");
    assert_eq!(db.rpc("replay_dead_letter", p(&first)).await["status"], "already_replayed");
    assert_eq!(jobs(&db).await, json!([["sms-inbound", "c-1", "replayed"]]));
    assert_eq!(open_alerts(&db).await, 1, "another one is left");
    db.rpc("drop_dead_letter", p(&second)).await;
    assert_eq!(open_alerts(&db).await, 0);
    let kept = db
        .value("select jsonb_agg(jsonb_build_array(action, reason, requested_by, job_id is not null, created_at) order by action desc) from public.dead_letter_actions")
        .await;
    let by = text(&kept, "/0/2");
    assert!(by.starts_with("keza ("), "{by}");
    assert_eq!(kept[0][0], "replay");
    assert_eq!(
        (&kept[0][1], &kept[0][3], &kept[0][4]),
        (&json!("the database is back"), &json!(true), &json!("2030-01-01T08:00:01+00:00"))
    );
    assert_eq!((&kept[1][0], &kept[1][3]), (&json!("drop"), &json!(false)));
    assert_eq!(kept.as_array().unwrap().len(), 2, "what changed nothing is not kept");

    // It fails again: open again, heard of again, and may be put back again.
    assert_eq!(letter(&db, 1, envelope(1), "retries_exhausted").await, first);
    assert_eq!(open_alerts(&db).await, 1);
    db.run("update public.jobs set status = 'done'").await;
    assert_eq!(db.rpc("replay_dead_letter", p(&first)).await["status"], "replayed");
    assert_eq!(jobs(&db).await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_no_queue_could_take_is_not_put_back() {
    let db = Db::new().await;
    let ids_only = letter(&db, 1, json!({"session_id": "x"}), "crashed_twice").await;
    let too_large = letter(&db, 2, envelope(2), "too_large_for_its_queue").await;
    let nothing = letter(&db, 3, Value::Null, "retries_exhausted").await;
    let dropped = letter(&db, 4, envelope(4), "retries_exhausted").await;
    let p = |id: &str| json!({"id": id, "reason": "try"});
    assert_eq!(db.rpc("drop_dead_letter", p(&dropped)).await["status"], "dropped");
    assert_eq!(db.rpc("drop_dead_letter", p(&dropped)).await["status"], "already_dropped");
    for (id, said) in [
        (&ids_only, "dead_letter_without_envelope"),
        (&too_large, "dead_letter_without_envelope"),
        (&nothing, "dead_letter_without_envelope"),
        (&dropped, "dead_letter_dropped"),
    ] {
        let refused = db.try_rpc("replay_dead_letter", p(id)).await.unwrap_err();
        assert_eq!(refused.code, "PT409");
        assert!(refused.message.starts_with(said), "{refused:?}");
    }
    assert_eq!(jobs(&db).await, json!([]));
    for function in ["replay_dead_letter", "drop_dead_letter"] {
        let nobody = json!({"id": "00000000-0000-4000-8000-000000000000", "reason": "try"});
        assert_eq!(db.try_rpc(function, nobody).await.unwrap_err().code, "PT404");
        assert_eq!(db.try_rpc(function, json!({"id": ids_only})).await.unwrap_err().code, "PT400", "no reason");
        assert!(db.try_rpc(function, json!({"id": ids_only, "reason": "  "})).await.is_err());
    }
}

#[tokio::test]
async fn the_list_has_what_is_open_and_shows_payloads_only_when_asked() {
    let db = Db::new().await;
    let mut ids = Vec::new();
    for n in 1..=3 {
        ids.push(letter(&db, n, envelope(n), "retries_exhausted").await);
    }
    db.rpc("replay_dead_letter", json!({"id": ids[0], "reason": "again"})).await;
    db.rpc("drop_dead_letter", json!({"id": ids[1], "reason": "a test"})).await;
    let list = async |p: Value| db.rpc("list_dead_letters", p).await;
    let open = list(json!({})).await;
    assert_eq!(open.as_array().unwrap().len(), 1);
    assert_eq!((&open[0]["id"], &open[0]["replayable"]), (&json!(ids[2]), &json!(true)));
    assert!(!open.to_string().contains("788123456"), "{open}");
    let all = list(json!({"all": true, "payload": true})).await;
    assert_eq!(all.as_array().unwrap().len(), 3);
    let dropped = list(json!({"id": ids[1], "payload": true})).await;
    assert_eq!((&dropped[0]["payload"], &dropped[0]["actions"][0]["reason"]), (&Value::Null, &json!("a test")));
    assert_eq!(list(json!({"queue": "other"})).await, json!([]));
    assert_eq!(list(json!({"all": true, "limit": 2})).await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn of_many_who_put_it_back_at_once_one_does() {
    let db = Db::new().await;
    let id = letter(&db, 1, envelope(1), "retries_exhausted").await;
    let here = &db;
    let id = &id;
    let answers = all((0..10).map(|_| async move {
        let client = here.connect().await;
        crate::support::rpc(&client, "replay_dead_letter", json!({"id": id, "reason": "again"})).await["status"].clone()
    }))
    .await;
    assert_eq!(answers.iter().filter(|status| *status == "replayed").count(), 1, "{answers:?}");
    assert_eq!(db.count("select count(*) from public.jobs").await, 1);
}
