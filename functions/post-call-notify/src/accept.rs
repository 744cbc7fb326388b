//! Takes a notification request and puts it where it is safe; says later what became of it.

use ihuza_core::json::obj;
use ihuza_core::{
    ids::CorrelationId,
    json,
    log::{Event, Level},
    phone::E164,
    problem::Problem,
};
use ihuza_edge::{
    database,
    endpoint::{self, Call, Outcome},
    queue::Envelope,
    reply::Reply,
};

use crate::ENDPOINT;

/// Longest text of a field of the request, in bytes.
const REFERENCE_LIMIT: usize = 128;

pub fn notification(call: Call) -> Result<Outcome, Problem> {
    endpoint::require_service_key(&call.cx, &call.request)?;
    let body = json::object(call.request.body()?)?;

    let what = "the id of a call_summaries or voice_calls row, or the provider's call id";
    let call_ref = json::optional_text(&body, "call_id", REFERENCE_LIMIT)?
        .ok_or_else(|| Problem::missing_field("call_id", what))?;
    let profile_ref = json::optional_text(&body, "profile_id", REFERENCE_LIMIT)?;
    let phone = match json::optional_text(&body, "phone_number", REFERENCE_LIMIT)? {
        Some(text) => Some(E164::parse(&text).map_err(|error| {
            Problem::invalid_field(
                "phone_number",
                error.to_string(),
                "write it in E.164 form, such as +250788123456; leave it out to use the call's own number",
            )
        })?),
        None => None,
    };
    let urgent = json::flag(&body, "urgent").unwrap_or(false);
    let cx = match json::optional_text(&body, "correlation_id", REFERENCE_LIMIT)? {
        Some(id) => {
            let id = CorrelationId::parse(&id).ok_or_else(|| {
                Problem::invalid_field(
                    "correlation_id",
                    "correlation_id is not made of 1 to 64 letters, digits and -._~:+=@,",
                    "send a UUID, or leave it out and take ours from the answer",
                )
            })?;
            call.cx.for_work(id.as_str())
        }
        None => call.cx,
    };

    let work = obj(&mut [
        ("call_ref", (&call_ref).into()),
        ("profile_ref", profile_ref.into()),
        ("phone_number", phone.as_ref().map(E164::as_str).into()),
        ("urgent", urgent.into()),
    ]);
    let recipient = phone.as_ref().map(|phone| phone.masked());
    let line = cx.line(
        Level::Info,
        Event::PostCallNotifyStart,
        "a call's notification was accepted",
        &[("call_ref", (&call_ref).into()), ("recipient", recipient.into())],
    );
    let answer = obj(&mut [
        ("status", "accepted".into()),
        ("correlation_id", (&cx.correlation_id).into()),
        ("status_url", ["/", ENDPOINT.name, "/", &cx.correlation_id].concat().into()),
    ]);
    let work = vec![(ENDPOINT.queue, Envelope::new(&cx.correlation_id, work))];
    let reply = Reply::json(202, &answer).with_header(endpoint::CORRELATION_HEADER, &cx.correlation_id);
    Ok(Outcome::accepted(cx, work, reply, vec![line]))
}

/// What became of the notification with this correlation id.
pub fn status(call: Call) -> Outcome {
    if let Err(problem) = endpoint::require_service_key(&call.cx, &call.request) {
        return problem.into();
    }
    let Some(id) = CorrelationId::parse(&call.rest) else {
        return Problem::not_found("there is no such path here").into();
    };
    Outcome::later(async move {
        let found = database::rpc(&call.cx, "notification_status", &obj(&mut [("correlation_id", id.as_str().into())]))
            .await
            .map_err(|error| error.problem(5))?;
        if found.is_null() {
            return Err(Problem::not_found("no notification with this correlation id has been worked on yet")
                .hint("ask again in a few seconds; an id that stays unknown was never accepted"));
        }
        Ok(Reply::json(200, &found))
    })
}
