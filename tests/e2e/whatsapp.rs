//! What people write on WhatsApp is answered there, in the conversation that they have over SMS and calls as well.

use expect_test::expect;
use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::Stage;

async fn stage() -> Stage {
    Stage::shared("whatsapp", WorldConfig::default).await
}

/// Everything said in a person's conversations, oldest first: `channel role`.
async fn said(stage: &Stage, phone: &str) -> Vec<String> {
    let rows = stage
        .rows(&format!(
            "select m.channel, m.role from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{phone}' order by m.seq"
        ))
        .await
        .unwrap();
    rows.iter().map(|row| format!("{} {}", row["channel"].as_str().unwrap(), row["role"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn one_conversation_goes_from_a_call_over_sms_to_whatsapp_and_back() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.sms_to(&phone, 1).await;
    let on_whatsapp = stage.writes(&phone, "Change budget to 250k").await;
    assert!(on_whatsapp.contains("250k") && on_whatsapp.contains("300k"), "the call is remembered: {on_whatsapp}");
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1, "the answer goes where the question came from");
    let by_sms = stage.says(&phone, "And two bedrooms").await;
    assert!(!by_sms.is_empty());
    let questions = stage.openai().questions();
    let asked = &questions.iter().rev().find(|question| question.body.contains("And two bedrooms")).unwrap().body;
    assert!(asked.contains("(WhatsApp) Change budget to 250k"), "the model sees what was said on WhatsApp, and where");
    stage.writes(&phone, "When can I see it?").await;
    stage.delivered(&phone, "sms delivered 1, sms delivered 1, whatsapp delivered 1, whatsapp delivered 1").await;
    assert_eq!(
        said(&stage, &phone).await,
        [
            "sms assistant",
            "whatsapp user",
            "whatsapp assistant",
            "sms user",
            "sms assistant",
            "whatsapp user",
            "whatsapp assistant"
        ]
    );
    let state = stage
        .row(&format!(
            "select s.active_channels, p.last_active_channel, p.has_whatsapp_source, t.wa_id, t.session_id = s.id as joined
               from profiles p join omnichannel_sessions s on s.profile_id = p.id join wa_threads t on t.profile_id = p.id
              where p.phone_number = '{phone}'"
        ))
        .await;
    let mut channels: Vec<_> = state["active_channels"].as_array().unwrap().iter().map(Value::to_string).collect();
    channels.sort();
    assert_eq!(channels, ["\"sms\"", "\"voice\"", "\"whatsapp\""]);
    assert_eq!((&state["last_active_channel"], &state["joined"]), (&json!("whatsapp"), &json!(true)));
    assert_eq!(state["wa_id"], phone.trim_start_matches('+'));
    // The next call's summary goes there too: writing opened the window.
    stage.told_and_done(&CallSeed::new(&phone)).await;
    let summary = stage.whatsapp_to(&phone, 3).await;
    assert!(summary.contains("EasyMO Call Summary") && summary.contains("Reply"), "{summary}");
}

#[tokio::test]
async fn every_kind_of_message_is_answered_or_kept_and_none_is_lost() {
    let stage = stage().await;
    let kinds = [
        ("button", json!({"payload": "p", "text": "Continue please"}), "Continue please"),
        (
            "interactive",
            json!({"type": "button_reply", "button_reply": {"id": "v", "title": "Book a visit"}}),
            "Book a visit",
        ),
        ("location", json!({"latitude": -1.9441, "longitude": 30.0619}), "[location: -1.9441, 30.0619]"),
        ("audio", json!({"id": "1", "voice": true}), "[voice message that cannot be listened to here]"),
        ("audio", json!({"id": "../1", "voice": true}), "[voice message that cannot be listened to here]"),
        ("image", json!({"id": "2", "caption": "Iyi nzu"}), "[photo that cannot be seen here: Iyi nzu]"),
        ("document", json!({"id": "3", "filename": "id.pdf"}), "[document that cannot be opened here: id.pdf]"),
        ("unsupported", json!(null), "[message of a kind that WhatsApp does not pass on]"),
        ("reaction", json!({"message_id": "wamid.X", "emoji": "👍"}), "[reaction: 👍]"),
    ];
    let people: Vec<String> = kinds.iter().map(|_| stage.stranger()).collect();
    let messages = people.iter().zip(&kinds);
    let messages = messages.map(|(phone, (kind, content, _))| stage.whatsapp().inbound(phone, kind, content.clone()));
    let mut messages: Vec<Value> = messages.collect();
    // Between them what nobody said, and what has no sender.
    messages.insert(
        3,
        json!({"id": "wamid.Y", "type": "system", "from": "250788000099", "system": {"type": "user_changed_number"}}),
    );
    messages.insert(5, json!({"id": "wamid.Z", "type": "text", "text": {"body": "from nobody"}}));
    let posted = stage.whatsapp().deliver_all(messages).await.unwrap();
    assert_eq!(posted.status, Some(200), "{}", posted.answer);
    for (phone, (kind, _, text)) in people.iter().zip(&kinds) {
        stage
            .until(&format!(
                "select m.content = '{text}' and m.handled_at is not null
                   from conversation_messages m join profiles p on p.id = m.profile_id
                  where p.phone_number = '{phone}' and m.direction = 'inbound'"
            ))
            .await;
        let answers = if *kind == "reaction" { 0 } else { 1 };
        assert_eq!(stage.whatsapp().messages_to(phone).len(), answers, "{kind}: {}", stage.outbox(phone));
    }
}

/// What is known of the person's only voice note: `status attempts cost`.
async fn note_of(stage: &Stage, wamid: &str) -> String {
    let row = stage
        .row(&format!(
            "select status || ' ' || attempts || ' ' || coalesce(trim_scale(cost)::text || ' ' || cost_currency, 'nothing') as note
               from voice_notes where message_key = encode(sha256(convert_to('whatsapp:{wamid}', 'UTF8')), 'hex')"
        ))
        .await;
    row["note"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_spoken_is_answered_like_what_is_written_and_paid_for_once() {
    let stage = stage().await;
    let phone = stage.stranger();
    let note = stage.whatsapp().voice_note(&phone, "Ndashaka inzu i Kimironko");
    for _ in 0..3 {
        stage.whatsapp().deliver_all(vec![note.clone()]).await.unwrap();
    }
    stage.whatsapp_to(&phone, 1).await;
    let questions = stage.openai().questions();
    let heard = questions.iter().filter(|question| question.body.contains("[voice message] Ndashaka inzu")).count();
    assert_eq!(heard, 1, "the agent reads what was said");
    let row = stage
        .row(&format!(
            "select m.content, m.language from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{phone}' and m.direction = 'inbound'"
        ))
        .await;
    assert_eq!(
        (&row["content"], &row["language"]),
        (&json!("[voice message] Ndashaka inzu i Kimironko"), &json!("rw"))
    );
    // Two seconds, as the simulated model counts.
    assert_eq!(note_of(&stage, note["id"].as_str().unwrap()).await, "transcribed 1 0.00015 USD");
    stage.until("select not exists (select from voice_notes where lease_token is not null)").await;
    // The choice of a channel may be said as well.
    let choice = stage.whatsapp().voice_note(&phone, "SMS only, please.");
    stage.whatsapp().deliver_all(vec![choice]).await.unwrap();
    stage
        .until(&format!(
            "select notification_preferences ->> 'policy' = 'sms_only' from profiles where phone_number = '{phone}'"
        ))
        .await;
}

#[tokio::test]
async fn a_voice_note_that_nobody_can_hear_is_tried_again_and_then_answered_without_its_words() {
    let stage = stage().await;
    // The model is busy once: the second time it listens.
    let phone = stage.stranger();
    let words = format!("Spoken to a busy model by {phone}");
    stage.openai().fail_with(Fault::Status429).on(&words);
    let note = stage.whatsapp().voice_note(&phone, &words);
    stage.whatsapp().deliver_all(vec![note.clone()]).await.unwrap();
    stage.whatsapp_to(&phone, 1).await;
    assert!(note_of(&stage, note["id"].as_str().unwrap()).await.starts_with("transcribed 2"));
    // A file that is none: the model says so once, and the person is answered.
    let phone = stage.stranger();
    let broken = stage.whatsapp().sound(&phone, b"no sound".to_vec());
    stage.whatsapp().deliver_all(vec![broken.clone()]).await.unwrap();
    stage.whatsapp_to(&phone, 1).await;
    assert!(note_of(&stage, broken["id"].as_str().unwrap()).await.starts_with("failed 1 nothing"));
    let questions = stage.openai().questions();
    assert!(questions.iter().any(|question| question.body.contains("[voice message that cannot be listened to here]")));
    // Meta no longer has it.
    let phone = stage.stranger();
    let gone = stage.whatsapp().inbound(&phone, "audio", json!({"id": "404", "mime_type": "audio/ogg"}));
    stage.whatsapp().deliver_all(vec![gone]).await.unwrap();
    stage.whatsapp_to(&phone, 1).await;
}

#[tokio::test]
async fn somebody_who_shares_no_number_is_answered_by_user_id() {
    let stage = stage().await;
    let id = format!("RW.{}", stage.stranger().trim_start_matches('+'));
    assert!(!stage.writes(&id, "I look for a house in Remera").await.is_empty());
    assert!(!stage.writes(&id, "for 250k a month").await.is_empty());
    let questions = stage.openai().questions();
    let asked = &questions.iter().rev().find(|question| question.body.contains("for 250k a month")).unwrap().body;
    assert!(asked.contains("I look for a house in Remera"), "what was said before is remembered");
    let of = format!("from profile_identities i join profiles p on p.id = i.profile_id where i.value = '{id}'");
    stage
        .until(&format!(
            "select count(*) = 2 and bool_and(l.status = 'delivered' and l.recipient = '{id}' and l.channel = 'whatsapp')
               from message_delivery_log l where l.direction = 'outbound' and l.profile_id = (select p.id {of})"
        ))
        .await;
    let row = stage.row(&format!("select p.phone_number, p.display_name {of}")).await;
    assert_eq!(Value::Object(row), json!({"phone_number": null, "display_name": "Uwase Aline"}));
}

#[tokio::test]
async fn stop_on_whatsapp_is_obeyed_there_and_confirmed_there() {
    let stage = stage().await;
    let phone = stage.stranger();
    expect!["EasyMO: You will get no more WhatsApp messages from us. Send START to resume."]
        .assert_eq(&stage.writes(&phone, "STOP").await);
    let posted = stage.whatsapp().deliver(&phone, "are you there?").await.unwrap();
    assert_eq!(posted.status, Some(200));
    stage
        .until(&format!(
            "select handled_as = 'opted_out' from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{phone}' and m.content = 'are you there?'"
        ))
        .await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 1);
    assert!(!stage.says(&phone, "are you there by SMS?").await.is_empty(), "STOP was for WhatsApp");
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.sms_to(&phone, 2).await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 1, "no summary there either");
    expect!["EasyMO: Uzongera kwakira ubutumwa bwacu bwa WhatsApp. Ohereza STOP igihe ushaka ko buhagarara."]
        .assert_eq(&stage.writes(&phone, "tangira").await);
    assert!(!stage.writes(&phone, "Is the house still free?").await.is_empty());
}

#[tokio::test]
async fn a_webhook_that_comes_again_and_again_is_one_turn() {
    let stage = stage().await;
    let phone = stage.stranger();
    let message = stage.whatsapp().inbound(&phone, "text", json!({"body": "I look for a house"}));
    for _ in 0..20 {
        let posted = stage.whatsapp().deliver_all(vec![message.clone(); 3]).await.unwrap();
        assert_eq!(posted.status, Some(200), "{}", posted.answer);
    }
    stage.delivered(&phone, "whatsapp delivered 1").await;
    // A message behind them all in the same queue: when it is answered, they are through. Of somebody else, for copies count as
    // written.
    stage.writes(&stage.stranger(), "are you there?").await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 1, "{}", stage.outbox(&phone));
    let inbound = format!(
        "conversation_messages m join profiles p on p.id = m.profile_id where p.phone_number = '{phone}' and m.direction = 'inbound'"
    );
    assert_eq!(stage.count(&inbound).await, 1);
}

/// Posts the event and waits until it is recorded.
async fn call_is(stage: &Stage, phone: &str, event: &str, seconds: Option<i64>, status: &str) {
    let sid = format!("wacid.{}", phone.trim_start_matches('+'));
    let posted = stage.whatsapp().call(phone, &sid, event, seconds).await.unwrap();
    assert_eq!(posted.status, Some(200), "{}", posted.answer);
    stage.until(&format!("select status = '{status}' from voice_calls where provider_call_id = '{sid}'")).await;
}

#[tokio::test]
async fn a_whatsapp_call_is_recorded_and_goes_on_by_text_told_once() {
    let stage = stage().await;
    let phone = stage.stranger();
    call_is(&stage, &phone, "connect", None, "in_progress").await;
    for _ in 0..3 {
        call_is(&stage, &phone, "terminate", Some(183), "completed").await;
    }
    let told = stage.whatsapp_to(&phone, 1).await;
    assert!(told.contains("We could not note what was said") && told.contains("Tell us here what you need"), "{told}");
    assert!(stage.writes(&phone, "I look for a house").await.len() > 3);
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1, whatsapp delivered 1").await;
    let missed = stage.stranger();
    call_is(&stage, &missed, "terminate", None, "failed").await;
    let told = stage.whatsapp_to(&missed, 1).await;
    assert!(told.contains("Sorry, we missed your call"), "{told}");
}

#[tokio::test]
async fn whoever_asks_for_one_channel_gets_the_next_summary_there() {
    let stage = stage().await;
    let phone = stage.stranger();
    let chosen = stage.writes(&phone, "Whatsapp gusa, murakoze").await;
    assert!(chosen.contains("kuri WhatsApp") && chosen.contains("BYOMBI"), "{chosen}");
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.whatsapp_to(&phone, 2).await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 0, "{}", stage.outbox(&phone));
    let chosen = stage.says(&phone, "SMS only").await;
    assert!(chosen.contains("by SMS only") && chosen.contains("BOTH"), "{chosen}");
    stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.sms_to(&phone, 2).await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 2, "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn an_answer_that_whatsapp_cannot_deliver_is_carried_by_sms() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.whatsapp().not_on_whatsapp(&phone, ihuza_sim::whatsapp::Refused::Later);
    let posted = stage.whatsapp().deliver(&phone, "I look for a house in Remera").await.unwrap();
    assert_eq!(posted.status, Some(200), "{}", posted.answer);
    let by_sms = stage.sms_to(&phone, 1).await;
    assert!(by_sms.contains("Remera"), "{by_sms}");
    stage.delivered(&phone, "sms delivered 1 fallback, whatsapp undeliverable 1").await;
}
