//! A ride from the telephone to the team: booked by voice, changed by SMS, and the person handed over to a person.

use chrono::Utc;
use ihuza_sim::openai::realtime::{Act, Script, Turn};
use ihuza_sim::phone::PhoneCall;
use ihuza_sim::speech;
use serde_json::{Value, json};

use crate::phone::{ended, hears_all, session, stage};
use crate::stage::{Row, Stage};

/// The part of the demo's call in which the ride is booked.
fn ride_alone() -> Script {
    let mut script = Script::house_and_ride(Utc::now());
    script.turns.drain(..2);
    script
}

/// Calls and asks for the ride; says yes when it was read back.
async fn asks_for_the_ride(stage: &Stage, phone: &str) -> PhoneCall {
    let call = stage.call_from(phone).await.unwrap();
    hears_all(stage, &call, &speech::AGENT_GREETING).await;
    call.speak(&speech::CALLER_RIDE).await;
    hears_all(stage, &call, &speech::AGENT_RIDE).await;
    let early = format!(
        "mcp_tool_calls t join voice_calls c on c.id = t.call_id where c.provider_call_id = '{}'",
        call.call_id
    );
    assert_eq!(stage.count(&early).await, 0, "nothing is booked before the caller says yes");
    call.speak(&speech::CALLER_YES).await;
    call
}

/// What the model was told of its one call of a tool.
fn output_of_the_tool(stage: &Stage) -> Value {
    let model = session(stage);
    let outputs: Vec<&Value> = model
        .received
        .iter()
        .map(|event| &event["item"])
        .filter(|item| item["type"] == "function_call_output")
        .collect();
    let [output] = outputs[..] else { panic!("{outputs:?}") };
    serde_json::from_str(output["output"].as_str().unwrap()).unwrap()
}

async fn ride_of(stage: &Stage, call: &Value) -> Row {
    stage
        .row(&format!(
            "select b.id, b.number, b.session_id, b.profile_id, b.state, b.pickup, b.destination, b.vehicle,
                    extract(hour from b.pickup_at at time zone 'Africa/Kigali')::int as hour,
                    (b.pickup_at at time zone 'Africa/Kigali')::date - (b.created_at at time zone 'Africa/Kigali')::date as days
               from transport_bookings b where b.call_id = '{}'",
            call.as_str().unwrap()
        ))
        .await
}

#[tokio::test]
async fn a_ride_booked_by_voice_is_changed_by_sms_and_a_person_takes_over() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.openai().realtime().script(ride_alone());
    let call = asks_for_the_ride(&stage, &phone).await;
    hears_all(&stage, &call, &speech::AGENT_BOOKED).await;
    call.hang_up().await.unwrap();
    let call_id = ended(&stage, &call).await["id"].clone();

    // Booked by the tool, in the call, and said only because the tool said so.
    let ride = ride_of(&stage, &call_id).await;
    assert_eq!(
        (&ride["state"], &ride["pickup"], &ride["destination"], &ride["vehicle"], &ride["hour"]),
        (&json!("requested"), &json!("Kimironko"), &json!("Kigali airport"), &json!("moto"), &json!(8))
    );
    // One; none if midnight passed while they spoke.
    assert!(ride["days"] == 1 || ride["days"] == 0, "{ride:?}");
    assert_eq!(output_of_the_tool(&stage)["result"]["booking"]["number"], ride["number"]);
    let tool = stage
        .row(&format!(
            "select name, result -> 'ok' as ok, turn_id, session_id from mcp_tool_calls where call_id = '{}'",
            call_id.as_str().unwrap()
        ))
        .await;
    assert_eq!((&tool["name"], &tool["ok"], &tool["turn_id"]), (&json!("book_transport"), &json!(true), &Value::Null));
    assert_eq!(tool["session_id"], ride["session_id"]);
    stage.delivered(&phone, "sms delivered 1").await;
    let summary = &stage.mtn().messages_to(&phone)[0].text;
    assert!(summary.contains("ride in Kimironko"), "{summary}");

    // The same row, an hour later.
    let answer = stage.says(&phone, "Please make the moto 9 o'clock").await;
    assert!(answer.contains("09:00") && answer.contains("Kimironko > Kigali airport"), "{answer}");
    let changed = ride_of(&stage, &call_id).await;
    assert_eq!((&changed["id"], &changed["days"], &changed["hour"]), (&ride["id"], &ride["days"], &json!(9)));
    let profile = ride["profile_id"].as_str().unwrap();
    assert_eq!(stage.count(&format!("transport_bookings where profile_id = '{profile}'")).await, 1);
    let by = stage
        .value(&format!(
            "select string_agg(changed_by || ' ' || channel, ', ' order by id) from request_changes where transport_booking_id = '{}'",
            ride["id"].as_str().unwrap()
        ))
        .await;
    assert_eq!(by, "person voice, person sms");

    // A person of the team is asked for, waits to be taken, and is taken once.
    let answer = stage.says(&phone, "I want to speak to a person").await;
    assert!(answer.contains("a colleague has been asked"), "{answer}");
    let handoff = stage
        .row(&format!(
            "select id, client_id, state, channel, call_id, session_id from handoffs where profile_id = '{profile}'"
        ))
        .await;
    assert_eq!(
        (&handoff["state"], &handoff["channel"], &handoff["call_id"], &handoff["session_id"]),
        (&json!("waiting"), &json!("sms"), &call_id, &ride["session_id"])
    );
    let id = handoff["id"].as_str().unwrap();
    let alerts = |how: &str| format!("alerts where dedupe_key = 'handoff:{id}' and kind = 'handoff_waiting' and {how}");
    assert_eq!(stage.count(&alerts("resolved_at is null")).await, 1);
    let take = |operator: &str| {
        let p = json!({"operator": operator, "client_id": handoff["client_id"], "id": id});
        format!("select take_handoff('{p}') as taken")
    };
    let taken = stage.value(&take("Aline")).await;
    assert_eq!((&taken["decision"], &taken["handoff"]["taken_by"]), (&json!("taken"), &json!("Aline")));
    assert_eq!(taken["phone_number"], json!(phone), "to call back");
    let context = &taken["context"];
    assert_eq!(context["bookings"][0]["number"], ride["number"]);
    assert!(context["bookings"][0]["pickup_at"].as_str().unwrap().ends_with("T09:00"), "{context}");
    let said = context["messages"].to_string();
    assert!(said.contains("make the moto 9 o'clock") && said.contains("speak to a person"), "{said}");
    assert_eq!(stage.value(&take("Eric")).await, json!({"decision": "none"}), "nobody takes what is taken");
    assert_eq!(stage.count(&alerts("resolved_at is not null")).await, 1);
    let row = stage.row(&format!("select state, taken_by from handoffs where id = '{id}'")).await;
    assert_eq!(Value::Object(row), json!({"state": "taken", "taken_by": "Aline"}));
}

#[tokio::test]
async fn a_ride_that_the_tool_refuses_is_not_said_to_be_booked() {
    let stage = stage().await;
    let phone = stage.stranger();
    let mut script = ride_alone();
    let late = json!({"action": "create", "pickup": "Kimironko", "destination": "Kigali airport", "pickup_at": "2020-01-01T08:00"});
    let Some(Turn { acts, .. }) = script.turns.last_mut() else { panic!("no turn") };
    let Act::Call { arguments, .. } = &mut acts[0] else { panic!("{acts:?}") };
    *arguments = late;
    stage.openai().realtime().script(script);
    let call = asks_for_the_ride(&stage, &phone).await;
    hears_all(&stage, &call, &speech::AGENT_NOT_DONE).await;
    assert_eq!(call.heard_of(&speech::AGENT_BOOKED), None);
    call.hang_up().await.unwrap();
    let call_id = ended(&stage, &call).await["id"].clone();
    let of_call = format!("where call_id = '{}'", call_id.as_str().unwrap());
    assert_eq!(stage.count(&format!("transport_bookings {of_call}")).await, 0);
    let error = stage.value(&format!("select result ->> 'error' from mcp_tool_calls {of_call}")).await;
    assert!(error.as_str().unwrap().contains("pickup_at must be a time in the next 90 days"), "{error}");
    assert_eq!(output_of_the_tool(&stage)["ok"], false);
}
