//! `openai-realtime-sip`: the record of phone calls. It opens a call, keeps what the relay tells of it, runs the agent's
//! tools, ends it, and asks for the summary. Sound never comes here: the relay carries it.
//!
//! | request | answer |
//! |---|---|
//! | `POST /openai-realtime` with `{callSid, from, to, locale}`, of a trunk or a relay | 200: the session of the model, and a key to start it |
//! | `POST /openai-realtime/events` with a batch, of a trunk or a relay | 200: what is stored, what is missing |
//! | `POST /openai-realtime/tools`, of a relay | 200: what the tool says, within its deadline |
//! | `POST /openai-realtime/end`, of a trunk or a relay | 200: the call is over, and its summary asked for |
//! | `POST /openai-realtime/trunks`, of a relay | 200: how its trunks are, for the health page |
//! | `GET /openai-realtime/health` | each dependency, each trunk, each missing setting |

mod end;
mod events;
mod open;
mod tools;

use ihuza_core::problem::Problem;
use ihuza_core::signature;
use ihuza_edge::{
    endpoint::{self, Call, Endpoint, Outcome},
    incoming::{BODY_LIMIT_BYTES, Incoming, SERVICE_HEADERS},
    voice,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, web_sys};

const ENDPOINT: Endpoint = Endpoint {
    name: "openai-realtime-sip",
    queue: voice::SUMMARIES,
    headers: SERVICE_HEADERS,
    body_limit_bytes: BODY_LIMIT_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    let place = call.rest.strip_prefix("openai-realtime").unwrap_or(&call.rest).trim_matches('/');
    let work = match place {
        "" => open::open,
        "events" => events::events,
        "tools" => tools::tool,
        "end" => end::end,
        "trunks" => events::trunks,
        "health" => {
            return match call.request.method.as_str() {
                "GET" | "HEAD" => endpoint::health_page(call.cx, ENDPOINT),
                _ => Problem::method_not_allowed("GET").into(),
            };
        }
        _ => return Problem::not_found("there is no such path here").into(),
    };
    match call.request.method.as_str() {
        "POST" => work(call).unwrap_or_else(Outcome::from),
        _ => Problem::method_not_allowed("POST").into(),
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// Holds a key of ours.
    Relay,
    /// Holds the trunk's token: it may tell of calls, and nothing else.
    Trunk,
}

fn asker(call: &Call) -> Result<Asker, Problem> {
    if endpoint::require_service_key(&call.cx, &call.request).is_ok() {
        return Ok(Asker::Relay);
    }
    let secrets = call.cx.config.secrets(&["VOICE_TRUNK_SECRET", "VOICE_TRUNK_SECRET_PREVIOUS"]);
    let header = |request: &Incoming| signature::bearer(request.header("authorization"), &secrets);
    if header(&call.request) { Ok(Asker::Trunk) } else { Err(Problem::unauthorized()) }
}
