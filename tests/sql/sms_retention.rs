//! How long SMS are kept: three years, or as long as a client says; in batches, and their sums go with them.

use serde_json::json;

use crate::support::Db;

const NOW: &str = "'2030-01-01T08:00:00Z'";

async fn purge(db: &Db, limit: u32) -> i64 {
    db.count(&format!("select private.purge_agent_sms({NOW}, {limit})::bigint")).await
}

/// What is left, by client and text.
async fn left(db: &Db) -> serde_json::Value {
    let sql = "select coalesce(jsonb_agg(distinct c.slug || ' ' || s.message_content), '[]') from public.agent_sms s join public.clients c on c.id = s.client_id";
    db.value(sql).await
}

async fn fill(db: &Db) {
    db.run(
        "insert into public.clients (slug, brand, settings)
         values ('three', 'A', '{}'), ('one', 'B', '{\"sms_retention_months\": 12}'), ('unclear', 'C', '{\"sms_retention_months\": \"0 or so\"}');
         insert into public.agent_sms (client_id, message_content, status, sent_at, segments)
         select c.id, t.name, 'delivered', t.at, 1 from public.clients c, generate_series(1, 3),
                (values ('oldest', timestamptz '2026-12-31T08:00:00Z'), ('old', '2027-01-01T08:00:00Z'), ('last year', '2029-01-01T07:59:59Z'), ('new', '2029-01-01T08:00:00Z')) t (name, at)
          where not c.is_default",
    )
    .await;
}

#[tokio::test]
async fn what_is_older_goes_the_oldest_first_and_nothing_else() {
    let db = Db::new().await;
    fill(&db).await;
    assert_eq!(purge(&db, 4).await, 4, "a batch");
    while purge(&db, 4).await > 0 {}
    assert_eq!(
        left(&db).await,
        json!([
            "one new",
            "three last year",
            "three new",
            "three old",
            "unclear last year",
            "unclear new",
            "unclear old"
        ]),
        "on the day itself it is not older"
    );
}

#[tokio::test]
async fn sums_of_what_went_go_with_it_and_the_rest_stays_right() {
    let db = Db::new().await;
    fill(&db).await;
    db.run("select private.fold_sms_changes()").await;
    let old =
        "select count(*) from public.agent_sms_rollups where starts_at < '2026-12-31T12:00:00Z' and grain <> 'month'";
    assert!(db.count(old).await > 0);
    assert_eq!(purge(&db, 1000).await, 15);
    assert_eq!(db.count("select count(*) from private.check_sms_rollups()").await, 0);
    assert_eq!(db.value("select sum(messages) from public.v_agent_sms_days").await, json!(21));
    // Folded, they are zeros; a later look takes these away.
    db.run("select private.fold_sms_changes(); select private.purge_agent_sms('2030-03-01T08:00:00Z', 0); select private.purge_agent_sms('2030-03-01T08:00:00Z')").await;
    db.run("select private.fold_sms_changes(); select private.purge_agent_sms('2030-06-01T08:00:00Z')").await;
    assert_eq!(db.count(old).await, 0);
    assert_eq!(db.count(&old.replace("rollups", "totals")).await, 0);
    assert_eq!(db.count("select count(*) from private.check_sms_rollups()").await, 0);
    assert_eq!(db.count("select count(*) from private.check_sms_totals()").await, 0);
}

#[tokio::test]
async fn a_purge_waits_for_nobody_and_the_sweep_does_it() {
    let db = Db::new().await;
    fill(&db).await;
    let other = db.connect().await;
    other
        .batch_execute(
            "begin; update public.agent_sms set metadata = '{\"held\": true}' where message_content = 'oldest'",
        )
        .await
        .unwrap();
    db.run("set lock_timeout = '5s'").await;
    assert_eq!(purge(&db, 1000).await, 6, "of one client what is not held");
    other.batch_execute("commit").await.unwrap();
    let swept = db.rpc("sweep", json!({"now": "2030-01-01T08:00:00Z"})).await;
    assert_eq!(swept["sms_figures"]["purged"], 9);
    assert_eq!(db.count("select count(*) from private.check_sms_rollups()").await, 0);
}

#[tokio::test]
async fn calls_go_at_the_same_age_and_ours_stay_in_the_log_of_calls() {
    let db = Db::new().await;
    db.run(
        "insert into public.clients (slug, brand, settings) values ('three', 'A', '{}'), ('one', 'B', '{\"sms_retention_months\": 12}');
         insert into public.voice_calls (client_id, origin, provider_call_id, status, started_at, ended_at)
         select c.id, 'mtn_sip', c.slug || t.at, 'completed', t.at, t.at
           from public.clients c, (values (timestamptz '2026-12-31T08:00:00Z'), ('2028-12-31T08:00:00Z'), ('2029-06-01T08:00:00Z')) t (at)
          where not c.is_default",
    )
    .await;
    assert_eq!(db.rpc("sweep", json!({"now": "2030-01-01T08:00:00Z"})).await["sms_figures"]["purged_calls"], 3);
    let left = "select jsonb_agg(c.slug || ' ' || to_char(a.started_at at time zone 'utc', 'YYYY-MM') order by c.slug, a.started_at)
                  from public.agent_calls a join public.clients c on c.id = a.client_id";
    assert_eq!(db.value(left).await, json!(["one 2029-06", "three 2028-12", "three 2029-06"]));
    assert_eq!(db.count("select count(*) from public.voice_calls").await, 6);
}

#[tokio::test]
async fn what_no_provider_took_within_a_week_fails_and_costs_nothing() {
    let db = Db::new().await;
    db.run(
        "insert into public.channel_prices (side, provider, kind, price, currency, valid_from)
         values ('revenue', 'any', 'segment', 2, 'RWF', '2020-01-01'), ('cost', 'any', 'segment', 1, 'RWF', '2020-01-01');
         insert into public.agent_sms (client_id, message_content, provider_message_sid, sent_at)
         select private.default_client_id(), t.name, t.sid, t.at
           from (values ('lost', null, timestamptz '2029-12-20T08:00:00Z'), ('with an id', 'SM1', '2029-12-20T08:00:00Z'), ('new', null, '2029-12-30T08:00:00Z')) t (name, sid, at)",
    )
    .await;
    assert_eq!(db.rpc("sweep", json!({"now": "2030-01-01T08:00:00Z"})).await["sms_figures"]["untaken"], 1);
    let rows = "select jsonb_object_agg(message_content, jsonb_build_array(status, failure_reason, trim_scale(cost), trim_scale(revenue))) from public.agent_sms";
    assert_eq!(
        db.value(rows).await,
        json!({"lost": ["failed", "never_taken", 0, 0], "with an id": ["pending", null, 1, 2], "new": ["pending", null, 1, 2]})
    );
    assert_eq!(db.rpc("sweep", json!({"now": "2030-01-01T08:01:00Z"})).await["sms_figures"]["untaken"], 0);
}
