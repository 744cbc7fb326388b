//! `agent-tools`: the tools of one conversation for any MCP client that holds a token of it (docs/mcp.md).
//!
//! | request | answer |
//! |---|---|
//! | `POST /mcp` with one JSON-RPC request | 200 and the result, or the error with its status |
//! | `POST /mcp` with a notification | 202 |
//! | `GET`, `DELETE /mcp` | 405: there is no stream and no session |
//! | `GET /health` | each dependency, each missing setting |

mod mcp;

use ihuza_core::problem::Problem;
use ihuza_edge::{
    endpoint::{self, Call, Endpoint, Outcome},
    incoming::BODY_LIMIT_BYTES,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys};

const ENDPOINT: Endpoint = Endpoint {
    name: "agent-tools",
    // What a tool sends goes out from there.
    queue: "delivery-retry",
    headers: &["authorization", "origin", "content-type", "accept", "mcp-protocol-version", "mcp-method", "mcp-name"],
    body_limit_bytes: BODY_LIMIT_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    match (call.rest.as_str(), call.request.method.as_str()) {
        ("" | "mcp", "POST") => mcp::post(call).unwrap_or_else(Outcome::from),
        ("" | "mcp", _) => Problem::method_not_allowed("POST").into(),
        _ => Problem::not_found("there is no such path here").into(),
    }
}
