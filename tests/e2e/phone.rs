//! A phone call from its INVITE to the answer to the SMS that follows: a telephone over real UDP, the relay as a process,
//! the functions, and a model that hears and speaks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::Utc;
use ihuza_sim::control::Fault;
use ihuza_sim::openai::realtime::{Act, Rules, Script, Seen, Turn};
use ihuza_sim::phone::PhoneCall;
use ihuza_sim::speech::{self, Speech};
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::logs::Private;
use crate::stage::{SOON, Stage};

const APOLOGY: Speech = Speech {
    name: "apology.en",
    text: "We are sorry, we cannot talk right now. We will contact you soon. Goodbye.",
    alaw: include_bytes!("../../relay/announcements/apology.en.alaw"),
};

fn config() -> WorldConfig {
    WorldConfig { relay: true, ..WorldConfig::default() }
}

/// Whoever phones is alone: a cut connection and a script are everybody's. Calls last as long as people speak, so that
/// there are two worlds, in turns.
pub async fn stage() -> Stage {
    static PLAYS: AtomicUsize = AtomicUsize::new(0);
    let name = if PLAYS.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { "phone" } else { "phone-2" };
    let stage = Stage::alone(name, config).await;
    // Whatever a play that broke off left behind.
    stage.openai().realtime().set_rules(Rules::default());
    stage.openai().control().clear_faults();
    stage.gateway().clear_faults();
    stage
}

/// Something to be found.
async fn offers_a_house(stage: &Stage) {
    let insert = "insert into services (name, category, area, keywords, price)
                  select 'House with a garden', 'housing', 'Kimironko', 'house inzu', '300,000 RWF'
                   where not exists (select from services where name = 'House with a garden')";
    stage.execute(insert, &[]).await.unwrap();
}

/// Waits until so much of it was heard.
async fn hears(stage: &Stage, call: &PhoneCall, speech: &Speech, ms: u64) {
    let what = format!("{ms} ms of {speech:?}");
    let look = async || Ok(call.heard_of(speech).filter(|heard| *heard >= ms).map(drop));
    if let Err(trouble) = stage.wait_for(&what, SOON, look).await {
        let heard: Vec<_> =
            speech::ALL.iter().filter_map(|speech| Some((speech.name, call.heard_of(speech)?))).collect();
        panic!("{trouble:?}\nof {} ms there were {heard:?}\n{:#?}", call.heard_ms(), stage.relay().unwrap().logs());
    }
}

pub async fn hears_all(stage: &Stage, call: &PhoneCall, speech: &Speech) {
    hears(stage, call, speech, speech.ms()).await;
}

/// Waits until they hang up; their reason.
async fn is_ended(stage: &Stage, call: &PhoneCall) -> String {
    stage.wait_for("the other side to hang up", SOON, async || Ok(call.ended())).await.unwrap()
}

/// The row of a call; waits until it has ended.
pub async fn ended(stage: &Stage, call: &PhoneCall) -> crate::stage::Row {
    let rows = format!("from voice_calls where provider_call_id = '{}'", call.call_id);
    stage.until(&format!("select ended_at is not null {rows}")).await;
    stage.row(&format!("select * {rows}")).await
}

/// The session of the model that began last.
pub fn session(stage: &Stage) -> Seen {
    stage.openai().realtime().sessions().pop().unwrap()
}

/// Nothing that a person said, no number and no key stands in what the relay logged.
async fn relay_logs_are_clean(stage: &Stage) {
    let file = stage.ready_file();
    let secrets = file["secrets"].as_object().unwrap();
    let settings: BTreeMap<String, String> =
        secrets.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    let private = Private::of(&stage.database_url(), &settings).await;
    let lines = stage.relay().unwrap().logs();
    assert!(lines.iter().any(|line| line["event"] == "CALL_STARTED"), "{lines:?}");
    for line in lines {
        // The trunk's own id of a call is random here, and is what an operator searches by.
        assert_eq!(private.leak(&line.to_string(), line.as_object().unwrap()), None, "{line}");
    }
}

async fn one_summary(stage: &Stage, phone: &str, call: &Value) {
    stage.delivered(phone, "sms delivered 1").await;
    assert_eq!(stage.mtn().messages_to(phone).len(), 1);
    let call = call.as_str().unwrap();
    assert_eq!(stage.count(&format!("call_notifications where call_id = '{call}'")).await, 1);
}

#[tokio::test]
async fn a_call_is_answered_searched_for_interrupted_and_goes_on_by_sms() {
    let stage = stage().await;
    // Slow enough for the caller to interrupt while it is still being made.
    stage.openai().realtime().set_rules(Rules { speed: 3, ..Rules::default() });
    let phone = stage.stranger();
    stage.whatsapp().open_window_at(&phone, Utc::now() - chrono::TimeDelta::minutes(1));
    stage
        .execute(
            "insert into profiles (phone_number, has_whatsapp, has_whatsapp_source, has_whatsapp_at, locale, last_whatsapp_inbound_at)
             values ($1, true, 'inbound', now(), 'en', now() - interval '1 minute')",
            &[&phone],
        )
        .await
        .unwrap();
    offers_a_house(&stage).await;

    let call = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &call, &speech::AGENT_GREETING).await;
    call.speak(&speech::CALLER_QUESTION).await;
    hears_all(&stage, &call, &speech::AGENT_LOOKING).await;
    hears(&stage, &call, &speech::AGENT_OFFER, 1500).await;
    call.speak(&speech::CALLER_INTERRUPTS).await;
    hears_all(&stage, &call, &speech::AGENT_PARKING).await;
    call.hang_up().await.unwrap();

    // The agent fell silent in the middle of its offer, and the model knows to the millisecond where.
    let model = session(&stage);
    assert!(model.with_ephemeral_key, "the relay came with the key of the function");
    let errors = model.sent("error");
    assert!(errors.is_empty(), "the model refused something: {errors:?}");
    let [truncate] = model.received("conversation.item.truncate")[..] else { panic!("{:?}", model.received) };
    let heard_ms = call.heard_of(&speech::AGENT_OFFER).unwrap();
    let told_ms = truncate["audio_end_ms"].as_u64().unwrap();
    assert!(heard_ms < speech::AGENT_OFFER.ms() - 2000, "{heard_ms} ms are not cut off");
    assert!(heard_ms.abs_diff(told_ms) <= 60, "heard {heard_ms} ms, told {told_ms} ms");
    assert_eq!(model.sent("conversation.item.truncated").len(), 1);
    let cancelled = model.sent("response.done").into_iter().find(|done| done["response"]["status"] == "cancelled");
    assert_eq!(cancelled.unwrap()["response"]["status_details"]["reason"], "turn_detected");

    // Rows.
    let row = ended(&stage, &call).await;
    let id = row["id"].as_str().unwrap().to_owned();
    let of_call = |table: &str| format!("{table} where call_id = '{id}'");
    assert_eq!(
        (&row["status"], &row["end_cause"], &row["from_number"], &row["trunk"], &row["locale"]),
        (&json!("completed"), &json!("caller_hangup"), &json!(phone), &json!("mtn"), &json!("en"))
    );
    assert!(row["duration_seconds"].as_i64().unwrap() >= 15, "{row:?}");
    let said = stage
        .rows(&format!("select role, text, language, interrupted from {} order by seq", of_call("transcripts")))
        .await
        .unwrap();
    let turns: Vec<(&str, &str)> =
        said.iter().map(|turn| (turn["role"].as_str().unwrap(), turn["text"].as_str().unwrap())).collect();
    let offered = turns[3].1;
    assert_eq!(
        turns,
        [
            ("assistant", speech::AGENT_GREETING.text),
            ("user", speech::CALLER_QUESTION.text),
            ("assistant", speech::AGENT_LOOKING.text),
            ("assistant", offered),
            ("user", speech::CALLER_INTERRUPTS.text),
            ("assistant", speech::AGENT_PARKING.text),
        ]
    );
    assert!(speech::AGENT_OFFER.text.starts_with(offered) && !offered.is_empty(), "{offered:?}");
    assert!(offered.len() < speech::AGENT_OFFER.text.len() * 3 / 4, "what was not heard is no turn: {offered:?}");
    let interrupted: Vec<bool> = said.iter().map(|turn| turn["interrupted"] == true).collect();
    assert_eq!(interrupted, [false, false, false, true, false, false]);

    let events = stage
        .row(&format!(
            "select count(*) as n, max(seq) as last, array_agg(type) as types from {}",
            of_call("voice_events")
        ))
        .await;
    assert_eq!(events["n"], events["last"], "events without a gap");
    for kind in ["opened", "answered", "transcript", "tool", "response.done", "ended"] {
        assert!(events["types"].as_array().unwrap().contains(&json!(kind)), "{events:?}");
    }
    let tool =
        stage.row(&format!("select name, arguments, result, finished_at from {}", of_call("mcp_tool_calls"))).await;
    assert_eq!((&tool["name"], &tool["arguments"]["area"]), (&json!("search_services"), &json!("Kimironko")));
    assert_eq!(tool["result"]["result"]["services"][0]["name"], "House with a garden", "{tool:?}");
    let [output] =
        model.received.iter().filter(|event| event["item"]["type"] == "function_call_output").collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", model.received)
    };
    assert!(output["item"]["output"].as_str().unwrap().contains("House with a garden"), "{output}");

    let done = model.sent("response.done");
    let count = |path: &str| -> u64 { done.iter().map(|done| done.pointer(path).unwrap().as_u64().unwrap()).sum() };
    for (field, path) in [
        ("input_audio", "/response/usage/input_token_details/audio_tokens"),
        ("input_text_cached", "/response/usage/input_token_details/cached_tokens_details/text_tokens"),
        ("output_text", "/response/usage/output_token_details/text_tokens"),
        ("output_audio", "/response/usage/output_token_details/audio_tokens"),
    ] {
        assert_eq!(row["usage"][field], count(path), "{field}: {row:?}");
    }
    assert!(row["cost"].as_f64().unwrap() > 0.001 && row["cost_currency"] == "USD", "{row:?}");
    let kept = stage.row(&format!("select model, status, audio_format from {}", of_call("openai_sessions"))).await;
    assert_eq!(
        Value::Object(kept),
        json!({"model": "gpt-realtime-2.1-mini", "status": "ended", "audio_format": "pcma"})
    );

    // The summary on both channels, and the answer to it in the same conversation.
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
    let summary = stage.row(&format!("select headline, source from {}", of_call("call_summaries"))).await;
    assert_eq!(Value::Object(summary), json!({"headline": "Looking for: house in Kimironko", "source": "model"}));
    assert!(stage.mtn().messages_to(&phone)[0].text.contains("300k RWF"), "{}", stage.outbox(&phone));
    let answer = stage.says(&phone, "Change budget to 250k").await;
    assert!(answer.contains("250k") && answer.contains("300k"), "the answer knows the call: {answer}");
    stage.delivered(&phone, "sms delivered 1, sms delivered 1, whatsapp delivered 1").await;

    one_id_leads_from_the_invite_to_the_answer(&stage, &call, &id).await;
    let relay = &stage.ready_file()["relay"];
    assert_eq!(relay["sip"], json!(stage.relay().unwrap().sip), "others may phone, too: {relay}");
    relay_logs_are_clean(&stage).await;
}

/// The relay draws an id at the INVITE. Everything about the call bears it, up to the turn that answers the reply: that one has
/// the id of its own SMS besides, since MTN carries none of ours.
async fn one_id_leads_from_the_invite_to_the_answer(stage: &Stage, call: &PhoneCall, call_id: &str) {
    let started = stage.relay().unwrap().logs();
    let started =
        started.iter().find(|line| line["event"] == "CALL_STARTED" && line["call_sid"] == json!(call.call_id));
    let id = started.unwrap()["correlation_id"].as_str().unwrap();
    for (rows, least) in [
        ("voice_events where", 8),
        ("mcp_tool_calls where", 1),
        ("call_notifications where", 1),
        ("message_delivery_log where purpose = 'call_summary' and", 2),
    ] {
        let of_call = format!("{rows} call_id = '{call_id}'");
        assert_eq!(stage.count(&format!("{of_call} and correlation_id is distinct from '{id}'")).await, 0, "{rows}");
        assert!(stage.count(&of_call).await >= least, "{rows}");
    }
    assert_eq!(stage.value(&format!("select correlation_id from voice_calls where id = '{call_id}'")).await, id);
    let of_summary = format!("message_delivery_attempts where correlation_id = '{id}'");
    assert_eq!(stage.count(&of_summary).await, 2, "each sending of the summary");
    let lines: Vec<String> = stage.story(id).iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
    for event in [
        "VOICE_CALL_OPENED",
        "VOICE_EVENTS_STORED",
        "VOICE_CALL_ENDED",
        "SUMMARY_CREATED",
        "SMS_SEND_SUCCESS",
        "POST_CALL_NOTIFY_DONE",
    ] {
        assert!(lines.contains(&event.to_owned()), "{event} is not told of: {lines:?}");
    }
    let turn = stage
        .row(&format!(
            "select asked.content as asked, answered.content as answered, t.finished_at is not null as finished,
                    asked.call_id = '{call_id}' and answered.call_id = '{call_id}' as of_the_call
               from conversation_turns t
               join conversation_messages asked on asked.turn_id = t.id and asked.role = 'user'
               join conversation_messages answered on answered.turn_id = t.id and answered.role = 'assistant'
              where t.call_correlation_id = '{id}'"
        ))
        .await;
    assert_eq!((&turn["asked"], &turn["finished"]), (&json!("Change budget to 250k"), &json!(true)), "{turn:?}");
    assert_eq!(turn["of_the_call"], true, "{turn:?}");
    assert!(turn["answered"].as_str().unwrap().contains("250k"), "{turn:?}");
    // The line is written after the row.
    let look = async || {
        let lines = stage.logs()?;
        let done = |line: &Value| line["event"] == "SMS_TURN_DONE" && line["call_correlation_id"] == json!(id);
        Ok(lines.iter().any(|line| done(&line.json())).then_some(()))
    };
    stage.wait_for("the line of the turn with the id of the call", SOON, look).await.unwrap();
}

#[tokio::test]
async fn who_asks_for_a_person_is_put_through_to_the_clients_number() {
    let stage = stage().await;
    let phone = stage.stranger();
    let set = "update clients set settings = jsonb_strip_nulls(settings || $1) where is_default";
    stage.execute(set, &[&json!({"handoff_numbers": {"sales": "+250788111222"}})]).await.unwrap();
    let hand_over = Act::Call {
        name: "transfer_to_human".to_owned(),
        arguments: json!({"reason": "wants to speak to somebody", "department": "sales", "urgent": "no"}),
        saying: Some(speech::AGENT_LOOKING),
    };
    let turn = Turn::new(speech::CALLER_QUESTION.text, vec![hand_over]);
    stage.openai().realtime().script(Script { greeting: speech::AGENT_GREETING, turns: vec![turn] });

    let call = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &call, &speech::AGENT_GREETING).await;
    call.speak(&speech::CALLER_QUESTION).await;
    let look = async || Ok(Some(call.referred()).filter(|to| !to.is_empty()));
    let referred = stage.wait_for("a REFER at the other side", SOON, look).await.unwrap();
    assert_eq!(referred.len(), 1, "{referred:?}");
    assert!(referred[0].contains("+250788111222"), "{referred:?}");
    // The agent had said so before.
    hears_all(&stage, &call, &speech::AGENT_LOOKING).await;
    is_ended(&stage, &call).await;

    let row = ended(&stage, &call).await;
    assert_eq!(row["end_cause"], "transferred", "{row:?}");
    let of_call = format!("call_id = '{}'", row["id"].as_str().unwrap());
    stage.until(&format!("select state = 'closed' from handoffs where {of_call}")).await;
    let waits = stage.row(&format!("select department, transfer_to, channel from handoffs where {of_call}")).await;
    assert_eq!(
        Value::Object(waits),
        json!({"department": "sales", "transfer_to": "+250788111222", "channel": "voice"}),
        "and nobody has to call back"
    );
    one_summary(&stage, &phone, &row["id"]).await;
    relay_logs_are_clean(&stage).await;
    stage.execute(set, &[&json!({"handoff_numbers": null})]).await.unwrap();
}

#[tokio::test]
async fn a_model_that_is_gone_for_good_ends_the_call_with_an_apology_and_one_summary() {
    let stage = stage().await;
    let phone = stage.stranger();
    let call = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &call, &speech::AGENT_GREETING).await;
    // Whatever is spoken first is written down as the script's first turn.
    call.speak(&speech::CALLER_INTERRUPTS).await;
    hears(&stage, &call, &speech::AGENT_LOOKING, 200).await;
    stage.openai().fail_with(Fault::Status503).on("handshake").always();
    stage.openai().realtime().cut();
    hears_all(&stage, &call, &APOLOGY).await;
    assert_eq!(is_ended(&stage, &call).await, "Q.850;cause=41");
    stage.openai().control().clear_faults();

    let row = ended(&stage, &call).await;
    assert_eq!((&row["end_cause"], &row["status"]), (&json!("model_unavailable"), &json!("completed")));
    let said = stage
        .rows(&format!(
            "select role, text from transcripts where call_id = '{}' order by seq",
            row["id"].as_str().unwrap()
        ))
        .await
        .unwrap();
    assert_eq!(said[1]["text"], speech::CALLER_QUESTION.text, "what was said is kept: {said:?}");
    one_summary(&stage, &phone, &row["id"]).await;
    assert!(stage.mtn().messages_to(&phone)[0].text.contains("Kimironko"), "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn a_call_is_answered_while_nobody_keeps_records_and_is_told_of_later() {
    let stage = stage().await;
    let phone = stage.stranger();
    for rpc in ["open_voice_call", "record_voice_events", "end_voice_call"] {
        stage.gateway().fail_with(Fault::Status503).on(rpc).always();
    }
    let call = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &call, &APOLOGY).await;
    assert_eq!(is_ended(&stage, &call).await, "Q.850;cause=41");
    // Told in vain once more after the end.
    let posts = || stage.gateway().requests().iter().filter(|post| post.path.ends_with("/record_voice_events")).count();
    let so_far = posts();
    stage.wait_for("another attempt", SOON, async || Ok((posts() > so_far).then_some(()))).await.unwrap();
    assert_eq!(stage.count(&format!("voice_calls where provider_call_id = '{}'", call.call_id)).await, 0);
    let well_again = Utc::now();
    stage.gateway().clear_faults();

    let row = ended(&stage, &call).await;
    assert_eq!((&row["end_cause"], &row["from_number"]), (&json!("model_unavailable"), &json!(phone)));
    let ended_at: chrono::DateTime<Utc> = row["ended_at"].as_str().unwrap().parse().unwrap();
    assert!(ended_at < well_again, "it ended when it ended, not when it was told");
    let events = stage
        .rows(&format!(
            "select seq, type from voice_events where call_id = '{}' order by seq",
            row["id"].as_str().unwrap()
        ))
        .await
        .unwrap();
    let kinds: Vec<(u64, &str)> =
        events.iter().map(|event| (event["seq"].as_u64().unwrap(), event["type"].as_str().unwrap())).collect();
    assert_eq!(kinds, [(1, "opened"), (2, "answered"), (3, "ended")]);
    one_summary(&stage, &phone, &row["id"]).await;
    let journal = stage.log_folder().join("relay-journal");
    let owed = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    stage.wait_for("an empty journal", SOON, async || Ok((owed(&journal) == 0).then_some(()))).await.unwrap();
}

#[tokio::test]
async fn a_session_that_reaches_its_limit_is_replaced_and_the_conversation_goes_on() {
    let stage = stage().await;
    offers_a_house(&stage).await;
    let realtime = stage.openai().realtime();
    let before = realtime.sessions().len();
    realtime.set_rules(Rules { session_limit: Duration::from_secs(18), ..Rules::default() });
    let phone = stage.stranger();
    let call = stage.call_from(&phone).await.unwrap();
    realtime.set_rules(Rules::default());
    hears_all(&stage, &call, &speech::AGENT_GREETING).await;
    call.speak(&speech::CALLER_INTERRUPTS).await;
    hears_all(&stage, &call, &speech::AGENT_LOOKING).await;
    hears(&stage, &call, &speech::AGENT_OFFER, 500).await;
    // By the time that a session is an hour old its key has long expired.
    realtime.expire(&realtime.minted().pop().unwrap());
    let look = async || {
        let sessions = realtime.sessions();
        let second = sessions.get(before + 1);
        Ok(second.filter(|second| !second.sent("session.updated").is_empty()).map(drop))
    };
    stage.wait_for("a second session", SOON, look).await.unwrap();
    let sessions = realtime.sessions();
    assert_eq!(sessions[before].sent("error")[0]["error"]["code"], "session_expired");
    call.speak(&speech::CALLER_INTERRUPTS).await;
    hears_all(&stage, &call, &speech::AGENT_PARKING).await;
    let history = session(&stage);
    let history = history.received("conversation.item.create");
    for text in [speech::AGENT_GREETING.text, speech::CALLER_QUESTION.text] {
        assert!(history.iter().any(|event| event["item"]["content"][0]["text"] == text), "{history:?}");
    }
    call.hang_up().await.unwrap();
    let row = ended(&stage, &call).await;
    assert_eq!(row["end_cause"], "caller_hangup");
    let id = row["id"].as_str().unwrap();
    assert_eq!(stage.count(&format!("openai_sessions where call_id = '{id}' and status = 'ended'")).await, 2);
    one_summary(&stage, &phone, &row["id"]).await;
}

#[tokio::test]
async fn a_model_that_accepts_and_never_answers_is_called_again() {
    let stage = stage().await;
    stage.openai().fail_with(Fault::TimeoutBefore).on("session.update");
    let phone = stage.stranger();
    let call = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &call, &speech::AGENT_GREETING).await;
    call.hang_up().await.unwrap();
    assert_eq!(ended(&stage, &call).await["end_cause"], "caller_hangup");
}

#[tokio::test]
async fn a_connection_to_the_model_may_be_cut_at_every_stage() {
    let stage = stage().await;
    for (fault, at) in [
        (Fault::CutBefore, "handshake"),
        (Fault::CutBefore, "session.update"),
        (Fault::CutAfter, "session.update"),
        (Fault::CutBefore, "response.create"),
        (Fault::CutAfter, "response.create"),
        (Fault::CutAfter, "input_audio_buffer.append"),
    ] {
        let realtime = stage.openai().realtime();
        let before = realtime.sessions().len();
        stage.openai().fail_with(fault).on(at);
        let phone = stage.stranger();
        let call = stage.call_from(&phone).await.unwrap();
        // The first connection was cut; another one stands.
        let least = before + if at == "handshake" { 1 } else { 2 };
        let look = async || {
            let sessions = realtime.sessions();
            let stands = sessions.last().is_some_and(|last| !last.ended && !last.sent("session.updated").is_empty());
            Ok((sessions.len() >= least && stands).then_some(()))
        };
        stage.wait_for(format!("another connection after {fault} at {at}"), SOON, look).await.unwrap();
        call.speak(&speech::CALLER_INTERRUPTS).await;
        hears_all(&stage, &call, &speech::AGENT_LOOKING).await;
        call.hang_up().await.unwrap();
        let row = ended(&stage, &call).await;
        assert_eq!(row["end_cause"], "caller_hangup", "{fault} at {at}");
        let turns = format!("transcripts where role = 'user' and call_id = '{}'", row["id"].as_str().unwrap());
        assert_eq!(stage.count(&turns).await, 1, "{fault} at {at}");
        one_summary(&stage, &phone, &row["id"]).await;
    }
}

#[tokio::test]
async fn a_model_that_is_late_or_asked_too_often_is_waited_for() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.openai().fail_with(Fault::Slow).on("response.create").delay(Duration::from_secs(3));
    let call = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &call, &speech::AGENT_GREETING).await;
    call.hang_up().await.unwrap();
    assert_eq!(ended(&stage, &call).await["end_cause"], "caller_hangup");

    stage.openai().fail_with(Fault::Status429).on("response.create");
    let call = stage.call_from(&phone).await.unwrap();
    let look = async || {
        let failed = session(&stage).sent("response.done").iter().any(|done| done["response"]["status"] == "failed");
        Ok(failed.then_some(()))
    };
    stage.wait_for("a response that is refused", SOON, look).await.unwrap();
    call.speak(&speech::CALLER_INTERRUPTS).await;
    hears_all(&stage, &call, &speech::AGENT_LOOKING).await;
    call.hang_up().await.unwrap();
    assert_eq!(ended(&stage, &call).await["end_cause"], "caller_hangup");
}

#[tokio::test]
async fn what_was_said_before_a_relay_was_killed_is_kept_and_summarised_once() {
    let stage = stage().await;
    offers_a_house(&stage).await;
    let phone = stage.stranger();
    let call = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &call, &speech::AGENT_GREETING).await;
    call.speak(&speech::CALLER_INTERRUPTS).await;
    hears(&stage, &call, &speech::AGENT_OFFER, 500).await;
    stage.relay().unwrap().crash().await.unwrap();

    let row = ended(&stage, &call).await;
    assert_eq!((&row["end_cause"], &row["status"]), (&json!("relay_restarted"), &json!("completed")));
    let id = row["id"].as_str().unwrap();
    let said = stage.rows(&format!("select text from transcripts where call_id = '{id}' order by seq")).await.unwrap();
    let said: Vec<&str> = said.iter().map(|turn| turn["text"].as_str().unwrap()).collect();
    assert_eq!(said, [speech::AGENT_GREETING.text, speech::CALLER_QUESTION.text, speech::AGENT_LOOKING.text]);
    let events =
        stage.row(&format!("select count(*) as n, max(seq) as last from voice_events where call_id = '{id}'")).await;
    assert_eq!(events["n"], events["last"], "events without a gap");
    one_summary(&stage, &phone, &row["id"]).await;
    // And the next one is answered.
    let next = stage.call_from(&phone).await.unwrap();
    hears_all(&stage, &next, &speech::AGENT_GREETING).await;
    next.hang_up().await.unwrap();
    assert_eq!(ended(&stage, &next).await["end_cause"], "caller_hangup");
}
