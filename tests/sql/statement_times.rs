//! Live times of the questions of agent_sms: on a server that keeps them, and on one that does not.

use ihuza_sim::migrate;
use ihuza_sim::postgres::{Binaries, Data};
use serde_json::json;

use crate::support::{Db, root};

#[tokio::test]
async fn without_the_extension_there_is_no_view_and_no_harm() {
    let db = Db::new().await;
    assert_eq!(db.value("select to_jsonb(private.watch_statement_times())").await, false);
    assert_eq!(db.value("select to_jsonb(to_regclass('private.v_statement_times') is null)").await, true);
}

#[tokio::test]
async fn where_statements_are_timed_they_stand_beside_what_was_promised() {
    let folder = std::env::temp_dir().join(format!("ihuza-statements-{}", uuid::Uuid::new_v4().simple()));
    let binaries = Binaries::find(&root()).unwrap();
    let data = binaries.reachable(&folder).unwrap();
    drop(ihuza_sim::database::Database::start(&root(), &Data::Keep(folder), 0, &std::env::temp_dir()).await.unwrap());
    let settings = ["shared_preload_libraries=pg_stat_statements"];
    let server = binaries.start_as_installed(&data, &data.join("server.log"), &settings).await.unwrap();
    let client = server.address().connect("ihuza").await.unwrap();
    client.batch_execute("create extension pg_stat_statements with schema extensions").await.unwrap();

    // The file itself makes the view, when it runs where the extension is.
    let files = migrate::read(&root().join("migrations")).unwrap();
    let file = files.iter().find(|file| file.version == "20261121013310").unwrap();
    client.batch_execute(&file.sql).await.unwrap();
    client
        .batch_execute(
            "set role service_role;
             insert into public.agent_sms (client_id, phone_number, message_content, provider_message_sid)
             select id, '+250788123456', 'Muraho', 'SM1' from public.clients where is_default;
             update public.agent_sms set status = 'delivered' where provider_message_sid = 'SM1';
             update public.agent_sms set status = 'delivered' where provider_message_sid = 'SM2';
             select cost_currency, sum(cost) from public.agent_sms group by 1;",
        )
        .await
        .unwrap();
    let seen = client
        .query("select to_jsonb(v) from private.v_statement_times v", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get::<_, serde_json::Value>(0))
        .collect::<Vec<_>>();
    drop(client);
    drop(server);
    std::fs::remove_dir_all(&data).unwrap();

    let calls: Vec<_> = seen.iter().map(|row| row["calls"].as_i64().unwrap()).collect();
    assert_eq!(calls, [0, 0, 2, 1, 1, 0], "{seen:?}");
    assert_eq!((&seen[0]["verdict"], &seen[0]["promise_ms"]), (&json!("not asked yet"), &json!(100)));
    assert!(seen[2]["mean_ms"].as_f64().unwrap() > 0.0 && seen[2]["worst_ms"].as_f64() >= seen[2]["mean_ms"].as_f64());
}
