//! Takes inbound SMS and puts each where it is safe; answers only then.

use ihuza_core::json::obj;
use ihuza_core::{
    keyword::{self, Dialogue},
    locale,
    log::{Event, Level},
    mtn::{self, InboundSms},
    problem::Problem,
    timestamp,
};
use ihuza_edge::{
    carrier,
    context::Cx,
    endpoint::Call,
    host,
    incoming::BODY_LIMIT_BYTES,
    queue::{self, Envelope},
    reply::Reply,
};

use crate::ENDPOINT;

pub async fn inbound(call: Call) -> Result<Reply, Problem> {
    let body = call.request.body(BODY_LIMIT_BYTES).await?;
    carrier::authenticate(&call, &body, call.cx.config.flag("IHUZA_COMPAT_INBOUND_AUTH"))?;
    let content_type = call.request.header("content-type");
    let inbound = mtn::parse_inbound(content_type.as_deref(), &body, host::now())?;
    for reason in &inbound.ignored {
        call.cx.log(
            Level::Info,
            Event::SmsInboundRefused,
            &format!("an inbound SMS is left alone: {reason}"),
            &[("reason", (*reason).into())],
        );
    }
    let mut accepted = Vec::with_capacity(inbound.messages.len());
    for message in &inbound.messages {
        // Several messages in one body are several pieces of work, each with its own thread through the logs.
        let cx = if inbound.messages.len() == 1 { call.cx.clone() } else { call.cx.for_work(&host::new_uuid()) };
        place(&cx, message).await?;
        accepted.push(cx.correlation_id);
    }
    // What is sound in a body is kept; only a body with nothing sound in it is refused.
    match inbound.refused.into_iter().next() {
        Some(problem) if accepted.is_empty() => Err(problem),
        problem => {
            if let Some(problem) = problem {
                call.cx.log(
                    Level::Warn,
                    Event::SmsInboundRefused,
                    problem.title,
                    &[("type", problem.type_slug.into())],
                );
            }
            Ok(Reply::json(
                200,
                &obj(&mut [
                    ("status", "accepted".into()),
                    ("messages", accepted.len().into()),
                    ("ignored", inbound.ignored.len().into()),
                    ("correlation_ids", accepted.into()),
                ]),
            ))
        }
    }
}

async fn place(cx: &Cx, message: &InboundSms) -> Result<(), Problem> {
    let found = keyword::detect(&message.text, Dialogue::default());
    let language = found.as_ref().and_then(|found| found.locale).or_else(|| locale::detect(&message.text));
    let work = obj(&mut [
        ("provider", message.provider.into()),
        ("provider_message_id", (&message.provider_message_id).into()),
        ("from", message.from.as_str().into()),
        ("to", (&message.to).into()),
        ("text", (&message.text).into()),
        ("received_at", timestamp::to_rfc3339(message.received_at).into()),
        ("keyword", (found.map(|found| found.keyword.as_str())).into()),
        ("language_hint", language.into()),
    ]);
    queue::place(cx, ENDPOINT.queue, &Envelope::new(&cx.correlation_id, work), 0).await?;
    cx.log(
        Level::Info,
        Event::SmsInboundReceived,
        "an SMS was accepted",
        &[
            ("sender", message.from.masked().into()),
            ("provider", message.provider.into()),
            ("characters", message.text.chars().count().into()),
        ],
    );
    Ok(())
}
