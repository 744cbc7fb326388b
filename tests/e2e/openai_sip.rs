//! A call over OpenAI's own SIP, without a relay: decided by webhook, observed over the sideband, ended, and told once.

use std::sync::LazyLock;

use ihuza_sim::callback::Posted;
use ihuza_sim::control::Fault;
use ihuza_sim::openai::realtime::{Act, Script, Turn};
use ihuza_sim::openai::sip::{self, Stage as Line};
use ihuza_sim::speech;
use ihuza_sim::world::{VOICE_NUMBER, WorldConfig};
use serde_json::{Value, json};

use crate::stage::{SOON, Stage};

const FUNCTION: &str = "openai-sip-webhook";

fn config() -> WorldConfig {
    WorldConfig::default().var("OPENAI_SIP_TRANSFER_PREFIXES", "+25078, +25073")
}

/// The calls of a world follow one script after the other: each play has the world for itself.
async fn stage() -> Stage {
    let stage = Stage::alone("openai-sip", config).await;
    let number = "insert into client_numbers (client_id, channel, address) select id, 'voice', $1 from clients where is_default on conflict do nothing";
    stage.execute(number, &[&VOICE_NUMBER]).await.unwrap();
    stage
}

/// A telephone that rings at the vendor's.
struct Ringing<'a> {
    stage: &'a Stage,
    id: String,
    phone: String,
}

impl<'a> Ringing<'a> {
    fn new(stage: &'a Stage) -> Self {
        let phone = stage.stranger();
        let id = stage.openai().calls().ring(&phone, VOICE_NUMBER);
        Self { stage, id, phone }
    }

    async fn announced(&self) -> Posted {
        self.stage.openai().calls().announce(&self.id).await.unwrap()
    }

    /// Told of, and taken.
    #[track_caller]
    fn accepted(&self) -> impl Future<Output = Value> {
        let from = std::panic::Location::caller();
        async move {
            let posted = self.announced().await;
            let answer = posted.json();
            assert_eq!((posted.status, &answer["decision"]), (Some(200), &json!("accepted")), "{from}: {answer}");
            answer
        }
    }

    fn known(&self) -> sip::Known {
        self.stage.openai().calls().known(&self.id).unwrap()
    }

    /// Its row.
    fn row(&self) -> String {
        format!("(select id from voice_calls where origin = 'openai_sip' and provider_call_id = '{}')", self.id)
    }

    /// Waits until this was said, by the caller or by the agent.
    async fn hears(&self, role: &str, words: &str) {
        let (row, words) = (self.row(), words.replace('\'', "''"));
        let said = format!(
            "select count(*) > 0 from transcripts where call_id = {row} and role = '{role}' and text = '{words}'"
        );
        self.stage.until(&said).await;
    }

    /// How often the call was observed anew.
    fn connections(&self) -> usize {
        self.stage.openai().realtime().sessions().iter().filter(|seen| seen.id == self.id).count()
    }

    async fn ended(&self, cause: &str) {
        let over = format!("select end_cause = '{cause}' from voice_calls where id = {}", self.row());
        self.stage.until(&over).await;
    }

    /// The record has no gap, and its caller got one message.
    async fn told_once(&self) {
        let stage = self.stage;
        stage.delivered(&self.phone, "sms delivered 1").await;
        assert_eq!(stage.mtn().messages_to(&self.phone).len(), 1, "one summary");
        let row = self.row();
        assert_eq!(stage.count(&format!("call_notifications where call_id = {row}")).await, 1);
        assert_eq!(stage.count(&format!("voice_calls where provider_call_id = '{}'", self.id)).await, 1);
        let whole = format!("select max(seq) = count(*) and min(seq) = 1 from voice_events where call_id = {row}");
        assert_eq!(stage.value(&whole).await, true, "numbered without gaps");
    }

    async fn events(&self) -> Vec<String> {
        let sql = format!("select type from voice_events where call_id = {} order by seq", self.row());
        let rows = self.stage.rows(&sql);
        rows.await.unwrap().iter().map(|row| row["type"].as_str().unwrap().to_owned()).collect()
    }
}

fn talk(turns: Vec<Turn>) -> Script {
    Script { greeting: speech::AGENT_GREETING, turns }
}

fn asks(acts: Vec<Act>) -> Turn {
    Turn::new(speech::CALLER_QUESTION.text, acts)
}

fn calls(name: &str, arguments: Value) -> Act {
    Act::Call { name: name.to_owned(), arguments, saying: None }
}

#[tokio::test]
async fn a_call_is_taken_spoken_and_ended_by_the_agent_and_its_caller_gets_one_summary() {
    let stage = stage().await;
    stage
        .execute(
            "insert into services (name, category, area, keywords, price) values ('House in Kimironko', 'housing', 'Kimironko', 'house', '300,000 RWF')",
            &[],
        )
        .await
        .unwrap();
    let search = calls("search_services", json!({"query": "house", "area": "Kimironko"}));
    let found =
        Act::SayIfTold { told: "Kimironko".to_owned(), then: speech::AGENT_PARKING, otherwise: speech::AGENT_NOTHING };
    let thanks =
        Turn::new(speech::CALLER_THANKS.text, vec![calls("end_call", json!({})), Act::Say(speech::AGENT_LOOKING)]);
    stage.openai().realtime().script(talk(vec![asks(vec![search, found]), thanks]));

    let call = Ringing::new(&stage);
    // Told twice at a time, and once more: one decision.
    let (one, other) = tokio::join!(call.accepted(), call.accepted());
    assert_eq!((&one, &call.accepted().await), (&other, &other));
    assert_eq!((call.known().accepts, call.known().stage), (1, Line::Accepted));
    let session = call.known().session;
    assert_eq!((&session["model"], &session["type"]), (&json!("gpt-realtime-2.1-mini"), &json!("realtime")));
    assert!(session["audio"]["input"].get("format").is_none(), "the line agrees on one itself: {session}");
    assert!(session["instructions"].as_str().unwrap().contains("EasyMO"), "{session}");
    let tools: Vec<&str> =
        session["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert!(tools.contains(&"search_services") && tools.contains(&"end_call"), "{tools:?}");

    call.hears("assistant", speech::AGENT_GREETING.text).await;
    stage.openai().calls().says(&call.id, speech::CALLER_QUESTION);
    call.hears("user", speech::CALLER_QUESTION.text).await;
    call.hears("assistant", speech::AGENT_PARKING.text).await;
    stage.openai().calls().says(&call.id, speech::CALLER_THANKS);
    call.ended("agent_hangup").await;
    assert!(call.known().hung_up);
    call.told_once().await;

    let row = call.row();
    let facts = stage
        .row(&format!(
            "select trunk, status, from_number, to_number, answered_at is not null as answered, cost > 0 as costs, session_id is not null as conversation
               from voice_calls where id = {row}"
        ))
        .await;
    assert_eq!(
        json!(facts),
        json!({"trunk": "openai_sip", "status": "completed", "from_number": call.phone, "to_number": VOICE_NUMBER,
               "answered": true, "costs": true, "conversation": true})
    );
    let said = stage
        .rows(&format!("select role, interrupted from transcripts where call_id = {row} order by seq"))
        .await
        .unwrap();
    let roles: Vec<&str> = said.iter().map(|row| row["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["assistant", "user", "assistant", "user", "assistant"]);
    assert!(said.iter().all(|row| row["interrupted"] == false), "{said:?}");
    let events = call.events().await;
    assert_eq!(events[..3], ["opened", "answered", "session.created"]);
    assert!(events.iter().any(|kind| kind == "tool") && events.last().unwrap() == "ended", "{events:?}");
    assert_eq!(stage.count(&format!("mcp_tool_calls where call_id = {row} and name = 'search_services'")).await, 1);
    let session = format!(
        "select provider_session_id like 'sess_%' and status = 'ended' from openai_sessions where call_id = {row}"
    );
    assert_eq!(stage.value(&session).await, true);
    let thread = stage.value(&format!("select correlation_id from message_delivery_log where call_id = {row}")).await;
    assert_eq!(thread, call.id, "one id from the webhook to the message");

    // Told of once more, long after: the same answer, and nothing else.
    assert_eq!(call.accepted().await, one);
    assert_eq!((call.known().accepts, stage.mtn().messages_to(&call.phone).len()), (1, 1));
}

#[tokio::test]
async fn who_did_not_sign_now_is_told_nothing_and_no_call_is_taken() {
    let stage = stage().await;
    let call = Ringing::new(&stage);
    let calls = stage.openai().calls();
    let now = chrono::Utc::now().timestamp();
    let mut forged = calls.webhook(&call.id, now).unwrap();
    forged.body = forged.body.replace("realtime", "Realtime");
    let mut bare = calls.webhook(&call.id, now).unwrap();
    bare.headers.retain(|(name, _)| *name != "webhook-signature");
    let stranger = "whsec_c3RyYW5nZXI=";
    let body = calls.webhook(&call.id, now).unwrap().body;
    let headers = sip::signed(stranger, "wh_1", now, body.as_bytes()).unwrap();
    let other = ihuza_sim::callback::Callback { headers, ..calls.webhook(&call.id, now).unwrap() };
    let other = ihuza_sim::callback::Callback { body, ..other };
    for callback in
        [forged, bare, other, calls.webhook(&call.id, now - 400).unwrap(), calls.webhook(&call.id, now + 400).unwrap()]
    {
        let posted = calls.post(callback).await.unwrap();
        assert_eq!(posted.status, Some(401), "{}", posted.answer);
    }
    assert_eq!(call.known().stage, Line::Ringing);
    assert_eq!(stage.count(&format!("voice_calls where provider_call_id = '{}'", call.id)).await, 0);

    // Signed, and not for us; signed, and nonsense.
    let secret = stage.secret("OPENAI_WEBHOOK_SECRET").unwrap();
    let post = async |body: Value| {
        let body = body.to_string();
        let headers = sip::signed(secret, "wh_2", now, body.as_bytes()).unwrap();
        calls.post(ihuza_sim::callback::Callback { headers, body, ..calls.webhook("x", now).unwrap() }).await.unwrap()
    };
    let twin = post(json!({"type": "live.transport.incoming", "data": {"session_id": "live_1", "type": "sip"}})).await;
    assert_eq!((twin.status, &twin.json()["decision"]), (Some(200), &json!("ignored")));
    let nameless = post(json!({"type": "realtime.call.incoming", "data": {"call_id": "../x"}})).await;
    assert_eq!(nameless.status, Some(422), "{}", nameless.answer);
}

#[tokio::test]
async fn a_call_that_is_not_taken_hears_why() {
    let stage = stage().await;
    let calls = stage.openai().calls();
    let wrong = calls.ring(&stage.stranger(), "+250788999999");
    let answer = calls.announce(&wrong).await.unwrap();
    assert_eq!(
        (answer.status, answer.json()),
        (Some(200), json!({"decision": "rejected", "reason": "unknown_number", "sip_status": 404}))
    );
    assert_eq!(calls.known(&wrong).unwrap().stage, Line::Rejected(404));
    assert_eq!(calls.announce(&wrong).await.unwrap().json(), answer.json(), "told again, the same");
    assert_eq!(stage.count(&format!("voice_calls where provider_call_id = '{wrong}'")).await, 0);

    let down = Ringing::new(&stage);
    stage
        .execute("insert into provider_health (provider, state, open_until) values ('openai', 'open', now() + interval '1 hour') on conflict (provider) do update set state = 'open', open_until = excluded.open_until", &[])
        .await
        .unwrap();
    assert_eq!(down.announced().await.json()["reason"], "model_down");
    stage
        .execute("update provider_health set state = 'closed', open_until = null where provider = 'openai'", &[])
        .await
        .unwrap();
    assert_eq!(down.known().stage, Line::Rejected(503));
    let row =
        stage.row(&format!("select status, end_cause, end_reason from voice_calls where id = {}", down.row())).await;
    assert_eq!(json!(row), json!({"status": "failed", "end_cause": "rejected", "end_reason": "model_down"}));

    // Without the database no call is taken; what happened is recorded when it is back.
    let unheard = Ringing::new(&stage);
    stage.gateway().fail_with(Fault::Status503).on("admit_openai_call").times(3);
    assert_eq!(unheard.announced().await.json()["reason"], "not_ready");
    assert_eq!(unheard.known().stage, Line::Rejected(503));
    stage.until(&format!("select end_reason = 'not_ready' from voice_calls where id = {}", unheard.row())).await;
    assert_eq!(stage.mtn().messages_to(&unheard.phone).len(), 0);

    // Whoever has hung up meanwhile was missed.
    let gone = Ringing::new(&stage);
    calls.hang_up(&gone.id);
    assert_eq!(gone.announced().await.json(), json!({"decision": "missed", "reason": "gone"}));
    gone.ended("canceled").await;
}

#[tokio::test]
async fn an_acceptance_whose_answer_is_lost_is_one_acceptance() {
    let stage = stage().await;
    stage.openai().realtime().script(talk(vec![]));
    let call = Ringing::new(&stage);
    stage.openai().fail_with(Fault::CutAfter).on("/accept").times(1);
    call.accepted().await;
    assert_eq!(call.known().accepts, 1);
    call.hears("assistant", speech::AGENT_GREETING.text).await;
    stage.openai().calls().hang_up(&call.id);
    call.ended("caller_hangup").await;
    call.told_once().await;
}

#[tokio::test]
async fn a_socket_that_breaks_is_made_anew_and_the_call_goes_on() {
    let stage = stage().await;
    stage.openai().realtime().script(talk(vec![asks(vec![Act::Say(speech::AGENT_PARKING)])]));
    let call = Ringing::new(&stage);
    call.accepted().await;
    call.hears("assistant", speech::AGENT_GREETING.text).await;
    // The first ones to come after it are refused.
    stage.openai().fail_with(Fault::Status503).on("handshake").times(2);
    stage.openai().calls().cut();
    stage.wait_for("a new socket", SOON, async || Ok((call.connections() > 1).then_some(()))).await.unwrap();
    stage.openai().calls().says(&call.id, speech::CALLER_QUESTION);
    call.hears("assistant", speech::AGENT_PARKING.text).await;
    stage.openai().calls().hang_up(&call.id);
    call.ended("caller_hangup").await;
    call.told_once().await;
    let greetings = format!("transcripts where call_id = {} and text = '{}'", call.row(), speech::AGENT_GREETING.text);
    assert_eq!(stage.count(&greetings).await, 1, "nobody is greeted twice");
    assert_eq!(call.events().await.iter().filter(|kind| *kind == "session.created").count(), 1);
}

#[tokio::test]
async fn a_call_that_cannot_be_observed_any_more_is_hung_up() {
    let stage = stage().await;
    stage.openai().realtime().script(talk(vec![]));
    let call = Ringing::new(&stage);
    call.accepted().await;
    call.hears("assistant", speech::AGENT_GREETING.text).await;
    stage.openai().fail_with(Fault::Status503).on("handshake").always();
    stage.openai().calls().cut();
    // It is tried for about sixteen seconds.
    let over = format!(
        "select end_cause = 'model_unavailable' and end_reason = 'sideband_lost' from voice_calls where id = {}",
        call.row()
    );
    stage.wait_for_sql(&format!("select coalesce(({over}), false)"), SOON * 4).await.unwrap();
    assert!(call.known().hung_up, "nobody could end it later");
    call.told_once().await;
}

#[tokio::test]
async fn a_call_that_lasts_too_long_is_ended() {
    let short = || config().var("OPENAI_SIP_MAX_SECONDS", 2);
    let stage = Stage::alone("openai-sip-short", short).await;
    let call = Ringing::new(&stage);
    call.accepted().await;
    call.ended("max_duration").await;
    assert!(call.known().hung_up);
    call.told_once().await;
}

#[tokio::test]
async fn an_object_that_is_killed_wakes_and_goes_on_with_its_call() {
    let stage = stage().await;
    stage.openai().realtime().script(talk(vec![asks(vec![Act::Say(speech::AGENT_PARKING)])]));
    let call = Ringing::new(&stage);
    let answer = call.accepted().await;
    call.hears("assistant", speech::AGENT_GREETING.text).await;
    stage.edge().unwrap().kill().await.unwrap();
    let before = call.connections();
    stage.wait_for("a new socket", SOON, async || Ok((call.connections() > before).then_some(()))).await.unwrap();
    assert_eq!(call.accepted().await, answer, "it is remembered what was decided");
    assert_eq!(call.known().accepts, 1);
    stage.openai().calls().says(&call.id, speech::CALLER_QUESTION);
    call.hears("assistant", speech::AGENT_PARKING.text).await;
    // What it could not bring to the database when it is killed it brings later.
    stage.gateway().fail_with(Fault::Status503).on("end_voice_call").times(3);
    stage.openai().calls().hang_up(&call.id);
    stage
        .wait_for("the end is tried", SOON, async || Ok((stage.gateway().calls("end_voice_call") > 0).then_some(())))
        .await
        .unwrap();
    stage.edge().unwrap().kill().await.unwrap();
    call.ended("caller_hangup").await;
    call.told_once().await;
}

#[tokio::test]
async fn a_caller_who_interrupts_and_types_is_followed() {
    let stage = stage().await;
    let offer = Act::Say(speech::AGENT_OFFER);
    let more = Turn::new(speech::CALLER_INTERRUPTS.text, vec![Act::Say(speech::AGENT_PARKING)]);
    stage.openai().realtime().script(talk(vec![asks(vec![offer]), more]));
    let call = Ringing::new(&stage);
    call.accepted().await;
    call.hears("assistant", speech::AGENT_GREETING.text).await;
    let heard = async |name: &str| {
        let look = async || {
            let sessions = stage.openai().realtime().sessions();
            let seen = sessions.iter().filter(|seen| seen.id == call.id);
            Ok((seen.map(|seen| seen.sent(name).len()).sum::<usize>() > 1).then_some(()))
        };
        stage.wait_for(name, SOON, look).await.unwrap();
    };
    stage.openai().calls().says(&call.id, speech::CALLER_QUESTION);
    heard("output_audio_buffer.started").await;
    stage.openai().calls().says(&call.id, speech::CALLER_INTERRUPTS);
    call.hears("assistant", speech::AGENT_PARKING.text).await;
    let interrupted = format!("transcripts where call_id = {} and interrupted", call.row());
    assert_eq!(stage.count(&interrupted).await, 1);

    for key in ["4", "2", "#"] {
        stage.openai().calls().presses(&call.id, key);
    }
    let look = async || {
        let sessions = stage.openai().realtime().sessions();
        let told = sessions.iter().flat_map(|seen| seen.received("conversation.item.create"));
        Ok(told.into_iter().any(|event| event.to_string().contains("pressed 4 2")).then_some(()))
    };
    stage.wait_for("the number", SOON, look).await.unwrap();
    stage.openai().calls().hang_up(&call.id);
    call.ended("caller_hangup").await;
    call.told_once().await;
    assert_eq!(call.events().await.iter().filter(|kind| *kind == "digit").count(), 3);
}

#[tokio::test]
async fn a_caller_who_asks_for_a_person_is_handed_over_to_the_clients_number() {
    let stage = stage().await;
    let set = |number: Option<&str>| json!({ "handoff_number": number });
    let sql = "update clients set settings = jsonb_strip_nulls(settings || $1) where is_default";
    stage.execute(sql, &[&set(Some("+250788111222"))]).await.unwrap();
    let hand_over = Act::Call {
        name: "transfer_to_human".to_owned(),
        arguments: json!({"reason": "wants to speak to somebody", "department": null, "urgent": "no"}),
        saying: Some(speech::AGENT_LOOKING),
    };
    stage.openai().realtime().script(talk(vec![asks(vec![hand_over])]));
    let call = Ringing::new(&stage);
    call.accepted().await;
    call.hears("assistant", speech::AGENT_GREETING.text).await;
    stage.openai().calls().says(&call.id, speech::CALLER_QUESTION);
    let look = async || Ok((!call.known().referred.is_empty()).then_some(()));
    stage.wait_for("the hand-over", SOON, look).await.unwrap();
    assert_eq!(call.known().referred, ["tel:+250788111222"]);
    stage.openai().calls().hang_up(&call.id);
    call.ended("transferred").await;
    stage.execute(sql, &[&set(None)]).await.unwrap();
    call.told_once().await;
    let told = format!(
        "select payload ->> 'outcome' from voice_events where type = 'transferred' and call_id = {}",
        call.row()
    );
    assert_eq!(stage.value(&told).await, "relayed");
}

#[tokio::test]
async fn the_health_page_names_what_is_missing() {
    let stage = stage().await;
    let url = format!("{}/functions/v1/{FUNCTION}/health", stage.edge().unwrap().url(FUNCTION).unwrap());
    let page: Value = ihuza_sim::edge::client().unwrap().get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!((&page["status"], &page["missing_settings"]), (&json!("ok"), &json!([])), "{page}");
    assert_eq!(page["dependencies"]["openai"], json!({"configured": true}));
}

/// Where the vendor finds the tools: a port that nobody else has.
fn with_remote_tools() -> WorldConfig {
    static PORT: LazyLock<u16> =
        LazyLock::new(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let mut config = config().var("AGENT_TOOLS_URL", format!("http://127.0.0.1:{}/agent-tools/mcp", *PORT));
    config.ports.insert("agent-tools".to_owned(), *PORT);
    config
}

#[tokio::test]
async fn the_vendor_calls_the_tools_itself_with_a_token_that_ends_with_the_call() {
    let stage = Stage::alone("openai-sip-mcp", with_remote_tools).await;
    let remembered = calls("remember", json!({"key": "area", "value": "Kimironko"}));
    let told =
        Act::SayIfTold { told: "remembered".to_owned(), then: speech::AGENT_PARKING, otherwise: speech::AGENT_NOTHING };
    let thanks =
        Turn::new(speech::CALLER_THANKS.text, vec![calls("end_call", json!({})), Act::Say(speech::AGENT_LOOKING)]);
    stage.openai().realtime().script(talk(vec![asks(vec![remembered, told]), thanks]));

    let call = Ringing::new(&stage);
    call.accepted().await;
    let session = call.known().session;
    let tools = session["tools"].as_array().unwrap();
    let remote: Vec<&Value> = tools.iter().filter(|tool| tool["type"] == "mcp").collect();
    assert_eq!(remote.len(), 1, "{tools:?}");
    let server = remote[0];
    assert_eq!((&server["require_approval"], &server["server_label"]), (&json!("never"), &json!("ihuza")));
    let allowed = server["allowed_tools"].as_array().unwrap();
    assert!(allowed.contains(&json!("remember")) && allowed.contains(&json!("book_transport")), "{allowed:?}");
    let functions: Vec<&str> = tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
    assert_eq!(functions, ["transfer_to_human", "end_call"], "what changes the call is run by whoever carries it");

    call.hears("assistant", speech::AGENT_GREETING.text).await;
    stage.openai().calls().says(&call.id, speech::CALLER_QUESTION);
    // The vendor waits to be asked for a response to what the tool said.
    call.hears("assistant", speech::AGENT_PARKING.text).await;
    let row = call.row();
    let memory = format!(
        "select value from voice_memories where profile_id = (select profile_id from voice_calls where id = {row})"
    );
    assert_eq!(stage.value(&memory).await, "Kimironko");
    let ran = format!(
        "select jsonb_build_array(count(*), bool_and(idempotency_key like 'mcp:%'), bool_and(call_id = {row})) from mcp_tool_calls where name = 'remember' and call_id = {row}"
    );
    assert_eq!(stage.value(&ran).await, json!([1, true, true]));
    let token = server["authorization"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
    ];
    let list = r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}"#;
    assert_eq!(stage.post("agent-tools", "/mcp", &headers, list).await.unwrap().status, 200);

    stage.openai().calls().says(&call.id, speech::CALLER_THANKS);
    call.ended("agent_hangup").await;
    call.told_once().await;
    assert_eq!(stage.post("agent-tools", "/mcp", &headers, list).await.unwrap().status, 401, "the call is over");
    for line in stage.logs().unwrap() {
        assert!(!line.text.contains("mcpt_"), "{}", line.text);
    }
}
