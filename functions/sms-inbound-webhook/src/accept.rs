//! Takes inbound SMS and puts each where it is safe; answers only then.

use ihuza_core::json::obj;
use ihuza_core::{
    channel::Channel,
    flood::Keys,
    log::{Event, Level},
    mtn::{self, InboundSms},
    problem::Problem,
    turn::Inbound,
};
use ihuza_edge::{
    carrier::{self, Proof},
    context::Cx,
    decision::Line,
    endpoint::{Call, Outcome},
    flood, host,
    queue::Envelope,
    reply::Reply,
};

use serde_json::Value;

use crate::ENDPOINT;

pub fn inbound(call: Call) -> Result<Outcome, Problem> {
    let body = call.request.body()?;
    let proof = carrier::authenticate(&call, body, call.cx.config.flag("IHUZA_COMPAT_INBOUND_AUTH"))?;
    let inbound = mtn::parse_inbound(call.request.header("content-type"), body, host::now())?;
    let mut lines = Vec::new();
    for reason in &inbound.ignored {
        lines.push(call.cx.line(
            Level::Info,
            Event::SmsInboundRefused,
            &["an inbound SMS is left alone: ", reason].concat(),
            &[("reason", (*reason).into())],
        ));
    }
    let mut work = Vec::with_capacity(inbound.messages.len());
    let mut senders = Vec::with_capacity(inbound.messages.len());
    for message in &inbound.messages {
        // Several messages in one body are several pieces of work, each with its own thread through the logs.
        let cx = if inbound.messages.len() == 1 { call.cx.clone() } else { call.cx.for_work(&host::new_uuid()) };
        lines.push(accepted(&cx, message));
        let (home, unsigned) = (call.cx.config.text("HOME_PREFIXES"), proof == Proof::Nothing);
        let keys = Keys::of(Channel::Sms, Some(&message.from), None, home, unsigned);
        senders.extend(keys.map(|keys| (work.len(), keys)));
        work.push((ENDPOINT.queue, Envelope::new(&cx.correlation_id, work_of(message, proof))));
    }
    // What is sound in a body is kept; only a body with nothing sound in it is refused.
    match inbound.refused.into_iter().next() {
        Some(problem) if work.is_empty() => return Err(problem),
        Some(problem) => lines.push(call.cx.line(
            Level::Warn,
            Event::SmsInboundRefused,
            problem.title,
            &[("type", problem.type_slug.into())],
        )),
        None => {}
    }
    let ids: Vec<&str> = work.iter().map(|(_, envelope)| envelope.correlation_id.as_str()).collect();
    let reply = Reply::json(
        200,
        &obj(&mut [
            ("status", "accepted".into()),
            ("messages", work.len().into()),
            ("ignored", inbound.ignored.len().into()),
            ("correlation_ids", ids.into()),
        ]),
    );
    Ok(flood::accepted(call.cx, &call.request, work, senders, reply, lines))
}

fn accepted(cx: &Cx, message: &InboundSms) -> Line {
    cx.line(
        Level::Info,
        Event::SmsInboundReceived,
        "an SMS was accepted",
        &[
            ("sender", message.from.masked().into()),
            ("provider", message.provider.into()),
            ("characters", message.text.chars().count().into()),
        ],
    )
}

fn work_of(message: &InboundSms, proof: Proof) -> Value {
    Inbound {
        channel: Channel::Sms,
        provider: message.provider,
        provider_message_id: &message.provider_message_id,
        from: Some(message.from.as_str()),
        user_id: None,
        display_name: None,
        to: &message.to,
        text: &message.text,
        voice_note: None,
        wants_answer: true,
        received_at: message.received_at,
        reported_at: message.reported_at,
        unsigned: proof == Proof::Nothing,
    }
    .work()
}
