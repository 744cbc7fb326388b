//! A call over OpenAI's own SIP: taken for the client whose number was called, or not and why, the same however often asked.

use serde_json::{Value, json};

use crate::support::{Db, at_text, with};

fn call(sid: &str, called: Value) -> Value {
    json!({"call_sid": sid, "from": "+250788123456", "called": called, "model": "gpt-realtime-2.1-mini", "voice": "marin",
           "correlation_id": format!("corr-{sid}"), "now": at_text(0)})
}

async fn with_a_number(db: &Db) {
    db.run(
        "insert into public.clients (id, slug, brand) values ('00000000-0000-4000-8000-0000000000c1', 'acme', 'Acme')",
    )
    .await;
    db.run("insert into public.client_numbers (client_id, channel, address) values ('00000000-0000-4000-8000-0000000000c1', 'voice', '+250788000001')").await;
}

fn refused(answer: &Value) -> (&str, &str) {
    (answer["decision"].as_str().unwrap_or_default(), answer["reason"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_call_is_for_the_client_whose_number_was_called() {
    let db = Db::new().await;
    let anybody = db.rpc("admit_openai_call", call("a", json!(["+250788000009"]))).await;
    assert_eq!((&anybody["decision"], &anybody["created"]), (&json!("go"), &json!(true)), "nobody has a number yet");
    with_a_number(&db).await;
    let taken = db.rpc("admit_openai_call", call("b", json!(["8080", "+250788000001"]))).await;
    assert_eq!((&taken["decision"], &taken["client"]["brand"]), (&json!("go"), &json!("Acme")), "{taken}");
    let row = db.value("select jsonb_build_array(origin, provider_call_id, mtn_call_sid, trunk, from_number, to_number, status) from public.voice_calls where provider_call_id = 'b'").await;
    assert_eq!(row, json!(["openai_sip", "b", null, "openai_sip", "+250788123456", "+250788000001", "in_progress"]));
    let again = db.rpc("admit_openai_call", call("b", json!([]))).await;
    assert_eq!(
        (&again["decision"], &again["created"], &again["call_id"]),
        (&json!("go"), &json!(false), &taken["call_id"])
    );

    let stranger = db.rpc("admit_openai_call", call("c", json!(["+250788000009"]))).await;
    assert_eq!(refused(&stranger), ("reject", "unknown_number"));
    assert_eq!(refused(&db.rpc("admit_openai_call", call("d", Value::Null)).await), ("reject", "unknown_number"));
    assert_eq!(
        db.value("select count(*) from public.voice_calls where provider_call_id in ('c', 'd')").await,
        json!(0)
    );
}

#[tokio::test]
async fn a_call_that_is_over_is_not_opened_again() {
    let db = Db::new().await;
    db.rpc("admit_openai_call", call("a", json!([]))).await;
    db.rpc("end_voice_call", with(call("a", json!([])), json!({"origin": "openai_sip", "cause": "caller_hangup"})))
        .await;
    let late = db.rpc("admit_openai_call", call("a", json!([]))).await;
    assert_eq!((&late["decision"], &late["end_cause"]), (&json!("ended"), &json!("caller_hangup")));
}

#[tokio::test]
async fn a_client_without_agent_or_budget_and_a_model_that_is_down_take_no_call() {
    let db = Db::new().await;
    with_a_number(&db).await;
    let ask = async |sid: &str| db.rpc("admit_openai_call", call(sid, json!(["+250788000001"]))).await;
    db.run("insert into public.provider_health (provider, state, open_until) values ('openai', 'open', '2100-01-01') on conflict (provider) do update set state = 'open', open_until = '2100-01-01'").await;
    let down = ask("a").await;
    assert_eq!(refused(&down), ("reject", "model_down"));
    db.run("update public.provider_health set state = 'closed', open_until = null").await;
    assert_eq!(ask("a").await, down, "asked again, told the same");
    let row = db.value("select jsonb_build_array(status, end_cause, end_reason, notified_at) from public.voice_calls where provider_call_id = 'a'").await;
    assert_eq!(row, json!(["failed", "rejected", "model_down", null]));
    let told = db.rpc("end_voice_call", json!({"call_sid": "a", "origin": "openai_sip"})).await;
    assert_eq!(told["notify"], json!(false), "nobody is written to about it");

    db.run("insert into public.client_budgets (client_id, currency, hard_limit, sms_segment_price, whatsapp_template_price, time_zone)
            values ('00000000-0000-4000-8000-0000000000c1', 'RWF', 100, 10, 10, 'Africa/Kigali')").await;
    let month = format!("insert into public.budget_months (client_id, month, currency, committed) values ('00000000-0000-4000-8000-0000000000c1',
            date_trunc('month', timestamptz '{}' at time zone 'Africa/Kigali')::date, 'RWF', 99)", at_text(0));
    db.run(&month).await;
    assert_eq!(ask("b").await["decision"], json!("go"), "there is something left");
    db.run("update public.budget_months set committed = 100").await;
    assert_eq!(refused(&ask("c").await), ("reject", "budget"));
    assert_eq!(ask("b").await["decision"], json!("go"), "a call that was taken goes on");

    db.run("delete from public.client_budgets").await;
    db.run("update public.ai_agents set is_active = false").await;
    assert_eq!(refused(&ask("d").await), ("reject", "no_agent"));
}
