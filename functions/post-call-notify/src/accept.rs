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
    endpoint::{self, Call},
    incoming::BODY_LIMIT_BYTES,
    queue::{self, Envelope, Placed},
    reply::Reply,
};

use crate::ENDPOINT;

/// Longest id of a call or a profile that is looked for.
const REFERENCE_LIMIT: usize = 128;

pub async fn notification(call: Call) -> Result<Reply, Problem> {
    endpoint::require_service_key(&call.cx, &call.request)?;
    let body = json::object(&call.request.body(BODY_LIMIT_BYTES).await?)?;

    let call_ref = json::required_text(
        &body,
        "call_id",
        "the id of a call_summaries or voice_calls row, or the provider's call id",
    )?;
    if call_ref.len() > REFERENCE_LIMIT {
        return Err(Problem::invalid_field(
            "call_id",
            format!("call_id has more than {REFERENCE_LIMIT} characters"),
            "send the id of the call, not its content",
        ));
    }
    let profile_ref = json::text(&body, "profile_id").filter(|id| id.len() <= REFERENCE_LIMIT);
    let phone = match json::text(&body, "phone_number") {
        Some(text) => Some(E164::parse(&text).map_err(|error| {
            Problem::invalid_field(
                "phone_number",
                error.to_string(),
                "write it in E.164 form, such as +250788123456; leave it out to use the call's own number",
            )
        })?),
        None => None,
    };
    let cx = match json::text(&body, "correlation_id") {
        Some(id) => {
            let id = CorrelationId::parse(&id).ok_or_else(|| {
                Problem::invalid_field(
                    "correlation_id",
                    "correlation_id is no token of 1 to 64 visible ASCII characters",
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
    ]);
    let placed = queue::place(&cx, ENDPOINT.queue, &Envelope::new(&cx.correlation_id, work), 0).await?;
    let recipient = phone.as_ref().map(|phone| phone.masked());
    cx.log(
        Level::Info,
        Event::PostCallNotifyStart,
        "a call's notification was accepted",
        &[
            ("call_ref", (&call_ref).into()),
            ("recipient", recipient.into()),
            ("placed", (if placed == Placed::Queue { "queue" } else { "job_row" }).into()),
        ],
    );
    let answer = obj(&mut [
        ("status", "accepted".into()),
        ("correlation_id", (&cx.correlation_id).into()),
        ("status_url", ["/", ENDPOINT.name, "/", &cx.correlation_id].concat().into()),
    ]);
    Ok(Reply::json(202, &answer).with_header(endpoint::CORRELATION_HEADER, cx.correlation_id))
}

/// What became of the notification with this correlation id.
pub async fn status(call: Call) -> Result<Reply, Problem> {
    endpoint::require_service_key(&call.cx, &call.request)?;
    let id = CorrelationId::parse(&call.rest).ok_or_else(|| Problem::not_found("there is no such path here"))?;
    let found = database::rpc(&call.cx, "notification_status", &obj(&mut [("correlation_id", id.as_str().into())]))
        .await
        .map_err(|_| Problem::unavailable(5))?;
    if found.is_null() {
        return Err(Problem::not_found("no notification with this correlation id has been worked on yet")
            .hint("ask again in a few seconds; an id that stays unknown was never accepted"));
    }
    Ok(Reply::json(200, &found))
}
