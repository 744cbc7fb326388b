//! The Model Context Protocol over streamable HTTP, server side: what a POST asks, and how each answer is written.
//!
//! Two eras are served at one address (specification 2026-07-28, basic/versioning, "Dual-era"). A modern request carries its
//! version in `_meta` and in headers and needs nothing before it; a legacy client begins with `initialize`. Neither gets a
//! session id: a token names the conversation, so that each POST stands alone. Only tools are offered, answers are one JSON
//! object and never a stream.
//!
//! Codes and statuses: basic/index ("Error Codes"), basic/transports/streamable-http ("Server Validation").

use base64ct::{Base64, Encoding};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::ids::content_hash;
use crate::json::{self, flag_at, items_at, obj, str_at};
use crate::json_text::{self, to_text};
use crate::tool::{self, Surface, Tool};

/// The version in which every request stands alone.
pub const MODERN: &str = "2026-07-28";
/// The versions that begin with `initialize`, the newest first.
pub const LEGACY: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

/// Where a client may put a key of its own choice: two calls with one key act once, however far apart.
pub const IDEMPOTENCY_META: &str = "rw.ihuza/idempotencyKey";

const VERSION_META: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES_META: &str = "io.modelcontextprotocol/clientCapabilities";
const SERVER_META: &str = "io.modelcontextprotocol/serverInfo";

/// How long a client may keep the list of tools: a token's scopes never change, an agent's tools may.
const LIST_TTL_MS: u32 = 60_000;
/// An id or a key that is longer is refused.
const ID_LIMIT_BYTES: usize = 256;

const INSTRUCTIONS: &str = "Tools of one conversation with one person. Each of them acts for that person; none takes a name, a \
                            number or an id of anybody. Say that something is done only when a tool has answered so.";

/// What a token begins with; 64 hexadecimal digits follow.
pub const TOKEN_PREFIX: &str = "mcpt_";

/// The hash under which the database knows a token, in hexadecimal; none for a text that cannot be one.
pub fn token_hash(token: &str) -> Option<String> {
    let digits = token.strip_prefix(TOKEN_PREFIX)?;
    let fits = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fits.then(|| hex::encode(Sha256::digest(token)))
}

/// The headers that say what the body says as well.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    /// `MCP-Protocol-Version`.
    pub version: Option<&'a str>,
    /// `Mcp-Method`.
    pub method: Option<&'a str>,
    /// `Mcp-Name`.
    pub name: Option<&'a str>,
}

/// Whether a request may come from this `Origin` (streamable-http, "Security & Endpoint"): no browser may, but from the
/// origins that are listed with commas or spaces between them. Programs that are no browser send none.
pub fn is_origin_allowed(origin: Option<&str>, allowed: &str) -> bool {
    origin.is_none_or(|origin| {
        allowed.split([',', ' ']).any(|known| !known.is_empty() && known.eq_ignore_ascii_case(origin.trim()))
    })
}

/// Whether a body of this `Content-Type` is JSON. A browser asks us first before it sends that to another site.
pub fn is_json(content_type: Option<&str>) -> bool {
    content_type.is_some_and(|found| media_type(found).eq_ignore_ascii_case("application/json"))
}

/// Whether whoever sends this `Accept` takes JSON, which is all there is.
pub fn accepts_json(accept: Option<&str>) -> bool {
    accept.is_none_or(|accept| {
        let takes =
            |found: &str| ["application/json", "application/*", "*/*"].iter().any(|m| m.eq_ignore_ascii_case(found));
        accept.split(',').any(|found| takes(media_type(found)))
    })
}

fn media_type(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

/// Which of the two ways a request is answered in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    Modern,
    Legacy,
}

/// JSON-RPC errors that we give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Parse,
    InvalidRequest,
    MethodNotFound,
    InvalidParams,
    HeaderMismatch,
    UnsupportedVersion,
}

impl Code {
    fn number(self) -> i32 {
        match self {
            Code::Parse => -32700,
            Code::InvalidRequest => -32600,
            Code::MethodNotFound => -32601,
            Code::InvalidParams => -32602,
            Code::HeaderMismatch => -32020,
            Code::UnsupportedVersion => -32022,
        }
    }

    /// A legacy client reads the error of a request only where HTTP itself is content.
    fn status(self, era: Era) -> u16 {
        match (self, era) {
            (Code::MethodNotFound, Era::Modern) => 404,
            (Code::MethodNotFound | Code::InvalidParams, Era::Legacy) => 200,
            _ => 400,
        }
    }
}

/// What goes back.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The one JSON object; nothing for a notification.
    pub body: Option<Value>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// `server/discover`
    Discover,
    /// `initialize`, with the version that is agreed on.
    Initialize(&'static str),
    /// `ping`
    Ping,
    /// `tools/list`
    ListTools,
    /// `tools/call`
    CallTool(ToolCall),
}

/// A call of a tool, as the client wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Of the tool; there may be none of this name.
    pub name: String,
    /// An object.
    pub arguments: Value,
    /// The client's own key from [`IDEMPOTENCY_META`].
    pub key: Option<String>,
}

/// One request: whatever becomes of it, exactly one [`Answer`] goes back.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    id: Value,
    era: Era,
    /// What is asked.
    pub ask: Ask,
}

/// Reads the body of a POST. The error is the whole answer: of what cannot be read, or of a notification, which is taken and
/// changes nothing (a call is cancelled by closing its connection, and runs to its end all the same).
pub fn read(body: &[u8], headers: &Headers) -> Result<Request, Answer> {
    let Ok(message) = json_text::parse_bytes(body) else {
        return Err(error(&Value::Null, Era::Modern, Code::Parse, "the body is no JSON", None));
    };
    let invalid = |said: &str| error(&Value::Null, Era::Modern, Code::InvalidRequest, said, None);
    let Value::Object(mut message) = message else {
        return Err(invalid("the body must be one JSON-RPC request or notification; there are no batches"));
    };
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(invalid("jsonrpc must be \"2.0\""));
    }
    // A response has an id and no method; nobody was asked.
    let Some(Value::String(method)) = message.remove("method") else {
        return Err(invalid("method must be a text"));
    };
    let id = message.remove("id");
    if id.as_ref().is_some_and(|id| !is_id(id)) {
        return Err(invalid("id must be a text or a whole number of at most 256 bytes"));
    }
    let params = message.remove("params").unwrap_or(Value::Null);
    let meta = params.get("_meta");
    let meta_version = meta.and_then(|meta| meta.get(VERSION_META));
    let era = if meta_version.is_some() || headers.version == Some(MODERN) { Era::Modern } else { Era::Legacy };
    let Some(id) = id else {
        return Err(match headers.version {
            Some(version) if !is_known(version) => unsupported(&Value::Null, era, version),
            _ => Answer { status: 202, body: None },
        });
    };
    let refuse = |code, said: &str| Err(error(&id, era, code, said, None));
    if !(params.is_object() || params.is_null()) {
        return refuse(Code::InvalidParams, "params must be an object");
    }
    match era {
        Era::Modern => {
            // In this order, as the official server does: a client that contradicts itself is told so first.
            let whole = meta.is_some_and(|meta| meta.get(CAPABILITIES_META).is_some_and(Value::is_object));
            let version = match meta_version {
                Some(Value::String(version)) if whole => version.as_str(),
                _ => {
                    return refuse(
                        Code::InvalidParams,
                        "params._meta must hold io.modelcontextprotocol/protocolVersion and .../clientCapabilities",
                    );
                }
            };
            let mismatch = |name: &str| {
                refuse(
                    Code::HeaderMismatch,
                    &["the header ", name, " is missing or says something else than the body"].concat(),
                )
            };
            if headers.version != Some(version) {
                return mismatch("MCP-Protocol-Version");
            }
            if headers.method != Some(&method) {
                return mismatch("Mcp-Method");
            }
            if method == "tools/call" {
                let name = params.get("name").and_then(Value::as_str);
                if name.is_some() && decode(headers.name).as_deref() != name {
                    return mismatch("Mcp-Name");
                }
            }
            if version != MODERN {
                return Err(unsupported(&id, era, version));
            }
        }
        Era::Legacy => {
            if let Some(version) = headers.version.filter(|version| !is_known(version)) {
                return Err(unsupported(&id, era, version));
            }
        }
    }
    let ask = match (method.as_str(), era) {
        ("server/discover", Era::Modern) => Ask::Discover,
        ("initialize", Era::Legacy) => {
            let wanted = str_at(&params, "protocolVersion").unwrap_or_default();
            let [newest, ..] = LEGACY;
            Ask::Initialize(LEGACY.into_iter().find(|version| *version == wanted).unwrap_or(newest))
        }
        ("ping", Era::Legacy) => Ask::Ping,
        // There is one page.
        ("tools/list", _) if params.get("cursor").is_some_and(|cursor| !cursor.is_null()) => {
            return refuse(Code::InvalidParams, "there is no such cursor");
        }
        ("tools/list", _) => Ask::ListTools,
        ("tools/call", _) => match tool_call(params) {
            Ok(call) => Ask::CallTool(call),
            Err(said) => return refuse(Code::InvalidParams, said),
        },
        _ => return refuse(Code::MethodNotFound, "there is no such method here"),
    };
    Ok(Request { id, era, ask })
}

fn tool_call(params: Value) -> Result<ToolCall, &'static str> {
    let key = match params.get("_meta").and_then(|meta| meta.get(IDEMPOTENCY_META)) {
        None => None,
        Some(Value::String(key))
            if (1..=ID_LIMIT_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Some(key.clone())
        }
        // To run it without the key that was asked for may run it twice.
        Some(_) => return Err("the idempotency key must be 1 to 256 visible ASCII characters"),
    };
    let Value::Object(mut params) = params else { return Err("name is missing") };
    let name = match params.remove("name") {
        Some(Value::String(name)) => name,
        _ => return Err("name must be a text"),
    };
    let mut arguments = match params.remove("arguments") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(Value::Object(found)) => Value::Object(found),
        Some(_) => return Err("arguments must be an object"),
    };
    json::strip_nul(&mut arguments);
    Ok(ToolCall { name, arguments, key })
}

fn is_known(version: &str) -> bool {
    version == MODERN || LEGACY.contains(&version)
}

/// A text, or a number without a fraction (basic/index, "Requests"). It goes back as it came, so it is bounded.
fn is_id(id: &Value) -> bool {
    match id {
        Value::String(text) => text.len() <= ID_LIMIT_BYTES,
        Value::Number(number) => {
            let text = number.to_string();
            let digits = text.strip_prefix('-').unwrap_or(&text);
            text.len() <= ID_LIMIT_BYTES && digits.bytes().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
    }
}

/// A header's value in plain, or as `=?base64?...?=` (streamable-http, "Value Encoding").
fn decode(header: Option<&str>) -> Option<String> {
    let header = header?;
    match header.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Some(header.to_owned()),
        Some(encoded) => String::from_utf8(Base64::decode_vec(encoded).ok()?).ok(),
    }
}

fn unsupported(id: &Value, era: Era, requested: &str) -> Answer {
    let data = obj(&mut [("supported", versions()), ("requested", json::clip(requested, 40).into())]);
    error(id, era, Code::UnsupportedVersion, "Unsupported protocol version", Some(data))
}

fn versions() -> json::Part<'static> {
    let [a, b, c] = LEGACY;
    vec![MODERN, a, b, c].into()
}

fn error(id: &Value, era: Era, code: Code, said: &str, data: Option<Value>) -> Answer {
    let mut inner = vec![("code", code.number().into()), ("message", said.into())];
    if let Some(data) = data {
        inner.push(("data", data.into()));
    }
    let error = obj(&mut inner);
    let body = obj(&mut [("jsonrpc", "2.0".into()), ("id", id.into()), ("error", error.into())]);
    Answer { status: code.status(era), body: Some(body) }
}

/// What the database says of a token and, where a tool was named, what the tool answered: `run_mcp_tool`.
#[derive(Debug, Clone, PartialEq)]
pub enum Ruling<'a> {
    /// The token is none, or none any more; nobody is told which.
    TokenRefused,
    /// The token does not allow this tool.
    ScopeRefused,
    /// What may be done: scopes or names of tools of the token, and the tools of the agent.
    Granted {
        /// Of the token.
        scopes: &'a [Value],
        /// Of the agent.
        tools: &'a [Value],
    },
    /// The tool's `{ok, result | error}`.
    Ran(&'a Value),
}

/// Reads the answer of `run_mcp_tool`. One that says nothing we know grants nothing.
pub fn ruling(answer: &Value) -> Ruling<'_> {
    match (answer.get("ran"), str_at(answer, "refused")) {
        (Some(ran), None) => Ruling::Ran(ran),
        (_, Some("scope")) => Ruling::ScopeRefused,
        (None, None) if answer.get("scopes").is_some() => {
            Ruling::Granted { scopes: items_at(answer, "scopes"), tools: items_at(answer, "tools") }
        }
        _ => Ruling::TokenRefused,
    }
}

impl ToolCall {
    /// The tool, if MCP offers it to anybody.
    pub fn tool(&self) -> Option<&'static Tool> {
        tool::find(&self.name).filter(|tool| tool.surfaces.contains(&Surface::Mcp))
    }
}

impl Request {
    /// What tells this request from another one with the same token: the id with its type, the tool and its arguments. An id
    /// alone does not, since clients count anew with each connection.
    pub fn fingerprint(&self) -> String {
        match &self.ask {
            Ask::CallTool(call) => {
                content_hash(&[to_text(&self.id).as_bytes(), call.name.as_bytes(), to_text(&call.arguments).as_bytes()])
            }
            _ => String::new(),
        }
    }

    /// The answer to whoever holds a token with these scopes, of an agent with these tools. A call that was not run asked for a
    /// tool that is not there.
    pub fn granted(&self, scopes: &[Value], tools: &[Value]) -> Answer {
        match &self.ask {
            Ask::Ping => self.result(&mut []),
            Ask::Initialize(version) => self.result(&mut [
                ("protocolVersion", (*version).into()),
                ("capabilities", capabilities().into()),
                ("serverInfo", server_info().into()),
                ("instructions", INSTRUCTIONS.into()),
            ]),
            Ask::Discover => self.result(&mut [
                ("supportedVersions", versions()),
                ("capabilities", capabilities().into()),
                ("instructions", INSTRUCTIONS.into()),
                ("ttlMs", LIST_TTL_MS.into()),
                ("cacheScope", "private".into()),
            ]),
            Ask::ListTools => {
                let holds = |list: &[Value], word: &str| list.iter().any(|item| item.as_str() == Some(word));
                let names: Vec<&str> = tool::all()
                    .iter()
                    .filter(|tool| holds(tools, tool.name) && (holds(scopes, tool.scope) || holds(scopes, tool.name)))
                    .map(|tool| tool.name)
                    .collect();
                let tools = tool::offered(&names, Surface::Mcp);
                let mut result = vec![("tools", Value::Array(tools).into())];
                if self.era == Era::Modern {
                    result.extend([("ttlMs", LIST_TTL_MS.into()), ("cacheScope", "private".into())]);
                }
                self.result(&mut result)
            }
            Ask::CallTool(_) => error(&self.id, self.era, Code::InvalidParams, "there is no tool of this name", None),
        }
    }

    /// The answer that a tool gave: `{ok, result | error}`. What went wrong is told as a result, so that a model can mend it
    /// (server/tools, "Error Handling").
    pub fn ran(&self, answer: &Value) -> Answer {
        let ok = flag_at(answer, "ok");
        let text = match (ok, answer.get("result"), str_at(answer, "error")) {
            (true, Some(result), _) => to_text(result),
            (true, None, _) => "{}".to_owned(),
            (false, _, Some(error)) => error.to_owned(),
            (false, _, None) => "the tool did not answer".to_owned(),
        };
        let content = obj(&mut [("type", "text".into()), ("text", text.into())]);
        self.result(&mut [("content", vec![content].into()), ("isError", (!ok).into())])
    }

    fn result(&self, parts: &mut [(&str, json::Part)]) -> Answer {
        let mut result = obj(parts);
        if let (Era::Modern, Some(fields)) = (self.era, result.as_object_mut()) {
            fields.insert("resultType".to_owned(), "complete".into());
            fields.insert("_meta".to_owned(), obj(&mut [(SERVER_META, server_info().into())]));
        }
        let body = obj(&mut [("jsonrpc", "2.0".into()), ("id", (&self.id).into()), ("result", result.into())]);
        Answer { status: 200, body: Some(body) }
    }
}

fn capabilities() -> Value {
    obj(&mut [("tools", Value::Object(Map::new()).into())])
}

fn server_info() -> Value {
    obj(&mut [("name", "ihuza".into()), ("title", "Ihuza".into()), ("version", "1".into())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use serde_json::json;

    fn headers(method: &str) -> Headers<'_> {
        Headers { version: Some(MODERN), method: Some(method), name: None }
    }

    const LEGACY_HEADERS: Headers = Headers { version: Some("2025-11-25"), method: None, name: None };

    /// A request of the current version.
    fn modern(method: &str, mut params: Value) -> String {
        params["_meta"][VERSION_META] = MODERN.into();
        params["_meta"][CAPABILITIES_META] = json!({});
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
    }

    #[track_caller]
    fn check(body: &str, headers: &Headers, expected: Expect) {
        let said = match read(body.as_bytes(), headers) {
            Ok(request) => format!("{:?} {:?}", request.era, request.ask),
            Err(Answer { status, body: Some(body) }) => {
                format!("{status} {} {} {}", body["id"], body["error"]["code"], body["error"]["message"])
            }
            Err(Answer { status, body: None }) => status.to_string(),
        };
        expected.assert_eq(&said);
    }

    #[test]
    fn each_era_is_read_in_its_own_way() {
        check(&modern("server/discover", json!({})), &headers("server/discover"), expect!["Modern Discover"]);
        check(&modern("tools/list", json!({})), &headers("tools/list"), expect!["Modern ListTools"]);
        let initialize = |version: &str| {
            json!({"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": {"protocolVersion": version}})
                .to_string()
        };
        let none = Headers::default();
        check(&initialize("2025-06-18"), &none, expect![[r#"Legacy Initialize("2025-06-18")"#]]);
        check(&initialize("2031-01-01"), &none, expect![[r#"Legacy Initialize("2025-11-25")"#]]);
        check(r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#, &LEGACY_HEADERS, expect!["Legacy Ping"]);
        check(r#"{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{}}"#, &none, expect!["Legacy ListTools"]);
        check(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, &LEGACY_HEADERS, expect!["202"]);
        // What is of one era only.
        check(
            &modern("ping", json!({})),
            &headers("ping"),
            expect![[r#"404 1 -32601 "there is no such method here""#]],
        );
        check(
            &modern("initialize", json!({})),
            &headers("initialize"),
            expect![[r#"404 1 -32601 "there is no such method here""#]],
        );
        check(
            r#"{"jsonrpc":"2.0","id":2,"method":"server/discover"}"#,
            &LEGACY_HEADERS,
            expect![[r#"200 2 -32601 "there is no such method here""#]],
        );
    }

    #[test]
    fn a_modern_request_says_in_headers_what_it_says_in_its_body() {
        let list = modern("tools/list", json!({}));
        let mismatch = |headers: Headers, name: &str| {
            let answer = read(list.as_bytes(), &headers).unwrap_err();
            assert_eq!(
                (answer.status, &answer.body.as_ref().unwrap()["error"]["code"]),
                (400, &json!(-32020)),
                "{name}"
            );
            assert!(answer.body.unwrap()["error"]["message"].as_str().unwrap().contains(name));
        };
        mismatch(Headers::default(), "MCP-Protocol-Version");
        mismatch(LEGACY_HEADERS, "MCP-Protocol-Version");
        mismatch(Headers { method: None, ..headers("") }, "Mcp-Method");
        mismatch(headers("tools/call"), "Mcp-Method");
        let call = modern("tools/call", json!({"name": "forget\u{e9}"}));
        for (name, fits) in [
            (Some("=?base64?Zm9yZ2V0w6k=?="), true),
            (Some("forget\u{e9}"), true),
            (Some("=?base64?Zm9yZ2V0?="), false),
            (Some("=?base64?!?="), false),
            (Some("remember"), false),
            (None, false),
        ] {
            let read = read(call.as_bytes(), &Headers { name, ..headers("tools/call") });
            assert_eq!(read.is_ok(), fits, "{name:?}");
        }
        check(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            &headers("tools/list"),
            expect![[
                r#"400 1 -32602 "params._meta must hold io.modelcontextprotocol/protocolVersion and .../clientCapabilities""#
            ]],
        );
    }

    #[test]
    fn a_version_that_is_not_served_is_told_which_are() {
        let body = modern("tools/list", json!({})).replace(MODERN, "1900-01-01");
        let answer =
            read(body.as_bytes(), &Headers { version: Some("1900-01-01"), ..headers("tools/list") }).unwrap_err();
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.body.unwrap()["error"],
            json!({"code": -32022, "message": "Unsupported protocol version",
                   "data": {"supported": ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26"], "requested": "1900-01-01"}})
        );
        let old = Headers { version: Some("2024-11-05"), ..Headers::default() };
        for body in [r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, r#"{"jsonrpc":"2.0","method":"notifications/x"}"#] {
            let answer = read(body.as_bytes(), &old).unwrap_err();
            assert_eq!((answer.status, &answer.body.unwrap()["error"]["code"]), (400, &json!(-32022)), "{body}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let none = Headers::default();
        check("{", &none, expect![[r#"400 null -32700 "the body is no JSON""#]]);
        check(
            "[]",
            &none,
            expect![[
                r#"400 null -32600 "the body must be one JSON-RPC request or notification; there are no batches""#
            ]],
        );
        check("{}", &none, expect![[r#"400 null -32600 "jsonrpc must be \"2.0\"""#]]);
        check(
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            &none,
            expect![[r#"400 null -32600 "method must be a text""#]],
        );
        let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"ping"}}"#, "x".repeat(300));
        for id in ["null", "1.5", "1e9", "{}", "[]", "true"] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
            assert_eq!(read(body.as_bytes(), &none).unwrap_err().status, 400, "{id}");
        }
        assert_eq!(read(long.as_bytes(), &none).unwrap_err().status, 400);
        check(
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#,
            &none,
            expect![[r#"200 1 -32602 "params must be an object""#]],
        );
        for (params, said) in [
            (json!({}), "name must be a text"),
            (json!({"name": 1}), "name must be a text"),
            (json!({"name": "a", "arguments": []}), "arguments must be an object"),
            (
                json!({"name": "a", "_meta": {IDEMPOTENCY_META: ""}}),
                "the idempotency key must be 1 to 256 visible ASCII characters",
            ),
            (
                json!({"name": "a", "_meta": {IDEMPOTENCY_META: 7}}),
                "the idempotency key must be 1 to 256 visible ASCII characters",
            ),
        ] {
            let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
            let answer = read(body.as_bytes(), &none).unwrap_err().body.unwrap();
            assert_eq!((&answer["error"]["code"], &answer["error"]["message"]), (&json!(-32602), &json!(said)));
        }
    }

    fn call(id: &str, arguments: &str) -> Request {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"remember","arguments":{arguments}}}}}"#
        );
        read(body.as_bytes(), &Headers::default()).unwrap()
    }

    #[test]
    fn an_id_goes_back_as_it_came_and_counts_in_the_fingerprint() {
        for id in ["12345678901234567890123", "-0", "\"\"", "\"1\""] {
            let answer = call(id, "{}").ran(&json!({"ok": true, "result": {}})).body.unwrap();
            assert_eq!(answer["id"].to_string(), id);
        }
        let same = [call("1", r#"{"key":"a","value":"b"}"#), call("1", r#"{ "value":"b", "key":"a" }"#)];
        assert_eq!(same[0].fingerprint(), same[1].fingerprint());
        for other in
            [call("\"1\"", r#"{"key":"a","value":"b"}"#), call("1", r#"{"key":"a","value":"c"}"#), call("2", "{}")]
        {
            assert_ne!(same[0].fingerprint(), other.fingerprint());
        }
    }

    #[test]
    fn a_token_lists_what_it_and_the_agent_allow() {
        let body = modern("tools/list", json!({}));
        let request = read(body.as_bytes(), &headers("tools/list")).unwrap();
        let names = |scopes: Value, tools: Value| -> Vec<String> {
            let answer = request.granted(scopes.as_array().unwrap(), tools.as_array().unwrap()).body.unwrap();
            let tools = answer["result"]["tools"].as_array().unwrap();
            tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
        };
        let tools = json!(["end_call", "forget", "remember", "messaging_send_sms", "session_get_context", "a_tool"]);
        assert_eq!(
            names(json!(["memory:write", "session:read"]), tools.clone()),
            ["session_get_context", "remember", "forget"]
        );
        assert_eq!(
            names(json!(["remember", "call:write"]), tools.clone()),
            ["remember"],
            "nobody ends a call over MCP"
        );
        assert!(names(json!([]), tools.clone()).is_empty());
        assert!(names(json!(["session:write"]), tools).is_empty(), "the agent has none of them");
        let answer = request.granted(&[], &[]).body.unwrap();
        expect![[r#"{"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"ihuza","title":"Ihuza","version":"1"}},"cacheScope":"private","resultType":"complete","tools":[],"ttlMs":60000}"#]]
            .assert_eq(&answer["result"].to_string());
    }

    #[test]
    fn what_a_tool_says_is_a_result_and_also_where_it_failed() {
        let request = call("7", "{}");
        let said = |answer: Value| request.ran(&answer).body.unwrap()["result"].to_string();
        expect![[r#"{"content":[{"text":"{\"status\":\"closed\"}","type":"text"}],"isError":false}"#]]
            .assert_eq(&said(json!({"ok": true, "result": {"status": "closed"}})));
        expect![[r#"{"content":[{"text":"session not found","type":"text"}],"isError":true}"#]]
            .assert_eq(&said(json!({"ok": false, "error": "session not found"})));
        for odd in [json!(null), json!([]), json!({"ok": "yes"})] {
            assert!(said(odd).contains(r#""isError":true"#));
        }
    }

    #[test]
    fn a_ruling_that_is_none_grants_nothing() {
        for odd in [
            json!(null),
            json!({}),
            json!({"refused": "token"}),
            json!({"refused": "token", "scopes": ["messages"]}),
            json!({"refused": "token", "ran": {"ok": true}}),
            json!({"refused": 1}),
        ] {
            assert_eq!(ruling(&odd), Ruling::TokenRefused, "{odd}");
        }
        assert_eq!(ruling(&json!({"refused": "scope"})), Ruling::ScopeRefused);
        assert!(matches!(ruling(&json!({"scopes": ["a"], "tools": []})), Ruling::Granted { scopes: [_], tools: [] }));
        assert!(matches!(ruling(&json!({"ran": {"ok": true}})), Ruling::Ran(_)));
    }

    #[test]
    fn what_is_no_token_is_not_asked_about() {
        let token = format!("mcpt_{}", "0f".repeat(32));
        // sha256sum says the same.
        assert_eq!(token_hash(&token).unwrap(), "23221a279e697f4b05fe6b72b7741a986f130edab97fe6904ad50636d3bcdb45");
        assert_ne!(token_hash(&token), token_hash(&token.replace("0f", "1f")));
        for odd in ["", "mcpt_", &token[1..], &token[..68], &token.to_uppercase(), &format!("{token}0")] {
            assert_eq!(token_hash(odd), None, "{odd}");
        }
    }

    #[test]
    fn media_types_and_origins_are_compared_whole() {
        for (accept, takes) in [
            (None, true),
            (Some("application/json, text/event-stream"), true),
            (Some("text/event-stream;q=1, APPLICATION/JSON;q=0.5"), true),
            (Some("*/*"), true),
            (Some("text/event-stream"), false),
            (Some("text/html, application/jsonp"), false),
            (Some(""), false),
        ] {
            assert_eq!(accepts_json(accept), takes, "{accept:?}");
        }
        for (content, fits) in [
            (Some("application/json"), true),
            (Some("Application/JSON; charset=utf-8"), true),
            (Some("text/plain"), false),
            (None, false),
        ] {
            assert_eq!(is_json(content), fits, "{content:?}");
        }
        assert!(is_origin_allowed(None, ""));
        assert!(is_origin_allowed(Some("https://a.rw"), "https://b.rw, https://A.rw"));
        for (origin, allowed) in [
            ("https://a.rw", ""),
            ("null", ""),
            ("https://a.rw.evil", "https://a.rw"),
            ("", "https://a.rw,"),
            ("http://a.rw", "https://a.rw"),
        ] {
            assert!(!is_origin_allowed(Some(origin), allowed), "{origin}");
        }
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            prop::sample::select(vec!["2.0", MODERN, "tools/call", "remember", "2025-06-18"]).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z_]{0,6}", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Messages that are nearly right.
    fn messages() -> impl Strategy<Value = Value> {
        let method = prop::sample::select(vec![
            "server/discover",
            "initialize",
            "ping",
            "tools/list",
            "tools/call",
            "notifications/initialized",
            "x",
        ]);
        let id = prop_oneof![any::<i32>().prop_map(Value::from), "[ -~]{0,9}".prop_map(Value::from), anything()];
        (method, id, anything(), anything(), anything(), any::<[bool; 5]>()).prop_map(
            |(method, id, params, name, arguments, has)| {
                let mut message = json!({"jsonrpc": "2.0", "method": method});
                if has[0] {
                    message["id"] = id;
                }
                message["params"] = if has[1] { json!({"name": name, "arguments": arguments}) } else { params };
                if has[2] && message["params"].is_object() {
                    message["params"]["_meta"] = json!({VERSION_META: MODERN, CAPABILITIES_META: {}});
                }
                if has[3] && message["params"].is_object() {
                    message["params"]["name"] = "remember".into();
                }
                message
            },
        )
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>, version: Option<String>, name: Option<String>) {
            let headers = Headers { version: version.as_deref(), method: None, name: name.as_deref() };
            let answer = read(&body, &headers);
            prop_assert!(answer.is_ok() || answer.is_err_and(|answer| answer.status >= 202));
        }

        #[test]
        fn what_has_an_id_gets_exactly_one_answer_with_it_and_what_has_none_gets_no_body(
            message in messages(), version in prop::sample::select(vec![None, Some(MODERN), Some("2025-06-18"), Some("x")]),
        ) {
            let method = message["method"].as_str().unwrap().to_owned();
            let headers = Headers { version, method: Some(&method), name: Some("remember") };
            let id = message.get("id").cloned();
            let answer = match read(message.to_string().as_bytes(), &headers) {
                Err(answer) => answer,
                Ok(request) => {
                    prop_assert!(id.is_some(), "nothing is done for a notification");
                    prop_assert_eq!(request.granted(&[], &[]).body.unwrap()["id"].clone(), id.clone().unwrap());
                    request.ran(&json!({"ok": true}))
                }
            };
            match (id, answer.body) {
                (None, None) => prop_assert_eq!(answer.status, 202),
                // Refused by HTTP, with a reason.
                (None, Some(body)) => prop_assert!(answer.status == 400 && body["id"].is_null()),
                (Some(_), None) => prop_assert!(false, "no answer"),
                (Some(id), Some(body)) => {
                    prop_assert_eq!(body["jsonrpc"].as_str(), Some("2.0"));
                    prop_assert!(body["result"].is_object() != body["error"].is_object());
                    prop_assert!(body["id"] == id || (!is_id(&id) && body["id"].is_null() && answer.status == 400));
                }
            }
        }
    }
}
