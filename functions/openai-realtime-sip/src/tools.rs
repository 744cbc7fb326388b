//! The agent uses a tool. The caller hears silence meanwhile, so there is a deadline, and an answer either way.

use ihuza_core::{json, problem::Problem, realtime};
use ihuza_edge::{
    endpoint::{self, Call, Outcome},
    reply::Reply,
    voice,
};

pub fn tool(call: Call) -> Result<Outcome, Problem> {
    endpoint::require_service_key(&call.cx, &call.request)?;
    let mut run = realtime::tool_run(&json::object(call.request.body()?)?)?;
    run.fields.insert("correlation_id".to_owned(), call.cx.correlation_id.as_str().into());
    Ok(Outcome::later(async move {
        let answer = voice::run_tool(&call.cx, run).await.map_err(|error| voice::refused(&error))?;
        Ok(Reply::json(200, &answer))
    }))
}
