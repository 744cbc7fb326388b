//! Status events on their way to the database: put away in slices, recorded by one RPC, whoever's webhook brought them.

use ihuza_core::{
    log::{Event, Level},
    status::DeliveryEvent,
};
use serde_json::Value;

use crate::{consume::Verdict, context::Cx, database, delivery, queue::Envelope};
use ihuza_core::json::{Part, items_at, obj, str_at, u32_at};

/// Events a queue message carries: well under its 100 KB, and one transaction stays short.
const SLICE: usize = 100;

/// The events as pieces of work for `queue`.
pub fn work(cx: &Cx, queue: &'static str, events: &[DeliveryEvent]) -> Vec<(&'static str, Envelope)> {
    let slices = events.chunks(SLICE);
    slices.map(|slice| (queue, Envelope::new(&cx.correlation_id, obj(&mut [("events", events_of(slice))])))).collect()
}

fn events_of(slice: &[DeliveryEvent]) -> Part<'static> {
    slice.iter().map(DeliveryEvent::to_value).collect::<Vec<Value>>().into()
}

/// The queue consumer: folds the events into the delivery log and sends off what another channel must carry now.
pub async fn record(cx: Cx, envelope: Envelope) -> Verdict {
    let p = obj(&mut [("correlation_id", (&cx.correlation_id).into()), ("events", envelope.body.get("events").into())]);
    match database::rpc(&cx, "record_delivery_events", &p).await {
        Ok(answer) => {
            let count = |name: &str| u32_at(&answer, name).unwrap_or(0);
            cx.log(
                Level::Info,
                Event::DeliveryStatusApplied,
                "status events are in the delivery log",
                &[
                    ("applied", (count("applied")).into()),
                    ("orphaned", (count("orphaned")).into()),
                    ("duplicate", (count("duplicate")).into()),
                ],
            );
            for reported in items_at(&answer, "deliveries") {
                let text = |name| str_at(reported, name).unwrap_or_default();
                // Under the id of the work that the message belongs to, so that one id tells the whole story.
                let work = str_at(reported, "correlation_id").map_or_else(|| cx.clone(), |id| cx.for_work(id));
                work.log(
                    Level::Info,
                    Event::DeliveryStatusApplied,
                    &format!("a report on the {} message: it is {} now", text("channel"), text("status")),
                    &[
                        ("delivery_id", text("id").into()),
                        ("channel", text("channel").into()),
                        ("status", text("status").into()),
                        ("report_id", (&cx.correlation_id).into()),
                    ],
                );
            }
            delivery::dispatch_fallbacks(&cx, &answer).await;
            Verdict::Done
        }
        Err(error) => Verdict::after(&error, &envelope),
    }
}
