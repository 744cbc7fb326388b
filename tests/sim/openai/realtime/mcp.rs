//! Remote tools: which server of a session has a tool, and the calls that the service makes of it by itself, as any client of the
//! Model Context Protocol does: `initialize`, `tools/list`, `tools/call`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

/// What the service waits for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
const VERSION: &str = "2025-06-18";

/// A call that is to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteCall {
    /// The item that tells of it.
    pub item: String,
    pub name: String,
    /// As the model wrote them.
    pub arguments: String,
    /// The entry of `session.tools`.
    pub server: Value,
}

/// The server of a session that may be asked for this tool.
pub fn server_of<'a>(settings: &'a Value, name: &str) -> Option<&'a Value> {
    let tools = settings.get("tools").and_then(Value::as_array)?;
    let named = |list: &Value| list.as_array().is_some_and(|names| names.iter().any(|known| known == name));
    tools.iter().filter(|tool| tool.get("type").is_some_and(|kind| kind == "mcp")).find(|server| {
        match server.get("allowed_tools") {
            None | Some(Value::Null) => true,
            Some(allowed) => named(allowed) || allowed.get("tool_names").is_some_and(named),
        }
    })
}

/// What the tool answered, as the model is shown it; or why there is no answer.
pub async fn call(call: &RemoteCall) -> Result<String, String> {
    let ask = |method: &'static str, id: Option<u32>, params: Value| async move {
        let mut body = json!({"jsonrpc": "2.0", "method": method, "params": params});
        if let (Some(body), Some(id)) = (body.as_object_mut(), id) {
            body.insert("id".to_owned(), id.into());
        }
        post(&call.server, &body, method != "initialize").await
    };
    let client = json!({"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "openai-mcp", "version": "1.0.0"}});
    ask("initialize", Some(1), client).await?;
    ask("notifications/initialized", None, json!({})).await?;
    let listed = ask("tools/list", Some(2), json!({})).await?;
    let offered = listed.pointer("/result/tools").and_then(Value::as_array).cloned().unwrap_or_default();
    if !offered.iter().any(|tool| tool.get("name").is_some_and(|name| *name == call.name)) {
        return Err(format!("the server does not offer {}", call.name));
    }
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
    let answer = ask("tools/call", Some(3), json!({"name": call.name, "arguments": arguments})).await?;
    let text = answer.pointer("/result/content/0/text").and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| format!("no text: {answer}"))
}

/// Makes the call, and tells what came of it.
pub fn begin(remote: RemoteCall, answers: UnboundedSender<(RemoteCall, Result<String, String>)>) {
    crate::runtime::spawn(async move {
        let answer = call(&remote).await;
        let _ = answers.send((remote, answer));
    });
}

async fn post(server: &Value, body: &Value, begun: bool) -> Result<Value, String> {
    let field = |name: &str| server.get(name).and_then(Value::as_str).unwrap_or_default();
    let client = crate::edge::client().map_err(|error| error.to_string())?;
    let mut request = client
        .post(field("server_url"))
        .timeout(TIMEOUT)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.to_string());
    if !field("authorization").is_empty() {
        request = request.bearer_auth(field("authorization"));
    }
    if begun {
        request = request.header("mcp-protocol-version", VERSION);
    }
    let answer = request.send().await.map_err(|error| error.to_string())?;
    match answer.status().as_u16() {
        202 => Ok(Value::Null),
        200 => answer.json().await.map_err(|error| error.to_string()),
        status => Err(format!("http {status}")),
    }
}
