//! Which agent answers, why, and which version of what it is told.

use ihuza_core::{
    intent,
    tool::{self, Kind, Surface},
};
use ihuza_sim::agents::{self, Loaded};
use serde_json::{Value, json};

use crate::support::{Db, root, with};

const NOW: &str = "2026-11-21T10:00:00Z";
const PHONE: &str = "+250788123456";

async fn begin(db: &Db, id: &str, text: &str) -> Value {
    let token = uuid::Uuid::new_v4();
    let claimed = db
        .rpc(
            "begin_sms_turn",
            json!({"from": PHONE, "to": "8008", "text": text, "provider": "mtn", "provider_message_id": id, "channel": "sms",
                   "intent_hint": intent::detect(text).map(intent::Intent::as_str),
                   "lease_token": token, "correlation_id": format!("c-{id}"), "received_at": NOW}),
        )
        .await;
    with(claimed, json!({"lease_token": token}))
}

/// Answers the turn as its agent, and returns who that is and why.
async fn turn(db: &Db, id: &str, text: &str) -> (String, String) {
    let claimed = begin(db, id, text).await;
    finish(db, id, &claimed).await
}

async fn finish(db: &Db, id: &str, claimed: &Value) -> (String, String) {
    assert_eq!(claimed["decision"], "go", "{claimed}");
    let agent = &claimed["agent"];
    let (slug, reason) = (agent["slug"].as_str().unwrap().to_owned(), agent["reason"].as_str().unwrap().to_owned());
    db.rpc(
        "finish_sms_turn",
        json!({"turn_id": claimed["turn_id"], "lease_token": claimed["lease_token"], "outcome": "answered", "correlation_id": format!("c-{id}"),
               "reply": {"content": "Yes.", "agent_slug": slug, "source": "model"}, "deliveries": [], "providers": []}),
    )
    .await;
    (slug, reason)
}

fn chosen(slug: &str, reason: &str) -> (String, String) {
    (slug.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn the_words_choose_who_knows_and_who_knows_keeps_the_conversation() {
    let db = Db::new().await;
    assert_eq!(turn(&db, "1", "Hello").await, chosen("call-center", "default"));
    assert_eq!(turn(&db, "2", "Muraho neza").await, chosen("call-center", "last_agent"));
    assert_eq!(turn(&db, "3", "Ndashaka inzu yo gukodesha i Remera").await, chosen("real-estate", "intent"));
    assert_eq!(turn(&db, "4", "Change budget to 250k").await, chosen("real-estate", "last_agent"));
    assert_eq!(turn(&db, "5", "Can a driver pick me up at 8?").await, chosen("mobility", "handed_over"));
    assert_eq!(turn(&db, "6", "Thanks").await, chosen("mobility", "last_agent"));
    let sql = "select agent_reason from public.conversation_turns order by created_at";
    let reasons: Vec<String> = db.admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(reasons, ["default", "last_agent", "intent", "last_agent", "handed_over", "last_agent"]);
    let versions = "select count(*) from public.conversation_turns t join public.ai_agents a on a.id = t.agent_id and a.content_hash = t.agent_hash";
    assert_eq!(db.count(versions).await, 6);
}

#[tokio::test]
async fn an_agent_that_may_not_hand_over_keeps_the_conversation() {
    let db = Db::new().await;
    db.run("update public.ai_agents set hand_over = '{\"agents\": [\"support\"]}' where slug = 'real-estate'").await;
    assert_eq!(turn(&db, "1", "I need a house").await, chosen("real-estate", "intent"));
    assert_eq!(turn(&db, "2", "and a taxi to see it tomorrow").await, chosen("real-estate", "last_agent"));
    assert_eq!(turn(&db, "3", "I want a refund").await, chosen("support", "handed_over"));
}

#[tokio::test]
async fn a_number_or_a_session_with_an_agent_of_its_own_comes_first() {
    let db = Db::new().await;
    db.run(
        "insert into public.agent_deployments (client_id, name, agent_id)
         select private.default_client_id(), 'rides', id from public.ai_agents where slug = 'mobility';
         insert into public.client_numbers (client_id, channel, address, deployment_id)
         select client_id, 'sms', '8008', id from public.agent_deployments where name = 'rides'",
    )
    .await;
    assert_eq!(turn(&db, "1", "I need a house").await, chosen("mobility", "number"));
    db.run("update public.client_numbers set deployment_id = null").await;
    db.run("update public.omnichannel_sessions set context = context || '{\"agent\": \"support\"}'").await;
    assert_eq!(turn(&db, "2", "I need a house").await, chosen("support", "session"));
    db.run("update public.ai_agents set is_active = false where slug = 'support'").await;
    assert_eq!(turn(&db, "3", "I need a house").await, chosen("real-estate", "intent"));
}

#[tokio::test]
async fn what_a_model_understood_counts_where_the_words_say_nothing() {
    let db = Db::new().await;
    turn(&db, "1", "Hello").await;
    db.run("update public.omnichannel_sessions set last_intent = 'ride'").await;
    assert_eq!(turn(&db, "2", "to the airport, at 8").await, chosen("mobility", "understood"));
}

/// A turn in which the agent calls `session_update_status` as a model would; who answered it.
async fn turn_that_says(db: &Db, id: &str, text: &str, intent: &str) -> (String, String) {
    let claimed = begin(db, id, text).await;
    let mut p = serde_json::Map::new();
    let said = json!({"status": "active", "intent": intent, "note": null}).to_string();
    tool::put_call(tool::prepare("session_update_status", &said, Surface::Text), &mut p);
    let p = with(
        Value::Object(p),
        json!({"session_id": claimed["session"]["id"], "turn_id": claimed["turn_id"], "name": "session_update_status", "idempotency_key": id}),
    );
    let answer = db.rpc("run_agent_tool", p).await;
    assert_eq!(answer["ok"], true, "{intent}: {answer}");
    finish(db, id, &claimed).await
}

#[tokio::test]
async fn whatever_the_tool_lets_a_model_say_reaches_who_knows_about_it() {
    let db = Db::new().await;
    let argument = tool::find("session_update_status").unwrap().arguments.iter().find(|a| a.name == "intent").unwrap();
    let Kind::OneOf(words) = argument.kind else { panic!("a model may say what no agent knows: {argument:?}") };
    let known: Vec<&str> = intent::ALL.into_iter().map(intent::Intent::as_str).chain(["other"]).collect();
    assert_eq!(words, known);
    for (word, slug) in words.iter().zip(["real-estate", "mobility", "support", "call-center"]) {
        db.run("delete from public.omnichannel_sessions").await;
        turn_that_says(&db, &format!("{word}-1"), "Hello", word).await;
        let next = turn(&db, &format!("{word}-2"), "it is at 8").await;
        assert_eq!(next, chosen(slug, if *word == "other" { "last_agent" } else { "understood" }), "{word}");
    }
}

#[tokio::test]
async fn a_special_agent_is_left_when_it_says_itself_that_it_is_about_something_else() {
    let db = Db::new().await;
    assert_eq!(turn(&db, "1", "I need a house").await, chosen("real-estate", "intent"));
    // Said by another before: no word of this agent.
    db.run("update public.omnichannel_sessions set last_intent = 'support'").await;
    assert_eq!(turn(&db, "2", "and now?").await, chosen("real-estate", "last_agent"));
    turn_that_says(&db, "3", "how do I get there", "ride").await;
    assert_eq!(turn(&db, "4", "at 8").await, chosen("mobility", "handed_over"));
    assert_eq!(turn(&db, "5", "yes").await, chosen("mobility", "last_agent"));
    // Of what nobody knows in particular, the general agent does.
    turn_that_says(&db, "6", "do you sell phones", "other").await;
    assert_eq!(turn(&db, "7", "black ones").await, chosen("call-center", "handed_over"));
    assert_eq!(turn(&db, "8", "yes").await, chosen("call-center", "last_agent"));
}

#[tokio::test]
async fn the_words_of_summaries_are_understood_where_they_mean_one_thing() {
    let db = Db::new().await;
    for (said, known) in [
        ("property_search", json!("housing")),
        ("house_search", json!("housing")),
        ("Book a taxi", json!("ride")),
        ("refund_request", json!("support")),
        ("other", json!("other")),
        ("car_rental", Value::Null),
        ("parental_leave", Value::Null),
    ] {
        assert_eq!(db.value(&format!("select private.known_intent('{said}')")).await, known, "{said}");
    }
    turn(&db, "1", "Hello").await;
    db.run("update public.omnichannel_sessions set last_intent = 'property_search'").await;
    assert_eq!(turn(&db, "2", "two rooms").await, chosen("real-estate", "understood"));
}

#[tokio::test]
async fn a_client_has_agents_of_its_own() {
    let db = Db::new().await;
    db.run(
        "insert into public.ai_agents (client_id, slug, display_name, intents, instructions)
         values (private.default_client_id(), 'villas', 'Villas', '{housing}', '{\"en\": \"Sell villas.\"}')",
    )
    .await;
    assert_eq!(turn(&db, "1", "I need a house").await, chosen("villas", "intent"));
}

#[tokio::test]
async fn a_turn_claimed_again_keeps_its_agent() {
    let db = Db::new().await;
    let first = begin(&db, "1", "I need a house").await;
    assert_eq!(first["agent"]["slug"], "real-estate");
    // The holder is gone, and somebody wrote of a ride meanwhile.
    db.run("update public.conversation_turns set lease_until = now() - interval '1 hour', status = 'released', next_attempt_at = now()").await;
    let second = begin(&db, "2", "or a taxi").await;
    assert_eq!((&second["agent"]["slug"], &second["agent"]["reason"]), (&json!("real-estate"), &json!("intent")));
    assert_eq!(second["turn_id"], first["turn_id"]);
}

#[tokio::test]
async fn a_call_has_the_agent_of_its_number_and_says_which_version() {
    let db = Db::new().await;
    db.run(
        "insert into public.agent_deployments (client_id, name, agent_id)
         select private.default_client_id(), 'rides', id from public.ai_agents where slug = 'mobility';
         insert into public.client_numbers (client_id, channel, address, deployment_id)
         select client_id, 'voice', '+250788000111', id from public.agent_deployments where name = 'rides'",
    )
    .await;
    let open = |sid: &str, to: &str| json!({"call_sid": sid, "origin": "mtn_sip", "from": PHONE, "to": to, "model": "gpt-realtime", "correlation_id": sid});
    let ride = db.rpc("open_voice_call", open("a", "+250788000111")).await;
    assert_eq!(ride["agent"]["slug"], "mobility");
    let said = ride["agent"]["instructions"].as_str().unwrap();
    assert!(said.contains("You book rides") && said.contains("You answer the phone"), "{said}");
    let plain = db
        .rpc(
            "open_voice_call",
            json!({"call_sid": "b", "origin": "mtn_sip", "from": "+250788123457", "to": "+250788000222",
                                                  "model": "gpt-realtime", "correlation_id": "b"}),
        )
        .await;
    assert_eq!(plain["agent"]["slug"], "call-center");
    let sql = "select string_agg(c.agent_reason || case when c.agent_hash = a.content_hash then '' else '?' end, ' ' order by c.provider_call_id)
                 from public.voice_calls c join public.ai_agents a on a.id = c.agent_id";
    assert_eq!(db.value(sql).await, json!("number default"));
}

#[tokio::test]
async fn agents_are_loaded_from_their_files_and_an_edited_row_is_left_alone() {
    let db = Db::new().await;
    let mut admin = ihuza_sim::postgres::connect(db.url()).await.unwrap();
    let files = agents::read(&root().join("agents")).unwrap();
    assert_eq!(
        files.iter().map(|agent| agent.slug.as_str()).collect::<Vec<_>>(),
        ["call-center", "mobility", "real-estate", "support"]
    );
    let became = |loaded: Vec<(String, Loaded)>| loaded.into_iter().map(|(_, loaded)| loaded).collect::<Vec<_>>();
    assert_eq!(became(agents::load(&mut admin, &files, false).await.unwrap()), [Loaded::Same; 4]);
    db.run(
        "update public.ai_agents set instructions = instructions || '{\"en\": \"Say hello.\"}' where slug = 'mobility'",
    )
    .await;
    let second = became(agents::load(&mut admin, &files, false).await.unwrap());
    assert_eq!(second, [Loaded::Same, Loaded::Edited, Loaded::Same, Loaded::Same]);
    assert_eq!(
        db.value("select instructions ->> 'en' from public.ai_agents where slug = 'mobility'").await,
        json!("Say hello.")
    );
    let third = became(agents::load(&mut admin, &files, true).await.unwrap());
    assert_eq!(third, [Loaded::Same, Loaded::Changed, Loaded::Same, Loaded::Same]);
    // Every intent that words can have has somebody who knows about it.
    for intent in intent::ALL {
        let sql = format!("select count(*) from public.ai_agents where '{}' = any (intents)", intent.as_str());
        assert_eq!(db.count(&sql).await, 1, "{}", intent.as_str());
    }
}

#[tokio::test]
async fn a_turn_knows_what_is_open_and_remembered() {
    let db = Db::new().await;
    let first = begin(&db, "1", "I need a house").await;
    assert_eq!(first["known"], json!({"requests": [], "bookings": [], "handovers": [], "memories": []}));
    let tool = |name: &str, arguments: Value| {
        json!({"session_id": first["session"]["id"], "turn_id": first["turn_id"], "name": name, "arguments": arguments,
               "idempotency_key": name, "correlation_id": "c-1"})
    };
    let saved =
        db.rpc("run_agent_tool", tool("service_request_save", json!({"kind": "housing", "budget": 300_000}))).await;
    assert_eq!(saved["ok"], true, "{saved}");
    let kept = db.rpc("run_agent_tool", tool("remember", json!({"key": "floor", "value": "ground"}))).await;
    assert_eq!(kept["ok"], true, "{kept}");
    db.run("update public.conversation_turns set status = 'released', lease_until = now(), next_attempt_at = now()")
        .await;
    let second = begin(&db, "2", "and a garden").await;
    assert_eq!(second["known"]["requests"][0]["kind"], "housing", "{}", second["known"]);
    assert_eq!(second["known"]["memories"][0]["value"], "ground");
}
