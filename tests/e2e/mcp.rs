//! The MCP server on the real runtime: the official client in both eras (`mcp/client.mjs`), tokens that are none any more, and
//! requests that no client writes.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use ihuza_sim::verbs::Answered;
use ihuza_sim::world::WorldConfig;
use serde_json::{Value, json};

use crate::stage::Stage;

const FUNCTION: &str = "agent-tools";
const MODERN: &str = "2026-07-28";

async fn stage() -> Stage {
    Stage::shared("mcp", WorldConfig::default).await
}

/// The conversation of somebody who wrote `text`; its id.
pub async fn conversation(stage: &Stage, text: &str) -> String {
    let phone = stage.stranger();
    stage.says(&phone, text).await;
    let sql =
        "select s.id::text from omnichannel_sessions s join profiles p on p.id = s.profile_id where p.phone_number";
    stage.value(&format!("{sql} = '{phone}'")).await.as_str().unwrap().to_owned()
}

/// A token, issued as whoever holds the service key does: one RPC. `{token, token_id, …}`
async fn issue(stage: &Stage, session: &str, scopes: &[&str]) -> Value {
    let key = stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap();
    let url = format!("{}/rest/v1/rpc/issue_agent_tool_token", stage.secret("SUPABASE_URL").unwrap());
    let body = json!({"p": {"session_id": session, "scopes": scopes, "purpose": "a_test"}});
    let request = ihuza_sim::edge::client().unwrap().post(url).header("apikey", key).bearer_auth(key);
    let answer = request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    answer.json().await.unwrap()
}

/// The token alone.
pub async fn token(stage: &Stage, session: &str, scopes: &[&str]) -> String {
    issue(stage, session, scopes).await["token"].as_str().unwrap().to_owned()
}

const BOTH: &[&str] = &["session_get_context", "session_update_status"];

/// What the official client makes of these steps.
async fn client(stage: &Stage, token: &str, mode: &Value, steps: Value) -> Value {
    let url = format!("{}/{FUNCTION}/mcp", stage.edge().unwrap().url(FUNCTION).unwrap());
    let input = json!({"url": url, "token": token, "mode": mode, "steps": steps}).to_string();
    let play = move || {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let node = ihuza_sim::edge::node(tests.parent().unwrap()).unwrap();
        let mut command = Command::new(node);
        command.arg(tests.join("e2e/mcp/client.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let ran = tokio::task::spawn_blocking(play).await.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&ran.stderr)))
}

/// A request as somebody writes it by hand.
async fn post(stage: &Stage, token: &str, more: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answered {
    let bearer = format!("Bearer {token}");
    let usual = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
    ];
    let given = |name: &str| more.iter().any(|(other, _)| *other == name);
    let mut headers: Vec<(&str, &str)> = usual.into_iter().filter(|(name, _)| !given(name)).collect();
    headers.extend(more.iter().copied().filter(|(_, value)| !value.is_empty()));
    stage.post(FUNCTION, "/mcp", &headers, body).await.unwrap()
}

fn call(id: u32, tool: &str, arguments: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        .to_string()
}

fn modern(id: u32, method: &str) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {"_meta": {
        "io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}}})
    .to_string()
}

fn header<'a>(answer: &'a Answered, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

async fn runs(stage: &Stage, session: &str) -> u64 {
    stage
        .count(&format!(
            "mcp_tool_calls where session_id = '{session}' and correlation_id is not null and turn_id is null"
        ))
        .await
}

#[tokio::test]
async fn the_official_client_lists_and_calls_tools_in_both_eras() {
    let stage = stage().await;
    for (mode, version, status) in [
        (json!("legacy"), "2025-11-25", "follow_up"),
        (json!("auto"), MODERN, "closed"),
        (json!({"pin": MODERN}), MODERN, "follow_up"),
    ] {
        let session = conversation(&stage, "I look for a house in Remera").await;
        let token = token(&stage, &session, BOTH).await;
        let steps = json!([
            {"list": true},
            {"call": "session_get_context"},
            {"call": "session_update_status", "arguments": {"status": status, "note": "told over MCP"}},
            {"call": "session_update_status", "arguments": {"status": "expired"}},
            {"call": "fly", "arguments": {}},
        ]);
        let said = client(&stage, &token, &mode, steps).await;
        assert_eq!((&said["version"], &said["server"]), (&json!(version), &json!("ihuza")), "{said}");
        assert!(said["instructions"].as_str().unwrap().contains("Tools of one conversation"), "{said}");
        let tools = said["steps"][0]["tools"].as_array().unwrap();
        let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
        assert_eq!(names, BOTH, "{mode}");
        assert_eq!(tools[1]["inputSchema"]["properties"]["status"]["enum"], json!(["active", "follow_up", "closed"]));
        assert_eq!(
            (&said["steps"][1]["isError"], &said["steps"][2]["isError"]),
            (&json!(false), &json!(false)),
            "{said}"
        );
        let context: Value = serde_json::from_str(said["steps"][1]["text"].as_str().unwrap()).unwrap();
        assert!(context["messages"].to_string().contains("I look for a house in Remera"), "{context}");
        let wrong = &said["steps"][3];
        assert!(
            wrong["isError"] == true && wrong["text"].as_str().unwrap().contains("one of active, follow_up, closed"),
            "{wrong}"
        );
        assert_eq!(said["steps"][4]["error"]["code"], -32602, "{said}");
        assert_eq!(
            stage.value(&format!("select status from omnichannel_sessions where id = '{session}'")).await,
            status
        );
        assert_eq!(runs(&stage, &session).await, 3, "each call is a row, also the one that was refused");
    }
}

#[tokio::test]
async fn a_token_opens_the_tools_of_its_scopes_and_no_others() {
    let stage = stage().await;
    let session = conversation(&stage, "Muraho").await;
    let reader = token(&stage, &session, &["session:read"]).await;
    let closes = json!([{"list": true}, {"call": "session_update_status", "arguments": {"status": "closed"}}]);
    for mode in [json!("legacy"), json!("auto")] {
        let said = client(&stage, &reader, &mode, closes.clone()).await;
        let names = said["steps"][0]["tools"].as_array().unwrap();
        assert!(names.len() == 1 && names[0]["name"] == "session_get_context", "{said}");
        // The client reads it out of `WWW-Authenticate`.
        let error = &said["steps"][1]["error"];
        assert_eq!(error["name"], "InsufficientScopeError", "{said}");
        assert!(error["message"].as_str().unwrap().contains("session:write"), "{said}");
    }
    let refused = post(&stage, &reader, &[], call(1, "session_update_status", &json!({"status": "closed"}))).await;
    assert_eq!(refused.status, 403);
    assert_eq!(
        header(&refused, "www-authenticate"),
        Some("Bearer error=\"insufficient_scope\", scope=\"session:write\"")
    );
    assert_eq!(stage.value(&format!("select status from omnichannel_sessions where id = '{session}'")).await, "active");
    assert_eq!(runs(&stage, &session).await, 0);
}

#[tokio::test]
async fn a_token_that_is_expired_revoked_or_invented_opens_nothing() {
    let stage = stage().await;
    let session = conversation(&stage, "Muraho").await;
    let expired = issue(&stage, &session, BOTH).await;
    stage
        .execute(
            &format!(
                "update agent_tool_tokens set expires_at = now() - interval '1 second' where id = '{}'",
                expired["token_id"].as_str().unwrap()
            ),
            &[],
        )
        .await
        .unwrap();
    let revoked = issue(&stage, &session, BOTH).await;
    stage
        .value(&format!("select public.revoke_agent_tool_tokens('{}')", json!({"token_id": revoked["token_id"]})))
        .await;
    let invented = format!("mcpt_{}", "5".repeat(64));
    let service = stage.secret("SUPABASE_SERVICE_ROLE_KEY").unwrap();
    let mut bodies = Vec::new();
    for token in
        [expired["token"].as_str().unwrap(), revoked["token"].as_str().unwrap(), &invented, service, "wrong", ""]
    {
        for body in [modern(1, "server/discover"), call(1, "session_get_context", &json!({}))] {
            let is_modern = body.contains("server/discover");
            let headers: &[(&str, &str)] =
                if is_modern { &[("mcp-protocol-version", MODERN), ("mcp-method", "server/discover")] } else { &[] };
            let mut answer = post(&stage, token, headers, body).await;
            assert_eq!((answer.status, header(&answer, "www-authenticate")), (401, Some("Bearer")), "{token}");
            answer.body["correlation_id"] = Value::Null;
            bodies.push(answer.body);
        }
    }
    assert!(
        bodies.iter().all(|body| body == &bodies[0]),
        "one refusal tells nothing that another does not: {bodies:?}"
    );
    for mode in [json!("legacy"), json!("auto")] {
        let said = client(&stage, &invented, &mode, json!([{"list": true}])).await;
        let error = said["error"].to_string();
        assert!(error.contains("401") || error.to_lowercase().contains("unauthorized"), "{said}");
    }
    assert_eq!(runs(&stage, &session).await, 0);
}

#[tokio::test]
async fn another_persons_conversation_is_out_of_reach() {
    let stage = stage().await;
    let mine = conversation(&stage, "I look for a house in Remera").await;
    let theirs = conversation(&stage, "My secret is in Kacyiru").await;
    let token = token(&stage, &mine, BOTH).await;
    let steps = json!([
        {"call": "session_get_context", "arguments": {"session_id": theirs}},
        {"call": "session_get_context", "arguments": {"limit": 50}, "meta": {"session_id": theirs, "turn_id": theirs}},
        {"call": "session_update_status", "arguments": {"status": "closed", "session_id": theirs}},
    ]);
    let said = client(&stage, &token, &json!("auto"), steps).await;
    let steps = &said["steps"];
    for refused in [&steps[0], &steps[2]] {
        assert!(
            refused["isError"] == true && refused["text"].as_str().unwrap().contains("no argument session_id"),
            "{said}"
        );
    }
    assert!(steps[1]["text"].as_str().unwrap().contains("Remera"), "{said}");
    assert!(!said.to_string().contains("Kacyiru"), "{said}");
    // Nor by what is not an argument.
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "session_id": theirs,
                      "params": {"name": "session_update_status", "session_id": theirs, "arguments": {"status": "follow_up"}}});
    assert_eq!(post(&stage, &token, &[("mcp-session-id", &theirs)], body.to_string()).await.status, 200);
    let status =
        async |id: &str| stage.value(&format!("select status from omnichannel_sessions where id = '{id}'")).await;
    assert_eq!((status(&mine).await, status(&theirs).await), (json!("follow_up"), json!("active")));
}

#[tokio::test]
async fn a_repeated_call_acts_once() {
    let stage = stage().await;
    let session = conversation(&stage, "Muraho").await;
    let token = token(&stage, &session, BOTH).await;
    let note = |id: u32, note: &str| call(id, "session_update_status", &json!({"status": "follow_up", "note": note}));
    let (a, b, c) = tokio::join!(
        post(&stage, &token, &[], note(1, "a")),
        post(&stage, &token, &[], note(1, "a")),
        post(&stage, &token, &[], note(1, "a"))
    );
    assert!(
        [&b, &c].iter().all(|other| other.status == 200 && other.body == a.body),
        "{} {} {}",
        a.body,
        b.body,
        c.body
    );
    assert_eq!(runs(&stage, &session).await, 1);
    post(&stage, &token, &[], note(2, "a")).await;
    post(&stage, &token, &[], note(1, "b")).await;
    assert_eq!(runs(&stage, &session).await, 3);
    // The client's own key outlives its ids.
    for _ in 0..2 {
        let steps = json!([{"call": "session_update_status", "arguments": {"status": "active"}, "meta": {"rw.ihuza/idempotencyKey": "k-1"}},
                           {"call": "session_update_status", "arguments": {"status": "active"}, "meta": {"rw.ihuza/idempotencyKey": "k-1"}}]);
        let said = client(&stage, &token, &json!("auto"), steps).await;
        assert!(said["steps"][1]["isError"] == false, "{said}");
    }
    assert_eq!(runs(&stage, &session).await, 4);
}

#[tokio::test]
async fn a_message_that_a_tool_sends_goes_out_once() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.says(&phone, "I look for a house in Remera").await;
    let sql =
        "select s.id::text from omnichannel_sessions s join profiles p on p.id = s.profile_id where p.phone_number";
    let session = stage.value(&format!("{sql} = '{phone}'")).await.as_str().unwrap().to_owned();
    let token = token(&stage, &session, &["messages"]).await;
    let before = stage.mtn().messages_to(&phone).len();
    let address = call(1, "messaging_send_sms", &json!({"text": "The house is at KG 11 Ave 42"}));
    let (first, again) = (post(&stage, &token, &[], address.clone()).await, post(&stage, &token, &[], address).await);
    assert_eq!((first.status, &first.body["result"]["isError"]), (200, &json!(false)), "{}", first.body);
    assert_eq!(again.body, first.body);
    // What goes to the client is what a model may see: no id of the delivery, no number.
    assert!(!first.body.to_string().contains("deliver"), "{}", first.body);
    assert!(stage.sms_to(&phone, before + 1).await.contains("KG 11 Ave 42"));
    assert_eq!(stage.mtn().messages_to(&phone).len(), before + 1);
}

#[tokio::test]
async fn what_is_not_the_protocol_is_told_so() {
    let stage = stage().await;
    let session = conversation(&stage, "Muraho").await;
    let token = token(&stage, &session, BOTH).await;
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let code = |answer: &Answered| (answer.status, answer.body["error"]["code"].as_i64().unwrap_or_default());
    for (body, expected) in [
        ("", (400, -32700)),
        ("{", (400, -32700)),
        ("\u{0}", (400, -32700)),
        ("[]", (400, -32600)),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, (400, -32600)),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, (400, -32600)),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, (400, -32600)),
        (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, (400, -32600)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"resources/list"}"#, (200, -32601)),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":1}}"#, (200, -32602)),
    ] {
        let answer = post(&stage, &token, &[], body).await;
        assert_eq!(code(&answer), expected, "{body:?}: {}", answer.body);
    }
    let headers = |version, method| [("mcp-protocol-version", version), ("mcp-method", method)];
    assert_eq!(code(&post(&stage, &token, &headers(MODERN, "tools/list"), list).await), (400, -32602));
    assert_eq!(code(&post(&stage, &token, &headers(MODERN, "ping"), modern(1, "tools/list")).await), (400, -32020));
    assert_eq!(code(&post(&stage, &token, &[], modern(1, "tools/list")).await), (400, -32020));
    assert_eq!(
        code(&post(&stage, &token, &headers(MODERN, "subscriptions/listen"), modern(1, "subscriptions/listen")).await),
        (404, -32601)
    );
    let unknown = post(&stage, &token, &headers("1999-01-01", ""), list).await;
    assert_eq!(code(&unknown), (400, -32022));
    assert_eq!(unknown.body["error"]["data"]["supported"][0], MODERN);

    assert_eq!(post(&stage, &token, &[("accept", "text/event-stream")], list).await.status, 406);
    assert_eq!(post(&stage, &token, &[("content-type", "text/plain")], list).await.status, 415);
    assert_eq!(post(&stage, &token, &[("origin", "https://evil.example")], list).await.status, 403);
    let taken = post(&stage, &token, &[], r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    assert_eq!((taken.status, &taken.body), (202, &json!("")));
    let fine = post(&stage, &token, &[], list).await;
    assert_eq!((fine.status, header(&fine, "content-type")), (200, Some("application/json")));
    assert_eq!(header(&fine, "mcp-session-id"), None);
    assert_eq!(runs(&stage, &session).await, 0);
    // The token was shown to each of them, and stands in no line.
    let lines = stage.logs().unwrap();
    assert!(lines.iter().all(|line| !line.text.contains("mcpt_")), "a token is in the log");
}
