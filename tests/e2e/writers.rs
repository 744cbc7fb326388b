//! A workflow outside, such as n8n, that sends through Twilio itself: it writes its messages with a key of its own through the gateway, and Twilio
//! tells delivery-status-webhook what became of them.

use ihuza_sim::keys::jwt;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::carriers::{accepted, callback, sid, stage};
use crate::stage::Stage;

/// A client with one deployment, what a segment costs and sells for there, and the key that its workflow holds.
struct Writer {
    client: Uuid,
    deployment: Uuid,
    key: String,
}

async fn writer(stage: &Stage) -> Writer {
    let (client, deployment) = (Uuid::new_v4(), Uuid::new_v4());
    let slug = format!("writer-{}", client.simple());
    stage.execute("insert into clients (id, slug, brand) values ($1, $2, 'Writer')", &[&client, &slug]).await.unwrap();
    let sql = "insert into agent_deployments (id, client_id, agent_type_id, name)
               select $1, $2, id, 'louis-here' from agent_types where name = 'louis'";
    stage.execute(sql, &[&deployment, &client]).await.unwrap();
    let sql = "insert into channel_prices (client_id, side, provider, kind, price, currency, valid_from)
               select $1, x.side, 'twilio', 'segment', x.price, 'USD', now() - interval '1 day' from (values ('cost', 0.05), ('revenue', 0.08)) x (side, price)";
    stage.execute(sql, &[&client]).await.unwrap();
    let claims = json!({"role": "sms_writer", "client_id": client, "exp": 4_102_444_800_i64});
    Writer { client, deployment, key: jwt(&stage.keys().jwt_secret, &claims) }
}

/// A call of the database as n8n makes it: the project's public key, and its own.
async fn ask(stage: &Stage, key: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let url = format!("{}/rest/v1/{path}", stage.secret("SUPABASE_URL").unwrap());
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let request = ihuza_sim::edge::client().unwrap().request(method, url).header("apikey", &stage.keys().publishable);
    let request = request.header("authorization", format!("Bearer {key}")).header("content-type", "application/json");
    let answer = request.body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
}

async fn log(stage: &Stage, writer: &Writer, sid: &str, status: &str) -> Value {
    let message = json!({"p_provider": "twilio", "p_provider_message_sid": sid, "p_deployment_id": writer.deployment,
        "p_phone_number": "+250788123456", "p_message_content": "Muraho! Your visit is on Saturday.", "p_status": status});
    let (code, answer) = ask(stage, &writer.key, "POST", "rpc/log_agent_sms", &message).await;
    assert_eq!(code, 200, "{answer}");
    answer
}

/// Waits until so many reports of it are stored.
async fn reported(stage: &Stage, sid: &str, count: usize) {
    let sql = format!(
        "select count(*) = {count} from message_status_events where provider = 'twilio' and provider_message_id = '{sid}' and delivery_id is null"
    );
    stage.until(&sql).await;
}

async fn message(stage: &Stage, sid: &str) -> Value {
    let columns = "status, provider_status, failure_reason, segments, cost::text as cost, cost_currency, revenue::text as revenue, margin::text as margin";
    Value::Object(stage.row(&format!("select {columns} from agent_sms where provider_message_sid = '{sid}'")).await)
}

/// What the client's figures say, which no fold has to have come for, and whether all sums equal the rows.
async fn figures(stage: &Stage, writer: &Writer) -> Value {
    let sql = format!(
        "select jsonb_build_object('wrong', (select count(*) from private.check_sms_rollups()) + (select count(*) from private.check_sms_totals()),
           'counts', jsonb_build_array(m -> 'messages', m -> 'sent', m -> 'delivered', m -> 'failed'), 'cost', m -> 'cost', 'revenue', m -> 'revenue', 'margin', m -> 'margin')
           from get_sms_metrics(now() - interval '1 day', now() + interval '1 hour', '{}') m",
        writer.client
    );
    stage.value(&sql).await
}

#[tokio::test]
async fn a_message_of_a_workflow_ends_as_twilio_tells_whatever_the_order_and_however_often() {
    let stage = stage().await;
    let writer = writer(&stage).await;
    let (arrived, failed) = (sid(), sid());
    for sid in [&arrived, &failed] {
        let first = log(&stage, &writer, sid, "queued").await;
        assert_eq!(
            (&first["created"], &first["status"], &first["segments"]),
            (&json!(true), &json!("pending"), &json!(1))
        );
        let again = log(&stage, &writer, sid, "queued").await;
        assert_eq!((&again["created"], &again["id"]), (&json!(false), &first["id"]));
    }
    // The later words first, each twice.
    for (sid, words) in [(&arrived, ["delivered", "sent", "queued"]), (&failed, ["undelivered", "sent", "sending"])] {
        for word in words {
            let more: &[(&str, &str)] = match word {
                "undelivered" => &[("MessageStatus", word), ("ErrorCode", "30003")],
                _ => &[("MessageStatus", word)],
            };
            for _ in 0..2 {
                accepted(&callback(&stage, sid, more, "").await);
            }
        }
        reported(&stage, sid, 3).await;
    }
    let paid =
        json!({"segments": 1, "cost": "0.050000", "cost_currency": "USD", "revenue": "0.080000", "margin": "0.030000"});
    for (sid, ended) in [
        (&arrived, json!({"status": "delivered", "provider_status": "delivered", "failure_reason": null})),
        (&failed, json!({"status": "failed", "provider_status": "undelivered", "failure_reason": "30003"})),
    ] {
        let mut expected = paid.clone();
        expected.as_object_mut().unwrap().extend(ended.as_object().unwrap().clone());
        assert_eq!(message(&stage, sid).await, expected);
    }
    let told = json!({"wrong": 0, "counts": [2, 0, 1, 1], "cost": 0.1, "revenue": 0.16, "margin": 0.06});
    assert_eq!(figures(&stage, &writer).await, told);
    // And once they are folded.
    stage.value("select private.fold_sms_changes(1000000)").await;
    assert_eq!(figures(&stage, &writer).await, told);
}

#[tokio::test]
async fn what_twilio_tells_before_the_message_is_written_waits_for_it() {
    let stage = stage().await;
    let writer = writer(&stage).await;
    let sid = sid();
    for word in ["delivered", "sent", "delivered"] {
        accepted(&callback(&stage, &sid, &[("MessageStatus", word)], "").await);
    }
    reported(&stage, &sid, 2).await;
    assert_eq!(stage.count(&format!("agent_sms where provider_message_sid = '{sid}'")).await, 0);
    let answer = log(&stage, &writer, &sid, "queued").await;
    assert_eq!((&answer["created"], &answer["status"]), (&json!(true), &json!("delivered")));
    assert_eq!(figures(&stage, &writer).await["counts"], json!([1, 0, 1, 0]));
}

#[tokio::test]
async fn what_belongs_to_nobody_is_taken_and_kept_and_changes_nothing() {
    let stage = stage().await;
    let sid = sid();
    for word in ["sent", "delivered", "delivered"] {
        accepted(&callback(&stage, &sid, &[("MessageStatus", word)], "").await);
    }
    reported(&stage, &sid, 2).await;
    for table in ["agent_sms where provider_message_sid", "message_delivery_log where provider_message_id"] {
        assert_eq!(stage.count(&format!("{table} = '{sid}'")).await, 0);
    }
}

#[tokio::test]
async fn the_key_of_a_workflow_writes_for_its_client_and_reads_nothing() {
    let stage = stage().await;
    let (writer, other) = (writer(&stage).await, writer(&stage).await);
    let sid = sid();
    log(&stage, &writer, &sid, "sent").await;
    let update = json!({"p_provider_message_sid": sid, "p_status": "delivered"});
    let (code, answer) = ask(&stage, &other.key, "POST", "rpc/update_agent_sms_status", &update).await;
    assert_eq!((code, &answer["message"]), (404, &json!("message not found")));
    let foreign = json!({"p_provider_message_sid": "SM-of-another", "p_deployment_id": writer.deployment, "p_phone_number": "+250788123456",
        "p_message_content": "x"});
    let (code, answer) = ask(&stage, &other.key, "POST", "rpc/log_agent_sms", &foreign).await;
    assert_eq!((code, &answer["message"]), (404, &json!("deployment not found")));
    let (code, answer) = ask(&stage, &writer.key, "POST", "rpc/update_agent_sms_status", &update).await;
    assert_eq!((code, &answer["status"]), (200, &json!("delivered")));
    for path in ["agent_sms?select=id", "v_agent_sms_enriched?select=id", "clients?select=id"] {
        let (code, answer) = ask(&stage, &writer.key, "GET", path, &Value::Null).await;
        assert_eq!((code, &answer["code"]), (403, &json!("42501")), "{path}");
    }
    let metrics = json!({"p_start": "2026-01-01", "p_end": "2027-01-01"});
    assert_eq!(ask(&stage, &writer.key, "POST", "rpc/get_sms_metrics", &metrics).await.0, 403);
    // A key that names no client, or that somebody else signed.
    let claims = json!({"role": "sms_writer", "exp": 4_102_444_800_i64});
    let nobodys = jwt(&stage.keys().jwt_secret, &claims);
    assert_eq!(ask(&stage, &nobodys, "POST", "rpc/update_agent_sms_status", &update).await.0, 403);
    let claims = json!({"role": "sms_writer", "client_id": writer.client, "exp": 4_102_444_800_i64});
    let forged = jwt("a secret that nobody has", &claims);
    assert_eq!(ask(&stage, &forged, "POST", "rpc/update_agent_sms_status", &update).await.0, 401);
}
