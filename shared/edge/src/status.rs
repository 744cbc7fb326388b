//! Status events on their way to the database: put away in slices, recorded by one RPC, whoever's webhook brought them.

use ihuza_core::{
    log::{Event, Level},
    problem::Problem,
    status::DeliveryEvent,
};
use serde_json::{Value, json};

use crate::{
    consume::Verdict,
    context::Cx,
    database, delivery,
    queue::{self, Envelope},
};

/// Events a queue message carries: well under its 100 KB, and one transaction stays short.
const SLICE: usize = 100;

/// Puts `events` away; answers only when all of them are safe.
pub async fn place(cx: &Cx, queue: &'static str, events: &[DeliveryEvent]) -> Result<(), Problem> {
    for slice in events.chunks(SLICE) {
        queue::place(
            cx,
            queue,
            &Envelope::new(&cx.correlation_id, json!({ "events": slice })),
            0,
        )
        .await?;
    }
    Ok(())
}

/// The queue consumer: folds the events into the delivery log and sends off what another channel must carry now.
pub async fn record(cx: Cx, envelope: Envelope) -> Verdict {
    let p = json!({ "correlation_id": cx.correlation_id, "events": envelope.body.get("events") });
    match database::rpc(&cx, "record_delivery_events", &p).await {
        Ok(answer) => {
            let count = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
            cx.log(
                Level::Info,
                Event::DeliveryStatusApplied,
                "status events are in the delivery log",
                &[
                    ("applied", json!(count("applied"))),
                    ("orphaned", json!(count("orphaned"))),
                    ("duplicate", json!(count("duplicate"))),
                ],
            );
            delivery::dispatch_fallbacks(&cx, &answer).await;
            Verdict::Done
        }
        Err(error) => Verdict::after(&error, &envelope),
    }
}
