//! What people wrote, read for what is worth remembering once the conversation rests. Two database calls and a question; nobody
//! waits for it, so what fails is left to the database's own clock.

use ihuza_core::{
    json::{obj, str_at},
    log::{Event, Level},
    memory,
    openai::{self, SummaryRequest},
    summary,
};
use ihuza_edge::{
    claim::{self, Gates},
    consume::Verdict,
    context::Cx,
    database, model,
    queue::Envelope,
};
use serde_json::Value;

use crate::work;

pub async fn read(cx: &Cx, envelope: &Envelope, session_id: &str) -> Verdict {
    let lease_token = claim::lease_token(&cx.correlation_id);
    let p = obj(&mut [("session_id", session_id.into()), ("lease_token", (&lease_token).into())]);
    let claimed = match database::rpc(cx, "begin_memories", &p).await {
        Ok(claimed) => claimed,
        Err(error) => {
            claim::unheard(&cx.correlation_id, lease_token);
            return Verdict::after(&error, envelope);
        }
    };
    if str_at(&claimed, "decision") != Some("go") {
        return Verdict::Done;
    }
    let (found, failed, providers) = ask(cx, &claimed).await;
    let p = obj(&mut [
        ("session_id", session_id.into()),
        ("lease_token", lease_token.into()),
        ("read_seq", claimed.get("read_seq").into()),
        ("memories", found.into()),
        ("failed", failed.into()),
        ("providers", providers.into()),
    ]);
    match database::rpc(cx, "finish_memories", &p).await {
        Ok(done) => {
            let said = failed.map_or_else(
                || "the conversation was read for what to remember".to_owned(),
                |failed| ["the conversation was not read for what to remember: ", failed].concat(),
            );
            let level = if failed.is_some() { Level::Warn } else { Level::Info };
            cx.log(level, Event::MemoriesTaken, &said, &[("kept", done.get("kept").into())]);
        }
        // Its lease ends, and a sweep asks for it again.
        Err(error) => {
            let said = ["what to remember could not be recorded: ", &error.to_string()].concat();
            cx.log(Level::Warn, Event::DatabaseFailed, &said, &[]);
        }
    }
    Verdict::Done
}

/// The memories, or why there are none, as code; and the model call, for the breaker.
async fn ask(cx: &Cx, claimed: &Value) -> (Vec<Value>, Option<&'static str>, Vec<Value>) {
    if cx.config.find("OPENAI_API_KEY").is_none() {
        return (Vec::new(), Some("no_model_is_set"), Vec::new());
    }
    if Gates(claimed.get("providers").cloned().unwrap_or_default()).is_open("openai") {
        return (Vec::new(), Some("model_is_paused"), Vec::new());
    }
    let request = openai::memories_request(&SummaryRequest {
        model: cx.config.text("OPENAI_SUMMARY_MODEL"),
        brand: str_at(claimed, "brand").unwrap_or_default(),
        locale: None,
        transcript: &work::transcript(claimed),
        memory_keys: &work::memory_keys(claimed),
        safety_identifier: &model::safety_identifier(str_at(claimed, "profile_id").unwrap_or_default()),
    });
    match model::respond(cx, &request, cx.config.number("SUMMARY_TIMEOUT_MS")).await {
        Ok(reply) => {
            let answer = reply.answer().and_then(summary::unfenced);
            let failed = answer.is_none().then_some("answer_of_no_use");
            (answer.map(|answer| memory::memories(&answer)).unwrap_or_default(), failed, vec![model::outcome(Ok(()))])
        }
        Err(down) => (Vec::new(), Some("model_is_down"), vec![model::outcome(Err(&down))]),
    }
}
