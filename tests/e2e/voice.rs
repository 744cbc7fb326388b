//! A phone call as a relay tells of it: opened, its events, a tool, its end, and the one summary that follows.

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::Answered;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::{SOON, Stage};

const FUNCTION: &str = "openai-realtime-sip";

async fn stage() -> Stage {
    Stage::shared("voice", WorldConfig::default).await
}

/// A relay, which holds the service key, and whose requests of one call have one correlation id.
struct Relay<'a> {
    stage: &'a Stage,
    sid: String,
    phone: String,
}

impl<'a> Relay<'a> {
    fn new(stage: &'a Stage) -> Self {
        Self { stage, sid: format!("call-{}", uuid::Uuid::new_v4().simple()), phone: stage.stranger() }
    }

    async fn post(&self, place: &str, mut body: Value) -> Answered {
        body["callSid"] = json!(self.sid);
        let key = format!("Bearer {}", self.stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap());
        let correlation = format!("invite-{}", self.sid);
        let headers = [("authorization", key.as_str()), ("x-correlation-id", correlation.as_str())];
        self.stage.post(FUNCTION, &format!("/openai-realtime{place}"), &headers, body.to_string()).await.unwrap()
    }

    /// Posts, and must be taken.
    #[track_caller]
    fn tells(&self, place: &'a str, body: Value) -> impl Future<Output = Value> {
        let from = std::panic::Location::caller();
        async move {
            let answer = self.post(place, body).await;
            assert_eq!(answer.status, 200, "{from}: {place} {}", answer.body);
            answer.body
        }
    }

    async fn opens(&self) -> Value {
        self.tells("", json!({"from": self.phone, "to": "+250788000000", "locale": "rw-RW"})).await
    }

    fn call(&self) -> String {
        format!("(select id from voice_calls where provider_call_id = '{}')", self.sid)
    }
}

fn said(seq: u32, role: &str, text: &str) -> Value {
    json!({"seq": seq, "type": "transcript", "role": role, "text": text, "startMs": seq * 1000, "endMs": seq * 1000 + 900})
}

/// Every column of every table: does a key stand anywhere?
async fn stored_keys(stage: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    let columns = stage
        .rows("select table_name, column_name from information_schema.columns join information_schema.tables using (table_schema, table_name)
                where table_schema = 'public' and table_type = 'BASE TABLE' and data_type in ('text', 'jsonb')")
        .await
        .unwrap();
    for column in columns {
        let (table, name) = (column["table_name"].as_str().unwrap(), column["column_name"].as_str().unwrap());
        if stage.count(&format!("public.{table} where {name}::text like '%ek\\_%'")).await > 0 {
            found.push(format!("{table}.{name}"));
        }
    }
    found
}

#[tokio::test]
async fn a_call_is_opened_told_of_and_ended_and_its_caller_gets_one_summary() {
    let stage = stage().await;
    let relay = Relay::new(&stage);
    stage
        .execute(
            "insert into services (name, category, area, keywords, price) values ('House in Kicukiro', 'housing', 'Kicukiro', 'inzu', '350,000 RWF')",
            &[],
        )
        .await
        .unwrap();

    let opened = relay.opens().await;
    let key = opened["ephemeralKey"].as_str().unwrap().to_owned();
    assert!(stage.openai().minted().contains(&key), "{opened}");
    assert_eq!((&opened["model"], &opened["locale"]), (&json!("gpt-realtime-2.1-mini"), &json!("rw")));
    assert_eq!(opened["audio"]["input"]["format"], json!({"type": "audio/pcma"}));
    assert_eq!(opened["audio"]["input"]["turn_detection"]["type"], "server_vad");
    let url = opened["url"].as_str().unwrap();
    assert!(url.starts_with("ws://") && url.ends_with("/v1/realtime?model=gpt-realtime-2.1-mini"), "{url}");
    assert!(opened["expiresAt"].as_str().unwrap().ends_with('Z'));
    assert!(opened["session"]["instructions"].as_str().unwrap().contains("Witaba telefone ya EasyMO"));
    let tools = opened["session"]["tools"].as_array().unwrap();
    assert!(tools.iter().any(|tool| tool["name"] == "search_services"), "{opened}");
    let again = relay.opens().await;
    assert_eq!((&again["callId"], &again["resumed"]), (&opened["callId"], &json!(true)));

    let minted = stage.openai().control().requests();
    let minted = minted.iter().filter(|request| request.path == "/v1/realtime/client_secrets");
    let asked: Vec<Value> = minted.map(|request| serde_json::from_str(&request.body).unwrap_or_default()).collect();
    assert!(asked.iter().any(|body| body["expires_after"]["seconds"] == 120), "{asked:?}");

    // Out of order, with a gap, and then once more as a whole.
    let events = |seqs: &[u32]| {
        let words = [
            "Hello, this is EasyMO",
            "I look for a house in Kicukiro",
            "A house in Kicukiro costs 350,000 a month",
            "Thank you, send me a message",
        ];
        let all: Vec<Value> = seqs
            .iter()
            .map(|seq| said(*seq, if seq % 2 == 1 { "assistant" } else { "user" }, words[*seq as usize - 1]))
            .collect();
        json!({"events": all})
    };
    let first = relay.tells("/events", events(&[4, 1])).await;
    assert_eq!((&first["stored"], &first["gaps"]), (&json!(2), &json!([[2, 3]])));
    let whole = relay.tells("/events", events(&[1, 2, 3, 4])).await;
    assert_eq!((&whole["stored"], &whole["duplicates"], &whole["gaps"]), (&json!(2), &json!(2), &json!([])));
    // A relay that tells too much.
    let leak = json!({"seq": 5, "type": "session.created", "session_id": "sess_1", "session": {"client_secret": {"value": key}, "note": format!("Bearer {key}")}});
    relay.tells("/events", json!({"events": [leak]})).await;
    let usage = json!({"input_token_details": {"text_tokens": 1000, "audio_tokens": 1000}, "output_token_details": {"text_tokens": 100, "audio_tokens": 1000}});
    relay.tells("/events", json!({"events": [{"seq": 6, "type": "response.done", "usage": usage}]})).await;

    let tool = json!({"name": "search_services", "arguments": "{\"query\": \"inzu\", \"area\": \"Kicukiro\"}", "idempotencyKey": "fc_1"});
    let answer = relay.tells("/tools", tool.clone()).await;
    assert_eq!(answer["result"]["services"][0]["name"], "House in Kicukiro", "{answer}");
    stage.execute("update services set is_active = false", &[]).await.unwrap();
    assert_eq!(relay.tells("/tools", tool).await, answer, "the same key gets the same answer");

    let ending = json!({"cause": "caller_hangup", "durationSeconds": 42, "lastSeq": 6});
    let ended = relay.tells("/end", ending.clone()).await;
    assert_eq!(
        (&ended["decision"], &ended["status"], &ended["cause"]),
        (&json!("ended"), &json!("completed"), &json!("caller_hangup"))
    );
    assert_eq!((&ended["duration_seconds"], &ended["notify"], &ended["gaps"]), (&json!(42), &json!(true), &json!([])));
    // 1000 text at 0.60, 1000 audio at 10, out 100 text at 2.40 and 1000 audio at 20, for a million each.
    assert_eq!(ended["cost"].to_string(), "0.030840");
    let repeated = relay.tells("/end", ending).await;
    assert_eq!((&repeated["decision"], &repeated["ended_at"]), (&json!("already_ended"), &ended["ended_at"]));
    let late = relay.post("", json!({"from": relay.phone, "to": "+250788000000"})).await;
    assert_eq!((late.status, &late.body["status"]), (409, &json!(409)), "{}", late.body);

    stage.delivered(&relay.phone, "sms delivered 1").await;
    assert_eq!(stage.mtn().messages_to(&relay.phone).len(), 1, "one summary");
    let call = relay.call();
    assert_eq!(stage.count(&format!("call_notifications where call_id = {call}")).await, 1);
    assert_eq!(stage.count(&format!("transcripts where call_id = {call}")).await, 4);
    assert_eq!(stage.count(&format!("mcp_tool_calls where call_id = {call}")).await, 1);
    let source = stage.value(&format!("select source from call_summaries where call_id = {call}")).await;
    assert_eq!(source, "model", "made from the transcript");
    let thread = stage.value(&format!("select correlation_id from message_delivery_log where call_id = {call}")).await;
    assert_eq!(thread, format!("invite-{}", relay.sid), "one id from the first request to the message");
    assert_eq!(stage.value(&format!("select session_id is not null from voice_calls where id = {call}")).await, true);
    // A reply goes on in the same conversation.
    assert!(!stage.says(&relay.phone, "My budget is 300k").await.is_empty());
    assert_eq!(stage.count(&format!("omnichannel_sessions where call_id = {call}")).await, 1);

    assert_eq!(stored_keys(&stage).await, Vec::<String>::new());
    let lines = stage.logs().unwrap();
    assert!(lines.iter().all(|line| !line.text.contains("ek_")), "a key is in the log");
}

#[tokio::test]
async fn an_end_whose_opening_was_lost_is_told_to_the_caller_once_and_the_gap_is_waited_for() {
    let stage = stage().await;
    let relay = Relay::new(&stage);
    let ending = json!({"cause": "relay_restarted", "from": relay.phone, "to": "+250788000000", "startedAt": "2026-11-21T08:00:00Z", "answeredAt": "2026-11-21T08:00:05Z",
                        "endedAt": "2026-11-21T08:01:05Z"});
    let answers = futures_of(&relay, ending).await;
    assert_eq!(answers.iter().filter(|answer| answer["decision"] == "ended").count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer["duration_seconds"] == 60), "{answers:?}");
    stage.delivered(&relay.phone, "sms delivered 1").await;
    assert_eq!(stage.mtn().messages_to(&relay.phone).len(), 1);
    assert_eq!(stage.count(&format!("voice_calls where provider_call_id = '{}'", relay.sid)).await, 1);

    // Nobody answered: nothing is written to anybody.
    let missed = Relay::new(&stage);
    missed.opens().await;
    let ended = missed.tells("/end", json!({"cause": "no_answer"})).await;
    assert_eq!((&ended["status"], &ended["notify"]), (&json!("no_answer"), &json!(false)));
    // The first event is missing: the summary waits for it.
    let gap = Relay::new(&stage);
    gap.opens().await;
    gap.tells("/events", json!({"events": [said(2, "user", "I look for a house")]})).await;
    let ended = gap.tells("/end", json!({"cause": "silence", "lastSeq": 2})).await;
    assert_eq!((&ended["gaps"], &ended["notify"]), (&json!([[1, 1]]), &json!(true)));
    assert_eq!(
        stage.value(&format!("select notified_at is null from voice_calls where id = {}", gap.call())).await,
        true
    );
    assert_eq!(stage.mtn().messages_to(&missed.phone).len(), 0);
}

async fn futures_of(relay: &Relay<'_>, ending: Value) -> Vec<Value> {
    let (a, b, c) = tokio::join!(
        relay.tells("/end", ending.clone()),
        relay.tells("/end", ending.clone()),
        relay.tells("/end", ending.clone())
    );
    vec![a, b, c]
}

#[tokio::test]
async fn who_holds_no_key_opens_nothing_and_a_trunk_gets_no_key() {
    let stage = stage().await;
    let body = json!({"callSid": "door", "from": stage.stranger(), "to": "+250788000000"}).to_string();
    for place in ["", "/events", "/tools", "/end", "/trunks"] {
        for headers in [vec![], vec![("authorization", "Bearer wrong")], vec![("apikey", "wrong")]] {
            let answer =
                stage.post(FUNCTION, &format!("/openai-realtime{place}"), &headers, body.clone()).await.unwrap();
            assert_eq!(answer.status, 401, "{place}: {}", answer.body);
        }
    }
    assert_eq!(stage.count("voice_calls where provider_call_id = 'door'").await, 0);
    let trunk = format!("Bearer {}", stage.secret("VOICE_TRUNK_SECRET").unwrap());
    let headers = [("authorization", trunk.as_str())];
    for place in ["/tools", "/trunks"] {
        let answer = stage.post(FUNCTION, &format!("/openai-realtime{place}"), &headers, body.clone()).await.unwrap();
        assert_eq!(answer.status, 401, "{place}");
    }
    let opened = stage.post(FUNCTION, "/openai-realtime", &headers, body).await.unwrap();
    assert_eq!(opened.status, 200, "{}", opened.body);
    assert!(opened.body.get("ephemeralKey").is_none() && opened.body.get("session").is_none(), "{}", opened.body);
    assert!(opened.body["callId"].is_string() && opened.body["audio"].is_object(), "{}", opened.body);
    let ended = stage
        .post(FUNCTION, "/openai-realtime/end", &headers, json!({"callSid": "door", "cause": "canceled"}).to_string())
        .await
        .unwrap();
    assert_eq!((ended.status, &ended.body["status"]), (200, &json!("canceled")));
    let nowhere = stage.post(FUNCTION, "/openai-realtime/nowhere", &headers, "{}").await.unwrap();
    assert_eq!(nowhere.status, 404);
}

#[tokio::test]
async fn a_call_is_opened_also_when_there_is_no_key_to_be_had() {
    let stage = Stage::alone("voice", WorldConfig::default).await;
    stage.openai().fail_with(Fault::Status500Before).times(2);
    let relay = Relay::new(&stage);
    let opened = relay.opens().await;
    assert!(opened.get("ephemeralKey").is_none() && opened["callId"].is_string(), "{opened}");
    assert_eq!(opened["expiresAt"], Value::Null);
    let look = async || {
        Ok(stage
            .story(&format!("invite-{}", relay.sid))
            .iter()
            .any(|line| line["event"] == "VOICE_KEY_FAILED")
            .then_some(()))
    };
    stage.wait_for("an error line about the key", SOON, look).await.unwrap();
    // One lost answer is asked for again.
    stage.openai().fail_with(Fault::Status503).times(1);
    assert!(relay.opens().await["ephemeralKey"].is_string());
    relay.tells("/end", json!({"cause": "model_unavailable"})).await;
}

#[tokio::test]
async fn the_health_page_says_of_each_trunk_what_its_relay_said_last() {
    let stage = stage().await;
    let health = async |place: &str| -> Value {
        let url = format!("{}{place}", stage.edge().unwrap().url(FUNCTION).unwrap());
        ihuza_sim::edge::client().unwrap().get(url).send().await.unwrap().json().await.unwrap()
    };
    let key = format!("Bearer {}", stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap());
    let report = json!({"relay": "relay-1", "trunks": [{"name": "mtn_sip", "status": "active", "activeCalls": 3}]});
    let answer = stage
        .post(FUNCTION, "/openai-realtime/trunks", &[("authorization", key.as_str())], report.to_string())
        .await
        .unwrap();
    assert_eq!((answer.status, &answer.body), (200, &json!({"stored": 1})));
    // A page may be two seconds old.
    let look =
        async || Ok((health("/openai-realtime/health").await["trunks"]["mtn_sip"]["status"] == "active").then_some(()));
    stage.wait_for("the report on the health page", SOON, look).await.unwrap();
    let page = health("/functions/v1/openai-realtime-sip/openai-realtime/health").await;
    assert_eq!((&page["status"], &page["trunks"]["mtn_sip"]["active_calls"]), (&json!("ok"), &json!(3)), "{page}");
    assert!(page["trunks"]["mtn_sip"]["age_seconds"].is_number(), "{page}");
    assert_eq!(page["dependencies"]["openai"], json!({"configured": true}));
    stage.execute("update trunk_reports set reported_at = now() - interval '10 minutes'", &[]).await.unwrap();
    let look = async || Ok((health("/health").await["trunks"]["mtn_sip"]["status"] == "stale").then_some(()));
    stage.wait_for("a report that is too old", SOON, look).await.unwrap();
}
