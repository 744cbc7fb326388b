//! `delivery-retry`: what could not be done at once is done here, and what was left behind is found here.
//!
//! | trigger | does |
//! |---|---|
//! | queue `delivery-retry` | sends one delivery that is due, or makes a database call that could not be made |
//! | every `<queue>-dlq` | keeps a message that was given up as a row of `dead_letters`, with an alert |
//! | cron, each minute | sweeps: leases that ran out, job rows, calls without a notification, due deliveries, stale sessions |
//! | the same cron, then | looks at failure rates and tells whoever keeps watch of open alerts |
//! | the same cron, once a day | compares notes with the carriers |
//! | `POST /sweep` with the service key | the same sweep, now |
//! | `GET /health` | each dependency, each missing setting |

mod alerts;
mod due;
mod reconcile;
mod sweep;

use ihuza_core::problem::Problem;
use ihuza_edge::{
    consume,
    context::Cx,
    endpoint::{self, Call, Endpoint, Outcome},
    host,
    incoming::{BODY_LIMIT_BYTES, SERVICE_HEADERS},
    reply::Reply,
};
use js_sys::Promise;
use wasm_bindgen::prelude::*;
use worker::{Env, ScheduleContext, ScheduledEvent, event, web_sys, worker_sys::MessageBatch};

const ENDPOINT: Endpoint = Endpoint {
    name: "delivery-retry",
    queue: "delivery-retry",
    headers: SERVICE_HEADERS,
    body_limit_bytes: BODY_LIMIT_BYTES,
};

#[wasm_bindgen]
pub fn fetch(request: web_sys::Request, env: Env) -> Promise {
    endpoint::serve(ENDPOINT, route, request, env)
}

fn route(call: Call) -> Outcome {
    match (call.request.method.as_str(), call.rest.as_str()) {
        ("POST", "sweep") => match endpoint::require_service_key(&call.cx, &call.request) {
            Ok(()) => Outcome::later(async move {
                sweep::sweep(&call.cx).await.map(|found| Reply::json(200, &found)).map_err(|error| error.problem(30))
            }),
            Err(problem) => problem.into(),
        },
        (_, "sweep") => Problem::method_not_allowed("POST").into(),
        _ => Problem::not_found("this function works from its queue and its cron; POST /sweep starts a sweep").into(),
    }
}

#[wasm_bindgen]
pub async fn queue(batch: MessageBatch, env: Env) {
    let queue = consume::queue_of(&batch);
    // Staging's queues carry its name; a dead letter is replayed to the queue, whatever its stage calls it.
    match queue.strip_suffix("-dlq") {
        Some(origin) => {
            let origin = origin.strip_suffix("-staging").unwrap_or(origin);
            consume::bury(batch, env, ENDPOINT.name, origin).await;
        }
        None => consume::consume(batch, env, ENDPOINT.name, due::one).await,
    }
}

#[event(scheduled)]
async fn scheduled(_: ScheduledEvent, env: Env, _: ScheduleContext) {
    let cx = Cx::new(env, ENDPOINT.name, host::new_uuid());
    // What a sweep leaves undone, the next one finds; it has said so in the log.
    let _ = sweep::sweep(&cx).await;
    // Behind it, so that nobody waits for a webhook; and whatever became of it, for that may be what an alert is about.
    alerts::tell(&cx).await;
}
