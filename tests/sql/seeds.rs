//! The SQL that the project's first documents print, word for word: it runs, and finds what it promises.

use serde_json::{Value, json};

use crate::support::{Db, beside, refusal};

/// The statement of `seed_statements.sql` under this name.
fn statement(name: &str) -> String {
    let file = std::fs::read_to_string(beside("seed_statements.sql")).unwrap();
    let mut pieces = file.split("-- statement: ").skip(1);
    let piece = pieces.find(|piece| piece.lines().next() == Some(name));
    let (_, sql) = piece.and_then(|piece| piece.split_once('\n')).unwrap_or_else(|| panic!("no statement {name}"));
    sql.trim().trim_end_matches(';').to_owned()
}

/// Its rows, where the document leaves the id of a deployment to the reader.
async fn rows_of(db: &Db, name: &str, deployment: &str) -> Vec<Value> {
    let text = statement(name);
    assert!(text.contains("'xxx'"), "{name} names no deployment");
    let sql = format!("select to_jsonb(r) from ({}) r", text.replace("'xxx'", &format!("'{deployment}'")));
    match db.admin.query(&sql, &[]).await {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{name}: {}", refusal(&error).message),
    }
}

/// Its rows, as an operator with the owner's rights sees them.
async fn rows(db: &Db, name: &str) -> Vec<Value> {
    let sql = format!("select to_jsonb(r) from ({}) r", statement(name));
    match db.admin.query(&sql, &[]).await {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{name}: {}", refusal(&error).message),
    }
}

fn sorted(rows: &[Value], column: &str) -> Vec<String> {
    let mut all: Vec<String> = rows.iter().map(|row| row[column].as_str().unwrap().to_owned()).collect();
    all.sort();
    all
}

#[tokio::test]
async fn the_verification_queries_find_tables_columns_and_functions() {
    let db = Db::new().await;
    let tables = rows(&db, "the tables exist").await;
    assert_eq!(sorted(&tables, "tablename"), ["conversation_threads", "message_delivery_log", "omnichannel_sessions"]);

    let columns = rows(&db, "profiles is extended").await;
    let mut columns: Vec<(&str, &str)> =
        columns.iter().map(|row| (row["column_name"].as_str().unwrap(), row["data_type"].as_str().unwrap())).collect();
    columns.sort();
    assert_eq!(
        columns,
        [
            ("allows_sms", "boolean"),
            ("has_whatsapp", "boolean"),
            ("last_active_channel", "text"),
            ("notification_preferences", "jsonb"),
            ("whatsapp_jid", "text")
        ]
    );

    let functions = rows(&db, "the functions exist").await;
    assert_eq!(
        sorted(&functions, "routine_name"),
        [
            "check_whatsapp_available",
            "get_or_create_omnichannel_session",
            "log_message_delivery",
            "update_omnichannel_session_status"
        ]
    );
}

#[tokio::test]
async fn the_defaults_are_the_promised_ones() {
    let db = Db::new().await;
    db.run("insert into public.profiles (phone_number) values ('+250788123456')").await;
    let row = db.value("select to_jsonb(p) from public.profiles p").await;
    assert_eq!((&row["has_whatsapp"], &row["allows_sms"]), (&json!(false), &json!(true)));
    assert_eq!(row["notification_preferences"], json!({}));
}

#[tokio::test]
async fn the_monitoring_queries_count_what_happened() {
    let db = Db::new().await;
    assert_eq!(rows(&db, "delivery rates of the last 24 hours").await, Vec::<Value>::new());
    assert_eq!(rows(&db, "active sessions").await, [json!({"active_sessions": 0})]);
    assert_eq!(rows(&db, "the newest session of a number").await, Vec::<Value>::new());

    db.run(
        "insert into public.profiles (phone_number) values ('+250788123456'), ('+250788123457');
         select public.get_or_create_session(id) from public.profiles;
         select public.update_session_status(id, 'follow_up') from public.omnichannel_sessions;
         select public.update_status(s.id, 'closed') from public.omnichannel_sessions s join public.profiles p on p.id = s.profile_id
          where p.phone_number = '+250788123456';",
    )
    .await;
    // A transaction of its own: the newest session is the one created last.
    db.run(
        "select public.get_or_create_session(id, 'voice', p_intent => 'rent') from public.profiles where phone_number = '+250788123456';
         select public.log_delivery('sms', p_status => s) from unnest(array['sent', 'sent', 'failed']) s;
         select public.log_message_delivery('whatsapp', p_status => 'delivered');
         update public.message_delivery_log set created_at = now() - interval '2 days' where channel = 'whatsapp';",
    )
    .await;

    let mut rates: Vec<_> = rows(&db, "delivery rates of the last 24 hours")
        .await
        .iter()
        .map(|row| {
            let (channel, status) = (row["channel"].clone(), row["status"].clone());
            (channel, status, row["count"].as_i64().unwrap(), row["success_rate"].as_f64().unwrap())
        })
        .collect();
    rates.sort_by_key(|(_, status, ..)| status.to_string());
    assert_eq!(rates, [(json!("sms"), json!("failed"), 1, 0.0), (json!("sms"), json!("sent"), 2, 100.0)]);
    assert_eq!(rows(&db, "active sessions").await, [json!({"active_sessions": 2})], "the closed one no longer counts");
    let newest = rows(&db, "the newest session of a number").await;
    assert_eq!(newest.len(), 1);
    assert_eq!((&newest[0]["status"], &newest[0]["primary_channel"]), (&json!("active"), &json!("voice")));
    assert_eq!(newest[0]["last_intent"], "rent");
    assert!(newest[0]["previous_session_id"].is_string());
}

#[tokio::test]
async fn the_helper_functions_take_what_the_documents_pass() {
    let db = Db::new().await;
    db.run("insert into public.profiles (phone_number, has_whatsapp, has_whatsapp_source, has_whatsapp_at) values ('+250788123456', true, 'inbound', now())")
        .await;
    assert_eq!(db.value("select public.check_whatsapp_available(id) from public.profiles").await, true);
    assert_eq!(db.value("select public.check_whatsapp_available(p_phone_number => '+250788123456')").await, true);
    assert_eq!(db.value("select public.check_whatsapp_available(p_phone_number => '+250788999999')").await, false);
    let session = db.value("select public.get_or_create_omnichannel_session(id, 'sms') from public.profiles").await;
    let again = db.value("select public.get_or_create_omnichannel_session(id, 'whatsapp') from public.profiles").await;
    assert_eq!(session, again);
    let context = db.value("select public.get_session_context(id) from public.omnichannel_sessions").await;
    assert_eq!(context["session"]["active_channels"], json!(["sms", "whatsapp"]));
    assert_eq!(context["profile"]["whatsapp"], "yes");
    let closed = db
        .value("select public.update_omnichannel_session_status(id, 'closed', 'done') from public.omnichannel_sessions")
        .await;
    assert_eq!(closed, "closed");
    let reopened = db
        .value("select public.update_omnichannel_session_status(id, 'active') from public.omnichannel_sessions")
        .await;
    assert_eq!(reopened, "closed", "a closed session stays closed");
}

#[tokio::test]
async fn the_queries_about_sms_find_messages_figures_and_failures() {
    let db = Db::new().await;
    db.run(
        "insert into public.agent_deployments (client_id, agent_type_id, name)
         select private.default_client_id(), id, 'spring' from public.agent_types where name = 'louis'",
    )
    .await;
    let deployment = db.value("select id from public.agent_deployments where name = 'spring'").await;
    let deployment = deployment.as_str().unwrap();
    db.run(&format!(
        "insert into public.agent_sms (deployment_id, phone_number, message_content, provider_message_sid, status, failure_reason, sent_at, cost, cost_currency, revenue, revenue_currency)
         values ('{deployment}', '+250788123456', 'Muraho', 'SM1', 'delivered', null, '2025-11-05', 10, 'RWF', 15, 'RWF'),
                ('{deployment}', '+250788123456', 'Muraho', 'SM2', 'failed', '30003', '2025-11-06', 10, 'RWF', 15, 'RWF'),
                ('{deployment}', '+250788123456', 'October', 'SM3', 'sent', null, '2025-10-20', 10, 'RWF', 15, 'RWF'),
                ('{deployment}', '+250788123456', 'Older', 'SM4', 'delivered', null, now() - interval '2 days', 10, 'RWF', 15, 'RWF'),
                ('{deployment}', '+250788123457', 'Newer', 'SM5', 'failed', '30005', now() - interval '1 day', 10, 'RWF', 15, 'RWF'),
                ((select id from public.agent_deployments where is_default), '+250788123458', 'Another''s', 'SM6', 'delivered', null, now(), 10, 'RWF', 15, 'RWF')"
    ))
    .await;
    let found = rows_of(&db, "SMS of a deployment", deployment).await;
    let texts: Vec<&Value> = found.iter().map(|row| &row["message_content"]).collect();
    assert_eq!(texts, ["Newer", "Older"], "of thirty days, the newest first");
    assert_eq!((&found[0]["agent_type_name"], &found[0]["client_slug"]), (&json!("louis"), &json!("easymo")));

    let failed = rows(&db, "failed SMS").await;
    assert_eq!(failed.len(), 1);
    let (number, text, reason) =
        (&failed[0]["phone_number"], &failed[0]["message_content"], &failed[0]["failure_reason"]);
    assert_eq!((number, text, reason), (&json!("+250788123457"), &json!("Newer"), &json!("30005")));

    let metrics = &rows_of(&db, "SMS KPI metrics", deployment).await[0]["get_sms_metrics"];
    let count = |name: &str| metrics[name].as_i64().unwrap();
    assert_eq!((count("messages"), count("delivered"), count("failed"), count("margin")), (2, 1, 1, 10));
    assert_eq!(
        (&metrics["previous"]["messages"], &metrics["previous"]["start"]),
        (&json!(1), &json!("2025-10-03T00:00:00+00:00"))
    );
    // Word for word, and by the name of a deployment.
    let none = &rows(&db, "SMS KPI metrics").await[0]["get_sms_metrics"];
    assert_eq!((&none["messages"], &none["deployments"]), (&json!(0), &json!(0)));
    let named = &rows_of(&db, "SMS KPI metrics", "spring").await[0]["get_sms_metrics"];
    assert_eq!(named, metrics);
}
