//! One POST of an MCP client: who may ask, what is asked, one call of the database, one answer.

use ihuza_core::{
    json::{flag_at, obj},
    log::{Event, Level},
    mcp::{self, Answer, Ask, Headers, Request, Ruling},
    problem::Problem,
    signature,
    tool::{self, Surface, Tool},
};
use ihuza_edge::{
    context::Cx,
    database::{self, DatabaseError},
    endpoint::{Call, Outcome},
    host,
    reply::Reply,
    tool as edge_tool,
};
use serde_json::{Map, Value};

pub fn post(call: Call) -> Result<Outcome, Problem> {
    let (cx, request) = (&call.cx, &call.request);
    if !mcp::is_origin_allowed(request.header("origin"), cx.config.text("AGENT_TOOLS_ALLOWED_ORIGINS")) {
        return Err(Problem::forbidden());
    }
    // What cannot be a token costs the database nothing.
    let token = signature::bearer_token(request.header("authorization")).and_then(mcp::token_hash);
    let token_hash = token.ok_or_else(Problem::unauthorized)?;
    let body = request.body()?;
    if !mcp::is_json(request.header("content-type")) {
        return Err(Problem::new("unsupported-media-type", "The body must be JSON", 415)
            .hint("Send it with Content-Type: application/json"));
    }
    if !mcp::accepts_json(request.header("accept")) {
        return Err(Problem::new("not-acceptable", "Answers are JSON alone", 406)
            .hint("Send Accept: application/json, text/event-stream"));
    }
    let headers = Headers {
        version: request.header("mcp-protocol-version"),
        method: request.header("mcp-method"),
        name: request.header("mcp-name"),
    };
    let asked = match mcp::read(body, &headers) {
        Ok(asked) => asked,
        Err(answer) => return Ok(Ok(reply(answer)).into()),
    };
    Ok(Outcome::later(async move {
        let mut p = Map::new();
        p.insert("token_hash".to_owned(), token_hash.into());
        p.insert("correlation_id".to_owned(), call.cx.correlation_id.as_str().into());
        match &asked.ask {
            Ask::CallTool(wanted) if wanted.tool().is_some() => run(&call.cx, &asked, wanted, p).await,
            _ => {
                let answer = database::rpc(&call.cx, "run_mcp_tool", &Value::Object(p)).await;
                answered(&asked, None, &answer.map_err(|error| error.problem(1))?)
            }
        }
    }))
}

/// Looks at the token and runs the tool, in one call.
async fn run(cx: &Cx, asked: &Request, wanted: &mcp::ToolCall, mut p: Map<String, Value>) -> Result<Reply, Problem> {
    let Some(tool) = wanted.tool() else { return Err(Problem::not_found("")) };
    let mut put = |name: &str, value: Value| p.insert(name.to_owned(), value);
    put("name", tool.name.into());
    put("scope", tool.scope.into());
    put("changes", tool.changes.into());
    put("fingerprint", asked.fingerprint().into());
    if let Some(key) = &wanted.key {
        put("idempotency_key", key.as_str().into());
    }
    tool::put_call(tool::prepare_value(tool.name, &wanted.arguments, Surface::Mcp), &mut p);
    let started = host::now_ms();
    let answer = match database::rpc_once(cx, "run_mcp_tool", &Value::Object(p), tool.deadline_ms).await {
        Ok(answer) => answer,
        // The same request may come again within two minutes: what was done by then is told, and nothing is done twice.
        Err(DatabaseError::Unavailable { .. } | DatabaseError::Garbled) => {
            ran(false, "the tool did not answer in time: send the same request again to learn what it did")
        }
        // A value that the database refuses is the model's to correct.
        Err(error @ DatabaseError::Refused { .. }) => {
            let problem = error.problem(1);
            ran(false, if problem.status < 500 { &problem.detail } else { "the tool is not available now" })
        }
    };
    let answer = match answer.get("ran") {
        Some(result) => obj(&mut [("ran", edge_tool::answered(cx, result.clone()).await.into())]),
        None => answer,
    };
    let ok = answer.get("ran").is_some_and(|ran| flag_at(ran, "ok"));
    cx.log(
        if ok { Level::Info } else { Level::Warn },
        Event::ToolCall,
        if ok { "a tool answered an MCP client" } else { "a tool had no answer for an MCP client" },
        &[("tool", tool.name.into()), ("ok", ok.into()), ("duration_ms", (host::now_ms() - started).into())],
    );
    answered(asked, Some(tool), &answer)
}

fn ran(ok: bool, error: &str) -> Value {
    let result = obj(&mut [("ok", ok.into()), ("error", error.into())]);
    obj(&mut [("ran", result.into())])
}

/// The answer of the database, as the client is told.
fn answered(asked: &Request, tool: Option<&Tool>, answer: &Value) -> Result<Reply, Problem> {
    match mcp::ruling(answer) {
        Ruling::Granted { scopes, tools } => Ok(reply(asked.granted(scopes, tools))),
        Ruling::Ran(answer) => Ok(reply(asked.ran(answer))),
        Ruling::TokenRefused => Err(Problem::unauthorized()),
        // As RFC 6750, section 3.1 says it.
        Ruling::ScopeRefused => {
            let scope = tool.map_or("", |tool| tool.scope);
            let challenge = ["Bearer error=\"insufficient_scope\", scope=\"", scope, "\""].concat();
            Ok(Reply::problem(&Problem::forbidden()).with_header("www-authenticate", challenge))
        }
    }
}

fn reply(answer: Answer) -> Reply {
    match answer.body {
        Some(body) => Reply::json(answer.status, &body),
        None => Reply::text(answer.status, ""),
    }
}
