//! The agent uses a tool. The caller hears silence meanwhile, so there is a deadline, and an answer either way.

use ihuza_core::{
    json::{self, flag_at, obj},
    log::{Event, Level},
    problem::Problem,
    realtime,
};
use ihuza_edge::{
    database::{self, DatabaseError},
    endpoint::{self, Call, Outcome},
    host,
    reply::Reply,
    tool,
};
use serde_json::Value;

pub fn tool(call: Call) -> Result<Outcome, Problem> {
    endpoint::require_service_key(&call.cx, &call.request)?;
    let mut run = realtime::tool_run(&json::object(call.request.body()?)?)?;
    run.fields.insert("correlation_id".to_owned(), call.cx.correlation_id.as_str().into());
    Ok(Outcome::later(async move {
        let cx = &call.cx;
        let started = host::now_ms();
        let name = run.fields.get("name").cloned().unwrap_or_default();
        let p = Value::Object(run.fields);
        let answer = match database::rpc_once(cx, "run_voice_tool", &p, run.deadline_ms).await {
            Ok(answer) => tool::answered(cx, answer).await,
            // The same key may ask again: what was done by then is told, and nothing is done twice.
            Err(DatabaseError::Unavailable { .. } | DatabaseError::Garbled) => {
                let error = "the tool did not answer in time: say so and offer to try again";
                obj(&mut [("ok", false.into()), ("error", error.into()), ("timed_out", true.into())])
            }
            Err(error @ DatabaseError::Refused { .. }) => return Err(crate::refused(error)),
        };
        let ok = flag_at(&answer, "ok");
        cx.log(
            if ok { Level::Info } else { Level::Warn },
            Event::ToolCall,
            if ok { "a tool answered in a call" } else { "a tool had no answer in a call" },
            &[("tool", name.into()), ("ok", ok.into()), ("duration_ms", (host::now_ms() - started).into())],
        );
        Ok(Reply::json(200, &answer))
    }))
}
