//! Tools that really do something: in a text, in a call, and across both; what they did is in the answer and in the database.

use ihuza_sim::openai::Script;
use ihuza_sim::verbs::Answered;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::Stage;

/// Scripts are taken by whoever comes next, so every test has a world of its own.
async fn alone() -> Stage {
    Stage::alone("conversations", WorldConfig::default).await
}

/// Says `text`; the model calls `tool` before it answers.
async fn asks(stage: &Stage, phone: &str, text: &str, tool: &str, arguments: Value) -> String {
    stage.openai().next_for("text", Script::Tools(vec![(tool.to_owned(), arguments)]));
    stage.says(phone, text).await
}

/// A row of this person's.
async fn theirs(stage: &Stage, phone: &str, columns: &str, table: &str) -> Value {
    let sql = format!(
        "select to_jsonb(x) as v from (select {columns} from {table} t join profiles p on p.id = t.profile_id where p.phone_number = '{phone}') x"
    );
    stage.value(&sql).await
}

#[tokio::test]
async fn a_ride_is_booked_changed_and_cancelled_by_sms() {
    let stage = alone().await;
    let phone = stage.stranger();
    let ride = json!({"action": "create", "number": null, "pickup": "Kimironko market", "destination": "Kanombe", "pickup_at": null,
                      "passengers": 2, "vehicle": "car", "note": null});
    let answer =
        asks(&stage, &phone, "I need a car for two from Kimironko market to Kanombe", "book_transport", ride).await;
    assert!(answer.contains("Kimironko market > Kanombe") && answer.contains("requested"), "{answer}");
    let change = json!({"action": "change", "pickup": "Remera"});
    let answer = asks(&stage, &phone, "Please pick me up in Remera", "book_transport", change).await;
    assert!(answer.contains("Remera > Kanombe"), "{answer}");
    let answer = asks(&stage, &phone, "I do not need it any more", "book_transport", json!({"action": "cancel"})).await;
    assert!(answer.contains("cancelled"), "{answer}");
    let row = theirs(&stage, &phone, "t.state, t.cancelled_by, t.passengers", "transport_bookings").await;
    assert_eq!(row, json!({"state": "cancelled", "cancelled_by": "person", "passengers": 2}));
    let by =
        "request_changes c join profiles p on p.id = c.profile_id where c.channel = 'sms' and c.changed_by = 'person'";
    assert_eq!(stage.count(&format!("{by} and p.phone_number = '{phone}'")).await, 3);
}

#[tokio::test]
async fn a_budget_is_changed_by_sms_in_the_row_that_a_message_before_had_made() {
    let stage = alone().await;
    let phone = stage.stranger();
    let wish = json!({"number": null, "kind": "housing", "area": "Kimirongo", "budget": 300_000, "currency": null, "details": "two bedrooms", "state": null});
    let answer = asks(&stage, &phone, "A house in Kimirongo up to 300k", "service_request_save", wish).await;
    assert!(answer.contains("Kimirongo, 300,000 RWF"), "{answer}");
    let answer =
        asks(&stage, &phone, "Change budget to 250k", "service_request_save", json!({"budget": 250_000})).await;
    assert!(answer.contains("250k RWF instead of 300k RWF"), "{answer}");
    let row = theirs(
        &stage,
        &phone,
        "t.budget::int, t.details, (select name from places where id = t.place_id) as place",
        "service_requests",
    )
    .await;
    assert_eq!(row, json!({"budget": 250_000, "details": "two bedrooms", "place": "Kimironko"}));
    // What the model gets wrong it hears of, and it is kept.
    asks(&stage, &phone, "Change budget to 200k", "service_request_save", json!({"budget": "200k"})).await;
    let kept = format!(
        "select c.result ->> 'error' from mcp_tool_calls c join omnichannel_sessions s on s.id = c.session_id join profiles p on p.id = s.profile_id
          where p.phone_number = '{phone}' and c.result ->> 'ok' = 'false'"
    );
    assert!(stage.value(&kept).await.as_str().unwrap().contains("250k is 250000"));
    let heard = stage
        .openai()
        .control()
        .requests()
        .iter()
        .any(|request| request.body.contains("function_call_output") && request.body.contains("250k is 250000"));
    assert!(heard, "the model is told how to mend it");
}

#[tokio::test]
async fn a_house_is_found_in_a_district_that_is_misspelt_and_a_person_is_asked_for() {
    let stage = alone().await;
    stage
        .execute("insert into services (name, category, area, keywords) values ('Green house', 'housing', 'Nyamirambo', 'inzu'), ('Blue house', 'housing', 'Gisozi', 'inzu')", &[])
        .await
        .unwrap();
    let phone = stage.stranger();
    let search = json!({"query": "inzu", "area": "Nyarugenje", "category": null, "limit": null});
    let answer = asks(&stage, &phone, "Ndashaka inzu i Nyarugenje", "search_services", search).await;
    assert!(answer.contains("Green house") && !answer.contains("Blue house"), "{answer}");
    let reason = json!({"reason": "wants to visit the house today", "department": "sales", "urgent": null});
    let answer = asks(&stage, &phone, "I want to speak to a person", "transfer_to_human", reason).await;
    assert!(answer.contains("a colleague has been asked"), "{answer}");
    let row = theirs(&stage, &phone, "t.state, t.channel, t.department, t.transfer_to", "handoffs").await;
    assert_eq!(row, json!({"state": "waiting", "channel": "sms", "department": "sales", "transfer_to": null}));
    let taken = stage.value("select take_handoff(jsonb_build_object('operator', 'Aline', 'client_id', (select id from clients where is_default))) ->> 'decision'").await;
    assert_eq!(taken, "taken");
}

#[tokio::test]
async fn a_ride_booked_in_a_call_is_changed_by_sms_and_what_the_agent_sends_meanwhile_arrives() {
    let stage = alone().await;
    let phone = stage.stranger();
    let sid = format!("call-{}", uuid::Uuid::new_v4().simple());
    let key = format!("Bearer {}", stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap());
    let post = async |place: &str, mut body: Value| -> Answered {
        body["callSid"] = json!(sid);
        let headers = [("authorization", key.as_str()), ("x-correlation-id", sid.as_str())];
        let answer = stage
            .post("openai-realtime-sip", &format!("/openai-realtime{place}"), &headers, body.to_string())
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{place} {}", answer.body);
        answer
    };
    let opened = post("", json!({"from": phone, "to": "+250788000000"})).await.body;
    let offered: Vec<&str> =
        opened["session"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    for name in ["book_transport", "transfer_to_human", "service_request_save", "messaging_send_sms", "end_call"] {
        assert!(offered.contains(&name), "{offered:?}");
    }
    assert!(opened["session"]["instructions"].as_str().unwrap().contains("only when a tool has just answered ok"));

    let tool = |name: &str, arguments: Value| json!({"name": name, "arguments": arguments.to_string(), "idempotencyKey": name});
    let ride = tool("book_transport", json!({"action": "create", "pickup": "Remera", "destination": "Gisozi"}));
    let booked = post("/tools", ride.clone()).await.body;
    assert_eq!(booked["result"]["booking"]["state"], "requested", "{booked}");
    assert_eq!(post("/tools", ride).await.body, booked, "once a key");
    let sent = post("/tools", tool("messaging_send_sms", json!({"text": "Our office: KG 11 Ave, Remera"}))).await.body;
    assert_eq!(sent, json!({"ok": true, "result": {"sms": "on its way"}}), "the model sees no id");
    assert_eq!(stage.sms_to(&phone, 1).await, "Our office: KG 11 Ave, Remera");
    let wrong = post("/tools", tool("remember", json!({"key": "a", "value": "b", "profile_id": "c"}))).await.body;
    assert_eq!(wrong["error"], "there is no argument profile_id; this tool takes: key, value");

    let change = json!({"action": "change", "passengers": 3});
    let answer = asks(&stage, &phone, "We are three", "book_transport", change).await;
    assert!(answer.contains("Remera > Gisozi"), "{answer}");
    let row =
        theirs(&stage, &phone, "t.passengers, t.state, t.call_id is not null as by_call", "transport_bookings").await;
    assert_eq!(row, json!({"passengers": 3, "state": "requested", "by_call": true}));
    let channels = format!(
        "select jsonb_agg(c.channel order by c.id) from request_changes c join profiles p on p.id = c.profile_id where p.phone_number = '{phone}'"
    );
    assert_eq!(stage.value(&channels).await, json!(["voice", "sms"]));
}
